// Element-by-element kernels in f32, and sums over rows.
//   map      y = op(x...) for every element, one vector at a time; the last of a row under a mask
//   dropout  Philox words for 256 columns at a time, then a map
//   sums     four vectors of columns in registers, rows in blocks and in order
// All are bound by memory once the data leaves L2, except activations (about one element a clock)
// and dropout (half of one).
#include "cpu/cpu.h"
#include "cpu/split.h"

#include <cstring>
#include <limits>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/pointwise.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/rows-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

// y[t] = op(in[t]...) row by row; an input may be y itself.
template <class Op, class... In>
HWY_INLINE void map(const Op& op, Rows<float> y, In... in) {
  for (Index t = 0; t < y.rows; ++t) map_row(op, y.cols, y[t], static_cast<const float*>(in[t])...);
}

struct Sum {
  HWY_INLINE V operator()(D, V a, V b) const { return hn::Add(a, b); }
};
struct AddProduct {
  HWY_INLINE V operator()(D, V a, V b, V y) const { return hn::MulAdd(a, b, y); }
};
struct Scale {
  float factor;
  HWY_INLINE V operator()(D d, V x) const { return hn::Mul(hn::Set(d, factor), x); }
};
struct AddScaled {
  float factor;
  HWY_INLINE V operator()(D d, V x, V y) const { return hn::MulAdd(hn::Set(d, factor), x, y); }
};

HWY_NOINLINE void add_part(Rows<const float> a, Rows<const float> b, Rows<float> y) {
  map(Sum(), y, a, b);
}
HWY_NOINLINE void mul_part(Rows<const float> a, Rows<const float> b, Rows<float> y) {
  map(Product(), y, a, b);
}
HWY_NOINLINE void add_product_part(Rows<const float> a, Rows<const float> b, Rows<float> y) {
  map(AddProduct(), y, a, b, y);
}
HWY_NOINLINE void scale_part(Rows<const float> x, float factor, Rows<float> y) {
  map(Scale{factor}, y, x);
}
HWY_NOINLINE void accumulate_part(Rows<const float> x, float factor, Rows<float> y) {
  map(AddScaled{factor}, y, x, y);
}

// ---- activations ----

template <V f(D, V)>
struct Apply {
  HWY_INLINE V operator()(D d, V x) const { return f(d, x); }
};
// f'(x) dy [+ beta dx]
template <V slope(D, V)>
struct Backward {
  float beta;
  HWY_INLINE V operator()(D d, V x, V dy) const { return hn::Mul(slope(d, x), dy); }
  HWY_INLINE V operator()(D d, V x, V dy, V dx) const {
    return hn::MulAdd(hn::Set(d, beta), dx, hn::Mul(slope(d, x), dy));
  }
};

HWY_INLINE V one_slope(D d, V) {
  return hn::Set(d, 1.0f);
}
HWY_INLINE V relu_slope(D d, V x) {
  return hn::IfThenElseZero(hn::Gt(x, hn::Zero(d)), hn::Set(d, 1.0f));
}
HWY_INLINE V tanh_slope(D d, V x) {
  V slope;
  sigmoid_and_slope(d, hn::Add(x, x), slope);
  return hn::Mul(slope, hn::Set(d, 4.0f));
}
HWY_INLINE V sigmoid_slope(D d, V x) {
  V slope;
  sigmoid_and_slope(d, x, slope);
  return slope;
}

template <V f(D, V)>
HWY_NOINLINE void apply(Rows<const float> x, Rows<float> y) {
  map(Apply<f>(), y, x);
}
HWY_NOINLINE void activate_part(Activation f, Rows<const float> x, Rows<float> y) {
  switch (f) {
    case Activation::none:
      return map(Scale{1}, y, x);
    case Activation::relu:
      return apply<relu<D>>(x, y);
    case Activation::gelu:
      return apply<gelu<D>>(x, y);
    case Activation::gelu_tanh:
      return apply<gelu_tanh<D>>(x, y);
    case Activation::tanh:
      return apply<tanh<D>>(x, y);
    case Activation::sigmoid:
      return apply<sigmoid<D>>(x, y);
    case Activation::softplus:
      return apply<softplus<D>>(x, y);
  }
}

