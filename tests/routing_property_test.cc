// Properties of routing that hold whatever the numbers are, on the reference in double and on the
// fast kernels.
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace moe::testing {

namespace {

constexpr Index tokens = 23, size = 17, middle = 9, expert_count = 6;

// A router and a bank of experts as SB-MoE has them, with everything given by name.
struct Block {
  Placement placement;
  std::vector<std::int32_t> order =
      identity(expert_count);  // expert i here is expert order[i] of the bank
  std::vector<std::int32_t> token_order = identity(tokens);

  static std::vector<std::int32_t> identity(Index n) {
    std::vector<std::int32_t> list(static_cast<std::size_t>(n));
    std::iota(list.begin(), list.end(), 0);
    return list;
  }
  // The named rows in the given order.
  Tensor rows(const std::string& name, const Shape& shape,
              const std::vector<std::int32_t>& order_of) const {
    auto values = numbers(name, shape, Values::uniform, 0);
    std::vector<double> turned;
    for (auto row : order_of)
      for (Index c = 0; c < shape.cols(); ++c)
        turned.push_back(values[static_cast<std::size_t>(row * shape.cols() + c)]);
    return tensor_of(turned, shape, placement.dtype, placement.device);
  }
  Tensor x() const { return rows("x", {tokens, size}, token_order); }
  Tensor gate() const { return rows("gate", {expert_count, size}, order); }
  Tensor down() const { return rows("down", {expert_count, middle, size}, order); }
  Tensor down_bias() const { return rows("down bias", {expert_count, middle}, order); }
  Tensor up() const { return rows("up", {expert_count, size, middle}, order); }
  Tensor up_bias() const { return rows("up bias", {expert_count, size}, order); }

  Tensor experts(const Tensor& in, const Segments& groups) const {
    Tensor hidden = grouped_linear(in, down(), down_bias(), groups, Activation::relu);
    return grouped_linear(hidden, up(), up_bias(), groups);
  }
  Tensor prob(const Tensor& in) const { return softmax(linear(in, gate(), {})); }
  Tensor forward(Index k, const TopKOptions& options = {}) const {
    Tensor in = x();
    Routing r = top_k(prob(in), k, options);
    return combine(experts(gather(in, r), r.groups), r);
  }
};

class RoutingProperty : public ::testing::TestWithParam<Device> {
 protected:
  Placement placement() const {
    return {.device = GetParam(),
            .dtype = GetParam() == Device::reference ? DType::f64 : DType::f32};
  }
  double tolerance() const { return GetParam() == Device::reference ? 1e-12 : 1e-5; }
  Tensor tensor(const std::vector<double>& values, const Shape& shape) const {
    return tensor_of(values, shape, placement().dtype, placement().device);
  }
};

TEST_P(RoutingProperty, ExpertsMayBePermutedWithTheirGateRows) {
  Block block{placement()}, turned{placement()};
  turned.order = {3, 0, 5, 1, 4, 2};
  for (Index k : {1, 2, 6})
    EXPECT_LE(distance(elements(block.forward(k)), elements(turned.forward(k))), tolerance()) << k;
}

TEST_P(RoutingProperty, PermutedTokensGivePermutedResults) {
  Block block{placement()}, turned{placement()};
  std::reverse(turned.token_order.begin(), turned.token_order.end());
  for (Index k : {1, 3}) {
    auto plain = elements(block.forward(k)), reversed = elements(turned.forward(k));
    for (Index t = 0; t < tokens; ++t)
      for (Index c = 0; c < size; ++c)
        EXPECT_EQ(plain[static_cast<std::size_t>(t * size + c)],
                  reversed[static_cast<std::size_t>((tokens - 1 - t) * size + c)]);
  }
}

// Every expert on every token, weighted afterwards, equals routing.
TEST_P(RoutingProperty, DensePathEqualsSparsePath) {
  Block block{placement()};
  for (bool renormalise : {false, true})
    for (Index k : {1, 2, 6}) {
      TopKOptions options;
      options.renormalise = renormalise;
      auto sparse = elements(block.forward(k, options));
      Tensor in = block.x();
      auto prob = elements(block.prob(in));
      std::vector<double> dense(static_cast<std::size_t>(tokens * size), 0.0);
      std::vector<std::vector<double>> outputs;
      for (Index e = 0; e < expert_count; ++e) {
        std::vector<std::int32_t> lengths(static_cast<std::size_t>(expert_count), 0);
        lengths[static_cast<std::size_t>(e)] = static_cast<std::int32_t>(tokens);
        outputs.push_back(elements(block.experts(in, pack_segments(lengths, GetParam()))));
      }
      for (Index t = 0; t < tokens; ++t) {
        const double* p = prob.data() + t * expert_count;
        auto best = Block::identity(expert_count);
        std::stable_sort(best.begin(), best.end(), [&](auto a, auto b) { return p[a] > p[b]; });
        double sum = 0;
        for (Index j = 0; j < k; ++j) sum += p[best[static_cast<std::size_t>(j)]];
        for (Index j = 0; j < k; ++j) {
          auto e = best[static_cast<std::size_t>(j)];
          for (Index c = 0; c < size; ++c) {
            auto at = static_cast<std::size_t>(t * size + c);
            dense[at] += p[e] / (renormalise ? sum : 1) * outputs[static_cast<std::size_t>(e)][at];
          }
        }
      }
      EXPECT_LE(distance(sparse, dense), tolerance()) << "k " << k;
    }
}

TEST_P(RoutingProperty, TiesGoToTheLowestIndex) {
  Tensor prob = tensor({0.2, 0.4, 0.4, 0.2,  //
                        0.1, 0.1, 0.1, 0.1,  //
                        0.3, 0.1, 0.3, 0.3},
                       {3, 4});
  EXPECT_EQ(elements(top_k(prob, 3).expert), (std::vector<double>{1, 2, 0, 0, 1, 2, 0, 2, 3}));
  EXPECT_EQ(elements(top_k(prob, 1).expert), (std::vector<double>{1, 0, 0}));
}

TEST_P(RoutingProperty, BestFirst) {
  Inputs in(placement(), {.rows = 40, .experts = 19});
  Tensor prob = in.x("prob", {40, 19});
  Routing r = top_k(prob, 7);
  auto p = elements(prob), chosen = elements(r.expert), weight = elements(r.weight);
  for (std::size_t t = 0; t < 40; ++t) {
    std::vector<double> row(p.begin() + static_cast<std::ptrdiff_t>(t * 19),
                            p.begin() + static_cast<std::ptrdiff_t>(t * 19 + 19));
    std::sort(row.rbegin(), row.rend());
    for (std::size_t j = 0; j < 7; ++j) {
      EXPECT_EQ(weight[t * 7 + j], row[j]);
      EXPECT_EQ(p[t * 19 + static_cast<std::size_t>(chosen[t * 7 + j])], row[j]);
    }
  }
}

TEST_P(RoutingProperty, MaskedExpertsGetNothing) {
  Tensor prob = tensor({0.5, 0.3, 0.2, 0.1, 0.7, 0.2}, {2, 3});
  prob.require_grad();
  TopKOptions options;
  options.allow = from_host(std::vector<std::uint8_t>{0, 1, 1, 1, 0, 0}, {2, 3}, GetParam());
  Tape tape;
  Routing r = top_k(prob, 2, options);
  EXPECT_EQ(elements(r.expert), (std::vector<double>{1, 2, 0, -1}));
  auto weight = elements(r.weight), p = elements(prob);
  EXPECT_EQ(weight, (std::vector<double>{p[1], p[2], p[3], 0}));
  // The choice nobody took has no row, and its slot says so.
  EXPECT_EQ(elements(r.offsets), (std::vector<double>{0, 1, 2, 3}));
  EXPECT_EQ(elements(r.slot), (std::vector<double>{1, 2, 0, -1}));
  tape.backward(r.weight, tensor({1, 2, 3, 4}, {2, 2}));
  EXPECT_EQ(elements(prob.grad()), (std::vector<double>{0, 1, 2, 3, 0, 0}));
}

TEST_P(RoutingProperty, AllExpertsEqualTheWholeMixture) {
  Block block{placement()};
  Tensor in = block.x(), prob = block.prob(in);
  Routing r = top_k(prob, expert_count);
  auto chosen = elements(r.expert), weight = elements(r.weight), p = elements(prob);
  for (Index t = 0; t < tokens; ++t) {
    std::vector<double> row(static_cast<std::size_t>(expert_count), -1);
    for (Index j = 0; j < expert_count; ++j) {
      auto at = static_cast<std::size_t>(t * expert_count + j);
      row[static_cast<std::size_t>(chosen[at])] = weight[at];
    }
    for (std::size_t e = 0; e < row.size(); ++e)
      EXPECT_EQ(row[e], p[static_cast<std::size_t>(t * expert_count) + e]);
  }
  // Renormalising a softmax over all experts changes nothing.
  TopKOptions options;
  options.renormalise = true;
  EXPECT_LE(distance(elements(block.forward(expert_count)),
                     elements(block.forward(expert_count, options))),
            tolerance());
}

TEST_P(RoutingProperty, OneExpertIsADenseLayer) {
  Placement p = placement();
  Inputs in(p, {});
  Tensor x = in.x("x", {tokens, size}), w = in.weight("w", {1, middle, size}),
         b = in.vector("b", {1, middle});
  Routing r = top_k(full({tokens, 1}, p.dtype, p.device, 1), 1);
  Tensor routed = combine(grouped_linear(gather(x, r), w, b, r.groups, Activation::gelu), r);
  LinearOptions options;
  options.activation = Activation::gelu;
  Tensor dense = linear(x, w.reshape({middle, size}), b.reshape({middle}), options);
  EXPECT_EQ(elements(routed), elements(dense));
}

TEST_P(RoutingProperty, StraightThroughIsOneForwardAndRawBackward) {
  Inputs in(placement(), {});
  Tensor prob = in.x("prob", {5, 4}, Values::positive);
  TopKOptions options;
  options.straight_through = true;
  Tape tape;
  Routing r = top_k(prob, 1, options);
  EXPECT_EQ(elements(r.weight), std::vector<double>(5, 1.0));
  tape.backward(r.weight, tensor({1, 2, 3, 4, 5}, {5, 1}));
  auto chosen = elements(r.expert), gradient = elements(prob.grad());
  for (std::size_t t = 0; t < 5; ++t)
    for (std::size_t e = 0; e < 4; ++e)
      EXPECT_EQ(gradient[t * 4 + e],
                static_cast<double>(e) == chosen[t] ? static_cast<double>(t + 1) : 0);
}

// route() is a stable counting sort: checked against std::stable_sort.
TEST_P(RoutingProperty, RowsAreInExpertOrderAndStable) {
  constexpr Index rows = 301, k = 3, experts = 13;
  Inputs in(placement(), {});
  auto expert = in.draw("expert", rows * k, experts + 1);
  for (auto& e : expert) e -= 1;  // -1 now and then
  Routing r = given(in.integers(expert, {rows, k}),
                    full({rows, k}, placement().dtype, GetParam(), 1), experts);
  std::vector<std::int32_t> pairs;
  for (std::size_t i = 0; i < expert.size(); ++i)
    if (expert[i] >= 0) pairs.push_back(static_cast<std::int32_t>(i));
  std::stable_sort(pairs.begin(), pairs.end(), [&](auto a, auto b) {
    return expert[static_cast<std::size_t>(a)] < expert[static_cast<std::size_t>(b)];
  });
  auto slot = to_host<std::int32_t>(r.slot), source = to_host<std::int32_t>(r.source),
       offsets = to_host<std::int32_t>(r.offsets);
  ASSERT_EQ(offsets.back(), static_cast<std::int32_t>(pairs.size()));
  std::vector<std::int32_t> expected_slot(expert.size(), -1);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    EXPECT_EQ(source[i], pairs[i] / static_cast<std::int32_t>(k));
    expected_slot[static_cast<std::size_t>(pairs[i])] = static_cast<std::int32_t>(i);
  }
  EXPECT_EQ(slot, expected_slot);
  for (std::int32_t e = 0; e < experts; ++e)
    EXPECT_EQ(offsets[static_cast<std::size_t>(e) + 1] - offsets[static_cast<std::size_t>(e)],
              std::count(expert.begin(), expert.end(), e));
}

// Nobody is taken at all: zeros, and zero gradients.
TEST_P(RoutingProperty, NobodyTaken) {
  Inputs in(placement(), {});
  Tensor x = in.x("x", {4, 3}), w = in.weight("w", {2, 3, 3});
  Tape tape;
  Routing r =
      given(in.integers(std::vector<std::int32_t>(4, -1), {4, 1}), in.x("weight", {4, 1}), 2);
  Tensor y = combine(grouped_linear(gather(x, r), w, {}, r.groups), r);
  EXPECT_EQ(elements(y), std::vector<double>(12, 0.0));
  tape.backward(y, full({4, 3}, placement().dtype, GetParam(), 1));
  for (auto& [name, leaf] : in.leaves()) {
    Tensor g = leaf.view.grad();
    EXPECT_EQ(g ? largest(elements(g)) : 0, 0) << name;
  }
}

// sbmoe.md section 14, item 13.
TEST_P(RoutingProperty, LossesOfThePaper) {
  auto loss_of = [&](const std::vector<double>& prob, const std::vector<std::int32_t>& expert) {
    return item(
        balance_loss(tensor(prob, {static_cast<Index>(expert.size()), 2}),
                     from_host(expert, {static_cast<Index>(expert.size()), 1}, GetParam())));
  };
  double allowed = GetParam() == Device::reference ? 1e-9 : 1e-6;
  EXPECT_NEAR(loss_of({.7, .3, .7, .3, .7, .3, .7, .3}, {0, 0, 0, 1}), 1.2, allowed);
  EXPECT_NEAR(loss_of({.5, .5, .5, .5}, {0, 1}), 1, allowed);
  EXPECT_NEAR(item(importance_loss(tensor({1, 0.5, 2, 0.5}, {2, 2}))), 0.25, allowed);
  EXPECT_NEAR(item(z_loss(tensor({0, 0}, {1, 2}))), 0.4804530139182014, allowed);
  EXPECT_NEAR(item(z_loss(tensor({1, 0}, {1, 2}))), 1.7246562599, allowed);
}

INSTANTIATE_TEST_SUITE_P(Devices, RoutingProperty,
                         ::testing::Values(Device::reference, Device::cpu),
                         [](const auto& one) { return std::string(name_of(one.param)); });

}  // namespace

}  // namespace moe::testing
