// Element-by-element kernels: the definition. Rows of T; t counts rows, d columns. Functions and
// sums are computed in double and rounded once, where the result is stored.
#include "cpu/cpu.h"
#include "cpu/reference/functions.h"

namespace moe::reference {

namespace {

// y[t][d] = f(t, d) for every element, or y += f. An empty y is skipped.
template <class T, class F>
void set_each(Rows<T> y, F f) {
  if (!y) return;
  for (Index t = 0; t < y.rows; ++t)
    for (Index d = 0; d < y.cols; ++d) y[t][d] = static_cast<T>(f(t, d));
}
template <class T, class F>
void add_each(Rows<T> y, F f) {
  if (!y) return;
  for (Index t = 0; t < y.rows; ++t)
    for (Index d = 0; d < y.cols; ++d) y[t][d] = static_cast<T>(y[t][d] + f(t, d));
}

template <class T>
void copy(Rows<const T> x, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return x[t][d]; });
}

template <class T>
void add(Rows<const T> a, Rows<const T> b, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return a[t][d] + b[t][d]; });
}

template <class T>
void accumulate(Rows<const T> x, double factor, Rows<T> y) {
  add_each(y, [=](Index t, Index d) { return factor * x[t][d]; });
}

template <class T>
void scale(Rows<const T> x, double factor, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return factor * x[t][d]; });
}

// y = s x     dx += s dy     ds += sum x dy
template <class T>
void scale_by(Rows<const T> x, const Stat<T>* s, Rows<T> y) {
  scale<T>(x, s[0], y);
}
template <class T>
void scale_by_backward(Rows<const T> x, const Stat<T>* s, Rows<const T> dy, Rows<T> dx,
                       Stat<T>* ds) {
  accumulate<T>(dy, s[0], dx);
  if (ds == nullptr) return;
  double sum = 0;
  for (Index t = 0; t < x.rows; ++t)
    for (Index d = 0; d < x.cols; ++d) sum += double{x[t][d]} * dy[t][d];
  ds[0] = static_cast<Stat<T>>(ds[0] + sum);
}

// y = a b     da += dy b     db += dy a         one after the other: a and b may be the same tensor
template <class T>
void mul(Rows<const T> a, Rows<const T> b, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return a[t][d] * b[t][d]; });
}
template <class T>
void mul_backward(Rows<const T> a, Rows<const T> b, Rows<const T> dy, Rows<T> da, Rows<T> db) {
  add_each(da, [=](Index t, Index d) { return double{dy[t][d]} * b[t][d]; });
  add_each(db, [=](Index t, Index d) { return double{dy[t][d]} * a[t][d]; });
}

// y = f(x)     dx = beta dx + f'(x) dy          beta 0 does not read dx, which may be new memory
template <class T>
void activate(Activation f, Rows<const T> x, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return activation(f, x[t][d]); });
}
template <class T>
void activate_backward(Activation f, Rows<const T> x, Rows<const T> dy, double beta, Rows<T> dx) {
  set_each(dx, [=](Index t, Index d) {
    double old = beta == 0 ? 0 : beta * dx[t][d];
    return old + activation_slope(f, x[t][d]) * dy[t][d];
  });
}

// m = 1 / (1 - rate) where kept, else 0     y = m x     dx += m dy
double keep_factor(const Dice& dice, double rate, Index row, Index column) {
  return dice.word(row, column) < drop_threshold(rate) ? 0 : 1 / (1 - rate);
}
template <class T>
void dropout(Rows<const T> x, Dice dice, double rate, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return keep_factor(dice, rate, t, d) * x[t][d]; });
}
template <class T>
void dropout_backward(Rows<const T> dy, Dice dice, double rate, Rows<T> dx) {
  add_each(dx, [=](Index t, Index d) { return keep_factor(dice, rate, t, d) * dy[t][d]; });
}

// db[d] += sum_t dy[t][d]
template <class T>
void sum_rows(Rows<const T> dy, Stat<T>* db) {
  if (db == nullptr) return;
  for (Index d = 0; d < dy.cols; ++d) {
    double sum = 0;
    for (Index t = 0; t < dy.rows; ++t) sum += dy[t][d];
    db[d] = static_cast<Stat<T>>(db[d] + sum);
  }
}

template <class T>
void random_uniform(Dice dice, Rows<T> y) {
  set_each(y, [=](Index t, Index d) { return unit_real(dice.word(t, d)); });
}

// Columns 2i and 2i+1 share a word pair: its cosine and its sine branch.
template <class T>
void random_normal(Dice dice, Rows<T> y) {
  set_each(y, [=](Index t, Index d) {
    Index even = d / 2 * 2;
    return normal_real(dice.word(t, even), dice.word(t, even + 1), d == even);
  });
}

}  // namespace

template <class T>
void fill_pointwise(Kernels<T>& table) {
  table.copy = copy<T>;
  table.add = add<T>;
  table.accumulate = accumulate<T>;
  table.scale = scale<T>;
  table.scale_by = scale_by<T>;
  table.scale_by_backward = scale_by_backward<T>;
  table.mul = mul<T>;
  table.mul_backward = mul_backward<T>;
  table.activate = activate<T>;
  table.activate_backward = activate_backward<T>;
  table.dropout = dropout<T>;
  table.dropout_backward = dropout_backward<T>;
  table.sum_rows = sum_rows<T>;
  table.random_uniform = random_uniform<T>;
  table.random_normal = random_normal<T>;
}

template void fill_pointwise(Kernels<float>&);
template void fill_pointwise(Kernels<double>&);

}  // namespace moe::reference
