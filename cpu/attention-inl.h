// Building blocks of attention, per target: products of small tiles, packing, rows. Blocks of
// scores are kept with queries along the lanes:
//   scores (keys, query_block)   scores[j][i] = log2(e) scale q_i . k_j
// so softmax statistics of 16 queries are plain vector operations, no horizontal ones; a dropout
// block of four words is four rows of one vector; and a column of `scores` is what the product with
// v broadcasts. Every number is one chain of multiply-adds in order of its summation index,
// whatever the tile it sits in: no result depends on how many rows share its block.
#if defined(MOE_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_ATTENTION_INL_H_
#undef MOE_CPU_ATTENTION_INL_H_
#else
#define MOE_CPU_ATTENTION_INL_H_
#endif

#include "cpu/attention_work.h"
#include "cpu/simd-inl.h"

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F = hn::ScalableTag<float>;
using Vec = hn::Vec<F>;

constexpr Index lanes = static_cast<Index>(hn::MaxLanes(F()));
constexpr Index key_block = 64;  // key blocks count from the segment's first key
static_assert(query_block % lanes == 0 && key_block % 4 == 0);

constexpr Index vectors_of(Index n) {
  return (n + lanes - 1) / lanes;
}

// ---- prefetch

// What the next item will read. One head's columns of rows lie further apart than the hardware's
// prefetchers look, and asking for all of them at once would hold up the loads of the work at hand:
// so they wait in a list, and every tile of a product asks L2 for a few.
// Backward at 16 x 128 tokens, 12 heads of 64: 83 -> 88 GFLOP/s (Zen 4); forward gained nothing.
class Ahead {
 public:
  void clear() { count_ = current_ = 0; }
  // Rows first .. first + count - 1, from `column` on; an absent operand is skipped.
  void add(Rows<const float> rows, Index first, Index count, Index column) {
    if (rows && count > 0)
      ranges_[count_++] = {rows[first] + column, rows.ld, std::min(count, most_rows)};
  }
  void step(Index cols) {
    constexpr Index line = 16, rows_a_step = 8;  // a line holds 16 floats
    if (current_ == count_) return;
    Range& range = ranges_[current_];
    Index rows = std::min(range.rows, rows_a_step);
    for (Index r = 0; r < rows; ++r, range.from += range.ld)
      for (Index c = 0; c < cols; c += line) __builtin_prefetch(range.from + c, 0, 2);
    range.rows -= rows;
    if (range.rows == 0) ++current_;
  }

 private:
  // Of a long text more would not stay in L2 until they are due.
  static constexpr Index most_rows = 128;
  struct Range {
    const float* from;
    Index ld, rows;
  };
  std::array<Range, 8> ranges_{};
  std::size_t count_ = 0, current_ = 0;
};

// ---- product

// Rows of c held in registers: two vectors a row take 16 of the 32 registers of AVX-512 (10 or 12
// rows were no faster) and 12 of the 16 of AVX2.
constexpr int tile_rows = lanes == 16 ? 8 : 6;

// c[r][:] = (add ? c[r][:] : 0) + sum_k a(r,k) b[k][:]          R rows, C vectors
//   a(r,k) = a[k * a_stride + r] if Adjacent, else a[r * a_stride + k]
template <int R, int C, bool Adjacent>
HWY_NOINLINE void tile(const float* HWY_RESTRICT a, Index a_stride, const float* HWY_RESTRICT b,
                       Index b_stride, Index depth, bool add, float* HWY_RESTRICT c,
                       Index c_stride) {
  const F d;
  Vec sum[R][C];
  HWY_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    HWY_UNROLL(2)
    for (int j = 0; j < C; ++j)
      sum[r][j] = add ? hn::LoadU(d, c + r * c_stride + j * lanes) : hn::Zero(d);
  }
  for (Index k = 0; k < depth; ++k) {
    Vec row[C];
    HWY_UNROLL(2)
    for (int j = 0; j < C; ++j) row[j] = hn::LoadU(d, b + j * lanes);
    HWY_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      Vec factor = hn::Set(d, Adjacent ? a[r] : a[r * a_stride]);
      HWY_UNROLL(2)
      for (int j = 0; j < C; ++j) sum[r][j] = hn::MulAdd(factor, row[j], sum[r][j]);
    }
    a += Adjacent ? a_stride : 1;
    b += b_stride;
  }
  HWY_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    HWY_UNROLL(2)
    for (int j = 0; j < C; ++j) hn::StoreU(sum[r][j], d, c + r * c_stride + j * lanes);
  }
}

