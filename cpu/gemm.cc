// The fp32 product family: y = act(x W^T + b) + r, dx = dy W, dW = dy^T x, each per group, and
// column sums.
//
// All three products are C = A B per group (gemm_work.h). Each thread owns a rectangle of C and
// walks
//   rows of C in chunks -> panels of B in chunks that stay in L2 -> slabs of k -> blocks of
//   tile_rows -> panels
// B comes as panels, from pack_weight or packed on the way into the thread's scratch: the same
// panels, the same bits. A is read in place where it lies well (the kernel broadcasts from
// tile_rows rows at once), and copied where those rows would fall on the same cache sets, or where
// it is dy^T.
#include "cpu/cpu.h"
#include "cpu/gemm_work.h"
#include "runtime/parallel.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/gemm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/gemm-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

// Blocking. A tile's k loop reads tile_rows rows of A (36 KiB a slab, mostly L1) and a panel of B
// (96 KiB, L2).
constexpr Index longest_slab = 768;
constexpr Index chunk_bytes =
    384 * 1024;  // of A: rows that meet a group of panels while both stay in L2
constexpr Index group_bytes = 192 * 1024;  // of B: panels that a block of rows meets in a row
constexpr Index packed_most = Index{4}
                              << 20;  // bytes of B packed on the way and kept for all chunks of A
constexpr Index waiting_rows = 768, waiting_columns = 1024;

// k is cut by its own length alone: promise 10.
struct Slabs {
  explicit Slabs(Index k)
      : count(std::max<Index>(1, (k + longest_slab - 1) / longest_slab)),
        depth(std::max<Index>(8, ((k + count - 1) / count + 7) / 8 * 8)) {}
  Index count, depth;
};

HWY_INLINE Vector activate(Activation f, Vector v) {
  const Lanes d;
  switch (f) {
    case Activation::none:
      return v;
    case Activation::relu:
      return hn::Max(v, hn::Zero(d));
    case Activation::gelu:
      return gelu(d, v);
    case Activation::gelu_tanh:
      return gelu_tanh(d, v);
    case Activation::tanh:
      return tanh(d, v);
    case Activation::sigmoid:
      return sigmoid(d, v);
    case Activation::softplus:
      return softplus(d, v);
  }
  return v;
}

// One tile of C. The registers store to C itself, or, where C is narrower than a panel or an
// activation follows, to a small array, from where finish_tile takes them.
struct Tile {
  Index row = 0, rows = 0, column = 0, columns = 0;
  const float* partial = nullptr;  // the slabs before this one
  float* to = nullptr;
  Index partial_ld = 0, to_ld = 0;
  bool last = true;  // the last slab: the epilogue applies
};

HWY_NOINLINE void finish_tile(const Product& p, const Tile& tile, const float* sums) {
  const Lanes d;
  for (Index i = 0; i < tile.rows; ++i) {
    for (Index j = 0; j < tile.columns; j += lanes) {
      const Index count = std::min(lanes, tile.columns - j);
      const Index row = tile.row + i, column = tile.column + j;
      Vector v = hn::LoadU(d, sums + i * width + j);
      if (tile.partial != nullptr)
        v = hn::Add(load_tail(d, tile.partial + i * tile.partial_ld + j, count), v);
      if (tile.last) {
        if (p.bias != nullptr) v = hn::Add(v, load_tail(d, p.bias + column, count));
        if (p.preactivation) store_tail(d, v, p.preactivation[row] + column, count);
        v = activate(p.activation, v);
        if (p.added) v = hn::Add(v, load_tail(d, p.added[row] + column, count));
      }
      store_tail(d, v, tile.to + i * tile.to_ld + j, count);
    }
  }
}

// A's columns packed, blocks of rows one behind the other: `count` of them as [k][count]. Whole
// vectors are stored; what they write past `count` the next k overwrites, and the last k's falls
// between two blocks.
constexpr Index block_floats(Index depth) {
  return depth * tile_rows + lanes;
}

