// Softmax over the columns of each row in f32.
//   softmax       peak; terms exp(x - peak); their sum; the quotient
//   log_softmax   peak; sum of exp(x - peak); x - peak - log(sum)
// Rows are split among threads.
#include "cpu/cpu.h"
#include "cpu/split.h"

#include <cmath>
#include <limits>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/softmax.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/rows-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// e^(x - peak). A NaN that the maximum passed over appears here, and spreads by the sum.
struct Exponential {
  float peak;
  HWY_INLINE V operator()(D d, V x) const { return exp(d, hn::Sub(x, hn::Set(d, peak))); }
};

HWY_NOINLINE void softmax_part(Rows<const float> x, Rows<float> y) {
  for (Index t = 0; t < x.rows; ++t) {
    map_row(Exponential{row_max(x.cols, x[t])}, x.cols, y[t], x[t]);
    const float* terms = y[t];
    map_row(Divide{row_sum(Itself(), 0, x.cols, terms)}, x.cols, y[t], terms);
  }
}

// dx + y (dy - dot)
struct AddSoftmaxGradient {
  float dot;
  HWY_INLINE V operator()(D d, V y, V dy, V dx) const {
    return hn::MulAdd(y, hn::Sub(dy, hn::Set(d, dot)), dx);
  }
};
// dx += y (dy - sum_c y dy)
HWY_NOINLINE void softmax_backward_part(Rows<const float> y, Rows<const float> dy, Rows<float> dx) {
  for (Index t = 0; t < y.rows; ++t) {
    const float dot = row_sum(Product(), 0, y.cols, y[t], dy[t]);
    map_row(AddSoftmaxGradient{dot}, y.cols, dx[t], y[t], dy[t], dx[t]);
  }
}

struct SubtractBoth {
  float peak, log_sum;
  HWY_INLINE V operator()(D d, V x) const {
    return hn::Sub(hn::Sub(x, hn::Set(d, peak)), hn::Set(d, log_sum));
  }
};
HWY_NOINLINE void log_softmax_part(Rows<const float> x, Rows<float> y) {
  for (Index t = 0; t < x.rows; ++t) {
    const float peak = row_max(x.cols, x[t]);
    const float sum = row_sum(Exponential{peak}, minus_infinity, x.cols, x[t]);
    map_row(SubtractBoth{peak, std::log(sum)}, x.cols, y[t], x[t]);
  }
}

// dx + dy - e^y sum
struct AddLogSoftmaxGradient {
  float sum;
  HWY_INLINE V operator()(D d, V y, V dy, V dx) const {
    return hn::Add(dx, hn::NegMulAdd(exp(d, y), hn::Set(d, sum), dy));
  }
};
// dx += dy - exp(y) sum_c dy
HWY_NOINLINE void log_softmax_backward_part(Rows<const float> y, Rows<const float> dy,
                                            Rows<float> dx) {
  for (Index t = 0; t < y.rows; ++t) {
    const float sum = row_sum(Itself(), 0, y.cols, dy[t]);
    map_row(AddLogSoftmaxGradient{sum}, y.cols, dx[t], y[t], dy[t], dx[t]);
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::cpu {
namespace {

HWY_EXPORT(softmax_part);
HWY_EXPORT(softmax_backward_part);
HWY_EXPORT(log_softmax_part);
HWY_EXPORT(log_softmax_backward_part);

// kernel(these rows of each operand); an absent gradient is skipped
template <class Kernel, class... T>
void by_rows(Kernel kernel, Rows<float> out, Rows<T>... in) {
  if (!out) return;
  parallel_for(out.rows, row_grain(out.cols), [&](Index begin, Index end) {
    kernel(rows_part(in, begin, end)..., rows_part(out, begin, end));
  });
}

void softmax(Rows<const float> x, Rows<float> y) {
  by_rows(HWY_DYNAMIC_DISPATCH(softmax_part), y, x);
}
void softmax_backward(Rows<const float> y, Rows<const float> dy, Rows<float> dx) {
  by_rows(HWY_DYNAMIC_DISPATCH(softmax_backward_part), dx, y, dy);
}
void log_softmax(Rows<const float> x, Rows<float> y) {
  by_rows(HWY_DYNAMIC_DISPATCH(log_softmax_part), y, x);
}
void log_softmax_backward(Rows<const float> y, Rows<const float> dy, Rows<float> dx) {
  by_rows(HWY_DYNAMIC_DISPATCH(log_softmax_backward_part), dx, y, dy);
}

}  // namespace

void fill_softmax(Kernels<float>& table) {
  table.softmax = softmax;
  table.softmax_backward = softmax_backward;
  table.log_softmax = log_softmax;
  table.log_softmax_backward = log_softmax_backward;
}

}  // namespace moe::cpu
#endif  // HWY_ONCE
