// Cases of ops/pointwise.cc.
#include "tests/op_cases.h"

namespace moe::testing {

namespace {

Shape matrix(const Inputs& in) {
  return {in.rows(), in.cols()};
}

OpCase elementwise(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = small_matrices(),
           .sweep = edge_matrices(),
           .large = large_matrices(),
           .call = std::move(call)};
  c.row_wise = true;
  return c;
}

OpCase activation(const std::string& name, Tensor (*f)(const Tensor&), Values values) {
  // Six times the unit range reaches both tails.
  OpCase c = elementwise(
      name, [f, values](Inputs& in) { return f(scale(in.x("x", matrix(in), values), 6)); });
  // Near zero the result is small beside the terms it is made of.
  c.floor = 32;
  return c;
}

}  // namespace

std::vector<OpCase> pointwise_cases() {
  std::vector<OpCase> list;
  list.push_back(elementwise(
      "add", [](Inputs& in) { return add(in.x("a", matrix(in)), in.x("b", matrix(in))); }));
  list.push_back(elementwise("add/itself", [](Inputs& in) {
    Tensor x = in.x("x", matrix(in));
    return add(x, x);
  }));
  list.push_back(
      elementwise("scale", [](Inputs& in) { return scale(in.x("x", matrix(in)), -1.7); }));
  OpCase by = elementwise(
      "scale_by", [](Inputs& in) { return scale_by(in.x("x", matrix(in)), in.weight("s", {1})); });
  by.floor = 64;  // ds is a sum over all elements
  list.push_back(by);
  OpCase mul_case = elementwise(
      "mul", [](Inputs& in) { return mul(in.x("a", matrix(in)), in.x("b", matrix(in))); });
  list.push_back(mul_case);
  // Both gradients go to one place: a kernel that loads both before it stores one loses half.
  list.push_back(elementwise("mul/itself", [](Inputs& in) {
    Tensor x = in.x("x", matrix(in));
    return mul(x, x);
  }));
  list.back().scatters = true;
  list.push_back(activation("relu", relu, Values::apart));
  list.push_back(activation("gelu", gelu, Values::uniform));
  list.push_back(activation("gelu_tanh", gelu_tanh, Values::uniform));
  list.push_back(activation("tanh", tanh, Values::uniform));
  list.push_back(activation("sigmoid", sigmoid, Values::uniform));
  list.push_back(activation("softplus", softplus, Values::uniform));
  list.push_back(elementwise("activate/none", [](Inputs& in) {
    return activate(Activation::none, in.x("x", matrix(in)));
  }));
  list.push_back(elementwise("dropout", [](Inputs& in) {
    return dropout(in.x("x", matrix(in)), in.dice(), stream_hash("dropout:case"), 0.3);
  }));
  list.push_back(elementwise("dropout/off", [](Inputs& in) {
    Draw draw = in.dice();
    draw.train = false;
    return dropout(in.x("x", matrix(in)), draw, stream_hash("dropout:case"), 0.3);
  }));
  list.push_back(elementwise("random_uniform", [](Inputs& in) {
    return random_uniform(matrix(in), in.placement().dtype, in.placement().device,
                          in.dice().dice(stream_hash("noise")));
  }));
  list.push_back(elementwise("random_normal", [](Inputs& in) {
    return random_normal(matrix(in), in.placement().dtype, in.placement().device,
                         in.dice().dice(stream_hash("noise")));
  }));
  return list;
}

}  // namespace moe::testing
