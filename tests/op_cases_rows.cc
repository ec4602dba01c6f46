// Cases of ops/norm.cc, ops/softmax.cc and ops/embedding.cc: ops on the columns of each row.
#include "tests/op_cases.h"

namespace moe::testing {

namespace {

Shape matrix(const Inputs& in) {
  return {in.rows(), in.cols()};
}

OpCase by_row(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = {{.rows = 2, .cols = 2}, {.rows = 3, .cols = 7}, {.rows = 1, .cols = 5}},
           .sweep = edge_matrices(),
           .large = large_matrices(),
           .call = std::move(call)};
  c.row_wise = true;
  c.floor = 32;
  return c;
}

Tensor norm(Inputs& in, double eps) {
  return layer_norm(in.x("x", matrix(in)), in.weight("w", {in.cols()}), in.weight("b", {in.cols()}),
                    eps);
}

}  // namespace

std::vector<OpCase> row_cases() {
  std::vector<OpCase> list;
  list.push_back(by_row("layer_norm", [](Inputs& in) { return norm(in, 1e-5); }));
  list.back().terms = 0.1;  // with two columns dx is nearly zero
  // A row of one column has no variance: eps alone stands under the root.
  list.push_back(by_row("layer_norm/large_eps", [](Inputs& in) { return norm(in, 0.3); }));
  list.push_back(
      by_row("l2_normalize", [](Inputs& in) { return l2_normalize(in.x("x", matrix(in)), 1e-6); }));
  // All rows below the floor: y = x / eps.
  list.push_back(by_row("l2_normalize/floor",
                        [](Inputs& in) { return l2_normalize(in.x("x", matrix(in)), 50.0); }));

  OpCase soft =
      by_row("softmax", [](Inputs& in) { return softmax(scale(in.x("x", matrix(in)), 4)); });
  list.push_back(soft);
  // Scores far apart: the row maximum must be taken off first.
  list.push_back(
      by_row("softmax/far", [](Inputs& in) { return softmax(scale(in.x("x", matrix(in)), 200)); }));
  list.back().numeric = false;
  list.back().terms = 2;  // 200 times the rounding of a vanishing gradient
  list.push_back(by_row("log_softmax",
                        [](Inputs& in) { return log_softmax(scale(in.x("x", matrix(in)), 4)); }));
  // exp(log_softmax) is softmax; checked the other way round since no op takes a logarithm.

  // Ids repeat, so several rows of dy meet in one row of the table.
  OpCase look = by_row("lookup", [](Inputs& in) {
    Tensor table = in.weight("table", {in.out(), in.cols()});
    return lookup(table, in.integers(in.draw("ids", in.rows(), in.out()), {in.rows()}));
  });
  look.small.push_back({.rows = 7, .cols = 2, .out = 3});
  look.scatters = true;
  list.push_back(look);
  return list;
}

}  // namespace moe::testing
