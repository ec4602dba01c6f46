// Cases of ops/routing.cc. Scores are positive and far enough apart that a central difference
// changes no choice.
#include "tests/op_cases.h"

namespace moe::testing {

namespace {

std::vector<Sizes> sweep() {
  return {{.rows = 0, .cols = 5, .experts = 3, .choices = 2},
          {.rows = 1, .cols = 1, .experts = 1, .choices = 1},
          {.rows = 1, .cols = 17, .experts = 6, .choices = 6},
          {.rows = 5, .cols = 16, .experts = 4, .choices = 2},
          {.rows = 17, .cols = 33, .experts = 16, .choices = 3},
          {.rows = 33, .cols = 15, .experts = 17, .choices = 1},
          {.rows = 9, .cols = 65, .experts = 33, .choices = 8}};
}

OpCase routed(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = {{.rows = 1, .cols = 2, .experts = 2, .choices = 1},
                     {.rows = 4, .cols = 3, .experts = 3, .choices = 2}},
           .sweep = sweep(),
           .large = {{.rows = 300, .cols = 130, .experts = 12, .choices = 2}},
           .call = std::move(call)};
  c.row_wise = true;
  c.floor = 32;
  return c;
}

Tensor prob(Inputs& in) {
  return in.x("prob", {in.rows(), in.experts()}, Values::positive);
}

OpCase selection(const std::string& name, std::function<TopKOptions(Inputs&)> options) {
  return routed(
      name, [options](Inputs& in) { return top_k(prob(in), in.choices(), options(in)).weight; });
}

// Choices from outside: about a quarter is not taken, no expert twice in a row.
Routing choices(Inputs& in) {
  auto first = in.draw("expert", in.rows(), in.experts());
  auto skip = in.draw("skip", in.rows(), 4);
  std::vector<std::int32_t> expert;
  for (std::size_t t = 0; t < first.size(); ++t)
    for (Index j = 0; j < in.choices(); ++j) {
      bool taken = !(j == in.choices() - 1 && skip[t] == 0);
      auto e = static_cast<std::int32_t>((first[t] + j) % in.experts());
      expert.push_back(taken ? e : -1);
    }
  Shape shape{in.rows(), in.choices()};
  return given(in.integers(expert, shape), in.x("weight", shape), in.experts());
}

// Everybody to one expert.
Routing crowd(Inputs& in) {
  Shape shape{in.rows(), in.choices()};
  std::vector<std::int32_t> expert(static_cast<std::size_t>(shape.size()),
                                   static_cast<std::int32_t>(in.experts() - 1));
  return given(in.integers(expert, shape), in.x("weight", shape), in.experts());
}

Tensor tokens(Inputs& in) {
  return in.x("x", {in.rows(), in.cols()});
}

}  // namespace

std::vector<OpCase> routing_cases() {
  std::vector<OpCase> list;
  list.push_back(selection("top_k", [](Inputs&) { return TopKOptions{}; }));
  list.push_back(selection("top_k/renormalise", [](Inputs&) {
    TopKOptions options;
    options.renormalise = true;
    return options;
  }));
  list.push_back(selection("top_k/floor", [](Inputs&) {
    TopKOptions options;
    options.renormalise = true;
    options.floor = 0.2;
    return options;
  }));
  list.push_back(selection("top_k/bias", [](Inputs& in) {
    TopKOptions options;
    options.bias = tensor_of(numbers("selection bias", {in.experts()}, Values::uniform, 0),
                             {in.experts()}, in.placement().dtype, in.placement().device);
    return options;
  }));
  list.push_back(selection("top_k/allow", [](Inputs& in) {
    TopKOptions options;
    std::vector<std::uint8_t> allow(static_cast<std::size_t>(in.experts()), 1);
    allow[0] = 0;
    options.allow = in.bytes(allow, {in.experts()});
    return options;
  }));
  // A mask of each row's own; some rows allow fewer than k experts, so -1 fills and the weight is
  // 0.
  list.push_back(selection("top_k/allow_rows", [](Inputs& in) {
    TopKOptions options;
    options.renormalise = true;
    std::vector<std::uint8_t> allow;
    for (Index t = 0; t < in.rows(); ++t)
      for (Index e = 0; e < in.experts(); ++e)
        allow.push_back((in.placement().first_row + t + e) % 3 == 0 ? 1 : 0);
    options.allow = in.bytes(allow, {in.rows(), in.experts()});
    options.floor = 1e-6;
    return options;
  }));
  list.push_back(selection("top_k/selection", [](Inputs& in) {
    TopKOptions options;
    options.selection = in.constant("other scores", {in.rows(), in.experts()});
    return options;
  }));
  OpCase through = routed("top_k/straight_through", [](Inputs& in) {
    TopKOptions options;
    options.straight_through = true;
    return top_k(prob(in), 1, options).weight;
  });
  through.numeric = false;
  list.push_back(through);

  list.push_back(routed("given", [](Inputs& in) { return choices(in).weight; }));
  list.push_back(routed("gather", [](Inputs& in) { return gather(tokens(in), choices(in)); }));
  list.back().row_wise = false;
  list.back().scatters = true;
  // Rows of experts in the order of combine: what an expert layer returns.
  list.push_back(routed("combine", [](Inputs& in) {
    Routing r = choices(in);
    return combine(in.weight("y", {in.rows() * in.choices(), in.cols()}), r);
  }));
  list.back().row_wise = false;
  list.push_back(routed("combine/crowd", [](Inputs& in) {
    Routing r = crowd(in);
    return combine(in.weight("y", {in.rows() * in.choices(), in.cols()}), r);
  }));
  list.back().row_wise = false;
  // The whole path; every token's result is its own whatever the others choose.
  list.push_back(routed("combine/gathered", [](Inputs& in) {
    Routing r = choices(in);
    return combine(gather(tokens(in), r), r);
  }));
  list.back().scatters = true;
  list.push_back(routed("combine/experts", [](Inputs& in) {
    Routing r = choices(in);
    Tensor w = in.weight("w", {in.experts(), in.cols(), in.cols()});
    Tensor b = in.vector("b", {in.experts(), in.cols()});
    return combine(grouped_linear(gather(tokens(in), r), w, b, r.groups, Activation::gelu), r);
  }));
  list.back().scatters = true;
  list.back().floor = 64;
  return list;
}

}  // namespace moe::testing
