// AdamW and Adafactor against loops written out by hand in double; groups, clipping, saving;
// schedules.
#include "runtime/optimizer.h"

#include "ops/ops.h"
#include "tests/memory_file.h"
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace moe {

namespace {

using testing::elements;
using testing::memory_file;
using testing::numbers;
using Numbers = std::vector<double>;

struct Net {
  Parameters parameters;
  Tensor weight, bank, bias, unused, stacked;

  explicit Net(Device device = Device::reference, DType dtype = DType::f64)
      : parameters(
            {.dtype = dtype, .device = device, .seed = 5, .source = nullptr, .may_be_missing = {}}),
        weight(parameters.root().matrix("encoder.weight", {4, 7}, Init::normal(0.5))),
        bank(parameters.root().matrix("head.bank", {2, 3, 5}, Init::normal(0.5))),
        bias(parameters.root().vector("head.bias", 6, Init::normal(0.5))),
        unused(parameters.root().matrix("head.unused", {2, 2}, Init::ones())),
        stacked(parameters.root().stack({"query", "key"}, {2, 3}, Init::normal(0.5))) {}

  // Gradients of step `step`; "head.unused" never gets one, "head.bias" not in step 1.
  void fill(int step, double factor = 1) {
    for (const auto& entry : parameters.entries()) {
      if (entry.name == "head.unused" || (step == 1 && entry.name == "head.bias")) continue;
      if (!entry.tensor.needs_grad()) continue;
      auto values = gradient(entry.name, entry.tensor.shape(), step, factor);
      auto write = [&]<class T>(const Kernels<T>&) {
        Rows<T> to = grad<T>(entry.tensor);
        for (Index r = 0; r < to.rows; ++r)
          for (Index c = 0; c < to.cols; ++c)
            to[r][c] = static_cast<T>(values[static_cast<std::size_t>(r * to.cols + c)]);
      };
      with_type(entry.tensor, write);
    }
  }
  static Numbers gradient(const std::string& name, const Shape& shape, int step, double factor) {
    auto values = numbers(fmt::format("{} {}", name, step), shape, testing::Values::uniform, 0);
    for (double& v : values) v *= factor;
    return values;
  }
  std::map<std::string, Numbers> values() const {
    std::map<std::string, Numbers> all;
    for (const auto& entry : parameters.entries()) all[entry.name] = elements(entry.tensor);
    return all;
  }
};

std::vector<ParameterGroup> groups() {
  return {{"*bias", 1, 0}, {"encoder.*", 0.1, 0.05}, {"*", 1, 0.02}};
}
ParameterGroup group_of(const std::vector<ParameterGroup>& list, const std::string& name) {
  return *std::find_if(list.begin(), list.end(),
                       [&](const auto& g) { return matches(g.pattern, name); });
}

bool touched(const std::string& name, int step) {
  return name != "head.unused" && !(step == 1 && name == "head.bias");
}

double norm_of(Net& net, int step, double factor) {
  double sum = 0;
  for (const auto& entry : net.parameters.entries())
    if (touched(entry.name, step))
      for (double g : Net::gradient(entry.name, entry.tensor.shape(), step, factor)) sum += g * g;
  return std::sqrt(sum);
}

void expect_close(const std::map<std::string, Numbers>& ours,
                  const std::map<std::string, Numbers>& hand, double tolerance) {
  for (const auto& [name, values] : hand)
    EXPECT_LE(testing::distance(ours.at(name), values), tolerance) << name;
}

TEST(AdamW, FollowsTheFormula) {
  constexpr double clip = 1.5, factor = 3, beta1 = 0.9, beta2 = 0.99, eps = 1e-6;
  Net net;
  AdamW optimizer(net.parameters, groups(),
                  {.beta1 = beta1, .beta2 = beta2, .eps = eps, .clip_norm = clip});
  auto hand = net.values();
  std::map<std::string, Numbers> m, v;
  std::map<std::string, int> updates;
  for (int step = 0; step < 4; ++step) {
    double rate = 0.1 / (step + 1), norm = norm_of(net, step, factor);
    net.fill(step, factor);
    StepReport report = optimizer.step(rate);
    EXPECT_TRUE(report.finite);
    EXPECT_NEAR(report.gradient_norm, norm, 1e-12 * norm);
    ASSERT_GT(norm, clip);
    for (auto& [name, p] : hand) {
      if (!touched(name, step)) continue;
      auto g = Net::gradient(name, net.parameters.find(name).shape(), step, factor);
      const ParameterGroup group = group_of(groups(), name);
      m[name].resize(p.size());
      v[name].resize(p.size());
      int t = ++updates[name];  // bias correction counts a parameter's own updates
      for (std::size_t i = 0; i < p.size(); ++i) {
        double gi = g[i] * clip / norm;
        m[name][i] = beta1 * m[name][i] + (1 - beta1) * gi;
        v[name][i] = beta2 * v[name][i] + (1 - beta2) * gi * gi;
        double mh = m[name][i] / (1 - std::pow(beta1, t)),
               vh = v[name][i] / (1 - std::pow(beta2, t));
        double r = rate * group.rate_factor;
        p[i] -= r * (mh / (std::sqrt(vh) + eps) + group.decay * p[i]);
      }
    }
    expect_close(net.values(), hand, 1e-13);
  }
  EXPECT_EQ(optimizer.steps(), 4);
  EXPECT_EQ(elements(net.unused), Numbers(4, 1.0));  // not even decayed
}

TEST(AdamW, SmallGradientsAreNotClipped) {
  Net clipped, free;
  AdamW a(clipped.parameters, groups(), {.clip_norm = 100}), b(free.parameters, groups(), {});
  clipped.fill(0);
  free.fill(0);
  a.step(0.1);
  b.step(0.1);
  EXPECT_EQ(clipped.values(), free.values());
}

TEST(Adafactor, FollowsTheFormula) {
  constexpr double clip = 2, factor = 3;
  Net net;
  Adafactor optimizer(net.parameters, groups(), {.decay_exponent = 0.8, .clip_norm = clip});
  auto hand = net.values();
  std::map<std::string, Numbers> row, column, full;
  for (int step = 0; step < 4; ++step) {
    double rate = 0.1, norm = norm_of(net, step, factor), beta2 = 1 - std::pow(step + 1, -0.8);
    net.fill(step, factor);
    EXPECT_NEAR(optimizer.step(rate).gradient_norm, norm, 1e-12 * norm);
    for (auto& [name, p] : hand) {
      if (!touched(name, step)) continue;
      Shape shape = net.parameters.find(name).shape();
      auto g = Net::gradient(name, shape, step, factor);
      for (double& gi : g) gi *= clip / norm;
      Numbers u(p.size());
      if (shape.rank() == 1) {
        full[name].resize(p.size());
        for (std::size_t i = 0; i < p.size(); ++i) {
          full[name][i] = beta2 * full[name][i] + (1 - beta2) * (g[i] * g[i] + 1e-30);
          u[i] = g[i] / std::sqrt(full[name][i]);
        }
      } else {
        auto cols = static_cast<std::size_t>(shape[shape.rank() - 1]), rows = p.size() / cols;
        row[name].resize(rows);
        column[name].resize(cols);
        Numbers row_mean(rows, 0.0), column_mean(cols, 0.0);
        for (std::size_t r = 0; r < rows; ++r)
          for (std::size_t c = 0; c < cols; ++c) {
            double square = g[r * cols + c] * g[r * cols + c] + 1e-30;
            row_mean[r] += square / static_cast<double>(cols);
            column_mean[c] += square / static_cast<double>(rows);
          }
        double mean = 0;
        for (std::size_t r = 0; r < rows; ++r) {
          row[name][r] = beta2 * row[name][r] + (1 - beta2) * row_mean[r];
          mean += row[name][r] / static_cast<double>(rows);
        }
        for (std::size_t c = 0; c < cols; ++c)
          column[name][c] = beta2 * column[name][c] + (1 - beta2) * column_mean[c];
        for (std::size_t r = 0; r < rows; ++r)
          for (std::size_t c = 0; c < cols; ++c)
            u[r * cols + c] = g[r * cols + c] / std::sqrt(row[name][r] * column[name][c] / mean);
      }
      auto rms = [](const Numbers& x) {
        double sum = 0;
        for (double value : x) sum += value * value;
        return std::sqrt(sum / static_cast<double>(x.size()));
      };
      const ParameterGroup group = group_of(groups(), name);
      double scale = std::max(1e-3, rms(p)), limit = std::max(1.0, rms(u));
      for (std::size_t i = 0; i < p.size(); ++i) {
        double r = rate * group.rate_factor;
        p[i] -= r * (scale * u[i] / limit + group.decay * p[i]);
      }
    }
    expect_close(net.values(), hand, 1e-12);
  }
  EXPECT_EQ(elements(net.unused), Numbers(4, 1.0));
}

// What both optimisers share.
template <class Optimizer>
struct Options;
template <>
struct Options<AdamW> {
  static AdamWOptions make(double clip) { return {.clip_norm = clip}; }
};
template <>
struct Options<Adafactor> {
  static AdafactorOptions make(double clip) { return {.clip_norm = clip}; }
};

template <class Optimizer>
class AnyOptimizer : public ::testing::Test {
 protected:
  static Optimizer make(Net& net) {
    return {net.parameters, groups(), Options<Optimizer>::make(1)};
  }
};
using Optimizers = ::testing::Types<AdamW, Adafactor>;
TYPED_TEST_SUITE(AnyOptimizer, Optimizers);

TYPED_TEST(AnyOptimizer, ContinuesIdenticallyFromItsState) {
  for (DType dtype : {DType::f64, DType::f32}) {
    Device device = dtype == DType::f64 ? Device::reference : Device::cpu;
    Net whole(device, dtype), first(device, dtype), second(device, dtype);
    TypeParam a = this->make(whole), b = this->make(first), c = this->make(second);
    for (int step = 0; step < 5; ++step) {
      whole.fill(step);
      a.step(0.1);
    }
    for (int step = 0; step < 2; ++step) {
      first.fill(step);
      b.step(0.1);
    }
    TensorFile model = memory_file(first.parameters.named_tensors()),
               state = memory_file(b.state());
    second.parameters.load_values(model);
    c.load_state(state, b.steps());
    EXPECT_EQ(c.steps(), 2);
    for (int step = 2; step < 5; ++step) {
      second.fill(step);
      c.step(0.1);
    }
    EXPECT_EQ(whole.values(), second.values());
    auto left = a.state(), right = c.state();
    ASSERT_EQ(left.size(), right.size());
    for (std::size_t i = 0; i < left.size(); ++i) {
      EXPECT_EQ(left[i].name, right[i].name);
      if (left[i].tensor.dtype() == DType::i64) {
        EXPECT_EQ(to_host<std::int64_t>(left[i].tensor), to_host<std::int64_t>(right[i].tensor));
      } else {
        EXPECT_EQ(elements(left[i].tensor), elements(right[i].tensor)) << left[i].name;
      }
    }
  }
}

TYPED_TEST(AnyOptimizer, DamagedStateIsNamed) {
  Net net;
  TypeParam optimizer = this->make(net);
  net.fill(0);
  optimizer.step(0.1);
  TensorFile state = memory_file(optimizer.state(), "optimizer.safetensors");
  std::string victim = state.tensors.begin()->first;
  state.tensors.erase(victim);
  try {
    optimizer.load_state(state, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::bad_data);
    EXPECT_NE(std::string(error.what()).find(victim), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("optimizer.safetensors"), std::string::npos)
        << error.what();
  }
}

TYPED_TEST(AnyOptimizer, ClearsGradientsAndRefusesBadOnes) {
  Net net;
  TypeParam optimizer = this->make(net);
  net.fill(0);
  optimizer.step(0.1);
  for (const auto& entry : net.parameters.entries())
    EXPECT_FALSE(entry.tensor.grad()) << entry.name;
  auto before = net.values();
  for (double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    net.fill(0);
    grad<double>(net.bank)[1][2] = bad;
    StepReport report = optimizer.step(0.1);
    EXPECT_FALSE(report.finite);
    EXPECT_EQ(report.bad_tensor, "head.bank");
    EXPECT_EQ(net.values(), before);
    EXPECT_FALSE(net.bank.grad());
  }
  EXPECT_EQ(optimizer.steps(), 1);
}

TYPED_TEST(AnyOptimizer, WantsNoTapeAndAGroupForEveryParameter) {
  Net net;
  TypeParam optimizer = this->make(net);
  {
    Tape tape;
    EXPECT_THROW(optimizer.step(0.1), Error);
  }
  EXPECT_THROW(TypeParam(net.parameters, {{"encoder.*", 1, 0}}, Options<TypeParam>::make(0)),
               Error);
}

TYPED_TEST(AnyOptimizer, FrozenParametersStay) {
  Net net;
  net.parameters.freeze("encoder.*");
  TypeParam optimizer = this->make(net);
  auto before = elements(net.weight);
  net.fill(0);
  optimizer.step(0.1);
  EXPECT_EQ(elements(net.weight), before);
  for (const NamedTensor& state : optimizer.state())
    EXPECT_EQ(state.name.find("encoder"), std::string::npos) << state.name;
}

// A step without any gradient is no step for anybody, and no error.
TYPED_TEST(AnyOptimizer, NothingTouched) {
  Net net;
  TypeParam optimizer = this->make(net);
  auto before = net.values();
  EXPECT_EQ(optimizer.step(0.1).gradient_norm, 0);
  EXPECT_EQ(net.values(), before);
}

TYPED_TEST(AnyOptimizer, WritesDropPackedWeights) {
  Net net(Device::cpu, DType::f32);
  TypeParam optimizer = this->make(net);
  Tensor x = full({3, 7}, DType::f32, Device::cpu, 1);
  linear(x, net.weight, {});
  net.fill(0);
  optimizer.step(0.1);
  // The product must see the new weight.
  auto y = elements(linear(x, net.weight, {})), w = elements(net.weight);
  double sum = 0;
  for (std::size_t k = 0; k < 7; ++k) sum += w[k];
  EXPECT_NEAR(y[0], sum, 1e-5);
}

TEST(Schedule, Formulas) {
  using Kind = Schedule::Kind;
  Schedule linear{Kind::linear, 4, 12};
  EXPECT_DOUBLE_EQ(linear.factor(0), 0.25);
  EXPECT_DOUBLE_EQ(linear.factor(3), 1);
  EXPECT_DOUBLE_EQ(linear.factor(4), 1);
  EXPECT_DOUBLE_EQ(linear.factor(8), 0.5);
  EXPECT_DOUBLE_EQ(linear.factor(12), 0);
  EXPECT_DOUBLE_EQ(linear.factor(100), 0);
  Schedule cosine{Kind::cosine, 0, 10};
  EXPECT_DOUBLE_EQ(cosine.factor(0), 1);
  EXPECT_NEAR(cosine.factor(5), 0.5, 1e-15);
  EXPECT_NEAR(cosine.factor(10), 0, 1e-15);
  Schedule constant{Kind::constant, 2, 10};
  EXPECT_DOUBLE_EQ(constant.factor(0), 0.5);
  EXPECT_DOUBLE_EQ(constant.factor(9), 1);
  Schedule root{Kind::inverse_sqrt, 100, 0};
  EXPECT_DOUBLE_EQ(root.factor(99), 1);
  EXPECT_DOUBLE_EQ(root.factor(100), 1);
  EXPECT_DOUBLE_EQ(root.factor(400), 0.5);
  Schedule bare{Kind::inverse_sqrt, 0, 0};
  EXPECT_TRUE(std::isfinite(bare.factor(0)));
  // Without a total nothing decays to nonsense.
  EXPECT_TRUE(std::isfinite((Schedule{Kind::linear, 0, 0}.factor(5))));
}

TEST(Schedule, NeverLeavesTheUnitRange) {
  for (auto kind : {Schedule::Kind::constant, Schedule::Kind::linear, Schedule::Kind::cosine,
                    Schedule::Kind::inverse_sqrt})
    for (Index warmup : {0, 1, 5})
      for (Index total : {0, 1, 5, 20}) {
        Schedule schedule{kind, warmup, total};
        for (Index step = 0; step < 30; ++step) {
          EXPECT_GE(schedule.factor(step), 0);
          EXPECT_LE(schedule.factor(step), 1);
        }
      }
}

TEST(Schedule, Names) {
  EXPECT_EQ(parse_schedule("cosine"), Schedule::Kind::cosine);
  EXPECT_EQ(parse_schedule("inverse-sqrt"), Schedule::Kind::inverse_sqrt);
  EXPECT_THROW(parse_schedule("cosin"), Error);
}

}  // namespace

}  // namespace moe
