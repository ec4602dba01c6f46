// Rows into expert order and back: copies and weighted sums, partitioned by output rows. Selecting
// and sorting handle a few numbers per row and stay with the reference.
#include "cpu/cpu.h"
#include "runtime/parallel.h"

#include <algorithm>
#include <cstring>

namespace moe::cpu {

namespace {

Index row_grain(Index cols) {
  return std::max<Index>(1, 16'384 / std::max<Index>(cols, 1));
}

void gather_rows(Rows<const float> x, const std::int32_t* source, const std::int32_t* count,
                 Rows<float> y) {
  parallel_for(*count, row_grain(x.cols), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      std::memcpy(y[i], x[source[i]], static_cast<std::size_t>(x.cols) * sizeof(float));
  });
}

void combine_rows(Rows<const float> y, const std::int32_t* slot, Index k, Rows<const float> weight,
                  double beta, Rows<float> out) {
  if (!out) return;
  parallel_for(out.rows, row_grain(out.cols * k), [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) {
      float* to = out[t];
      if (beta == 0) std::fill_n(to, out.cols, 0.0f);
      for (Index j = 0; j < k; ++j) {
        std::int32_t at = slot[t * k + j];
        if (at < 0) continue;
        const float* from = y[at];
        float w = weight ? weight[t][j] : 1.0f;
        for (Index c = 0; c < out.cols; ++c) to[c] += w * from[c];
      }
    }
  });
}

}  // namespace

void fill_routing(Kernels<float>& table) {
  table.gather_rows = gather_rows;
  table.combine_rows = combine_rows;
}

}  // namespace moe::cpu