HWY_NOINLINE void pack_columns(const Product& p, Index row, Index rows, Index blocks, Index k,
                               Index depth, float* to) {
  const Lanes d;
  constexpr Index some = 8;  // rows of dy at a time: long runs to read, few streams to write
  for (Index done = 0; done < depth; done += some) {
    const Index last = std::min(done + some, depth);
    for (Index b = 0; b < blocks; ++b) {
      const Index first = rows * b / blocks, count = rows * (b + 1) / blocks - first;
      const bool whole = row + first + (count + lanes - 1) / lanes * lanes <= p.m;
      for (Index j = done; j < last; ++j) {
        const float* from = p.a + (k + j) * p.a_ld + row + first;
        float* at = to + b * block_floats(depth) + j * count;
        if (whole)
          for (Index i = 0; i < count; i += lanes) hn::StoreU(hn::LoadU(d, from + i), d, at + i);
        else
          for (Index i = 0; i < count; ++i) at[i] = from[i];
      }
    }
  }
}

constexpr Index copy_pad = 16;

// A's rows copied to a stride that spreads over the cache sets.
HWY_NOINLINE void copy_rows(const Product& p, Index row, Index rows, Index k, Index depth,
                            float* to, Index ld) {
  const Lanes d;
  for (Index i = 0; i < rows; ++i) {
    const float* from = p.a + (row + i) * p.a_ld + k;
    Index j = 0;
    for (; j + lanes <= depth; j += lanes) hn::StoreU(hn::LoadU(d, from + j), d, to + i * ld + j);
    for (; j < depth; ++j) to[i * ld + j] = from[j];
  }
}

float* floats(Scratch use, Index count) {
  return static_cast<float*>(scratch(use, static_cast<std::size_t>(count) * sizeof(float)));
}

// The walk of one thread over its rectangle of C: rows [row_begin, row_end) x panels [first, last).
class Walk {
 public:
  Walk(const Product& p, Index row_begin, Index row_end, Index first, Index last)
      : p_(p), slabs_(p.k) {
    const Index rows = row_end - row_begin, panel_bytes = slabs_.depth * width * 4;
    plain_ending_ = p.activation == Activation::none && !p.preactivation;
    // Rows a multiple of 4 KiB apart share one set of L1, which has 8 ways: 88 instead of 116
    // GFLOP/s on Zen 4.
    copied_ = !p.a_columns && p.a_ld % 1024 == 0 && rows > 4;
    chunk_rows_ = std::max<Index>(1, chunk_bytes / (slabs_.depth * tile_rows * 4)) * tile_rows;
    chunk_rows_ = std::min(chunk_rows_, rows);
    group_ = std::max<Index>(1, group_bytes / panel_bytes);
    super_rows_ = rows;
    super_panels_ = last - first;
    // Slab sums wait in C itself, unless C's old value is still to be added.
    if (slabs_.count > 1 && p.added.data == p.c.data) {
      super_rows_ = std::min(super_rows_, waiting_rows);
      super_panels_ = std::min(super_panels_, waiting_columns / width);
      waiting_ld_ = super_panels_ * width;
      waiting_ = floats(Scratch::tile, super_rows_ * waiting_ld_);
    }
    if (p.panels == nullptr) {
      const bool kept = rows > chunk_rows_;  // later chunks of A meet the same panels
      if (kept) super_panels_ = std::clamp<Index>(packed_most / panel_bytes, 1, super_panels_);
      slots_ = kept ? super_panels_ : std::min(group_, super_panels_);
      b_packed_ = floats(Scratch::pack_b, slots_ * slabs_.depth * width);
    }
    if (p.a_columns)
      a_packed_ =
          floats(Scratch::pack_a, (chunk_rows_ / tile_rows + 1) * block_floats(slabs_.depth));
    else if (copied_)
      a_packed_ = floats(Scratch::pack_a, chunk_rows_ * (slabs_.depth + copy_pad));
    for (top_ = row_begin; top_ < row_end; top_ += super_rows_)
      for (left_ = first; left_ < last; left_ += super_panels_)
        for (slab_ = 0; slab_ < slabs_.count; ++slab_)
          run_slab(std::min(top_ + super_rows_, row_end), std::min(left_ + super_panels_, last));
  }

