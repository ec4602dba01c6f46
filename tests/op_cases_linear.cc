// Cases of ops/linear.cc and ops/grouped.cc.
#include "tests/op_cases.h"

#include <algorithm>

namespace moe::testing {

namespace {

// Inner sizes and outer sizes off by one around vector widths and register tiles.
std::vector<Sizes> edge_products() {
  std::vector<Sizes> list;
  Index out = 33;
  for (Index cols : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65}) {
    list.push_back({.rows = 5, .cols = cols, .out = out});
    out = cols;
  }
  for (Index out_cols : {1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 129})
    list.push_back({.rows = 7, .cols = 19, .out = out_cols});
  for (Index rows : {0, 1, 2, 5, 6, 7, 13, 14, 15, 29})
    list.push_back({.rows = rows, .cols = 21, .out = 37});
  list.push_back({.rows = 3, .cols = 700, .out = 5});
  return list;
}

std::vector<Sizes> large_products() {
  return {{.rows = 65, .cols = 130, .out = 200}, {.rows = 257, .cols = 96, .out = 160}};
}

OpCase product(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = {{.rows = 1, .cols = 1, .out = 1}, {.rows = 3, .cols = 5, .out = 4}},
           .sweep = edge_products(),
           .large = large_products(),
           .call = std::move(call)};
  c.row_wise = true;
  c.floor = 64;
  return c;
}

Tensor input(Inputs& in) {
  return in.x("x", {in.rows(), in.cols()});
}
Tensor weight(Inputs& in) {
  return in.weight("w", {in.out(), in.cols()});
}
Tensor bias(Inputs& in) {
  return in.weight("b", {in.out()});
}

OpCase activated(const std::string& name, Activation f) {
  OpCase c = product("linear/" + name, [f](Inputs& in) {
    return linear(input(in), weight(in), bias(in), {.activation = f, .residual = {}});
  });
  c.composition = [f](Inputs& in) { return activate(f, linear(input(in), weight(in), bias(in))); };
  // Gradients pass through f'(z), and z, of a size up to 4, carries the rounding of its own sum,
  // which the reference takes in double.
  c.terms = 4;
  return c;
}

// The rows of each group by length; rows that no group holds come last.
OpCase grouped(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{
      .name = name,
      .small = {{.rows = 5, .cols = 3, .out = 2, .experts = 3, .lengths = {2, 0, 3}},
                {.rows = 4, .cols = 2, .out = 3, .experts = 2, .lengths = {1, 2}}},
      .sweep = {{.rows = 0, .cols = 5, .out = 3, .experts = 2, .lengths = {0, 0}},
                {.rows = 1, .cols = 9, .out = 7, .experts = 3, .lengths = {0, 0, 1}},
                {.rows = 20, .cols = 17, .out = 33, .experts = 4, .lengths = {0, 20, 0, 0}},
                {.rows = 23, .cols = 33, .out = 17, .experts = 3, .lengths = {6, 7, 8}},
                {.rows = 34, .cols = 31, .out = 65, .experts = 5, .lengths = {1, 15, 16, 0, 2}}},
      .large = {{.rows = 310, .cols = 96, .out = 130, .experts = 4, .lengths = {130, 0, 33, 140}}},
      .call = std::move(call)};
  c.floor = 64;
  return c;
}

Tensor bank(Inputs& in) {
  return in.weight("w", {in.experts(), in.out(), in.cols()});
}
Tensor bank_bias(Inputs& in) {
  return in.vector("b", {in.experts(), in.out()});
}

// Every expert on every row with dense products; gather and combine with weight 1 keep the rows of
// its group.
Tensor expert_by_expert(Inputs& in, bool with_bias, Activation f) {
  Tensor x = input(in), w = bank(in), b = with_bias ? bank_bias(in) : Tensor(), sum;
  Index begin = 0;
  for (Index e = 0; e < in.experts(); ++e) {
    Index end = begin + in.sizes().lengths[static_cast<std::size_t>(e)];
    Tensor matrix = w.slice_rows(e, e + 1).reshape({in.out(), in.cols()});
    Tensor vector = b ? b.slice_rows(e, e + 1).reshape({in.out()}) : Tensor();
    std::vector<std::int32_t> taken(static_cast<std::size_t>(in.rows()), -1);
    std::fill(taken.begin() + begin, taken.begin() + end, 0);
    Routing r = given(in.integers(taken, {in.rows(), 1}),
                      full({in.rows(), 1}, x.dtype(), x.device(), 1), 1);
    Tensor kept = combine(gather(activate(f, linear(x, matrix, vector)), r), r);
    sum = sum ? add(sum, kept) : kept;
    begin = end;
  }
  return sum;
}

}  // namespace

std::vector<OpCase> linear_cases() {
  std::vector<OpCase> list;
  list.push_back(product("linear", [](Inputs& in) { return linear(input(in), weight(in), {}); }));
  list.push_back(
      product("linear/bias", [](Inputs& in) { return linear(input(in), weight(in), bias(in)); }));
  list.push_back(activated("gelu", Activation::gelu));
  list.push_back(activated("gelu_tanh", Activation::gelu_tanh));
  list.push_back(activated("tanh", Activation::tanh));
  list.push_back(activated("sigmoid", Activation::sigmoid));
  list.push_back(activated("softplus", Activation::softplus));
  // relu: central differences are safe as no pre-activation of these numbers is within a step of
  // zero.
  list.push_back(activated("relu", Activation::relu));
  OpCase residual = product("linear/residual", [](Inputs& in) {
    return linear(input(in), weight(in), bias(in),
                  {.activation = Activation::gelu, .residual = in.x("r", {in.rows(), in.out()})});
  });
  residual.composition = [](Inputs& in) {
    return add(activate(Activation::gelu, linear(input(in), weight(in), bias(in))),
               in.x("r", {in.rows(), in.out()}));
  };
  list.push_back(residual);
  // One input twice, as in a transformer's skip: both gradients meet in dx.
  OpCase skip = product("linear/skip", [](Inputs& in) {
    Tensor x = input(in);
    return linear(x, in.weight("square", {in.cols(), in.cols()}), {}, {.residual = x});
  });
  skip.scatters = true;
  list.push_back(skip);
  list.push_back(product("matmul_nt", [](Inputs& in) {
    return matmul_nt(in.x("a", {in.rows(), in.cols()}), in.weight("b", {in.out(), in.cols()}));
  }));
  OpCase itself =
      product("matmul_nt/itself", [](Inputs& in) { return matmul_nt(input(in), input(in)); });
  itself.row_wise = false;
  itself.scatters = true;
  list.push_back(itself);

  list.push_back(grouped("grouped_linear", [](Inputs& in) {
    return grouped_linear(input(in), bank(in), {}, in.segments(in.sizes().lengths));
  }));
  list.back().composition = [](Inputs& in) {
    return expert_by_expert(in, false, Activation::none);
  };
  list.push_back(grouped("grouped_linear/bias", [](Inputs& in) {
    return grouped_linear(input(in), bank(in), bank_bias(in), in.segments(in.sizes().lengths));
  }));
  list.back().composition = [](Inputs& in) { return expert_by_expert(in, true, Activation::none); };
  list.push_back(grouped("grouped_linear/gelu", [](Inputs& in) {
    return grouped_linear(input(in), bank(in), bank_bias(in), in.segments(in.sizes().lengths),
                          Activation::gelu);
  }));
  list.back().composition = [](Inputs& in) { return expert_by_expert(in, true, Activation::gelu); };
  return list;
}

}  // namespace moe::testing
