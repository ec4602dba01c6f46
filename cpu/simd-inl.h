// Vector code that Highway 1.0.3 lacks, per target: tails without reading past the end, sums of
// lanes, elementary functions of activations and softmax, and Philox.
//
// Elementary functions are polynomials, the same code in every lane: a value depends neither on its
// column nor on the tail it falls into, and costs no call. Errors are quoted for f32 against f64,
// with fused multiply-add; coefficients are minimax fits made for this file. NaN stays NaN.
#if defined(MOE_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_SIMD_INL_H_
#undef MOE_CPU_SIMD_INL_H_
#else
#define MOE_CPU_SIMD_INL_H_
#endif

#include "runtime/random.h"
#include "runtime/shape.h"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- tails ----

// p[0 .. count) in the first lanes, zero in the others.   0 < count <= lanes
template <class D>
HWY_INLINE hn::Vec<D> load_tail(D d, const float* p, Index count) {
#if HWY_TARGET == HWY_SCALAR
  (void)count;
  return hn::LoadU(d, p);
#elif HWY_TARGET == HWY_EMU128  // its masked load reads every lane
  HWY_ALIGN float lane[hn::MaxLanes(D())] = {};
  for (Index i = 0; i < count; ++i) lane[i] = p[i];
  return hn::Load(d, lane);
#else
  return hn::MaskedLoad(hn::FirstN(d, static_cast<std::size_t>(count)), d, p);
#endif
}

template <class D>
HWY_INLINE void store_tail(D d, hn::Vec<D> v, float* p, Index count) {
  hn::BlendedStore(v, hn::FirstN(d, static_cast<std::size_t>(count)), d, p);
}

// ---- lanes ----

template <class D>
HWY_INLINE float reduce_sum(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

template <class D>
HWY_INLINE float reduce_max(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::MaxOfLanes(d, v));
}

// x limited to [low, high]; a NaN passes, which Min and Max promise only on some targets.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V clamp(D d, V x, float low, float high) {
  const V bottom = hn::Set(d, low), top = hn::Set(d, high);
  return hn::IfThenElse(hn::Lt(x, bottom), bottom, hn::IfThenElse(hn::Gt(x, top), top, x));
}

// ---- exponentials ----

// 2^n as a float, from `shifted` = 1.5 * 2^23 + 127 + n: the sum's low bits are n's exponent field.
constexpr float exponent_shift = 12583039.0f;
template <class D, class V = hn::Vec<D>>
HWY_INLINE V power_of_two(D d, V shifted) {
  const hn::Repartition<std::uint32_t, D> bits;
  return hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(bits, shifted)));
}

// e^r - 1 for |r| <= ln(2)/2: r (1 + r/2 + r^2/6 ...), relative error 2e-8.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V small_expm1(D d, V r) {
  V p = hn::MulAdd(hn::Set(d, 0x1.6ae72p-10f), r, hn::Set(d, 0x1.126792p-7f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.555822p-5f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.55541ap-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 0x1.fffffcp-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  return hn::Mul(p, r);
}

// x = n ln(2) + r, n whole. ln(2) in two parts (Cody and Waite): n times the first is exact.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reduce_exponent(D d, V x, V& shifted) {
  const V shift = hn::Set(d, exponent_shift);
  shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341f), shift);
  const V n = hn::Sub(shifted, shift);
  return hn::NegMulAdd(n, hn::Set(d, 1.428606820e-6f),
                       hn::NegMulAdd(n, hn::Set(d, 0x1.62e4p-1f), x));
}

// e^x, relative error 1.2e-7; 0 below -87.7 (f32's last normal numbers), infinity above 88.4.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  V shifted;
  const V r = reduce_exponent(d, clamp(d, x, -88.0f, 88.5f), shifted);
  return hn::Mul(hn::Add(small_expm1(d, r), hn::Set(d, 1.0f)), power_of_two(d, shifted));
}

// log(1 + t) for 0 <= t <= 1, relative error 2.5e-7: 2 atanh(s), s = t / (2 + t).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V log1p_unit(D d, V t) {
  const V s = hn::Div(t, hn::Add(t, hn::Set(d, 2.0f))), s2 = hn::Mul(s, s);
  V p = hn::MulAdd(hn::Set(d, 0x1.208da6p-3f), s2, hn::Set(d, 0x1.1e50b0p-3f));
  p = hn::MulAdd(p, s2, hn::Set(d, 0x1.99daecp-3f));
  p = hn::MulAdd(p, s2, hn::Set(d, 0x1.5554e0p-2f));
  p = hn::MulAdd(p, s2, hn::Set(d, 1.0f));
  return hn::Mul(hn::Add(s, s), p);
}

