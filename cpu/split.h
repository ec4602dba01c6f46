// How the plain families share their outputs among threads: by rows, or by columns where rows are
// summed. The cut never changes a number: rows do not mix, and whoever owns a column sums all of
// it.
#pragma once

#include "runtime/kernels.h"
#include "runtime/parallel.h"

#include <algorithm>

namespace moe::cpu {

// Elements worth waking a thread for: about 5 us of work, as much as the waking costs.
inline constexpr Index thread_work = 16384;

inline Index row_grain(Index cols) {
  return std::max<Index>(1, thread_work / std::max<Index>(cols, 1));
}
// Whole runs of 64 columns: threads never write to the same cache line.
inline Index column_grain(Index rows) {
  Index columns = thread_work / std::max<Index>(rows, 1);
  return std::max<Index>(64, (columns + 63) / 64 * 64);
}

// Sums over rows: blocks of this many rows in order, then the block sums in order. An f32 chain of
// thousands of rows would lose three digits.
inline constexpr Index row_block = 64;

template <class T>
Rows<T> rows_part(Rows<T> x, Index begin, Index end) {
  return x ? Rows<T>{x[begin], end - begin, x.cols, x.ld} : x;
}
template <class T>
Rows<T> columns_part(Rows<T> x, Index begin, Index end) {
  return x ? Rows<T>{x.data + begin, x.rows, end - begin, x.ld} : x;
}

// kernel(part of each operand) over disjoint parts of operands of one shape. Operands without gaps
// are cut as one long row, so that few long rows and many short ones split alike.
template <class Kernel, class... T>
void for_parts(const Kernel& kernel, Rows<T>... x) {
  const Index rows = std::max({x.rows...}), cols = std::max({x.cols...});
  if ((... && (!x || x.ld == x.cols || x.rows == 1))) {
    parallel_for(rows * cols, thread_work, [&](Index begin, Index end) {
      kernel((x ? Rows<T>{x.data + begin, 1, end - begin, end - begin} : x)...);
    });
  } else {
    parallel_for(rows, row_grain(cols),
                 [&](Index begin, Index end) { kernel(rows_part(x, begin, end)...); });
  }
}

}  // namespace moe::cpu
