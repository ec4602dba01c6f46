// Normalisation of each row: the definition.
//   layer_norm     y = (x - mean) inv w + b,  inv = 1 / sqrt(var + eps)      Ba, Kiros, Hinton 2016
//   l2_normalize   y = x / max(|x|, eps)
// x, y, dx, dy (T,D)   w, b, dw, db (D)   mean, inv, norm (T)
#include "cpu/cpu.h"

#include <algorithm>
#include <cmath>

namespace moe::reference {

namespace {

template <class T>
void layer_norm(Rows<const T> x, const Stat<T>* w, const Stat<T>* b, double eps, Rows<T> y,
                Stat<T>* mean, Stat<T>* inv) {
  double size = static_cast<double>(x.cols);
  for (Index t = 0; t < x.rows; ++t) {
    double m = 0, variance = 0;
    for (Index d = 0; d < x.cols; ++d) m += x[t][d] / size;
    for (Index d = 0; d < x.cols; ++d) variance += (x[t][d] - m) * (x[t][d] - m) / size;
    double i = 1 / std::sqrt(variance + eps);
    for (Index d = 0; d < x.cols; ++d) y[t][d] = static_cast<T>((x[t][d] - m) * i * w[d] + b[d]);
    if (mean) mean[t] = static_cast<Stat<T>>(m);
    if (inv) inv[t] = static_cast<Stat<T>>(i);
  }
}

// xh = (x - mean) inv   g = dy w
// dx += inv (g - mean_d(g) - xh mean_d(g xh))
template <class T>
void layer_norm_input_grad(Rows<const T> x, const Stat<T>* w, const Stat<T>* mean,
                           const Stat<T>* inv, Rows<const T> dy, Rows<T> dx) {
  double size = static_cast<double>(x.cols);
  for (Index t = 0; t < x.rows; ++t) {
    auto xh = [&](Index d) { return (double{x[t][d]} - mean[t]) * inv[t]; };
    auto g = [&](Index d) { return double{dy[t][d]} * w[d]; };
    double mean_g = 0, mean_gxh = 0;
    for (Index d = 0; d < x.cols; ++d) {
      mean_g += g(d) / size;
      mean_gxh += g(d) * xh(d) / size;
    }
    for (Index d = 0; d < x.cols; ++d)
      dx[t][d] = static_cast<T>(dx[t][d] + inv[t] * (g(d) - mean_g - xh(d) * mean_gxh));
  }
}

// dw += sum_t dy xh   db += sum_t dy
template <class T>
void layer_norm_backward(Rows<const T> x, const Stat<T>* w, const Stat<T>* mean, const Stat<T>* inv,
                         Rows<const T> dy, Rows<T> dx, Stat<T>* dw, Stat<T>* db) {
  if (dx) layer_norm_input_grad(x, w, mean, inv, dy, dx);
  for (Index d = 0; d < x.cols; ++d) {
    double sum_w = 0, sum_b = 0;
    for (Index t = 0; t < x.rows; ++t) {
      sum_w += dy[t][d] * (double{x[t][d]} - mean[t]) * inv[t];
      sum_b += dy[t][d];
    }
    if (dw) dw[d] = static_cast<Stat<T>>(dw[d] + sum_w);
    if (db) db[d] = static_cast<Stat<T>>(db[d] + sum_b);
  }
}

template <class T>
void l2_normalize(Rows<const T> x, double eps, Rows<T> y, Stat<T>* norm) {
  for (Index t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (Index d = 0; d < x.cols; ++d) squares += double{x[t][d]} * x[t][d];
    double n = std::sqrt(squares);
    for (Index d = 0; d < x.cols; ++d) y[t][d] = static_cast<T>(x[t][d] / std::max(n, eps));
    if (norm) norm[t] = static_cast<Stat<T>>(n);
  }
}

// |x| > eps: dx += (dy - y (y . dy)) / |x|;  else dx += dy / eps, as the floor is a constant
template <class T>
void l2_normalize_backward(Rows<const T> y, const Stat<T>* norm, double eps, Rows<const T> dy,
                           Rows<T> dx) {
  if (!dx) return;
  for (Index t = 0; t < y.rows; ++t) {
    double n = norm[t], along = 0;
    if (n > eps)
      for (Index d = 0; d < y.cols; ++d) along += double{y[t][d]} * dy[t][d];
    for (Index d = 0; d < y.cols; ++d)
      dx[t][d] = static_cast<T>(dx[t][d] + (dy[t][d] - y[t][d] * along) / std::max(n, eps));
  }
}

}  // namespace

template <class T>
void fill_norm(Kernels<T>& table) {
  table.layer_norm = layer_norm<T>;
  table.layer_norm_backward = layer_norm_backward<T>;
  table.l2_normalize = l2_normalize<T>;
  table.l2_normalize_backward = l2_normalize_backward<T>;
}

template void fill_norm(Kernels<float>&);
template void fill_norm(Kernels<double>&);

}  // namespace moe::reference
