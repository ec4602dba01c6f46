// Building blocks of attention, per target. Blocks of scores are kept with queries along the lanes:
//   scores (keys, query_block)   scores[j][i] = log2(e) scale q_i . k_j
// so softmax statistics of 16 queries are plain vector operations, no horizontal ones; a dropout block of
// four words is four rows of one vector; and a column of `scores` is what the product with v broadcasts.
// Every number is one chain of multiply-adds in order of its summation index, whatever the tile it sits in:
// no result depends on how many rows share its block.
#if defined(MOE_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_ATTENTION_INL_H_
#undef MOE_CPU_ATTENTION_INL_H_
#else
#define MOE_CPU_ATTENTION_INL_H_
#endif

#include "cpu/attention_work.h"
#include "cpu/simd-inl.h"

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F = hn::ScalableTag<float>;
using Vec = hn::Vec<F>;
using U32 = hn::Repartition<std::uint32_t, F>;
using I32 = hn::Repartition<std::int32_t, F>;

constexpr Index lanes = static_cast<Index>(hn::MaxLanes(F()));
constexpr Index key_block = 64;  // key blocks count from the segment's first key
static_assert(query_block % lanes == 0 && key_block % 4 == 0);
constexpr float infinity = std::numeric_limits<float>::infinity();

constexpr Index vectors_of(Index n) { return (n + lanes - 1) / lanes; }

// ---- what the next item will read ----------------------------------------------------------------------------
// One head's columns of rows lie further apart than the hardware's prefetchers look, and asking for all of them
// at once would hold up the loads of the work at hand. So the next item's rows wait in a list, and every tile
// of a product asks L2 for a few.
class Ahead {
 public:
  void clear() { count_ = current_ = 0; }
  void add(const float* from, Index ld, Index rows) {
    if (rows > 0) ranges_[count_++] = {from, ld, std::min(rows, most_rows)};
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
  static constexpr Index most_rows = 128;  // of a long text there is time to fetch rows when they are due
  struct Range {
    const float* from;
    Index ld, rows;
  };
  std::array<Range, 8> ranges_{};
  std::size_t count_ = 0, current_ = 0;
};

// ---- product -----------------------------------------------------------------------------------------------
// Rows of c held in registers: with two vectors a row, 16 of the 32 registers of AVX-512, 12 of the 16 of AVX2.
constexpr int tile_rows = lanes == 16 ? 8 : 6;

// c[r][:] = (add ? c[r][:] : 0) + sum_k a(r,k) b[k][:]          R rows, C vectors
//   a(r,k) = a[k * a_stride + r] if Adjacent, else a[r * a_stride + k];   b, c: rows of stride b_stride, c_stride
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
void product(const float* a, Index a_stride, const float* b, Index b_stride, Index rows, Index depth,
             Index vectors, bool add, float* c, Index c_stride, Ahead& ahead, Index head_dim) {
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
      ahead.step(head_dim);
    }
  }
}

// ---- packing -----------------------------------------------------------------------------------------------
#if HWY_TARGET != HWY_SCALAR  // which has no blocks of four lanes
// Lane 4b + c of the result: column c (of four) of row 4b, for b in 0 .. lanes/4-1; rows past `rows` are zero.
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

// to[c * query_block + r] = factor * from[r][c]     rows <= query_block; zero up to a whole vector of rows
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
        auto even_low = hn::InterleaveLower(d, row0, row2), odd_low = hn::InterleaveLower(d, row1, row3);
        auto even_high = hn::InterleaveUpper(d, row0, row2), odd_high = hn::InterleaveUpper(d, row1, row3);
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

// A view of rows whose columns are whole vectors: the rows themselves where they are, else a zero-padded copy.
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
void add_rows(const float* from, Index width, float factor, Index rows, Index cols, float* to, Index ld) {
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
  for (Index c = 0; c < whole; c += lanes) sum = hn::MulAdd(hn::LoadU(d, a + c), hn::LoadU(d, b + c), sum);
  float total = reduce_sum(d, sum);
  for (Index c = whole; c < cols; ++c) total += a[c] * b[c];
  return total;
}

