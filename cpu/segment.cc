// Pooling over segments, one segment a thread at a time: memory-bound loops over contiguous rows
// that the compiler vectorises across columns, so every sum runs in row order.
#include "cpu/cpu.h"
#include "runtime/parallel.h"

#include <algorithm>

namespace moe::cpu {

namespace {

Index segment_grain(Ragged segments, Index cols) {
  Index work = std::max<Index>(segments.longest * cols, 1);
  return std::max<Index>(1, 16'384 / work);
}

void segment_mean(Rows<const float> x, Ragged segments, Rows<float> y) {
  parallel_for(segments.count, segment_grain(segments, x.cols), [&](Index first, Index last) {
    for (Index g = first; g < last; ++g) {
      float* out = y[g];
      std::fill_n(out, x.cols, 0.0f);
      Index begin = segments.begin[g], end = segments.end[g];
      for (Index t = begin; t < end; ++t) {
        const float* row = x[t];
        for (Index c = 0; c < x.cols; ++c) out[c] += row[c];
      }
      float inv = end > begin ? 1.0f / static_cast<float>(end - begin) : 0.0f;
      for (Index c = 0; c < x.cols; ++c) out[c] *= inv;
    }
  });
}

void segment_mean_backward(Rows<const float> dy, Ragged segments, Rows<float> dx) {
  if (!dx) return;
  parallel_for(segments.count, segment_grain(segments, dy.cols), [&](Index first, Index last) {
    for (Index g = first; g < last; ++g) {
      Index begin = segments.begin[g], end = segments.end[g];
      if (begin == end) continue;
      float inv = 1.0f / static_cast<float>(end - begin);
      const float* from = dy[g];
      for (Index t = begin; t < end; ++t) {
        float* to = dx[t];
        for (Index c = 0; c < dy.cols; ++c) to[c] += from[c] * inv;
      }
    }
  });
}

}  // namespace

void fill_segment(Kernels<float>& table) {
  table.segment_mean = segment_mean;
  table.segment_mean_backward = segment_mean_backward;
}

}  // namespace moe::cpu