// beta 0 does not read dx, which may be new memory, or dy itself.
template <V slope(D, V)>
HWY_NOINLINE void backward(Rows<const float> x, Rows<const float> dy, float beta, Rows<float> dx) {
  if (beta == 0)
    map(Backward<slope>{0}, dx, x, dy);
  else
    map(Backward<slope>{beta}, dx, x, dy, dx);
}
HWY_NOINLINE void activate_backward_part(Activation f, Rows<const float> x, Rows<const float> dy,
                                         float beta, Rows<float> dx) {
  switch (f) {
    case Activation::none:
      return backward<one_slope>(x, dy, beta, dx);
    case Activation::relu:
      return backward<relu_slope>(x, dy, beta, dx);
    case Activation::gelu:
      return backward<gelu_slope<D>>(x, dy, beta, dx);
    case Activation::gelu_tanh:
      return backward<gelu_tanh_slope<D>>(x, dy, beta, dx);
    case Activation::tanh:
      return backward<tanh_slope>(x, dy, beta, dx);
    case Activation::sigmoid:
      return backward<sigmoid_slope>(x, dy, beta, dx);
    case Activation::softplus:
      return backward<sigmoid<D>>(x, dy, beta, dx);
  }
}

// ---- dropout ----

// x factor where kept, else 0: dropped where the word is below the threshold
HWY_INLINE V kept(D d, V x, float factor, const std::uint32_t* words, std::uint32_t threshold) {
  const hn::Repartition<std::uint32_t, D> d32;
  const auto dropped = hn::Lt(hn::LoadU(d32, words), hn::Set(d32, threshold));
  return hn::IfThenZeroElse(hn::RebindMask(d, dropped), hn::Mul(x, hn::Set(d, factor)));
}

// y = kept(x), or y += kept(x); the row numbers count from dice.row0
HWY_NOINLINE void dropout_part(Rows<const float> x, const Dice& dice, std::uint32_t threshold,
                               float factor, bool add, Rows<float> y) {
  const D d;
  constexpr Index chunk = 256;
  HWY_ALIGN std::uint32_t words[chunk + dice_slack + lanes] = {};  // a tail reads whole vectors
  for (Index t = 0; t < x.rows; ++t)
    for (Index first = 0; first < x.cols; first += chunk) {
      const Index count = HWY_MIN(chunk, x.cols - first);
      const float* from = x[t] + first;
      float* to = y[t] + first;
      dice_words(dice, t, first / 4, (count + 3) / 4, words);
      for (Index c = 0; c < count; c += lanes) {
        const Index rest = HWY_MIN(lanes, count - c);
        V v = kept(d, load_some(d, from + c, rest), factor, words + c, threshold);
        if (add) v = hn::Add(load_some(d, to + c, rest), v);
        store_some(d, v, to + c, rest);
      }
    }
}

// ---- sums ----

// db[c..] += sum_t dy[t][c..] for `vectors` vectors of columns, or the first `rest` lanes of one
template <int vectors>
HWY_INLINE void sum_columns(Rows<const float> dy, Index c, Index rest, float* db) {
  const D d;
  V total[vectors];
  for (int i = 0; i < vectors; ++i) total[i] = hn::Zero(d);
  for (Index first = 0; first < dy.rows; first += row_block) {
    const Index end = HWY_MIN(dy.rows, first + row_block);
    V sum[vectors];
    for (int i = 0; i < vectors; ++i) sum[i] = hn::Zero(d);
    for (Index t = first; t < end; ++t)
      for (int i = 0; i < vectors; ++i) {
        const float* from = dy[t] + c + i * lanes;
        sum[i] = hn::Add(sum[i], load_some(d, from, rest));
      }
    for (int i = 0; i < vectors; ++i) total[i] = hn::Add(total[i], sum[i]);
  }
  for (int i = 0; i < vectors; ++i) {
    float* to = db + c + i * lanes;
    store_some(d, hn::Add(load_some(d, to, rest), total[i]), to, rest);
  }
}

HWY_NOINLINE void sum_rows_part(Rows<const float> dy, float* db) {
  Index c = 0;
  for (; c + 4 * lanes <= dy.cols; c += 4 * lanes) sum_columns<4>(dy, c, lanes, db);
  for (; c < dy.cols; c += lanes) sum_columns<1>(dy, c, HWY_MIN(lanes, dy.cols - c), db);
}

