// Row normalisation in f32.
//   layer_norm     y = (x - mean) inv w + b,  inv = 1 / sqrt(var + eps)      Ba, Kiros, Hinton 2016
//   l2_normalize   y = x / max(|x|, eps)
// Gradients of w and b are sums over rows and split by columns; everything else is split by rows.
#include "cpu/cpu.h"
#include "cpu/split.h"

#include <cmath>
#include <limits>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/norm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/rows-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

// ---- layer norm ----

struct Normalise {
  float mean, inv;
  HWY_INLINE V hat(D d, V x) const {
    return hn::Mul(hn::Sub(x, hn::Set(d, mean)), hn::Set(d, inv));
  }
  HWY_INLINE V operator()(D d, V x, V w, V b) const { return hn::MulAdd(hat(d, x), w, b); }
};

// (x - mean)^2, which does not cancel as mean(x^2) - mean^2 would
struct SquareAbout {
  float mean;
  HWY_INLINE V operator()(D d, V x) const {
    const V off = hn::Sub(x, hn::Set(d, mean));
    return hn::Mul(off, off);
  }
};

// mean, inv: of these rows, or null
HWY_NOINLINE void layer_norm_part(Rows<const float> x, const float* w, const float* b, float eps,
                                  Rows<float> y, float* mean, float* inv) {
  const float size = static_cast<float>(x.cols);
  for (Index t = 0; t < x.rows; ++t) {
    const float m = row_sum(Itself(), 0, x.cols, x[t]) / size;
    const float i = 1 / std::sqrt(row_sum(SquareAbout{m}, m, x.cols, x[t]) / size + eps);
    map_row(Normalise{m, i}, x.cols, y[t], x[t], w, b);
    if (mean != nullptr) mean[t] = m;
    if (inv != nullptr) inv[t] = i;
  }
}

// g xh = dy w xh
struct GradientAlong {
  Normalise normalise;
  HWY_INLINE V operator()(D d, V x, V w, V dy) const {
    return hn::Mul(hn::Mul(dy, w), normalise.hat(d, x));
  }
};
// dx + inv (g - mean_g - xh mean_gxh)
struct AddInputGradient {
  Normalise normalise;
  float mean_g, mean_gxh;
  HWY_INLINE V operator()(D d, V x, V w, V dy, V dx) const {
    const V g = hn::Sub(hn::Mul(dy, w), hn::Set(d, mean_g));
    const V along = hn::NegMulAdd(normalise.hat(d, x), hn::Set(d, mean_gxh), g);
    return hn::MulAdd(hn::Set(d, normalise.inv), along, dx);
  }
};

HWY_NOINLINE void layer_norm_input_grad_part(Rows<const float> x, const float* w, const float* mean,
                                             const float* inv, Rows<const float> dy,
                                             Rows<float> dx) {
  const float size = static_cast<float>(x.cols);
  for (Index t = 0; t < x.rows; ++t) {
    const Normalise normalise{mean[t], inv[t]};
    const float mean_g = row_sum(Product(), 0, x.cols, dy[t], w) / size;
    const float mean_gxh = row_sum(GradientAlong{normalise}, 0, x.cols, x[t], w, dy[t]) / size;
    map_row(AddInputGradient{normalise, mean_g, mean_gxh}, x.cols, dx[t], x[t], w, dy[t], dx[t]);
  }
}

// dw += sum_t dy xh   db += sum_t dy   for `vectors` vectors of columns, or the first `rest` of one
template <int vectors>
HWY_INLINE void weight_grad_columns(Rows<const float> x, const float* mean, const float* inv,
                                    Rows<const float> dy, Index c, Index rest, float* dw,
                                    float* db) {
  const D d;
  V total_w[vectors], total_b[vectors];
  for (int i = 0; i < vectors; ++i) total_w[i] = total_b[i] = hn::Zero(d);
  for (Index first = 0; first < x.rows; first += row_block) {
    const Index end = HWY_MIN(x.rows, first + row_block);
    V sum_w[vectors], sum_b[vectors];
    for (int i = 0; i < vectors; ++i) sum_w[i] = sum_b[i] = hn::Zero(d);
    for (Index t = first; t < end; ++t) {
      const Normalise normalise{mean[t], inv[t]};
      for (int i = 0; i < vectors; ++i) {
        const Index at = c + i * lanes;
        const V g = load_some(d, dy[t] + at, rest);
        const V v = load_some(d, x[t] + at, rest);
        sum_w[i] = hn::MulAdd(g, normalise.hat(d, v), sum_w[i]);
        sum_b[i] = hn::Add(sum_b[i], g);
      }
    }
    for (int i = 0; i < vectors; ++i) {
      total_w[i] = hn::Add(total_w[i], sum_w[i]);
      total_b[i] = hn::Add(total_b[i], sum_b[i]);
    }
  }
  for (int i = 0; i < vectors; ++i) {
    const Index at = c + i * lanes;
    if (dw != nullptr)
      store_some(d, hn::Add(load_some(d, dw + at, rest), total_w[i]), dw + at, rest);
    if (db != nullptr)
      store_some(d, hn::Add(load_some(d, db + at, rest), total_b[i]), db + at, rest);
  }
}

