#include "models/experts.h"

namespace moe {

FfnBank::FfnBank(const Scope& s, Index experts, Index size, Index middle, Activation f)
    : activation(f) {
  Scope d = s / "down", u = s / "up";
  down = d.matrix("weight", {experts, middle, size}, uniform_fan_in(size));
  down_bias = d.matrix("bias", {experts, middle}, uniform_fan_in(size));
  up = u.matrix("weight", {experts, size, middle}, uniform_fan_in(middle));
  up_bias = u.matrix("bias", {experts, size}, uniform_fan_in(middle));
}

Tensor FfnBank::operator()(const Tensor& x, const Segments& groups) const {
  return grouped_linear(grouped_linear(x, down, down_bias, groups, activation), up, up_bias,
                        groups);
}

}  // namespace moe