// sum over all elements of a b
HWY_NOINLINE double dot_all(Rows<const float> a, Rows<const float> b) {
  double total = 0;
  for (Index t = 0; t < a.rows; ++t) total += row_sum(Product(), 0, a.cols, a[t], b[t]);
  return total;
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::cpu {
namespace {

HWY_EXPORT(add_part);
HWY_EXPORT(mul_part);
HWY_EXPORT(add_product_part);
HWY_EXPORT(scale_part);
HWY_EXPORT(accumulate_part);
HWY_EXPORT(activate_part);
HWY_EXPORT(activate_backward_part);
HWY_EXPORT(dropout_part);
HWY_EXPORT(sum_rows_part);
HWY_EXPORT(dot_all);

void copy(Rows<const float> x, Rows<float> y) {
  for_parts(
      [](Rows<const float> from, Rows<float> to) {
        for (Index t = 0; t < to.rows; ++t)
          std::memcpy(to[t], from[t], static_cast<std::size_t>(to.cols) * sizeof(float));
      },
      x, y);
}

void add(Rows<const float> a, Rows<const float> b, Rows<float> y) {
  for_parts(HWY_DYNAMIC_DISPATCH(add_part), a, b, y);
}

void scaled(Rows<const float> x, float factor, Rows<float> y) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(scale_part);
  for_parts([=](Rows<const float> from, Rows<float> to) { kernel(from, factor, to); }, x, y);
}
void add_scaled(Rows<const float> x, float factor, Rows<float> y) {
  if (!y) return;
  const auto kernel = HWY_DYNAMIC_DISPATCH(accumulate_part);
  for_parts([=](Rows<const float> from, Rows<float> to) { kernel(from, factor, to); }, x, y);
}

void accumulate(Rows<const float> x, double factor, Rows<float> y) {
  add_scaled(x, static_cast<float>(factor), y);
}
void scale(Rows<const float> x, double factor, Rows<float> y) {
  scaled(x, static_cast<float>(factor), y);
}

void scale_by(Rows<const float> x, const float* s, Rows<float> y) {
  scaled(x, s[0], y);
}
void scale_by_backward(Rows<const float> x, const float* s, Rows<const float> dy, Rows<float> dx,
                       float* ds) {
  add_scaled(dy, s[0], dx);
  // One number, so one thread: a shared sum would depend on how it was shared.
  if (ds != nullptr) ds[0] = static_cast<float>(ds[0] + HWY_DYNAMIC_DISPATCH(dot_all)(x, dy));
}

void mul(Rows<const float> a, Rows<const float> b, Rows<float> y) {
  for_parts(HWY_DYNAMIC_DISPATCH(mul_part), a, b, y);
}
// One gradient after the other: a and b may be the same tensor, and da and db then the same memory.
void mul_backward(Rows<const float> a, Rows<const float> b, Rows<const float> dy, Rows<float> da,
                  Rows<float> db) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(add_product_part);
  if (da) for_parts(kernel, dy, b, da);
  if (db) for_parts(kernel, dy, a, db);
}

void activate(Activation f, Rows<const float> x, Rows<float> y) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(activate_part);
  for_parts([=](Rows<const float> from, Rows<float> to) { kernel(f, from, to); }, x, y);
}
void activate_backward(Activation f, Rows<const float> x, Rows<const float> dy, double beta,
                       Rows<float> dx) {
  if (!dx) return;
  const auto kernel = HWY_DYNAMIC_DISPATCH(activate_backward_part);
  const float factor = static_cast<float>(beta);
  for_parts([=](Rows<const float> at, Rows<const float> from,
                Rows<float> to) { kernel(f, at, from, factor, to); },
            x, dy, dx);
}

// By rows: a word depends on the row's number.
void drop(Rows<const float> x, const Dice& dice, double rate, bool add_to, Rows<float> y) {
  if (!y) return;
  const auto kernel = HWY_DYNAMIC_DISPATCH(dropout_part);
  const float factor = static_cast<float>(1 / (1 - rate));
  parallel_for(x.rows, row_grain(x.cols), [&](Index begin, Index end) {
    Dice part = dice;
    part.row0 += begin;
    kernel(rows_part(x, begin, end), part, drop_threshold(rate), factor, add_to,
           rows_part(y, begin, end));
  });
}
void dropout(Rows<const float> x, Dice dice, double rate, Rows<float> y) {
  drop(x, dice, rate, false, y);
}
void dropout_backward(Rows<const float> dy, Dice dice, double rate, Rows<float> dx) {
  drop(dy, dice, rate, true, dx);
}

void sum_rows(Rows<const float> dy, float* db) {
  if (db == nullptr) return;
  const auto kernel = HWY_DYNAMIC_DISPATCH(sum_rows_part);
  parallel_for(dy.cols, column_grain(dy.rows),
               [&](Index begin, Index end) { kernel(columns_part(dy, begin, end), db + begin); });
}

}  // namespace

void fill_pointwise(Kernels<float>& table) {
  table.copy = copy;
  table.add = add;
  table.accumulate = accumulate;
  table.scale = scale;
  table.scale_by = scale_by;
  table.scale_by_backward = scale_by_backward;
  table.mul = mul;
  table.mul_backward = mul_backward;
  table.activate = activate;
  table.activate_backward = activate_backward;
  table.dropout = dropout;
  table.dropout_backward = dropout_backward;
  table.sum_rows = sum_rows;
}

}  // namespace moe::cpu
#endif  // HWY_ONCE