// ---- activations ----

template <class D, class V = hn::Vec<D>>
HWY_INLINE V relu(D d, V x) {
  return hn::IfThenZeroElse(hn::Le(x, hn::Zero(d)), x);
}

// s = 1 / (1 + e^-x) and its slope s (1 - s), relative errors 2.5e-7. Both come from t = e^-|x|,
// which cannot overflow: s is 1 / (1 + t) or t / (1 + t), the slope t / (1 + t)^2.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f), t = exp(d, hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), t, one), hn::Add(one, t));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid_and_slope(D d, V x, V& slope) {
  const V one = hn::Set(d, 1.0f), t = exp(d, hn::Neg(hn::Abs(x)));
  const V inv = hn::Div(one, hn::Add(one, t)), rest = hn::Mul(t, inv);
  slope = hn::Mul(rest, inv);
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), rest, inv);
}

// tanh |x| = e / (e + 2), e = e^2|x| - 1 kept as such: relative error 3e-7 down to zero.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh(D d, V x) {
  const V a = clamp(d, hn::Abs(x), 0.0f, 10.0f);  // from 9.1 on it is 1
  V shifted;
  const V small = small_expm1(d, reduce_exponent(d, hn::Add(a, a), shifted));
  const V power = power_of_two(d, shifted);
  const V e = hn::MulAdd(small, power, hn::Sub(power, hn::Set(d, 1.0f)));
  return hn::CopySign(hn::Div(e, hn::Add(e, hn::Set(d, 2.0f))), x);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus(D d, V x) {
  return hn::Add(relu(d, x), log1p_unit(d, exp(d, hn::Neg(hn::Abs(x)))));
}

// The normal distribution's tail Q(z) = 1 - Phi(z) for 0 <= z <= 6, as 2^q(z); Q and z Q within
// 7e-8.
constexpr float normal_tail_end = 6.0f;  // z Q(z) is 6e-9 there
template <class D, class V = hn::Vec<D>>
HWY_INLINE V normal_tail(D d, V z) {
  V q = hn::MulAdd(hn::Set(d, -0x1.317630p-19f), z, hn::Set(d, 0x1.148e24p-15f));
  q = hn::MulAdd(q, z, hn::Set(d, -0x1.49d63cp-13f));
  q = hn::MulAdd(q, z, hn::Set(d, -0x1.a8a17ep-13f));
  q = hn::MulAdd(q, z, hn::Set(d, 0x1.d41c04p-8f));
  q = hn::MulAdd(q, z, hn::Set(d, -0x1.ae75dep-5f));
  q = hn::MulAdd(q, z, hn::Set(d, -0x1.d636b4p-2f));
  q = hn::MulAdd(q, z, hn::Set(d, -0x1.26aef2p+0f));
  q = hn::MulAdd(q, z, hn::Set(d, -0x1.fffffep-1f));
  const V shift = hn::Set(d, exponent_shift), shifted = hn::Add(q, shift);
  const V r = hn::Mul(hn::Sub(q, hn::Sub(shifted, shift)), hn::Set(d, 0.693147180559945309f));
  return hn::Mul(hn::Add(small_expm1(d, r), hn::Set(d, 1.0f)), power_of_two(d, shifted));
}

// x Phi(x) = max(x, 0) - |x| Q(|x|), absolute error 1e-7 beside x's own rounding
template <class D, class V = hn::Vec<D>>
HWY_INLINE V gelu(D d, V x) {
  const V z = clamp(d, hn::Abs(x), 0.0f, normal_tail_end);
  return hn::NegMulAdd(z, normal_tail(d, z), relu(d, x));
}

// Phi(x) + x phi(x)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V gelu_slope(D d, V x) {
  const V z = clamp(d, hn::Abs(x), 0.0f, normal_tail_end), tail = normal_tail(d, z);
  const V density =
      hn::Mul(hn::Set(d, 0.398942280401432678f), exp(d, hn::Mul(hn::Mul(z, z), hn::Set(d, -0.5f))));
  const V below = hn::NegMulAdd(z, density, tail);  // at -|x|; at |x| it is one minus that
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), below, hn::Sub(hn::Set(d, 1.0f), below));
}

constexpr float gelu_tanh_factor = 1.595769121605730711f;  // 2 sqrt(2 / pi)
constexpr float gelu_tanh_cubic = 0.044715f;

// x (1 + tanh u) / 2 = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V gelu_tanh(D d, V x) {
  const V c =
      clamp(d, x, -10.0f, 10.0f);  // the sigmoid is 0 or 1 there; beyond, x^3 could overflow
  const V u = hn::MulAdd(hn::Mul(hn::Mul(c, c), c), hn::Set(d, gelu_tanh_cubic), c);
  return hn::Mul(x, sigmoid(d, hn::Mul(u, hn::Set(d, gelu_tanh_factor))));
}