 private:
  void run_slab(Index bottom, Index right) {
    k_ = slab_ * slabs_.depth;
    depth_ = std::max<Index>(0, std::min(slabs_.depth, p_.k - k_));
    for (Index row = top_; row < bottom; row += chunk_rows_) {
      const Index rows = std::min(chunk_rows_, bottom - row);
      const Index blocks = (rows + tile_rows - 1) / tile_rows;
      if (p_.a_columns) pack_columns(p_, row, rows, blocks, k_, depth_, a_packed_);
      if (copied_) copy_rows(p_, row, rows, k_, depth_, a_packed_, depth_ + copy_pad);
      for (Index from = left_; from < right; from += group_) {
        const Index to = std::min(from + group_, right);
        if (p_.panels == nullptr && row == top_ && (from - left_) % slots_ == 0)
          pack_panels(p_.b, p_.b_ld, p_.b_transposed, p_.n, k_, depth_, from,
                      std::min(from + slots_, right), slot(from), depth_ * width);
        for (Index block = 0; block < blocks; ++block) {
          const Index skip = rows * block / blocks;
          run_tiles(row, skip, rows * (block + 1) / blocks - skip, block, from, to);
        }
      }
    }
  }

  float* slot(Index panel) const { return b_packed_ + (panel - left_) % slots_ * depth_ * width; }

  // One block of rows, `skip` rows into the chunk, against panels [from, to).
  void run_tiles(Index chunk, Index skip, Index rows, Index block, Index from, Index to) {
    const float* a = p_.a + (chunk + skip) * p_.a_ld + k_;
    Index a_row = p_.a_ld, a_step = 1;
    if (p_.a_columns) {
      a = a_packed_ + block * block_floats(depth_);
      a_row = 1;
      a_step = rows;
    } else if (copied_) {
      a_row = depth_ + copy_pad;
      a = a_packed_ + skip * a_row;
    }
    const bool packed = p_.panels != nullptr, last = slab_ + 1 == slabs_.count;
    const Index b_step = (packed ? p_.k : depth_) * width;
    const float* b = packed ? p_.panels + from * b_step + k_ * width : slot(from);
    const Multiply kernel = multiply_of(rows);
    Tile tile;
    tile.row = chunk + skip;
    tile.rows = rows;
    tile.last = last;
    // Where the sums of earlier slabs are, and where this one's go.
    float* c = p_.c[tile.row] + from * width;
    float* held = c;
    tile.partial_ld = p_.c.ld;
    if (waiting_ != nullptr) {
      held = waiting_ + (tile.row - top_) * waiting_ld_ + (from - left_) * width;
      tile.partial_ld = waiting_ld_;
    }
    if (slab_ > 0) tile.partial = held;
    tile.to = last ? c : held;
    tile.to_ld = last ? p_.c.ld : tile.partial_ld;
    Ending ending;
    ending.partial_ld = tile.partial_ld;
    if (last && p_.bias != nullptr) ending.bias = p_.bias + from * width;
    if (last && p_.added) ending.added = p_.added[tile.row] + from * width;
    ending.added_ld = p_.added.ld;
    for (Index panel = from; panel < to; ++panel) {
      tile.column = panel * width;
      tile.columns = std::min(width, p_.n - tile.column);
      if (tile.columns == width && (!last || plain_ending_)) {
        ending.partial = tile.partial;
        kernel(a, a_row, a_step, b, depth_, ending, tile.to, tile.to_ld);
      } else {
        alignas(64) float sums[tile_rows * width];
        kernel(a, a_row, a_step, b, depth_, Ending(), sums, width);
        finish_tile(p_, tile, sums);
      }
      b += b_step;
      tile.to += width;
      if (tile.partial != nullptr) tile.partial += width;
      if (ending.bias != nullptr) ending.bias += width;
      if (ending.added != nullptr) ending.added += width;
    }
  }

  const Product& p_;
  const Slabs slabs_;
  bool copied_ = false, plain_ending_ = false;
  Index chunk_rows_ = 0, super_rows_ = 0, super_panels_ = 0, group_ = 1, slots_ = 1,
        waiting_ld_ = 0;
  float *a_packed_ = nullptr, *b_packed_ = nullptr, *waiting_ = nullptr;
  Index top_ = 0, left_ = 0, slab_ = 0, k_ = 0, depth_ = 0;  // where the walk is
};

void product_block(const Product& p, Index row_begin, Index row_end, Index first, Index last) {
  Walk(p, row_begin, row_end, first, last);
}

// Panels [first, last) of a whole B: what pack_weight stores.
void pack_block(const float* b, Index ld, bool transposed, Index n, Index k, Index first,
                Index last, float* panels) {
  pack_panels(b, ld, transposed, n, 0, k, first, last, panels + first * k * width, k * width);
}

