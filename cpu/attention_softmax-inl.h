// Softmax of attention and its gradient, causality and dropout on blocks of scores, per target.
// Queries lie along the lanes (cpu/attention-inl.h), so the statistics of a vector of queries are
// vectors:
//   peak_i = max_j scores   sum_i = sum_j 2^(scores - peak)   added key by key, in order
#if defined(MOE_CPU_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_ATTENTION_SOFTMAX_INL_H_
#undef MOE_CPU_ATTENTION_SOFTMAX_INL_H_
#else
#define MOE_CPU_ATTENTION_SOFTMAX_INL_H_
#endif

#include "cpu/attention-inl.h"
#include "runtime/random.h"

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

using U32 = hn::Repartition<std::uint32_t, F>;
using I32 = hn::Repartition<std::int32_t, F>;
constexpr float infinity = std::numeric_limits<float>::infinity();

// 2^x for x up to about 1; exactly 0 from -127 down, NaN stays NaN.
// 2^x = 2^n (1 + r p(r)), n = round(x), |r| <= 1/2, p a minimax polynomial: relative error 1.1e-7.
// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: cheaper than two
// conversions.
HWY_INLINE Vec exp2_of(Vec x) {
  const F d;
  const I32 di;
  const Vec bottom = hn::Set(d, -127.0f);
  x = hn::IfThenElse(hn::Lt(x, bottom), bottom, x);
  const Vec shifter = hn::Set(d, 0x1.8p23f);
  Vec shifted = hn::Add(x, shifter), r = hn::Sub(x, hn::Sub(shifted, shifter));
  Vec p = hn::MulAdd(hn::Set(d, 0x1.5bba14p-10f), r, hn::Set(d, 0x1.3cea88p-7f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.c6b752p-5f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.ebf9bcp-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.62e42ap-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  // At x = -127, p is 1 and the exponent field goes from 127 to 0: the bits of zero.
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

// Hides the future: scores[j][i] = -inf where key j lies past query i's last visible key, last + i.
void hide_future(float* scores, Index keys, Index vectors, Index last) {
  const F d;
  const I32 di;
  for (Index j = std::max<Index>(0, last + 1); j < keys; ++j)
    for (Index v = 0; v < vectors; ++v) {
      float* at = scores + j * query_block + v * lanes;
      auto query = hn::Iota(di, static_cast<std::int32_t>(v * lanes));
      auto hidden =
          hn::RebindMask(d, hn::Lt(query, hn::Set(di, static_cast<std::int32_t>(j - last))));
      hn::Store(hn::IfThenElse(hidden, hn::Set(d, -infinity), hn::Load(d, at)), d, at);
    }
}

// One step of the online softmax (Milakov, Gimelshein 2018) for every query of the block:
//   scores -> 2^(scores - peak)   peak, sum -> with these keys   shrink = 2^(old peak - new peak)
void online_softmax(float* scores, Index keys, Index vectors, float* peak, float* sum,
                    float* shrink) {
  const F d;
  for (Index v = 0; v < vectors; ++v) {
    float* column = scores + v * lanes;
    Vec old_peak = hn::Load(d, peak + v * lanes), top = old_peak, other = old_peak;
    Index j = 0;
    for (; j + 2 <= keys; j += 2) {  // two chains: a maximum has no rounding, so any order will do
      top = hn::Max(top, hn::Load(d, column + j * query_block));
      other = hn::Max(other, hn::Load(d, column + (j + 1) * query_block));
    }
    if (j < keys) top = hn::Max(top, hn::Load(d, column + j * query_block));
    top = hn::Max(top, other);
    hn::Store(top, d, peak + v * lanes);
    // A query that has seen no key yet: any finite peak makes its terms 0 instead of NaN.
    top = hn::IfThenElse(hn::Eq(top, hn::Set(d, -infinity)), hn::Zero(d), top);
    Vec factor = exp2_of(hn::Sub(old_peak, top));
    hn::Store(factor, d, shrink + v * lanes);
    Vec total = hn::Mul(factor, hn::Load(d, sum + v * lanes));
    for (j = 0; j < keys; ++j) {
      Vec p = exp2_of(hn::Sub(hn::Load(d, column + j * query_block), top));
      hn::Store(p, d, column + j * query_block);
      total = hn::Add(total, p);
    }
    hn::Store(total, d, sum + v * lanes);
  }
}

// After the last key:  factor = keep / sum   peak -> lse = ln(2) peak + ln(sum)
// A query that saw no key gets 0 and -inf.
void finish_softmax(Index vectors, float keep, const float* sum, float* peak, float* factor) {
  const F d;
  for (Index v = 0; v < vectors * lanes; v += lanes) {
    Vec total = hn::Load(d, sum + v);
    auto none = hn::Eq(total, hn::Zero(d));
    hn::Store(hn::IfThenZeroElse(none, hn::Div(hn::Set(d, keep), total)), d, factor + v);
    Vec lse = hn::MulAdd(hn::Set(d, 0x1.62e43p-1f), hn::Load(d, peak + v), hn::Log(d, total));
    hn::Store(hn::IfThenElse(none, hn::Set(d, -infinity), lse), d, peak + v);
  }
}

// ---- dropout

struct DropRule {
  Dice dice;  // of one head
  std::uint32_t threshold = 0;
  std::uint32_t key[10][2] = {};  // Philox's key schedule

  DropRule(const Dice& dice_of_head, double rate)
      : dice(dice_of_head), threshold(drop_threshold(rate)) {
    for (std::uint32_t round = 0; round < 10; ++round) {
      key[round][0] = dice.key0 + round * philox_weyl_0;
      key[round][1] = dice.key1 + round * philox_weyl_1;
    }
  }
};

// Words of four keys for the queries of one vector:
//   word[i], lane l = dice.word(row + l, 4 column_block + i)
// Philox multiplies 32 x 32 -> 64 bits, so even and odd lanes go separately, as 64-bit lanes whose
// upper half holds leftovers that the next multiplication ignores.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void drop_words(D d, const DropRule& rule, Index row, Index column_block, V (&word)[4]) {
  const Dice& dice = rule.dice;
  if constexpr (hn::MaxLanes(D()) == 1) {
    PhiloxBlock block = dice.block(row, column_block);
    for (int i = 0; i < 4; ++i) word[i] = hn::Set(d, block[static_cast<std::size_t>(i)]);
  } else {
    const hn::Repartition<std::uint64_t, D> d64;
    using V64 = hn::Vec<decltype(d64)>;
    const V multiplier0 = hn::Set(d, philox_multiplier_0),
            multiplier1 = hn::Set(d, philox_multiplier_1);
    auto rows = hn::BitCast(d64, hn::Iota(d, static_cast<std::uint32_t>(dice.row0 + row)));
    V64 counter[2][4];  // even and odd lanes
    for (int half = 0; half < 2; ++half) {
      counter[half][0] = hn::BitCast(d64, hn::Set(d, static_cast<std::uint32_t>(column_block)));
      counter[half][1] = half == 0 ? rows : hn::ShiftRight<32>(rows);
      counter[half][2] = hn::BitCast(d64, hn::Set(d, dice.step));
      counter[half][3] = hn::BitCast(d64, hn::Set(d, dice.side));
    }
    for (int round = 0; round < 10; ++round) {
      auto k0 = hn::BitCast(d64, hn::Set(d, rule.key[round][0]));
      auto k1 = hn::BitCast(d64, hn::Set(d, rule.key[round][1]));
      HWY_UNROLL(2)
      for (int half = 0; half < 2; ++half) {
        V64* c = counter[half];
        V64 product0 = hn::MulEven(multiplier0, hn::BitCast(d, c[0]));
        V64 product1 = hn::MulEven(multiplier1, hn::BitCast(d, c[2]));
        c[0] = hn::Xor3(hn::ShiftRight<32>(product1), c[1], k0);
        c[2] = hn::Xor3(hn::ShiftRight<32>(product0), c[3], k1);
        c[1] = product1;
        c[3] = product0;
      }
    }
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i)
      word[i] = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(counter[1][i])),
                            hn::BitCast(d, counter[0][i]));
  }
}

