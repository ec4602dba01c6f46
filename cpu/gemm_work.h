// What one matrix product is, as the per-target kernels see it, and how its output is shared out.
//
// Every product of the family (forward, input gradient, weight gradient, each per group) is C = A B
// with C row-major. The grid cuts C into rectangles, one per thread; the numbers do not depend on
// the cut.
#pragma once

#include "runtime/kernels.h"

#include <algorithm>
#include <array>

namespace moe::cpu {

// C = A B of one group; pointers stand at the group's first row.   A (m,k)  B (k,n)  C (m,n)
struct Product {
  Index m = 0, n = 0, k = 0;
  // A(i,j) = a[i * a_ld + j], or a[j * a_ld + i] when a_columns: the weight gradient's A is dy^T.
  const float* a = nullptr;
  Index a_ld = 0;
  bool a_columns = false;
  // B(j,c) = b[j * b_ld + c], or b[c * b_ld + j] when b_transposed; or panels made from it
  // beforehand.
  const float* b = nullptr;
  Index b_ld = 0;
  bool b_transposed = false;
  const float* panels = nullptr;
  // C = act(A B + bias) + added
  const float* bias = nullptr;
  Activation activation = Activation::none;
  Rows<const float> added = {};  // a residual, or the old value of a gradient
  Rows<float> preactivation = {};
  Rows<float> c = {};
};

// The groups of a call: which rows of C each owns, and its product.
struct Grouped {
  Product base;  // of group 0; m, k and pointers below move per group
  Index groups = 0;
  Index begin0 = 0, end0 = 0;  // the rows of the one group when begin is null
  const std::int32_t *begin = nullptr, *end = nullptr;
  Index b_step = 0, panel_step = 0;  // elements from one group's weight block to the next
  Index bias_step = 0;
  bool sum_tokens = false;  // weight gradient: groups cut k, and C is a bank of m-row blocks

  Index first(Index g) const { return begin == nullptr ? begin0 : begin[g]; }
  Index tokens(Index g) const {
    return begin == nullptr ? end0 - begin0 : std::max<Index>(0, end[g] - begin[g]);
  }
  // Rows of C in group g, and the length of its sums.
  Index rows(Index g) const { return sum_tokens ? base.m : tokens(g); }
  Index depth(Index g) const { return sum_tokens ? tokens(g) : base.k; }

  Product product(Index g) const {
    Product p = base;
    Index row = sum_tokens ? g * base.m : first(g);
    p.c.data = base.c[row];
    if (base.added) p.added.data = base.added[row];
    if (base.preactivation) p.preactivation.data = base.preactivation[row];
    if (sum_tokens) {
      p.k = tokens(g);
      p.a += first(g) * base.a_ld;
      p.b += first(g) * base.b_ld;
    } else {
      p.m = tokens(g);
      p.a += first(g) * base.a_ld;
      if (p.b != nullptr) p.b += g * b_step;
      if (p.panels != nullptr) p.panels += g * panel_step;
      if (p.bias != nullptr) p.bias += g * bias_step;
    }
    return p;
  }
};

// A grid of row_parts x column_parts rectangles over C. Row parts cut the concatenated rows of all
// groups by cost, so uneven experts still balance; column parts cut panels and are always even.
struct Grid {
  Index row_parts = 1, column_parts = 1;
};

// The cost of one row of group g: its sums, and the store of the result.
inline Index row_cost(const Grouped& work, Index g) {
  return work.depth(g) + 16;
}

inline Index total_cost(const Grouped& work) {
  Index total = 0;
  for (Index g = 0; g < work.groups; ++g) total += work.rows(g) * row_cost(work, g);
  return total;
}

// Tries every cut of `threads` into rows x columns and takes the cheapest slowest rectangle. A
// rectangle costs (rows + what bringing in B costs) x (panels + what bringing in A costs), in units
// measured on a 2-core AVX-512 machine: a panel of B costs as much as multiplying some rows by it,
// packing it on the way more.
inline Grid choose_grid(const Grouped& work, Index panels, Index width, Index threads) {
  Index cost = total_cost(work);
  // A thread is worth waking for about half a million multiply-adds (some 10 us).
  threads = std::clamp<Index>(cost * panels * width / (Index{1} << 19), 1, threads);
  if (threads == 1) return {};
  Index rows = 0, groups = 0;
  for (Index g = 0; g < work.groups; ++g) {
    rows += work.rows(g);
    groups += work.rows(g) > 0 ? 1 : 0;
  }
  double b_rows = work.base.panels != nullptr ? 3 : work.base.b_transposed ? 16 : 6;
  double a_panels = work.base.a_columns ? 0.5 : 0.25;
  Grid best;
  double least = 0;
  for (Index row_parts = 1; row_parts <= std::min(threads, rows); ++row_parts) {
    Index column_parts = std::min(threads / row_parts, panels);
    double rows_here = static_cast<double>((rows + row_parts - 1) / row_parts);
    double groups_here =
        std::min<double>(static_cast<double>(groups),
                         static_cast<double>(groups) / static_cast<double>(row_parts) + 1);
    double panels_here = static_cast<double>((panels + column_parts - 1) / column_parts);
    double time = (rows_here + b_rows * groups_here) * (panels_here + a_panels);
    if (row_parts == 1 || time < least) {
      least = time;
      best = {row_parts, column_parts};
    }
  }
  return best;
}

}  // namespace moe::cpu