// db[c] += sum_t dy[t,c] for columns [first, last), rows in order.
void sum_rows_block(Rows<const float> dy, Index rows, Index first, Index last, float* db) {
  const Lanes d;
  constexpr Index wide = 4 * lanes;
  Index c = first;
  for (; c + wide <= last; c += wide) {
    Vector s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    for (Index t = 0; t < rows; ++t) {
      const float* at = dy[t] + c;
      s0 = hn::Add(s0, hn::LoadU(d, at));
      s1 = hn::Add(s1, hn::LoadU(d, at + lanes));
      s2 = hn::Add(s2, hn::LoadU(d, at + 2 * lanes));
      s3 = hn::Add(s3, hn::LoadU(d, at + 3 * lanes));
    }
    hn::StoreU(hn::Add(hn::LoadU(d, db + c), s0), d, db + c);
    hn::StoreU(hn::Add(hn::LoadU(d, db + c + lanes), s1), d, db + c + lanes);
    hn::StoreU(hn::Add(hn::LoadU(d, db + c + 2 * lanes), s2), d, db + c + 2 * lanes);
    hn::StoreU(hn::Add(hn::LoadU(d, db + c + 3 * lanes), s3), d, db + c + 3 * lanes);
  }
  for (; c < last; c += lanes) {
    const Index count = std::min(lanes, last - c);
    Vector s = hn::Zero(d);
    for (Index t = 0; t < rows; ++t) s = hn::Add(s, load_tail(d, dy[t] + c, count));
    store_tail(d, hn::Add(load_tail(d, db + c, count), s), db + c, count);
  }
}

