// AdamW in one pass over parameter, gradient and both moments (28 bytes a parameter, memory-bound),
// and the norm.
//   m = b1 m + (1-b1) g   v = b2 v + (1-b2) g^2   p -= rate (m / c1 / (sqrt(v / c2) + eps) + decay
//   p)
#include "cpu/cpu.h"
#include "runtime/kernels.h"
#include "runtime/parallel.h"

#include <algorithm>
#include <vector>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/optimizer.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/simd-inl.h"
// clang-format on

#ifndef MOE_CPU_OPTIMIZER_ONCE
#define MOE_CPU_OPTIMIZER_ONCE
namespace moe::cpu {
// The constants of one chunk's update.
struct AdamWFactors {
  float beta1, beta2, clip, step, root, eps,
      keep;  // step = rate / c1, root = 1 / c2, keep = 1 - rate decay
};
}  // namespace moe::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

// v / c2 is v * root, and the step m / c1 is folded into `step`; the rest is as written above.
HWY_NOINLINE void adamw_range(const AdamWFactors& f, float* p, float* m, float* v, const float* g,
                              Index n) {
  const hn::ScalableTag<float> d;
  const Index lanes = static_cast<Index>(hn::Lanes(d));
  const auto b1 = hn::Set(d, f.beta1), b2 = hn::Set(d, f.beta2), clip = hn::Set(d, f.clip);
  const auto rest1 = hn::Set(d, 1 - f.beta1), rest2 = hn::Set(d, 1 - f.beta2);
  const auto step = hn::Set(d, f.step), root = hn::Set(d, f.root), eps = hn::Set(d, f.eps);
  const auto keep = hn::Set(d, f.keep);
  for (Index i = 0; i < n; i += lanes) {
    const Index count = std::min(lanes, n - i);
    const bool whole = count == lanes;
    const auto grad = hn::Mul(whole ? hn::LoadU(d, g + i) : load_tail(d, g + i, count), clip);
    const auto m0 = whole ? hn::LoadU(d, m + i) : load_tail(d, m + i, count);
    const auto v0 = whole ? hn::LoadU(d, v + i) : load_tail(d, v + i, count);
    const auto p0 = whole ? hn::LoadU(d, p + i) : load_tail(d, p + i, count);
    const auto m1 = hn::MulAdd(b1, m0, hn::Mul(rest1, grad));
    const auto v1 = hn::MulAdd(b2, v0, hn::Mul(rest2, hn::Mul(grad, grad)));
    const auto ratio = hn::Div(m1, hn::Add(hn::Sqrt(hn::Mul(v1, root)), eps));
    const auto p1 = hn::NegMulAdd(step, ratio, hn::Mul(p0, keep));
    if (whole) {
      hn::StoreU(m1, d, m + i);
      hn::StoreU(v1, d, v + i);
      hn::StoreU(p1, d, p + i);
    } else {
      store_tail(d, m1, m + i, count);
      store_tail(d, v1, v + i, count);
      store_tail(d, p1, p + i, count);
    }
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace moe::cpu {

HWY_EXPORT(adamw_range);

namespace {

constexpr Index piece = 16'384;  // elements a thread takes at a time

void adamw(const AdamWChunk<float>* chunks, Index count, const AdamWStep* step, double beta1,
           double beta2, double eps) {
  auto range = HWY_DYNAMIC_DISPATCH(adamw_range);
  struct Piece {
    const AdamWChunk<float>* chunk;
    Index begin;
  };
  std::vector<Piece> pieces;
  for (Index c = 0; c < count; ++c)
    for (Index begin = 0; begin < chunks[c].count; begin += piece)
      pieces.push_back({chunks + c, begin});
  parallel_for(static_cast<Index>(pieces.size()), 1, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      const auto& [chunk, begin] = pieces[static_cast<std::size_t>(i)];
      double rate = step->rate * chunk->rate_factor;
      AdamWFactors f{static_cast<float>(beta1),
                     static_cast<float>(beta2),
                     static_cast<float>(step->clip),
                     static_cast<float>(rate / step->correction1),
                     static_cast<float>(1 / step->correction2),
                     static_cast<float>(eps),
                     static_cast<float>(1 - rate * chunk->decay)};
      range(f, chunk->parameter + begin, chunk->moment1 + begin, chunk->moment2 + begin,
            chunk->gradient + begin, std::min(piece, chunk->count - begin));
    }
  });
}

constexpr Index norm_block = 4096;
constexpr Index norm_lanes = 16;  // independent sums the compiler keeps in vector registers

void norm_squared(const float* x, Index count, double* result) {
  Index blocks = (count + norm_block - 1) / norm_block;
  std::vector<double> sums(static_cast<std::size_t>(blocks));
  parallel_for(blocks, 8, [&](Index first, Index last) {
    for (Index b = first; b < last; ++b) {
      double lane[norm_lanes] = {};
      Index begin = b * norm_block, end = std::min(count, begin + norm_block), i = begin;
      for (; i + norm_lanes <= end; i += norm_lanes)
        for (Index l = 0; l < norm_lanes; ++l) {
          double value = static_cast<double>(x[i + l]);
          lane[l] += value * value;
        }
      for (; i < end; ++i)
        lane[(i - begin) % norm_lanes] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      double sum = 0;
      for (double part : lane) sum += part;
      sums[static_cast<std::size_t>(b)] = sum;
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *result = total;
}

}  // namespace

void fill_optimizer(Kernels<float>& table) {
  table.adamw = adamw;
  table.norm_squared = norm_squared;
}

}  // namespace moe::cpu

#endif  // HWY_ONCE
