// What ops check of their operands besides shapes.
#pragma once

#include "runtime/segments.h"
#include "runtime/tape.h"

namespace moe {

// Every other operand lives where x does. Absent ones are fine.
inline void check_device(const char* op, const Tensor& x, std::initializer_list<TensorRef> others) {
  for (const Tensor& y : others)
    if (y && y.device() != x.device())
      fail(Fault::usage, "{}: {} is on '{}', {} on '{}'", op, x.shape(), x.device(), y.shape(),
           y.device());
}

// Vectors, ids and masks are read as plain arrays: a strided view would be read wrong.
inline void check_arrays(const char* op, const Tensor& x, std::initializer_list<TensorRef> arrays) {
  check_device(op, x, arrays);
  for (const Tensor& y : arrays)
    if (y && !y.contiguous())
      fail(Fault::usage, "{}: {} is a strided view, the kernel reads a plain array", op, y.shape());
}

// Indices lie in [lowest, limit): a kernel does not look again. Where the host cannot see them,
// their maker answers.
inline void check_range(const char* op, const Tensor& ids, Index lowest, Index limit) {
  if (!backend(ids.device()).host_memory) return;
  const std::int32_t* values = ids.data<std::int32_t>();
  for (Index i = 0; i < ids.size(); ++i)
    if (values[i] < lowest || values[i] >= limit)
      fail(Fault::usage, "{}: index {} at {} is outside {}..{}", op, values[i], i, lowest,
           limit - 1);
}

// The segments cover rows that x has.
inline void check_segments(const char* op, const Tensor& x, const Segments& segments) {
  check(segments.rows <= x.rows(), "{}: the segments cover {} rows of {}", op, segments.rows,
        x.shape());
  check_device(op, x, {segments.begin, segments.end});
}

}  // namespace moe
