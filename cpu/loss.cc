// Cross entropy over rows of logits: peak, sum of exponentials, loss; f32 with the sum over rows in
// double, in order.
//   loss = factor sum_t (lse_t - x[t,target_t])     dx += dloss factor (exp(x - lse) - [target])
#include "cpu/cpu.h"
#include "runtime/kernels.h"
#include "runtime/parallel.h"

#include <algorithm>
#include <cmath>
#include <limits>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/loss.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

// log sum exp of n logits; minus infinity when all are.
HWY_NOINLINE float log_sum_exp(const float* x, Index n) {
  const hn::ScalableTag<float> d;
  const Index lanes = static_cast<Index>(hn::Lanes(d));
  const float lowest = -std::numeric_limits<float>::infinity();
  auto peaks = hn::Set(d, lowest);
  Index c = 0;
  for (; c + lanes <= n; c += lanes) peaks = hn::Max(peaks, hn::LoadU(d, x + c));
  if (c < n) {
    const auto inside = hn::FirstN(d, static_cast<std::size_t>(n - c));
    peaks = hn::Max(peaks, hn::IfThenElse(inside, load_tail(d, x + c, n - c), hn::Set(d, lowest)));
  }
  const float peak = reduce_max(d, peaks);
  if (peak == lowest) return lowest;
  const auto shift = hn::Set(d, peak);
  auto sums = hn::Zero(d);
  for (c = 0; c + lanes <= n; c += lanes)
    sums = hn::Add(sums, exp(d, hn::Sub(hn::LoadU(d, x + c), shift)));
  if (c < n) {
    const auto inside = hn::FirstN(d, static_cast<std::size_t>(n - c));
    sums = hn::Add(sums,
                   hn::IfThenElseZero(inside, exp(d, hn::Sub(load_tail(d, x + c, n - c), shift))));
  }
  return peak + std::log(reduce_sum(d, sums));
}

// dx += scale * exp(x - lse)
HWY_NOINLINE void add_probabilities(const float* x, Index n, float lse, float factor, float* dx) {
  const hn::ScalableTag<float> d;
  const Index lanes = static_cast<Index>(hn::Lanes(d));
  const auto shift = hn::Set(d, lse), scale = hn::Set(d, factor);
  Index c = 0;
  for (; c + lanes <= n; c += lanes) {
    const auto p = exp(d, hn::Sub(hn::LoadU(d, x + c), shift));
    hn::StoreU(hn::MulAdd(p, scale, hn::LoadU(d, dx + c)), d, dx + c);
  }
  if (c < n) {
    const auto p = exp(d, hn::Sub(load_tail(d, x + c, n - c), shift));
    store_tail(d, hn::MulAdd(p, scale, load_tail(d, dx + c, n - c)), dx + c, n - c);
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace moe::cpu {

HWY_EXPORT(log_sum_exp);
HWY_EXPORT(add_probabilities);

namespace {

Index row_grain(Index cols) {
  return std::max<Index>(1, 8'192 / std::max<Index>(cols, 1));
}

// The row with blocked entries at minus infinity, or the row itself.
const float* visible(Rows<const float> logits, const std::uint8_t* blocked, Index t) {
  if (blocked == nullptr) return logits[t];
  float* row = static_cast<float*>(
      scratch(Scratch::rows, static_cast<std::size_t>(logits.cols) * sizeof(float)));
  const std::uint8_t* mask = blocked + t * logits.cols;
  for (Index c = 0; c < logits.cols; ++c)
    row[c] = mask[c] ? -std::numeric_limits<float>::infinity() : logits[t][c];
  return row;
}

void cross_entropy(Rows<const float> logits, const std::int32_t* target,
                   const std::uint8_t* blocked, double factor, float* loss, float* lse) {
  auto row_lse = HWY_DYNAMIC_DISPATCH(log_sum_exp);
  parallel_for(logits.rows, row_grain(logits.cols), [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) lse[t] = row_lse(visible(logits, blocked, t), logits.cols);
  });
  double sum = 0;
  for (Index t = 0; t < logits.rows; ++t)
    if (target[t] >= 0)
      sum += static_cast<double>(lse[t]) - static_cast<double>(logits[t][target[t]]);
  loss[0] = static_cast<float>(factor * sum);
}

void cross_entropy_backward(Rows<const float> logits, const std::int32_t* target,
                            const std::uint8_t* blocked, double factor, const float* lse,
                            const float* dloss, Rows<float> dlogits) {
  if (!dlogits) return;
  auto add = HWY_DYNAMIC_DISPATCH(add_probabilities);
  float scale = static_cast<float>(static_cast<double>(dloss[0]) * factor);
  parallel_for(logits.rows, row_grain(logits.cols), [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) {
      if (target[t] < 0) continue;
      add(visible(logits, blocked, t), logits.cols, lse[t], scale, dlogits[t]);
      dlogits[t][target[t]] -= scale;
    }
  });
}

}  // namespace

void fill_loss(Kernels<float>& table) {
  table.cross_entropy = cross_entropy;
  table.cross_entropy_backward = cross_entropy_backward;
}

}  // namespace moe::cpu

#endif  // HWY_ONCE
