// Softmax over the columns of each row: the definition. x, y, dx, dy (T,V)
//   softmax       y = exp(x - peak) / sum exp(x - peak)
//   log_softmax   y = x - peak - log sum exp(x - peak)
// Any shift gives the same result; the row's maximum, the peak, cannot overflow.
#include "cpu/cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moe::reference {

namespace {

struct Softmax {
  double peak, sum;  // sum of exp(x - peak)
};
template <class T>
Softmax statistics(const T* x, Index cols) {
  Softmax s{-std::numeric_limits<double>::infinity(), 0};
  for (Index d = 0; d < cols; ++d) s.peak = std::max<double>(s.peak, x[d]);
  for (Index d = 0; d < cols; ++d) s.sum += std::exp(x[d] - s.peak);
  return s;
}

template <class T>
void softmax(Rows<const T> x, Rows<T> y) {
  for (Index t = 0; t < x.rows; ++t) {
    Softmax s = statistics(x[t], x.cols);
    for (Index d = 0; d < x.cols; ++d) y[t][d] = static_cast<T>(std::exp(x[t][d] - s.peak) / s.sum);
  }
}

// dx += y (dy - sum_d y dy)
template <class T>
void softmax_backward(Rows<const T> y, Rows<const T> dy, Rows<T> dx) {
  if (!dx) return;
  for (Index t = 0; t < y.rows; ++t) {
    double dot = 0;
    for (Index d = 0; d < y.cols; ++d) dot += double{y[t][d]} * dy[t][d];
    for (Index d = 0; d < y.cols; ++d)
      dx[t][d] = static_cast<T>(dx[t][d] + y[t][d] * (dy[t][d] - dot));
  }
}

template <class T>
void log_softmax(Rows<const T> x, Rows<T> y) {
  for (Index t = 0; t < x.rows; ++t) {
    Softmax s = statistics(x[t], x.cols);
    double log_sum = std::log(s.sum);
    for (Index d = 0; d < x.cols; ++d) y[t][d] = static_cast<T>(x[t][d] - s.peak - log_sum);
  }
}

// dx += dy - exp(y) sum_d dy
template <class T>
void log_softmax_backward(Rows<const T> y, Rows<const T> dy, Rows<T> dx) {
  if (!dx) return;
  for (Index t = 0; t < y.rows; ++t) {
    double sum = 0;
    for (Index d = 0; d < y.cols; ++d) sum += dy[t][d];
    for (Index d = 0; d < y.cols; ++d)
      dx[t][d] = static_cast<T>(dx[t][d] + dy[t][d] - std::exp(double{y[t][d]}) * sum);
  }
}

}  // namespace

template <class T>
void fill_softmax(Kernels<T>& table) {
  table.softmax = softmax<T>;
  table.softmax_backward = softmax_backward<T>;
  table.log_softmax = log_softmax<T>;
  table.log_softmax_backward = log_softmax_backward<T>;
}

template void fill_softmax(Kernels<float>&);
template void fill_softmax(Kernels<double>&);

}  // namespace moe::reference