using Tile = void (*)(const float*, Index, const float*, Index, Index, bool, float*, Index);

template <int C, bool Adjacent, int... R>
constexpr std::array<Tile, sizeof...(R)> tiles_of(std::integer_sequence<int, R...>) {
  return {&tile<R + 1, C, Adjacent>...};
}

// c (rows, vectors * lanes) = [c +] a (rows, depth) b (depth, vectors * lanes)
template <bool Adjacent>
void product(const float* a, Index a_stride, const float* b, Index b_stride, Index rows,
             Index depth, Index vectors, bool add, float* c, Index c_stride, Ahead* ahead = nullptr,
             Index head_dim = 0) {
  static constexpr auto rows_1_to_n = std::make_integer_sequence<int, tile_rows>();
  static constexpr std::array<Tile, tile_rows> single = tiles_of<1, Adjacent>(rows_1_to_n);
  static constexpr std::array<Tile, tile_rows> twin = tiles_of<2, Adjacent>(rows_1_to_n);
  Index count = (rows + tile_rows - 1) / tile_rows;  // tiles of even height: 9 rows are 5 + 4
  for (Index v = 0; v < vectors; v += 2) {
    const auto& tiles = v + 2 <= vectors ? twin : single;
    for (Index t = 0; t < count; ++t) {
      Index row = rows * t / count, height = rows * (t + 1) / count - row;
      tiles[static_cast<std::size_t>(height - 1)](a + row * (Adjacent ? 1 : a_stride), a_stride,
                                                  b + v * lanes, b_stride, depth, add,
                                                  c + row * c_stride + v * lanes, c_stride);
      if (ahead != nullptr) ahead->step(head_dim);
    }
  }
}

// ---- packing

#if HWY_TARGET != HWY_SCALAR  // which has no blocks of four lanes
// Lane 4b + c of the result: column c (of four) of row 4b, for b in 0 .. lanes/4-1; zero from row
// `rows` on.
template <class D>
HWY_INLINE hn::Vec<D> every_fourth_row(D d, const float* from, Index ld, Index rows) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return rows > 0 ? hn::LoadU(d, from) : hn::Zero(d);
  } else {
    const hn::Half<D> half;
    constexpr Index upper = static_cast<Index>(hn::MaxLanes(D())) / 2;
    return hn::Combine(d, every_fourth_row(half, from + upper * ld, ld, rows - upper),
                       every_fourth_row(half, from, ld, rows));
  }
}
#endif

