// Single-precision product kernels, per target: register-blocked micro-kernels and the packing
// around them.
//
// A tile of C, tile_rows x (tile_vectors * lanes), lives in registers (12x32 on AVX-512, 6x16 on
// AVX2) while the kernel walks k: one row of the packed panel of B, one broadcast from each row of
// A, multiply-adds.
//   panel layout     B is cut into panels of `width` columns, [panel][k][width], the last one
//   padded by zeros slabs            k is cut into slabs of equal depth by its own length alone; a
//   slab is one chain of
//                    multiply-adds from zero in k order, and slab sums are added in order
// So an output depends neither on the number of rows, nor on threads, nor on who packed B when. Few
// rows run the same kernel with fewer rows: one variant for each count 1 .. tile_rows. Blocking as
// in Goto, van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, with B's block
// in L2 and A's rows in L1.
#if defined(MOE_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_GEMM_INL_H_
#undef MOE_CPU_GEMM_INL_H_
#else
#define MOE_CPU_GEMM_INL_H_
#endif

#include "cpu/simd-inl.h"

#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;
constexpr Index lanes = static_cast<Index>(HWY_LANES(float));
// Accumulators take all but a few of the 32 (AVX-512) or 16 registers. One lane: a 4x4 block of
// scalars.
constexpr int tile_vectors = lanes == 1 ? 4 : 2;
constexpr int tile_rows = lanes >= 16 ? 12 : lanes >= 8 ? 6 : 4;
constexpr Index width = tile_vectors * lanes;

// How a tile leaves the registers: out = ((partial + sum) + bias) + added; null means absent.
struct Ending {
  const float* partial = nullptr;  // the slabs before this one
  Index partial_ld = 0;
  const float* bias = nullptr;
  const float* added = nullptr;
  Index added_ld = 0;
};

// out[i][0..width) = ending(sum_k a[i * a_row + k * a_step] b[k * width + ..])    i < rows, k in
// order
template <int rows>
HWY_NOINLINE void multiply(const float* HWY_RESTRICT a, Index a_row, Index a_step,
                           const float* HWY_RESTRICT b, Index depth, const Ending& ending,
                           float* out, Index out_ld) {
  const Lanes d;
  Vector sum[rows][tile_vectors];
  HWY_UNROLL(16)
  for (int i = 0; i < rows; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < tile_vectors; ++j) sum[i][j] = hn::Zero(d);
  }
  // The tile's lines of C arrive while the sums are made.
  for (int i = 0; i < rows; ++i) {
    hwy::Prefetch(out + i * out_ld);
    hwy::Prefetch(out + i * out_ld + width - 1);
  }
  // One pointer serves three rows (x86 addresses p, p + r, p + 2r): one for each row would not
  // leave registers.
  const float* x[(rows + 2) / 3];
  HWY_UNROLL(8)
  for (int i = 0; i < (rows + 2) / 3; ++i) x[i] = a + 3 * i * a_row;
  for (; depth > 0; --depth) {
    Vector row[tile_vectors];
    HWY_UNROLL(4)
    for (int j = 0; j < tile_vectors; ++j) row[j] = hn::LoadU(d, b + j * lanes);
    HWY_UNROLL(16)
    for (int i = 0; i < rows; ++i) {
      const Vector factor = hn::Set(d, x[i / 3][(i % 3) * a_row]);
      HWY_UNROLL(4)
      for (int j = 0; j < tile_vectors; ++j) sum[i][j] = hn::MulAdd(factor, row[j], sum[i][j]);
    }
    HWY_UNROLL(8)
    for (int i = 0; i < (rows + 2) / 3; ++i) x[i] += a_step;
    b += width;
  }
  if (ending.partial == nullptr && ending.bias == nullptr && ending.added == nullptr) {
    HWY_UNROLL(16)
    for (int i = 0; i < rows; ++i) {
      HWY_UNROLL(4)
      for (int j = 0; j < tile_vectors; ++j) hn::StoreU(sum[i][j], d, out + i * out_ld + j * lanes);
    }
    return;
  }
  HWY_UNROLL(16)
  for (int i = 0; i < rows; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < tile_vectors; ++j) {
      Vector v = sum[i][j];
      const Index at = j * lanes;
      if (ending.partial != nullptr)
        v = hn::Add(hn::LoadU(d, ending.partial + i * ending.partial_ld + at), v);
      if (ending.bias != nullptr) v = hn::Add(v, hn::LoadU(d, ending.bias + at));
      if (ending.added != nullptr)
        v = hn::Add(v, hn::LoadU(d, ending.added + i * ending.added_ld + at));
      hn::StoreU(v, d, out + i * out_ld + at);
    }
  }
}

