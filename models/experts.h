// A bank of two-layer experts: e_i(x) = W2_i act(W1_i x + b1_i) + b2_i. A bottleneck adapter is one
// with a small middle. Rows come in expert order (gather); one grouped product per layer serves all
// experts.
#pragma once

#include "models/layers.h"

namespace moe {

struct FfnBank {
  Tensor down, down_bias;  // (E,f,d), (E,f)
  Tensor up, up_bias;      // (E,d,f), (E,d)
  Activation activation = Activation::relu;

  FfnBank() = default;
  FfnBank(const Scope& s, Index experts, Index size, Index middle, Activation f);
  // x (N,d) in expert order -> (N,d)
  Tensor operator()(const Tensor& x, const Segments& groups) const;
};

}  // namespace moe
