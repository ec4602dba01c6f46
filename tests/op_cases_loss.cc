// Cases of ops/loss.cc: each result is one scalar.
#include "tests/op_cases.h"

namespace moe::testing {

namespace {

OpCase loss(const std::string& name, std::function<Tensor(Inputs&)> call, bool empty_rows = false) {
  OpCase c{.name = name,
           .small = {{.rows = 1, .cols = 2}, {.rows = 3, .cols = 4}, {.rows = 2, .cols = 7}},
           .sweep = edge_matrices(empty_rows),
           .large = large_matrices(),
           .call = std::move(call)};
  c.floor = 64;
  return c;
}

Tensor logits(Inputs& in) {
  return scale(in.x("logits", {in.rows(), in.cols()}), 3);
}

// Classes by row; every fourth row or so counts nothing.
std::vector<std::int32_t> classes(const Inputs& in, bool skip) {
  auto target = in.draw("target", in.rows(), in.cols());
  auto dice = in.draw("skip", in.rows(), 4);
  for (std::size_t t = 0; skip && t < target.size(); ++t)
    if (dice[t] == 0) target[t] = -1;
  return target;
}

// About a third of the entries is blocked, never those at `keep`.
Tensor blocked(Inputs& in, Index rows, Index cols, const std::vector<std::int32_t>& keep) {
  std::vector<std::uint8_t> bytes;
  for (Index t = 0; t < rows; ++t) {
    auto row = in.draw(fmt::format("blocked {}", t), cols, 3);
    for (Index c = 0; c < cols; ++c)
      bytes.push_back(
          row[static_cast<std::size_t>(c)] == 0 && keep[static_cast<std::size_t>(t)] != c ? 1 : 0);
  }
  return in.bytes(bytes, {rows, cols});
}

OpCase pairs(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = {{.rows = 1, .cols = 2, .out = 1}, {.rows = 3, .cols = 4, .out = 5}},
           .sweep = {{.rows = 1, .cols = 1, .out = 1},
                     {.rows = 2, .cols = 17, .out = 2},
                     {.rows = 8, .cols = 33, .out = 15},
                     {.rows = 17, .cols = 65, .out = 33}},
           .large = {{.rows = 64, .cols = 384, .out = 130}},
           .call = std::move(call)};
  c.floor = 256;  // the temperature multiplies the rounding of the products
  return c;
}

OpCase square(OpCase c) {
  for (auto* sizes : {&c.small, &c.sweep, &c.large})
    for (auto& one : *sizes) one.out = one.rows;
  return c;
}

Tensor queries(Inputs& in) {
  return l2_normalize(in.x("q", {in.rows(), in.cols()}), 1e-6);
}
Tensor documents(Inputs& in) {
  return l2_normalize(in.weight("d", {in.out(), in.cols()}), 1e-6);
}

Tensor contrast(Inputs& in, bool with_blocked, bool symmetric) {
  std::vector<std::int32_t> diagonal;
  for (Index i = 0; i < in.rows(); ++i) diagonal.push_back(static_cast<std::int32_t>(i));
  Tensor mask = with_blocked ? blocked(in, in.rows(), in.out(), diagonal) : Tensor();
  return contrastive(queries(in), documents(in), mask,
                     {.temperature = 0.2, .symmetric = symmetric, .factor = 0.5});
}

std::vector<Sizes> router_sizes() {
  return {{.rows = 1, .experts = 1, .choices = 1},
          {.rows = 5, .experts = 2, .choices = 1},
          {.rows = 17, .experts = 6, .choices = 2},
          {.rows = 33, .experts = 17, .choices = 3},
          {.rows = 8, .experts = 33, .choices = 1}};
}

OpCase router_loss(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{
      .name = name,
      .small = {{.rows = 2, .experts = 2, .choices = 1}, {.rows = 5, .experts = 3, .choices = 2}},
      .sweep = router_sizes(),
      .large = {{.rows = 700, .experts = 12, .choices = 2}},
      .call = std::move(call)};
  c.floor = 64;
  return c;
}

Shape gate(const Inputs& in) {
  return {in.rows(), in.experts()};
}

}  // namespace

std::vector<OpCase> loss_cases() {
  std::vector<OpCase> list;
  list.push_back(loss(
      "cross_entropy",
      [](Inputs& in) {
        return cross_entropy(logits(in), in.integers(classes(in, false), {in.rows()}), 0.7);
      },
      true));
  list.push_back(loss(
      "cross_entropy/skipped_rows",
      [](Inputs& in) {
        return cross_entropy(logits(in), in.integers(classes(in, true), {in.rows()}), 0.7);
      },
      true));
  list.push_back(loss("cross_entropy/blocked", [](Inputs& in) {
    auto target = classes(in, false);
    return cross_entropy(logits(in), in.integers(target, {in.rows()}), 0.7,
                         blocked(in, in.rows(), in.cols(), target));
  }));

  list.push_back(pairs("contrastive", [](Inputs& in) { return contrast(in, false, false); }));
  list.push_back(
      pairs("contrastive/blocked", [](Inputs& in) { return contrast(in, true, false); }));
  list.push_back(
      square(pairs("contrastive/symmetric", [](Inputs& in) { return contrast(in, false, true); })));
  list.push_back(square(
      pairs("contrastive/symmetric_blocked", [](Inputs& in) { return contrast(in, true, true); })));

  list.push_back(router_loss("balance_loss", [](Inputs& in) {
    Tensor prob = softmax(in.x("logits", gate(in)));
    return balance_loss(prob, top_k(prob, in.choices()).expert);
  }));
  list.push_back(
      router_loss("z_loss", [](Inputs& in) { return z_loss(in.x("logits", gate(in))); }));
  list.push_back(router_loss("importance_loss", [](Inputs& in) {
    return importance_loss(softmax(in.x("logits", gate(in))));
  }));
  return list;
}

}  // namespace moe::testing
