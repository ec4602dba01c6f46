// The tape: what is recorded, in which order it runs, what backward leaves; gradient checkpointing.
#include "ops/ops.h"
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>

namespace moe::testing {

namespace {

constexpr Device device = Device::reference;
using Numbers = std::vector<double>;

Tensor leaf(const Numbers& values, const Shape& shape) {
  Tensor x = from_host(values, shape, device);
  x.require_grad();
  return x;
}
Tensor ones(const Shape& shape) {
  return full(shape, DType::f64, device, 1);
}

TEST(Tape, NothingIsRecordedWithoutOne) {
  Tensor x = leaf({1, 2}, {1, 2});
  EXPECT_EQ(Tape::current(), nullptr);
  EXPECT_FALSE(scale(x, 2).needs_grad());
}

TEST(Tape, NothingIsRecordedForFrozenInputs) {
  Tape tape;
  Tensor x = ones({2, 3});
  Tensor y = softmax(layer_norm(x, ones({3}), ones({3}), 1e-5));
  EXPECT_EQ(tape.size(), 0u);
  EXPECT_FALSE(y.needs_grad());
  scale(leaf({1}, {1, 1}), 2);
  EXPECT_EQ(tape.size(), 1u);
}

TEST(Tape, FanOutAdds) {
  Tensor x = leaf({3, 5}, {1, 2});
  Tape tape;
  Tensor y = scale(x, 2);
  Tensor z = add(mul(y, y), add(y, x));  // 4 x^2 + 3 x
  tape.backward(z, ones({1, 2}));
  EXPECT_EQ(to_host<double>(x.grad()), (Numbers{8 * 3 + 3, 8 * 5 + 3}));
}

TEST(Tape, BranchesThatDoNotReachTheLossAreNotRun) {
  Tensor x = leaf({3}, {1, 1}), other = leaf({4}, {1, 1});
  Tape tape;
  Tensor loss = scale(x, 2);
  relu(other);
  tape.backward(loss);
  EXPECT_FALSE(other.grad());
  EXPECT_EQ(item(x.grad()), 2);
}

TEST(Tape, FactorScalesEverything) {
  Tensor x = leaf({3}, {1, 1});
  Tape tape;
  tape.backward(mul(x, x), 0.25);
  EXPECT_EQ(item(x.grad()), 1.5);
}

TEST(Tape, AnyCotangent) {
  Tensor x = leaf({1, 2, 3, 4}, {2, 2});
  Tape tape;
  Tensor y = scale(x, 3);
  tape.backward(y, from_host(Numbers{1, 0, -1, 2}, {2, 2}, device));
  EXPECT_EQ(to_host<double>(x.grad()), (Numbers{3, 0, -3, 6}));
}

TEST(Tape, StartsFromAView) {
  Tensor x = leaf({1, 2, 3, 4}, {2, 2});
  Tape tape;
  Tensor y = scale(x, 3);
  tape.backward(y.slice_cols(1, 2), ones({2, 1}));
  EXPECT_EQ(to_host<double>(x.grad()), (Numbers{0, 3, 0, 3}));
}

TEST(Tape, TwoPassesAccumulate) {
  Tensor x = leaf({3}, {1, 1});
  for (int pass = 0; pass < 2; ++pass) {
    Tape tape;
    tape.backward(mul(x, x));
  }
  EXPECT_EQ(item(x.grad()), 12);
}

TEST(Tape, MisuseIsAnError) {
  Tensor x = leaf({1, 2}, {1, 2});
  {
    Tape tape;
    Tensor y = scale(x, 2);
    EXPECT_THROW(tape.backward(y), Error);  // not a scalar
  }
  {
    Tape tape;
    Tensor y = scale(x, 2);
    EXPECT_THROW(tape.backward(y, ones({2, 1})), Error);
  }
  {
    Tape tape;
    Tensor y = scale(x.slice_cols(0, 1), 2);
    tape.backward(y);
    EXPECT_THROW(tape.backward(y), Error);  // walked already
  }
  EXPECT_EQ(Tape::current(), nullptr);
}

TEST(Tape, AConstantLossIsNoError) {
  Tape tape;
  tape.backward(scale(ones({1, 1}), 2));
  EXPECT_EQ(Tape::current(), nullptr);
}

TEST(Tape, EndsRecordingWhenWalked) {
  Tensor x = leaf({3}, {1, 1});
  Tape tape;
  EXPECT_EQ(Tape::current(), &tape);
  tape.backward(scale(x, 2));
  EXPECT_EQ(Tape::current(), nullptr);
  EXPECT_EQ(tape.size(), 0u);
  EXPECT_FALSE(scale(x, 2).needs_grad());
}

TEST(Tape, TheInnermostRecords) {
  Tensor x = leaf({3}, {1, 1});
  Tape outer;
  Tensor y = scale(x, 2);
  EXPECT_EQ(outer.size(), 1u);
  {
    Tape inner;
    Tensor z = scale(x, 10);
    EXPECT_EQ(inner.size(), 1u);
    EXPECT_EQ(outer.size(), 1u);
    inner.backward(z);
    EXPECT_EQ(Tape::current(), &outer);
  }
  EXPECT_EQ(item(x.grad()), 10);
  outer.backward(y);
  EXPECT_EQ(item(x.grad()), 12);
}

TEST(Tape, AnExceptionDropsTheRecords) {
  Tensor x = leaf({3}, {1, 1});
  auto before = memory_statistics(device).in_use;
  try {
    Tape tape;
    Tensor y = scale(relu(x), 2);
    throw std::runtime_error("stop");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(Tape::current(), nullptr);
  EXPECT_FALSE(x.grad());
  EXPECT_EQ(memory_statistics(device).in_use, before);
  // An error inside a nested tape leaves the outer one recording.
  Tape outer;
  try {
    Tape inner;
    add(x, ones({2, 2}));
  } catch (const Error&) {
  }
  EXPECT_EQ(Tape::current(), &outer);
  outer.backward(scale(x, 7));
  EXPECT_EQ(item(x.grad()), 7);
}

// Backward releases activations as it goes, and what a closure does not read it does not hold.
TEST(Tape, ActivationsLiveOnlyWhileNeeded) {
  Tensor x = leaf(Numbers(10000, 1.0), {100, 100});
  auto before = memory_statistics(device).in_use;
  Tape tape;
  Tensor y = x;
  for (int i = 0; i < 10; ++i) y = scale(y, 1.01);  // needs no data in backward
  auto linear_chain = memory_statistics(device).in_use - before;
  EXPECT_LE(linear_chain, 2 * 80000u + 1000u);
  for (int i = 0; i < 10; ++i) y = gelu(y);  // each keeps its input
  EXPECT_GE(memory_statistics(device).in_use - before, 10 * 80000u);
  Tensor total = matmul_nt(matmul_nt(ones({1, 100}), y), ones({1, 100}));
  y = {};
  tape.backward(total);
  total = {};
  EXPECT_LE(memory_statistics(device).in_use - before, 2 * 80000u + 1000u);  // the gradient of x
}

// ---- recompute

struct Model {
  Tensor w1 = leaf(numbers("w1", {8, 5}, Values::uniform, 0), {8, 5});
  Tensor w2 = leaf(numbers("w2", {5, 8}, Values::uniform, 0), {5, 8});
  Draw draw{.seed = 5, .step = 9, .train = true};

  Tensor block(const Tensor& x) const {
    Tensor h = gelu(linear(x, w1, {}));
    h = dropout(h, draw, stream_hash("dropout:block"), 0.4);
    return add(x, linear(h, w2, {}));
  }
};

struct Gradients {
  Numbers loss, x, w1, w2;
  bool operator==(const Gradients&) const = default;
};

Gradients gradients(const std::function<Tensor(const Model&, const Tensor&)>& forward) {
  Model model;
  Tensor x = leaf(numbers("x", {6, 5}, Values::uniform, 0), {6, 5});
  Tape tape;
  Tensor y = forward(model, x);
  Tensor dy = from_host(numbers("dy", y.shape(), Values::uniform, 0), y.shape(), device);
  tape.backward(y, dy);
  return {elements(y), elements(x.grad()), elements(model.w1.grad()), elements(model.w2.grad())};
}

TEST(Recompute, GivesTheSameBitsWithDropout) {
  Gradients plain = gradients([](const Model& m, const Tensor& x) { return m.block(m.block(x)); });
  Gradients again = gradients([](const Model& m, const Tensor& x) {
    auto f = [&m](const std::vector<Tensor>& in) { return m.block(in[0]); };
    return recompute(f, {recompute(f, {x})});
  });
  EXPECT_EQ(plain, again);
  EXPECT_NE(largest(plain.w1), 0);
}

TEST(Recompute, Nests) {
  Gradients plain = gradients([](const Model& m, const Tensor& x) { return m.block(m.block(x)); });
  Gradients nested = gradients([](const Model& m, const Tensor& x) {
    auto inner = [&m](const std::vector<Tensor>& in) { return m.block(in[0]); };
    auto outer = [inner](const std::vector<Tensor>& in) {
      return recompute(inner, {recompute(inner, {in[0]})});
    };
    return recompute(outer, {x});
  });
  EXPECT_EQ(plain, nested);
}

TEST(Recompute, RecordsOneClosureAndKeepsNoActivations) {
  Model model;
  Tensor x = leaf(numbers("x", {6, 5}, Values::uniform, 0), {6, 5});
  Tape tape;
  recompute([&](const std::vector<Tensor>& in) { return model.block(in[0]); }, {x});
  EXPECT_EQ(tape.size(), 1u);
}

TEST(Recompute, MayReturnAView) {
  // The function's result need not be a whole storage: its gradient must land in the right rows.
  auto run = [](bool checkpoint) {
    Tensor x = leaf({1, 2, 3, 4, 5, 6}, {3, 2});
    auto f = [](const std::vector<Tensor>& in) {
      return mul(in[0], in[0]).slice_rows(1, 3).slice_cols(1, 2);
    };
    Tape tape;
    Tensor y = checkpoint ? recompute(f, {x}) : f({x});
    tape.backward(scale(y, 2), ones({2, 1}));
    return to_host<double>(x.grad());
  };
  EXPECT_EQ(run(true), run(false));
}

TEST(Recompute, ViewsAndSeveralInputs) {
  auto run = [](bool checkpoint) {
    Tensor x = leaf({1, 2, 3, 4, 5, 6}, {3, 2});
    auto f = [](const std::vector<Tensor>& in) { return mul(in[0], in[1]); };
    Tape tape;
    std::vector<Tensor> in{x.slice_cols(0, 1), x.slice_cols(1, 2)};
    tape.backward(checkpoint ? recompute(f, in) : f(in), ones({3, 1}));
    return to_host<double>(x.grad());
  };
  EXPECT_EQ(run(true), (Numbers{2, 1, 4, 3, 6, 5}));
  EXPECT_EQ(run(false), run(true));
}

TEST(Recompute, WithoutATapeItJustRuns) {
  Tensor x = leaf({2}, {1, 1});
  Tensor y = recompute([](const std::vector<Tensor>& in) { return mul(in[0], in[0]); }, {x});
  EXPECT_EQ(item(y), 4);
  EXPECT_FALSE(y.needs_grad());
}

// GradCache: embed chunks without a tape, differentiate the loss at the embeddings, run each chunk
// again and start from its rows of that gradient.
TEST(Tape, ChunkedBackwardEqualsWhole) {
  Model model;
  Tensor x = from_host(numbers("x", {6, 5}, Values::uniform, 0), {6, 5}, device);
  auto loss = [](const Tensor& y) { return z_loss(y); };
  {
    Tape tape;
    tape.backward(loss(model.block(x)));
  }
  Numbers whole = elements(model.w1.grad());
  model.w1.storage()->gradient->clear();
  Tensor y = model.block(x);
  y.require_grad();
  {
    Tape tape;
    tape.backward(loss(y));
  }
  for (Index begin : {0, 3}) {
    Draw first = model.draw;
    model.draw.row0 = begin;  // dropout counts rows of the whole batch
    Tape tape;
    Tensor chunk = model.block(x.slice_rows(begin, begin + 3));
    model.draw = first;
    tape.backward(chunk, y.grad().slice_rows(begin, begin + 3));
  }
  EXPECT_LE(distance(whole, elements(model.w1.grad())), 1e-15);
}

}  // namespace

}  // namespace moe::testing