// to[c * query_block + r] = factor * from[r][c]     rows <= query_block, zero up to a whole vector
template <class D>
void transpose(D d, const float* from, Index ld, Index rows, Index cols, float factor, float* to) {
  [[maybe_unused]] const auto scale = hn::Set(d, factor);
  for (Index r = 0; r < rows; r += lanes) {
    Index left = rows - r, c = 0;
    const float* block = from + r * ld;
#if HWY_TARGET != HWY_SCALAR
    for (; c + 4 <= cols; c += 4) {
      auto row0 = every_fourth_row(d, block + c, ld, left);
      auto row1 = every_fourth_row(d, block + c + ld, ld, left - 1);
      auto row2 = every_fourth_row(d, block + c + 2 * ld, ld, left - 2);
      auto row3 = every_fourth_row(d, block + c + 3 * ld, ld, left - 3);
      auto even_low = hn::InterleaveLower(d, row0, row2),
           odd_low = hn::InterleaveLower(d, row1, row3);
      auto even_high = hn::InterleaveUpper(d, row0, row2),
           odd_high = hn::InterleaveUpper(d, row1, row3);
      float* column = to + c * query_block + r;
      hn::Store(hn::Mul(scale, hn::InterleaveLower(d, even_low, odd_low)), d, column);
      hn::Store(hn::Mul(scale, hn::InterleaveUpper(d, even_low, odd_low)), d, column + query_block);
      hn::Store(hn::Mul(scale, hn::InterleaveLower(d, even_high, odd_high)), d,
                column + 2 * query_block);
      hn::Store(hn::Mul(scale, hn::InterleaveUpper(d, even_high, odd_high)), d,
                column + 3 * query_block);
    }
#endif
    for (; c < cols; ++c)
      for (Index i = 0; i < lanes; ++i)
        to[c * query_block + r + i] = i < left ? factor * block[i * ld + c] : 0.0f;
  }
}

// Rows whose columns are whole vectors: the rows themselves where a head is that, else a copy
// padded by zeros.
struct Padded {
  const float* data;
  Index ld;
};
Padded padded(const float* from, Index ld, Index rows, Index cols, float* to) {
  const F d;
  if (cols % lanes == 0) return {from, ld};
  Index width = vectors_of(cols) * lanes, whole = cols / lanes * lanes;
  for (Index r = 0; r < rows; ++r) {
    for (Index c = 0; c < whole; c += lanes)
      hn::Store(hn::LoadU(d, from + r * ld + c), d, to + r * width + c);
    for (Index c = whole; c < width; ++c) to[r * width + c] = c < cols ? from[r * ld + c] : 0.0f;
  }
  return {to, width};
}

// to[r][:] += factor * from[r][:]     from: padded rows of width `width`
void add_rows(const float* from, Index width, float factor, Index rows, Index cols, float* to,
              Index ld) {
  const F d;
  const Vec scale = hn::Set(d, factor);
  Index whole = cols / lanes * lanes;
  for (Index r = 0; r < rows; ++r, from += width, to += ld) {
    for (Index c = 0; c < whole; c += lanes)
      hn::StoreU(hn::MulAdd(scale, hn::Load(d, from + c), hn::LoadU(d, to + c)), d, to + c);
    for (Index c = whole; c < cols; ++c) to[c] = factor * from[c] + to[c];
  }
}

// to[:] = factor * from[:], or zeros when from is null
void store_row(const float* from, float factor, Index cols, float* to) {
  const F d;
  if (from == nullptr) {
    std::fill_n(to, cols, 0.0f);
    return;
  }
  Index whole = cols / lanes * lanes;
  for (Index c = 0; c < whole; c += lanes)
    hn::StoreU(hn::Mul(hn::Set(d, factor), hn::Load(d, from + c)), d, to + c);
  for (Index c = whole; c < cols; ++c) to[c] = factor * from[c];
}

// rows[r][:] *= factor[r]
void shrink_rows(float* rows, Index width, Index count, const float* factor) {
  const F d;
  for (Index r = 0; r < count; ++r, rows += width)
    for (Index c = 0; c < width; c += lanes)
      hn::Store(hn::Mul(hn::Set(d, factor[r]), hn::Load(d, rows + c)), d, rows + c);
}

float dot(const float* a, const float* b, Index cols) {
  const F d;
  Vec sum = hn::Zero(d);
  Index whole = cols / lanes * lanes;
  for (Index c = 0; c < whole; c += lanes)
    sum = hn::MulAdd(hn::LoadU(d, a + c), hn::LoadU(d, b + c), sum);
  float total = reduce_sum(d, sum);
  for (Index c = whole; c < cols; ++c) total += a[c] * b[c];
  return total;
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // MOE_CPU_ATTENTION_INL_H_