// s + x s' (2u)', s = sigmoid(2u)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V gelu_tanh_slope(D d, V x) {
  const V factor = hn::Set(d, gelu_tanh_factor);
  const V c = clamp(d, x, -10.0f, 10.0f), c2 = hn::Mul(c, c);
  const V u = hn::MulAdd(hn::Mul(c2, c), hn::Set(d, gelu_tanh_cubic), c);
  V slope;
  const V s = sigmoid_and_slope(d, hn::Mul(u, factor), slope);
  const V u_slope = hn::MulAdd(c2, hn::Set(d, 3 * gelu_tanh_cubic), hn::Set(d, 1.0f));
  return hn::MulAdd(hn::Mul(c, slope), hn::Mul(factor, u_slope), s);
}

// ---- randomness ----

// The words of whole Philox blocks of one row: words[i] = dice.word(row, 4 first_block + i), i < 4
// blocks. Writes up to `dice_slack` words more. Blocks lie along 64-bit lanes, a counter word in
// the lower half of each; the upper half holds leftovers that the next multiplication ignores. Two
// vectors of blocks at a time, as one waits for its own multiplications: 0.6 ns a word against 0.9
// (Zen 4, AVX-512, g++ 12).
#if HWY_TARGET == HWY_SCALAR
constexpr Index dice_slack = 0;
HWY_INLINE void dice_words(const Dice& dice, Index row, Index first_block, Index blocks,
                           std::uint32_t* words) {
  for (Index b = 0; b < blocks; ++b)
    for (std::uint32_t word : dice.block(row, first_block + b)) *words++ = word;
}
#else
constexpr Index dice_chains = 2;
constexpr Index dice_slack = 4 * (dice_chains * static_cast<Index>(HWY_LANES(std::uint64_t)) - 1);
HWY_INLINE void dice_words(const Dice& dice, Index row, Index first_block, Index blocks,
                           std::uint32_t* words) {
  const hn::ScalableTag<std::uint64_t> d;
  const hn::ScalableTag<std::uint32_t> d32;
  using V = hn::Vec<decltype(d)>;
  const auto multiplier0 = hn::Set(d32, philox_multiplier_0);
  const auto multiplier1 = hn::Set(d32, philox_multiplier_1);
  std::uint64_t key[10][2];  // of each round
  for (std::uint32_t round = 0; round < 10; ++round) {
    key[round][0] = dice.key0 + round * philox_weyl_0;
    key[round][1] = dice.key1 + round * philox_weyl_1;
  }
  const Index step = static_cast<Index>(hn::Lanes(d));
  for (Index b = 0; b < blocks; b += dice_chains * step) {
    V c0[dice_chains], c1[dice_chains], c2[dice_chains], c3[dice_chains];
    for (Index i = 0; i < dice_chains; ++i) {
      c0[i] = hn::Iota(d, static_cast<std::uint64_t>(first_block + b + i * step));
      c1[i] = hn::Set(d, static_cast<std::uint32_t>(dice.row0 + row));
      c2[i] = hn::Set(d, dice.step);
      c3[i] = hn::Set(d, dice.side);
    }
    HWY_UNROLL(10)
    for (int round = 0; round < 10; ++round) {
      const V key0 = hn::Set(d, key[round][0]), key1 = hn::Set(d, key[round][1]);
      HWY_UNROLL(2)
      for (Index i = 0; i < dice_chains; ++i) {
        const V p0 = hn::MulEven(multiplier0, hn::BitCast(d32, c0[i]));
        const V p1 = hn::MulEven(multiplier1, hn::BitCast(d32, c2[i]));
        c0[i] = hn::Xor3(hn::ShiftRight<32>(p1), c1[i], key0);
        c2[i] = hn::Xor3(hn::ShiftRight<32>(p0), c3[i], key1);
        c1[i] = p1;
        c3[i] = p0;
      }
    }
    // Pairs (word 0, word 1) and (word 2, word 3) of each block, then pairs side by side.
    for (Index i = 0; i < dice_chains; ++i) {
      const auto first =
          hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(c1[i])), hn::BitCast(d32, c0[i]));
      const auto second =
          hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(c3[i])), hn::BitCast(d32, c2[i]));
      hn::StoreInterleaved2(hn::BitCast(d, first), hn::BitCast(d, second), d,
                            reinterpret_cast<std::uint64_t*>(words + 4 * (b + i * step)));
    }
  }
}
#endif

}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
