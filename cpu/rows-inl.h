// Sums, maxima and maps over the columns of one row, per target. Rows of norm and softmax are read
// two or three times: from L1 after the first.
//
// A sum runs in blocks of 64 vectors: four chains of vectors inside, block sums added in f64. So
// its error does not grow with the row, and it depends on the number of columns alone.
#if defined(MOE_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_ROWS_INL_H_
#undef MOE_CPU_ROWS_INL_H_
#else
#define MOE_CPU_ROWS_INL_H_
#endif

#include "cpu/simd-inl.h"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr Index lanes = static_cast<Index>(HWY_LANES(float));

// p[0 .. count) in the first lanes, `filler` in the others.   0 < count <= lanes
HWY_INLINE V load_filled(D d, const float* p, Index count, float filler) {
  const auto here = hn::FirstN(d, static_cast<std::size_t>(count));
  return hn::IfThenElse(here, load_tail(d, p, count), hn::Set(d, filler));
}

// The first `count` lanes, or all: a masked store costs ten plain ones on AVX2 (Zen 4).
HWY_INLINE V load_some(D d, const float* p, Index count) {
  return count == lanes ? hn::LoadU(d, p) : load_tail(d, p, count);
}
HWY_INLINE void store_some(D d, V v, float* p, Index count) {
  if (count == lanes)
    hn::StoreU(v, d, p);
  else
    store_tail(d, v, p, count);
}

// sum_c term(d, x[c]...); the lanes past the end hold `filler`, for which the term must be 0
template <class Term, class... X>
HWY_INLINE float row_sum(const Term& term, float filler, Index cols, const X*... x) {
  const D d;
  double total = 0;
  for (Index first = 0; first < cols; first += 64 * lanes) {
    const Index end = HWY_MIN(cols, first + 64 * lanes);
    V sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    Index c = first;
    for (; c + 4 * lanes <= end; c += 4 * lanes) {
      sum0 = hn::Add(sum0, term(d, hn::LoadU(d, x + c)...));
      sum1 = hn::Add(sum1, term(d, hn::LoadU(d, x + c + lanes)...));
      sum2 = hn::Add(sum2, term(d, hn::LoadU(d, x + c + 2 * lanes)...));
      sum3 = hn::Add(sum3, term(d, hn::LoadU(d, x + c + 3 * lanes)...));
    }
    for (; c + lanes <= end; c += lanes) sum0 = hn::Add(sum0, term(d, hn::LoadU(d, x + c)...));
    if (const Index rest = end - c; rest > 0)
      sum1 = hn::Add(sum1, term(d, load_filled(d, x + c, rest, filler)...));
    total += reduce_sum(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)));
  }
  return static_cast<float>(total);
}

// max_c x[c]. A NaN may or may not survive, as targets differ.
HWY_INLINE float row_max(Index cols, const float* x) {
  const D d;
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  V peak = hn::Set(d, lowest);
  Index c = 0;
  for (; c + lanes <= cols; c += lanes) peak = hn::Max(peak, hn::LoadU(d, x + c));
  if (const Index rest = cols - c; rest > 0)
    peak = hn::Max(peak, load_filled(d, x + c, rest, lowest));
  return reduce_max(d, peak);
}

// y[c] = op(d, x[c]...); an x may be y itself
template <class Op, class... X>
HWY_INLINE void map_row(const Op& op, Index cols, float* y, const X*... x) {
  const D d;
  Index c = 0;
  for (; c + lanes <= cols; c += lanes) hn::StoreU(op(d, hn::LoadU(d, x + c)...), d, y + c);
  if (const Index rest = cols - c; rest > 0)
    store_tail(d, op(d, load_tail(d, x + c, rest)...), y + c, rest);
}

// The ops that both families use.
struct Itself {
  HWY_INLINE V operator()(D, V x) const { return x; }
};
struct Product {
  HWY_INLINE V operator()(D, V a, V b) const { return hn::Mul(a, b); }
};
struct Divide {
  float by;
  HWY_INLINE V operator()(D d, V x) const { return hn::Div(x, hn::Set(d, by)); }
};

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
