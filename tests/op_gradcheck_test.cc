// Gradients against central differences, in double on the reference kernels: the formulas of ops/
// and of cpu/reference, every element of every input, with a random cotangent. And every op against
// its composition.
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace moe::testing {

namespace {

class Gradcheck : public ::testing::TestWithParam<OpCase> {};
class Composition : public ::testing::TestWithParam<OpCase> {};

// sum(y * cotangent) in double.
double objective(const OpCase& c, Inputs& in) {
  Tensor y = c.call(in);
  auto cotangent = numbers("cotangent", y.shape(), Values::uniform, 0);
  auto values = elements(y);
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * cotangent[i];
  return sum;
}

TEST_P(Gradcheck, CentralDifferences) {
  const OpCase& c = GetParam();
  for (const Sizes& sizes : c.small) {
    SCOPED_TRACE(describe(sizes));
    Inputs in({}, sizes);
    Outcome outcome = run(c.call, in);
    for (auto& [name, leaf] : in.leaves()) {
      auto found = outcome.gradients.find(name);
      std::vector<double> exact = found != outcome.gradients.end()
                                      ? found->second
                                      : std::vector<double>(leaf.values.size(), 0.0);
      std::vector<double> numeric;
      constexpr double step = 1e-5;
      for (std::size_t i = 0; i < leaf.values.size(); ++i) {
        double value = leaf.values[i];
        in.set(leaf, i, value + step);
        double above = objective(c, in);
        in.set(leaf, i, value - step);
        double below = objective(c, in);
        in.set(leaf, i, value);
        numeric.push_back((above - below) / (2 * step));
      }
      double scale = std::max(largest(numeric), 1e-2);
      EXPECT_LE(distance(exact, numeric) / scale, 1e-6) << "gradient of " << name;
    }
  }
}

TEST_P(Composition, GivesTheSame) {
  const OpCase& c = GetParam();
  std::vector<Sizes> all = c.small;
  all.insert(all.end(), c.sweep.begin(), c.sweep.end());
  for (const Sizes& sizes : all) {
    SCOPED_TRACE(describe(sizes));
    Inputs in({}, sizes), parts({}, sizes);
    Outcome fused = run(c.call, in), composed = run(c.composition, parts);
    EXPECT_LE(distance(fused.y, composed.y), 1e-11 * std::max(1.0, largest(composed.y)));
    for (auto& entry : in.leaves()) {
      const auto& name = entry.first;  // clang 14 captures no structured bindings
      const auto& leaf = entry.second;
      std::vector<double> zero(leaf.values.size(), 0.0);
      auto of = [&](const Outcome& o) {
        auto found = o.gradients.find(name);
        return found != o.gradients.end() ? found->second : zero;
      };
      EXPECT_LE(distance(of(fused), of(composed)), 1e-11 * std::max(1.0, largest(of(composed))))
          << "gradient of " << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, Gradcheck, ::testing::ValuesIn(op_cases_where([](const OpCase& c) {
                           return c.numeric;
                         })),
                         [](const auto& one) { return test_name(one.param); });
INSTANTIATE_TEST_SUITE_P(Ops, Composition, ::testing::ValuesIn(op_cases_where([](const OpCase& c) {
                           return bool(c.composition);
                         })),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace

}  // namespace moe::testing