Index panel_width() {
  return width;
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::cpu {
namespace {

HWY_EXPORT(product_block);
HWY_EXPORT(pack_block);
HWY_EXPORT(sum_rows_block);
HWY_EXPORT(panel_width);

Index panels_of(Index n, Index panel) {
  return (n + panel - 1) / panel;
}

// The rectangle of one part: its share of panels, and of each group's rows.
void run_part(const Grouped& work, const Grid& grid, Index part, Index panels, Index total,
              decltype(&HWY_STATIC_DISPATCH(product_block)) block) {
  Index column = part % grid.column_parts, row = part / grid.column_parts;
  Index first = panels * column / grid.column_parts,
        last = panels * (column + 1) / grid.column_parts;
  Index lower = total * row / grid.row_parts, upper = total * (row + 1) / grid.row_parts;
  Index seen = 0;
  for (Index g = 0; g < work.groups && seen < upper; ++g) {
    Index rows = work.rows(g), cost = row_cost(work, g);
    // Rows whose cost starts within [lower, upper): every row has one owner.
    Index begin = std::clamp<Index>((lower - seen + cost - 1) / cost, 0, rows);
    Index end = std::clamp<Index>((upper - seen + cost - 1) / cost, 0, rows);
    seen += rows * cost;
    if (begin < end) block(work.product(g), begin, end, first, last);
  }
}

void run(const Grouped& work) {
  auto block = &HWY_DYNAMIC_DISPATCH(product_block);
  Index width = HWY_DYNAMIC_DISPATCH(panel_width)();
  Index panels = panels_of(work.base.n, width), total = total_cost(work);
  if (panels == 0 || total == 0) return;
  Grid grid = choose_grid(work, panels, width, threads());
  parallel_for(grid.row_parts * grid.column_parts, 1, [&](Index begin, Index end) {
    for (Index part = begin; part < end; ++part) run_part(work, grid, part, panels, total, block);
  });
}

Grouped grouped(Ragged groups, Index rows) {
  Grouped work;
  work.groups = groups.count;
  work.begin = groups.begin;
  work.end = groups.end;
  work.end0 = rows;
  return work;
}

// y = act(x W^T + bias) + residual:  A = x, B = W^T.
void gemm(Rows<const float> x, Weight<float> w, Ragged groups, Epilogue<float> epilogue,
          Rows<float> y) {
  Index out = y.cols, in = x.cols;
  Index width = HWY_DYNAMIC_DISPATCH(panel_width)();
  Grouped work = grouped(groups, x.rows);
  work.base = {.n = out,
               .k = in,
               .a = x.data,
               .a_ld = x.ld,
               .b = w.rows.data,
               .b_ld = w.rows.ld,
               .b_transposed = true,
               .panels = static_cast<const float*>(w.packed),
               .bias = epilogue.bias,
               .activation = epilogue.activation,
               .added = epilogue.residual,
               .preactivation = epilogue.preactivation,
               .c = y};
  work.b_step = out * w.rows.ld;
  work.panel_step = panels_of(out, width) * width * in;
  work.bias_step = out;
  run(work);
}

// dx = beta dx + dy W:  A = dy, B = W.
void gemm_input_grad(Rows<const float> dy, Weight<float> w, Ragged groups, double beta,
                     Rows<float> dx) {
  Index out = dy.cols, in = dx.cols;
  Index width = HWY_DYNAMIC_DISPATCH(panel_width)();
  Grouped work = grouped(groups, dy.rows);
  work.base = {.n = in,
               .k = out,
               .a = dy.data,
               .a_ld = dy.ld,
               .b = w.rows.data,
               .b_ld = w.rows.ld,
               .panels = static_cast<const float*>(w.packed),
               .c = dx};
  if (beta != 0) work.base.added = dx;
  work.b_step = out * w.rows.ld;
  work.panel_step = panels_of(in, width) * width * out;
  run(work);
}

// dW_g = beta dW_g + dy_g^T x_g:  A = dy_g^T, B = x_g; the sum runs over the group's tokens from
// its begin.
void gemm_weight_grad(Rows<const float> dy, Rows<const float> x, Ragged groups, double beta,
                      Rows<float> dw) {
  Grouped work = grouped(groups, x.rows);
  work.sum_tokens = true;
  work.base = {.m = dy.cols,
               .n = x.cols,
               .a = dy.data,
               .a_ld = dy.ld,
               .a_columns = true,
               .b = x.data,
               .b_ld = x.ld,
               .c = dw};
  if (beta != 0) work.base.added = dw;
  run(work);
}

void grouped_sum_rows(Rows<const float> dy, Ragged groups, float* db) {
  auto block = &HWY_DYNAMIC_DISPATCH(sum_rows_block);
  Grouped work = grouped(groups, dy.rows);
  constexpr Index strip = 64;  // columns: 256 bytes of each row
  Index strips = (dy.cols + strip - 1) / strip;
  parallel_for(groups.count * strips, 1, [&](Index begin, Index end) {
    for (Index at = begin; at < end; ++at) {
      Index g = at / strips, first = at % strips * strip;
      Rows<const float> rows = dy;
      rows.data = dy[work.first(g)];
      block(rows, work.tokens(g), first, std::min(first + strip, dy.cols), db + g * dy.cols);
    }
  });
}

Index packed_bytes(Rows<const float> w, Index groups, Packing packing) {
  Index out = groups > 0 ? w.rows / groups : 0, in = w.cols;
  Index n = packing == Packing::forward ? out : in, k = packing == Packing::forward ? in : out;
  Index width = HWY_DYNAMIC_DISPATCH(panel_width)();
  return groups * panels_of(n, width) * width * k * static_cast<Index>(sizeof(float));
}

void pack_weight(Rows<const float> w, Index groups, Packing packing, void* packed) {
  auto block = &HWY_DYNAMIC_DISPATCH(pack_block);
  Index width = HWY_DYNAMIC_DISPATCH(panel_width)();
  bool forward = packing == Packing::forward;
  Index out = groups > 0 ? w.rows / groups : 0, in = w.cols;
  Index n = forward ? out : in, k = forward ? in : out, panels = panels_of(n, width);
  parallel_for(groups * panels, 4, [&](Index begin, Index end) {
    while (begin < end) {
      Index g = begin / panels, first = begin % panels;
      Index last = std::min(panels, first + end - begin);
      block(w[g * out], w.ld, forward, n, k, first, last,
            static_cast<float*>(packed) + g * panels * width * k);
      begin += last - first;
    }
  });
}

}  // namespace

void fill_gemm(Kernels<float>& table) {
  table.gemm = gemm;
  table.gemm_input_grad = gemm_input_grad;
  table.gemm_weight_grad = gemm_weight_grad;
  table.grouped_sum_rows = grouped_sum_rows;
  table.packed_bytes = packed_bytes;
  table.pack_weight = pack_weight;
}

}  // namespace moe::cpu
#endif  // HWY_ONCE