using Multiply = void (*)(const float*, Index, Index, const float*, Index, const Ending&, float*,
                          Index);

template <int... counts>
constexpr std::array<Multiply, sizeof...(counts)> multiply_table(
    std::integer_sequence<int, counts...>) {
  return {&multiply<counts + 1>...};
}

// The kernel of a row count, 1 .. tile_rows.
HWY_INLINE Multiply multiply_of(Index rows) {
  static constexpr auto table = multiply_table(std::make_integer_sequence<int, tile_rows>());
  return table[static_cast<std::size_t>(rows - 1)];
}

// ---- packing B
// ---------------------------------------------------------------------------------------

#if HWY_TARGET != HWY_SCALAR
// Block i (four lanes) of the result is p[i * step .. i * step + 4).
template <class D>
HWY_INLINE hn::Vec<D> load_blocks(D d, const float* p, Index step) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return hn::LoadU(d, p);
  } else {
    const hn::Half<D> half;
    const Index blocks = static_cast<Index>(hn::MaxLanes(half)) / 4;
    return hn::Combine(d, load_blocks(half, p + blocks * step, step), load_blocks(half, p, step));
  }
}

// to[k * width + c] = b[c * ld + k]    c < lanes, k < 4: one 4x4 transpose in each block of four
// lanes
HWY_INLINE void transpose_four(const float* b, Index ld, float* to) {
  const Lanes d;
  const hn::Repartition<std::uint64_t, Lanes> pairs;
  const Vector r0 = load_blocks(d, b, 4 * ld), r1 = load_blocks(d, b + ld, 4 * ld);
  const Vector r2 = load_blocks(d, b + 2 * ld, 4 * ld), r3 = load_blocks(d, b + 3 * ld, 4 * ld);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)), d, to + width);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)), d, to + 2 * width);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23)), d, to + 3 * width);
}
#endif

// One panel of b[c * ld + k]: columns c < columns, the rest zero.
HWY_NOINLINE void pack_transposed(const float* b, Index ld, Index depth, Index columns, float* to) {
  Index k = 0;
#if HWY_TARGET != HWY_SCALAR
  if (columns >= width) {
    for (; k + 4 <= depth; k += 4)
      for (int j = 0; j < tile_vectors; ++j)
        transpose_four(b + j * lanes * ld + k, ld, to + k * width + j * lanes);
  }
#endif
  for (; k < depth; ++k)
    for (Index c = 0; c < width; ++c) to[k * width + c] = c < columns ? b[c * ld + k] : 0.0f;
}

// Rows of one panel of b[k * ld + c].
HWY_NOINLINE void pack_straight(const float* b, Index ld, Index depth, Index columns, float* to) {
  const Lanes d;
  if (columns >= width) {
    for (Index k = 0; k < depth; ++k)
      for (int j = 0; j < tile_vectors; ++j)
        hn::StoreU(hn::LoadU(d, b + k * ld + j * lanes), d, to + k * width + j * lanes);
    return;
  }
  for (Index k = 0; k < depth; ++k)
    for (Index c = 0; c < width; ++c) to[k * width + c] = c < columns ? b[k * ld + c] : 0.0f;
}

// Panels [first, last) of B, rows [k, k + depth), into panels `step` elements apart.
HWY_INLINE void pack_panels(const float* b, Index ld, bool transposed, Index n, Index k,
                            Index depth, Index first, Index last, float* to, Index step) {
  // Straight rows go some at a time over all panels: each row of B is one run of memory.
  const Index some = transposed ? std::max<Index>(depth, 1) : 16;
  for (Index done = 0; done < depth; done += some) {
    const Index now = std::min(some, depth - done);
    for (Index panel = first; panel < last; ++panel) {
      float* at = to + (panel - first) * step + done * width;
      const Index column = panel * width;
      if (transposed)
        pack_transposed(b + column * ld + k + done, ld, now, n - column, at);
      else
        pack_straight(b + (k + done) * ld + column, ld, now, n - column, at);
    }
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