// at[j][lane] = 0 where dropped: key first_key + j (first_key a multiple of four), query row +
// lane.
void drop(const DropRule& rule, Index row, Index first_key, Index keys, Index vectors, float* at) {
  const F d;
  const U32 du;
  const auto threshold = hn::Set(du, rule.threshold);
  for (Index v = 0; v < vectors; ++v)
    for (Index j = 0; j < keys; j += 4) {
      hn::Vec<U32> word[4];
      drop_words(du, rule, row + v * lanes, (first_key + j) / 4, word);
      for (Index i = 0; i < std::min<Index>(4, keys - j); ++i) {
        float* p = at + (j + i) * query_block + v * lanes;
        auto dropped = hn::RebindMask(d, hn::Lt(word[i], threshold));
        hn::Store(hn::IfThenZeroElse(dropped, hn::Load(d, p)), d, p);
      }
    }
}

// Backward of softmax and dropout for a block of keys (first_key on) and queries (row on):
//   p = 2^(scores - lse)   scores -> m p   dscores -> p (m dscores - delta), unless null
// with m 1 where kept, else 0: the keep factor is in dscores already.
void softmax_gradient(const DropRule& rule, Index row, Index first_key, Index keys, Index vectors,
                      const float* lse, const float* delta, float* scores, float* dscores) {
  const F d;
  const U32 du;
  const auto threshold = hn::Set(du, rule.threshold);
  for (Index v = 0; v < vectors; ++v) {
    const Vec norm = hn::Load(d, lse + v * lanes), mean = hn::Load(d, delta + v * lanes);
    for (Index j = 0; j < keys; j += 4) {
      hn::Vec<U32> word[4];
      if (rule.threshold > 0) drop_words(du, rule, row + v * lanes, (first_key + j) / 4, word);
      for (Index i = 0; i < std::min<Index>(4, keys - j); ++i) {
        Index at = (j + i) * query_block + v * lanes;
        Vec p = exp2_of(hn::Sub(hn::Load(d, scores + at), norm)), kept = p;
        Vec gradient = dscores != nullptr ? hn::Load(d, dscores + at) : hn::Zero(d);
        if (rule.threshold > 0) {
          auto dropped = hn::RebindMask(d, hn::Lt(word[i], threshold));
          kept = hn::IfThenZeroElse(dropped, kept);
          gradient = hn::IfThenZeroElse(dropped, gradient);
        }
        hn::Store(kept, d, scores + at);
        if (dscores != nullptr) hn::Store(hn::Mul(p, hn::Sub(gradient, mean)), d, dscores + at);
      }
    }
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // MOE_CPU_ATTENTION_SOFTMAX_INL_H_
