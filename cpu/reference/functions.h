// What several reference families share: the activations in double, and the rows of a group.
#pragma once

#include "runtime/kernels.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moe::reference {

// The rows of group g: all of them where a dense product passes no offsets.
struct Range {
  Index begin, end;
};
inline Range group_rows(Ragged groups, Index g, Index all) {
  if (groups.begin == nullptr) return {0, all};
  return {groups.begin[g], groups.end[g]};
}

inline double logistic(double x) {
  return 1 / (1 + std::exp(-x));
}

constexpr double gelu_tanh_factor = 0.797884560802865356;  // sqrt(2 / pi)
constexpr double gelu_tanh_cubic = 0.044715;

// f(x)
inline double activation(Activation f, double x) {
  switch (f) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x <= 0 ? 0 : x;  // a NaN stays one
    case Activation::gelu:
      return x / 2 * std::erfc(-x / std::numbers::sqrt2);
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(gelu_tanh_factor * (x + gelu_tanh_cubic * x * x * x)));
    case Activation::tanh:
      return std::tanh(x);
    case Activation::sigmoid:
      return logistic(x);
    // log(1 + e^x): as written it overflows for large x, and loses all digits for very negative x.
    case Activation::softplus:
      return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
  }
  return x;
}

// f'(x)
inline double activation_slope(Activation f, double x) {
  switch (f) {
    case Activation::none:
      return 1;
    case Activation::relu:
      return x > 0 ? 1 : 0;
    case Activation::gelu: {
      double density = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      return std::erfc(-x / std::numbers::sqrt2) / 2 + x * density;
    }
    case Activation::gelu_tanh: {
      double t = std::tanh(gelu_tanh_factor * (x + gelu_tanh_cubic * x * x * x));
      return (1 + t) / 2 +
             x / 2 * (1 - t * t) * gelu_tanh_factor * (1 + 3 * gelu_tanh_cubic * x * x);
    }
    case Activation::tanh:
      return 1 - std::tanh(x) * std::tanh(x);
    case Activation::sigmoid:
      return logistic(x) * logistic(-x);
    case Activation::softplus:
      return logistic(x);
  }
  return 1;
}

}  // namespace moe::reference
