// Every fast kernel against the reference, forward and backward, on every instruction set this
// machine runs. The truth is the reference in double: a fast float kernel may be twice as far from
// it as the reference in float, plus a few units in the last place of the largest element (sums
// taken in another order).
#include "tests/levels.h"
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moe::testing {

namespace {

class Parity : public ::testing::TestWithParam<OpCase> {};

struct Versions {
  std::vector<double> truth, reference, fast;
};

void expect_near(const Versions& v, const OpCase& c, const std::string& what) {
  double scale = std::max(largest(v.truth), c.terms);
  double allowed = 2 * distance(v.reference, v.truth) + c.floor * 0x1p-24 * scale;
  double error = distance(v.fast, v.truth);
  EXPECT_LE(error, allowed) << what << ": reference error " << distance(v.reference, v.truth)
                            << ", largest element " << largest(v.truth);
}

void compare(const OpCase& c, const Sizes& sizes) {
  SCOPED_TRACE(describe(sizes));
  Inputs exact({.device = Device::reference, .dtype = DType::f64}, sizes);
  Inputs plain({.device = Device::reference, .dtype = DType::f32}, sizes);
  Inputs fast({.device = Device::cpu, .dtype = DType::f32}, sizes);
  Outcome truth = run(c.call, exact), reference = run(c.call, plain), ours = run(c.call, fast);
  ASSERT_EQ(truth.shape, ours.shape);
  expect_near({truth.y, reference.y, ours.y}, c, "result");
  ASSERT_EQ(truth.gradients.size(), ours.gradients.size());
  for (const auto& [name, gradient] : truth.gradients)
    expect_near({gradient, reference.gradients[name], ours.gradients[name]}, c,
                "gradient of " + name);
}

TEST_P(Parity, CpuFollowsReference) {
  const OpCase& c = GetParam();
  on_every_level([&](const std::string& level) {
    SCOPED_TRACE(level);
    for (const auto* list : {&c.small, &c.sweep, &c.large})
      for (const Sizes& sizes : *list) compare(c, sizes);
  });
}

INSTANTIATE_TEST_SUITE_P(Ops, Parity, ::testing::ValuesIn(op_cases()),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace

}  // namespace moe::testing
