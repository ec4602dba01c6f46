// Pooling over segments: the definition.
//   x, dx (T,D)   y, dy, arg (G,D)   segment g: rows begin[g] .. end[g]-1
#include "cpu/cpu.h"
#include "cpu/reference/functions.h"

namespace moe::reference {

namespace {

// y[g,:] = mean of the segment's rows; 0 for an empty one
template <class T>
void segment_mean(Rows<const T> x, Ragged segments, Rows<T> y) {
  for (Index g = 0; g < segments.count; ++g) {
    Range range = group_rows(segments, g, x.rows);
    for (Index d = 0; d < x.cols; ++d) {
      double sum = 0;
      for (Index t = range.begin; t < range.end; ++t) sum += x[t][d];
      double length = static_cast<double>(std::max<Index>(range.end - range.begin, 1));
      y[g][d] = static_cast<T>(sum / length);
    }
  }
}

// dx[t,:] += dy[g,:] / length of g
template <class T>
void segment_mean_backward(Rows<const T> dy, Ragged segments, Rows<T> dx) {
  if (!dx) return;
  for (Index g = 0; g < segments.count; ++g) {
    Range range = group_rows(segments, g, dx.rows);
    for (Index t = range.begin; t < range.end; ++t)
      for (Index d = 0; d < dx.cols; ++d)
        dx[t][d] =
            static_cast<T>(dx[t][d] + dy[g][d] / static_cast<double>(range.end - range.begin));
  }
}

// y[g,:] = column-wise max, arg = the row that gave it, the first on ties; 0 and -1 when empty
template <class T>
void segment_max(Rows<const T> x, Ragged segments, Rows<T> y, std::int32_t* arg) {
  for (Index g = 0; g < segments.count; ++g) {
    Range range = group_rows(segments, g, x.rows);
    for (Index d = 0; d < x.cols; ++d) {
      Index best = range.begin < range.end ? range.begin : -1;
      for (Index t = range.begin; t < range.end; ++t)
        if (x[t][d] > x[best][d]) best = t;
      y[g][d] = best < 0 ? T{0} : x[best][d];
      arg[g * x.cols + d] = static_cast<std::int32_t>(best);
    }
  }
}

// dx[arg[g,d],d] += dy[g,d]
template <class T>
void segment_max_backward(Rows<const T> dy, const std::int32_t* arg, Rows<T> dx) {
  if (!dx) return;
  for (Index g = 0; g < dy.rows; ++g)
    for (Index d = 0; d < dy.cols; ++d)
      if (Index t = arg[g * dy.cols + d]; t >= 0) dx[t][d] += dy[g][d];
}

}  // namespace

template <class T>
void fill_segment(Kernels<T>& table) {
  table.segment_mean = segment_mean<T>;
  table.segment_mean_backward = segment_mean_backward<T>;
  table.segment_max = segment_max<T>;
  table.segment_max_backward = segment_max_backward<T>;
}

template void fill_segment(Kernels<float>&);
template void fill_segment(Kernels<double>&);

}  // namespace moe::reference