HWY_NOINLINE void layer_norm_weight_grad_part(Rows<const float> x, const float* mean,
                                              const float* inv, Rows<const float> dy, float* dw,
                                              float* db) {
  Index c = 0;
  for (; c + 4 * lanes <= x.cols; c += 4 * lanes)
    weight_grad_columns<4>(x, mean, inv, dy, c, lanes, dw, db);
  for (; c < x.cols; c += lanes)
    weight_grad_columns<1>(x, mean, inv, dy, c, HWY_MIN(lanes, x.cols - c), dw, db);
}

// ---- unit rows ----

struct Square {
  HWY_INLINE V operator()(D, V x) const { return hn::Mul(x, x); }
};
// dx + (dy - y along) / by
struct AddUnitGradient {
  float along, by;
  HWY_INLINE V operator()(D d, V y, V dy, V dx) const {
    const V across = hn::NegMulAdd(y, hn::Set(d, along), dy);
    return hn::Add(dx, hn::Div(across, hn::Set(d, by)));
  }
};

HWY_NOINLINE void l2_normalize_part(Rows<const float> x, float eps, Rows<float> y, float* norm) {
  for (Index t = 0; t < x.rows; ++t) {
    const float n = std::sqrt(row_sum(Square(), 0, x.cols, x[t]));
    map_row(Divide{n < eps ? eps : n}, x.cols, y[t], x[t]);
    if (norm != nullptr) norm[t] = n;
  }
}

HWY_NOINLINE void l2_normalize_backward_part(Rows<const float> y, const float* norm, float eps,
                                             Rows<const float> dy, Rows<float> dx) {
  for (Index t = 0; t < y.rows; ++t) {
    const float n = norm[t];
    const float along = n > eps ? row_sum(Product(), 0, y.cols, y[t], dy[t]) : 0;
    map_row(AddUnitGradient{along, n < eps ? eps : n}, y.cols, dx[t], y[t], dy[t], dx[t]);
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::cpu {
namespace {

HWY_EXPORT(layer_norm_part);
HWY_EXPORT(layer_norm_input_grad_part);
HWY_EXPORT(layer_norm_weight_grad_part);
HWY_EXPORT(l2_normalize_part);
HWY_EXPORT(l2_normalize_backward_part);

// Statistics and gradients may be absent.
template <class T>
T* from(T* pointer, Index offset) {
  return pointer == nullptr ? nullptr : pointer + offset;
}

void layer_norm(Rows<const float> x, const float* w, const float* b, double eps, Rows<float> y,
                float* mean, float* inv) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(layer_norm_part);
  parallel_for(x.rows, row_grain(x.cols), [&](Index begin, Index end) {
    kernel(rows_part(x, begin, end), w, b, static_cast<float>(eps), rows_part(y, begin, end),
           from(mean, begin), from(inv, begin));
  });
}

void layer_norm_backward(Rows<const float> x, const float* w, const float* mean, const float* inv,
                         Rows<const float> dy, Rows<float> dx, float* dw, float* db) {
  const auto input_grad = HWY_DYNAMIC_DISPATCH(layer_norm_input_grad_part);
  const auto weight_grad = HWY_DYNAMIC_DISPATCH(layer_norm_weight_grad_part);
  if (dx)
    parallel_for(x.rows, row_grain(x.cols), [&](Index begin, Index end) {
      input_grad(rows_part(x, begin, end), w, mean + begin, inv + begin, rows_part(dy, begin, end),
                 rows_part(dx, begin, end));
    });
  if (dw != nullptr || db != nullptr)
    parallel_for(x.cols, column_grain(x.rows), [&](Index begin, Index end) {
      weight_grad(columns_part(x, begin, end), mean, inv, columns_part(dy, begin, end),
                  from(dw, begin), from(db, begin));
    });
}

void l2_normalize(Rows<const float> x, double eps, Rows<float> y, float* norm) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(l2_normalize_part);
  parallel_for(x.rows, row_grain(x.cols), [&](Index begin, Index end) {
    kernel(rows_part(x, begin, end), static_cast<float>(eps), rows_part(y, begin, end),
           from(norm, begin));
  });
}

void l2_normalize_backward(Rows<const float> y, const float* norm, double eps, Rows<const float> dy,
                           Rows<float> dx) {
  if (!dx) return;
  const auto kernel = HWY_DYNAMIC_DISPATCH(l2_normalize_backward_part);
  parallel_for(y.rows, row_grain(y.cols), [&](Index begin, Index end) {
    kernel(rows_part(y, begin, end), norm + begin, static_cast<float>(eps),
           rows_part(dy, begin, end), rows_part(dx, begin, end));
  });
}

}  // namespace

void fill_norm(Kernels<float>& table) {
  table.layer_norm = layer_norm;
  table.layer_norm_backward = layer_norm_backward;
  table.l2_normalize = l2_normalize;
  table.l2_normalize_backward = l2_normalize_backward;
}

}  // namespace moe::cpu
#endif  // HWY_ONCE