// ---- softmax -----------------------------------------------------------------------------------------------
// 2^x for x below about 1; exactly 0 from -127 down, NaN stays NaN.
// 2^x = 2^n (1 + r p(r)), n = round(x), |r| <= 1/2; p is the minimax polynomial, relative error 1.1e-7.
// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: cheaper than two conversions.
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
      auto hidden = hn::RebindMask(d, hn::Lt(query, hn::Set(di, static_cast<std::int32_t>(j - last))));
      hn::Store(hn::IfThenElse(hidden, hn::Set(d, -infinity), hn::Load(d, at)), d, at);
    }
}

// One step of the online softmax (Milakov, Gimelshein 2018) for every query of the block:
//   scores -> 2^(scores - peak)   peak, sum -> with these keys   shrink = 2^(old peak - new peak)
void online_softmax(float* scores, Index keys, Index vectors, float* peak, float* sum, float* shrink) {
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

// After the last key:  factor = keep / sum   lse = ln(2) peak + ln(sum), over peak.  No key seen: 0 and -inf.
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

// ---- dropout -----------------------------------------------------------------------------------------------
struct DropRule {
  Dice dice;  // of this head
  std::uint32_t threshold = 0;
};

// Words of four keys for the queries of one vector: word[i] lane l = dice.word(row + l, 4 * column_block + i).
// Philox multiplies 32 x 32 -> 64 bits, so even and odd lanes go separately, as 64-bit lanes whose upper half
// holds leftovers that the next multiplication ignores.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void drop_words(D d, const Dice& dice, Index row, Index column_block, V (&word)[4]) {
  if constexpr (hn::MaxLanes(D()) == 1) {
    PhiloxBlock block = dice.block(row, column_block);
    for (int i = 0; i < 4; ++i) word[i] = hn::Set(d, block[static_cast<std::size_t>(i)]);
  } else {
    const hn::Repartition<std::uint64_t, D> d64;
    using V64 = hn::Vec<decltype(d64)>;
    const V multiplier0 = hn::Set(d, philox_multiplier_0), multiplier1 = hn::Set(d, philox_multiplier_1);
    auto rows = hn::BitCast(d64, hn::Iota(d, static_cast<std::uint32_t>(dice.row0 + row)));
    V64 counter[2][4];  // even and odd lanes
    for (int half = 0; half < 2; ++half) {
      counter[half][0] = hn::BitCast(d64, hn::Set(d, static_cast<std::uint32_t>(column_block)));
      counter[half][1] = half == 0 ? rows : hn::ShiftRight<32>(rows);
      counter[half][2] = hn::BitCast(d64, hn::Set(d, dice.step));
      counter[half][3] = hn::BitCast(d64, hn::Set(d, dice.side));
    }
    std::uint32_t key0 = dice.key0, key1 = dice.key1;
    for (int round = 0; round < 10; ++round) {
      auto k0 = hn::BitCast(d64, hn::Set(d, key0)), k1 = hn::BitCast(d64, hn::Set(d, key1));
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
      key0 += philox_weyl_0;
      key1 += philox_weyl_1;
    }
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i)
      word[i] = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(counter[1][i])),
                            hn::BitCast(d, counter[0][i]));
  }
}

// at[j][:] = 0 where dropped, for keys first_key + j, first_key a multiple of four, and queries row + lane.
void drop(const DropRule& rule, Index row, Index first_key, Index keys, Index vectors, float* at) {
  const F d;
  const U32 du;
  const auto threshold = hn::Set(du, rule.threshold);
  for (Index v = 0; v < vectors; ++v)
    for (Index j = 0; j < keys; j += 4) {
      hn::Vec<U32> word[4];
      drop_words(du, rule.dice, row + v * lanes, (first_key + j) / 4, word);
      for (Index i = 0; i < std::min<Index>(4, keys - j); ++i) {
        float* p = at + (j + i) * query_block + v * lanes;
        auto dropped = hn::RebindMask(d, hn::Lt(word[i], threshold));
        hn::Store(hn::IfThenZeroElse(dropped, hn::Load(d, p)), d, p);
      }
    }
}

// Backward of softmax and dropout for a block of keys (first_key on) and queries (row on):
//   p = 2^(scores - lse)   dscores -> p (m dscores - delta), if given   scores -> p where kept, else 0
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
      if (rule.threshold > 0)
        drop_words(du, rule.dice, row + v * lanes, (first_key + j) / 4, word);
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

#endif  // MOE_CPU_ATTENTION_INL_H_
