// Table lookup: rows are copied; the gradient is partitioned by columns, so every element is one
// chain of additions in order of the ids, whatever the thread count, and frequent ids do not load
// one thread.
#include "cpu/cpu.h"
#include "runtime/parallel.h"

#include <algorithm>
#include <cstring>

namespace moe::cpu {

namespace {

constexpr Index work_per_thread =
    16'384;  // floats; below it a second thread costs more than it saves

void lookup(Rows<const float> table, const std::int32_t* ids, Index n, Rows<float> y) {
  Index grain = std::max<Index>(1, work_per_thread / std::max<Index>(table.cols, 1));
  parallel_for(n, grain, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      std::memcpy(y[i], table[ids[i]], static_cast<std::size_t>(table.cols) * sizeof(float));
  });
}

void lookup_backward(Rows<const float> dy, const std::int32_t* ids, Index n, Rows<float> dtable) {
  if (!dtable) return;
  Index grain = std::max<Index>(16, work_per_thread / std::max<Index>(n, 1) / 16 * 16);
  parallel_for(dy.cols, grain, [&](Index begin, Index end) {
    for (Index i = 0; i < n; ++i) {
      const float* from = dy[i];
      float* to = dtable[ids[i]];
      for (Index c = begin; c < end; ++c) to[c] += from[c];
    }
  });
}

}  // namespace

void fill_embedding(Kernels<float>& table) {
  table.lookup = lookup;
  table.lookup_backward = lookup_backward;
}

}  // namespace moe::cpu
