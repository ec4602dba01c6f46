// The required tests of the SB-MoE block. Numbers name the properties: 1 unit step, 2 gate
// gradients, 3 refusals, 4 permutation, 5 repetition, 6 usage, 7 gradients, 9 loss, 11 sizes, 12
// bounds, 13 losses, 14 noise, 15 batch, 16 saving.
#include "models/sbmoe.h"

#include "models/text_encoder.h"
#include "runtime/optimizer.h"
#include "runtime/parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace moe {
namespace {

constexpr Device exact = Device::reference;

Tensor inputs(Index rows, Index size, double spread, std::uint64_t seed, DType dtype = DType::f64,
              Device device = exact) {
  Draw draw{.seed = seed};
  return scale(random_normal({rows, size}, dtype, device, draw.dice(stream_hash("test inputs"))),
               spread);
}

struct Block {
  Parameters parameters;
  SbMoe moe;
  explicit Block(SbMoeConfig c, Index size, DType dtype = DType::f64, Device device = exact,
                 std::uint64_t seed = 7)
      : parameters({.dtype = dtype,
                    .device = device,
                    .seed = seed,
                    .source = nullptr,
                    .may_be_missing = {}}),
        moe(parameters.root() / "moe", sized(c, size)) {}
  static SbMoeConfig sized(SbMoeConfig c, Index size) {
    c.size = size;
    return c;
  }
};

SbMoeConfig trained(Index experts, Index k,
                    RouterConfig::Weights weights = RouterConfig::Weights::raw) {
  SbMoeConfig c;
  c.experts = experts;
  c.k = k;
  c.weights = weights;
  return c;
}

std::vector<double> host(const Tensor& x) {
  if (x.dtype() == DType::f64) return to_host<double>(x);
  auto f = to_host<float>(x);
  return {f.begin(), f.end()};
}

std::vector<double> row_norms(const Tensor& out, const Tensor& x) {
  auto a = host(out), b = host(x);
  std::vector<double> norms;
  for (Index r = 0; r < x.rows(); ++r) {
    double sum = 0;
    for (Index c = 0; c < x.cols(); ++c) {
      double gap = a[static_cast<std::size_t>(r * x.cols() + c)] -
                   b[static_cast<std::size_t>(r * x.cols() + c)];
      sum += gap * gap;
    }
    norms.push_back(std::sqrt(sum));
  }
  return norms;
}

double rms(const Tensor& g) {
  if (!g) return 0;
  double sum = 0;
  auto v = host(g);
  for (double x : v) sum += x * x;
  return std::sqrt(sum / static_cast<double>(std::max<std::size_t>(v.size(), 1)));
}

Pass training_pass(Routes& routes, std::uint64_t seed = 3) {
  Pass pass;
  pass.draw = {.seed = seed, .step = 1, .side = 0, .row0 = 0, .train = true};
  pass.routes = &routes;
  return pass;
}

// A task loss: contrastive between block outputs of two halves.
Tensor task_loss(const Block& b, const Tensor& x, const Pass& pass) {
  Tensor y = b.moe(x, pass);
  Index half = y.rows() / 2;
  return contrastive(
      y.slice_rows(0, half), y.slice_rows(half, 2 * half), {},
      {.temperature = 1, .symmetric = false, .factor = 1 / static_cast<double>(half)});
}

TEST(SbMoe, FaithfulAddsAUnitVector) {  // 1
  Block b(SbMoeConfig::faithful(6), 24);
  Tensor x = inputs(32, 24, 1.5, 1);
  Routes routes;
  for (bool train : {true, false}) {
    Pass pass = training_pass(routes);
    pass.draw.train = train;
    for (double n : row_norms(b.moe(x, pass), x)) EXPECT_NEAR(n, 1, 1e-12);
  }
  Block f(SbMoeConfig::faithful(6), 24, DType::f32, Device::cpu);
  Tensor y = inputs(32, 24, 1.5, 1, DType::f32, Device::cpu);
  for (double n : row_norms(f.moe(y, {}), y)) EXPECT_NEAR(n, 1, 1e-5);
}

TEST(SbMoe, FaithfulGateGetsNoTaskGradient) {  // 2
  for (Index size : {24, 96}) {
    Block b(SbMoeConfig::faithful(6), size);
    Tensor x = inputs(64, size, 1.5 / std::sqrt(static_cast<double>(size)), 2);
    Routes routes;
    Tape tape;
    tape.backward(task_loss(b, x, training_pass(routes)));
    double expert = rms(b.moe.experts.up.grad());
    ASSERT_GT(expert, 0);
    for (const Tensor& w : {b.moe.router.hidden.weight, b.moe.router.out.weight})
      EXPECT_LE(rms(w.grad()), 1e-12 * expert);
    EXPECT_FALSE(b.moe.router.noise.weight.needs_grad());  // in no optimiser group
  }
  Block f(SbMoeConfig::faithful(6), 96, DType::f32, Device::cpu);
  Tensor x = inputs(64, 96, 0.15, 2, DType::f32, Device::cpu);
  Routes routes;
  Tape tape;
  tape.backward(task_loss(f, x, training_pass(routes)));
  double expert = rms(f.moe.experts.up.grad());
  EXPECT_LE(rms(f.moe.router.out.weight.grad()), 1e-3 * expert);
}

TEST(SbMoe, TrainedGateLearns) {  // 2
  for (auto [k, weights] : {std::pair{Index{1}, RouterConfig::Weights::raw},
                            std::pair{Index{2}, RouterConfig::Weights::renormalise}}) {
    Block b(trained(6, k, weights), 24);
    Tensor x = inputs(64, 24, 1.5 / std::sqrt(24.0), 2);
    Routes routes;
    Tape tape;
    tape.backward(task_loss(b, x, training_pass(routes)));
    EXPECT_GE(rms(b.moe.router.out.weight.grad()), 0.05 * rms(b.moe.experts.up.grad()))
        << "k " << k;
    EXPECT_GT(rms(b.moe.router.noise.weight.grad()), 0);
  }
}

TEST(SbMoe, RefusesWhatCannotLearn) {  // 3
  SbMoeConfig c = trained(6, 1, RouterConfig::Weights::renormalise);
  EXPECT_THROW(validate(c), Error);
  c = trained(6, 1);
  c.combine = SbMoeConfig::Combine::weight_then_unit;
  c.balance = 0;
  EXPECT_THROW(validate(c), Error);
  c.balance = 0.01;
  EXPECT_NO_THROW(validate(c));
  c = trained(6, 7);
  EXPECT_THROW(validate(c), Error);
  c = trained(6, 2, RouterConfig::Weights::straight_through);
  EXPECT_THROW(validate(c), Error);
}

TEST(SbMoe, OneExpertMakesTopOneAndAllEqual) {  // 4
  SbMoeConfig top = SbMoeConfig::faithful(1), all = top;
  all.route = RouterConfig::Select::all;
  Block a(top, 24), b(all, 24);
  Tensor x = inputs(16, 24, 1, 4);
  EXPECT_EQ(host(a.moe(x, {})), host(b.moe(x, {})));
}

// Moves expert e's parameters to place to[e].
void permute(const Block& from, const Block& to, const std::vector<Index>& place) {
  auto move = [&](const Tensor& a, const Tensor& b) {
    auto source = host(a), target = source;
    std::size_t part = source.size() / place.size();
    for (std::size_t e = 0; e < place.size(); ++e)
      std::copy_n(
          source.begin() + static_cast<std::ptrdiff_t>(e * part), part,
          target.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(place[e]) * part));
    backend(exact).upload(b.mut<double>(), target.data(), target.size() * sizeof(double));
  };
  move(from.moe.router.out.weight, to.moe.router.out.weight);
  move(from.moe.router.out.bias, to.moe.router.out.bias);
  move(from.moe.experts.down, to.moe.experts.down);
  move(from.moe.experts.down_bias, to.moe.experts.down_bias);
  move(from.moe.experts.up, to.moe.experts.up);
  move(from.moe.experts.up_bias, to.moe.experts.up_bias);
}

TEST(SbMoe, PermutingExpertsWithTheirGateRowsChangesNothing) {  // 4
  for (auto combine :
       {SbMoeConfig::Combine::weight_then_unit, SbMoeConfig::Combine::unit_then_weight}) {
    SbMoeConfig c = trained(5, 2, RouterConfig::Weights::renormalise);
    c.combine = combine;
    for (auto route : {RouterConfig::Select::all, RouterConfig::Select::top_k}) {
      c.route = route;
      Block a(c, 16), b(c, 16);
      permute(a, b, {3, 0, 4, 1, 2});
      Tensor x = inputs(40, 16, 1, 5);
      auto y = host(a.moe(x, {})), z = host(b.moe(x, {}));
      for (std::size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], z[i], 1e-12);
    }
  }
}

TEST(SbMoe, EvaluationIsDeterministicAndTrainingNoiseRepeats) {  // 5, 14
  Block b(trained(6, 1), 24);
  Tensor x = inputs(32, 24, 1, 6);
  EXPECT_EQ(host(b.moe(x, {})), host(b.moe(x, {})));
  Pass other;
  other.draw.seed = 99;  // no draw is taken in evaluation, so the seed cannot matter
  EXPECT_EQ(host(b.moe(x, {})), host(b.moe(x, other)));
  Routes r1, r2, r3;
  Tensor a = b.moe(x, training_pass(r1, 3)), c = b.moe(x, training_pass(r2, 3));
  EXPECT_EQ(host(a), host(c));
  b.moe(x, training_pass(r3, 4));
  EXPECT_NE(host(r1.seen[0].noisy_prob), host(r3.seen[0].noisy_prob));
  // tau = 0 routes as evaluation does.
  Routes silent, plain;
  silent.noise_scale = 0;
  Tensor y = b.moe(x, training_pass(silent));
  Pass evaluation;
  evaluation.routes = &plain;
  EXPECT_EQ(host(y), host(b.moe(x, evaluation)));
}

TEST(SbMoe, RandomRoutingRepeatsBySeed) {
  SbMoeConfig c = SbMoeConfig::faithful(6);
  c.route = RouterConfig::Select::random;
  Block b(c, 24);
  Tensor x = inputs(32, 24, 1, 6);
  Pass p1, p2;
  p1.draw.seed = 1;
  p2.draw.seed = 2;
  EXPECT_EQ(host(b.moe(x, p1)), host(b.moe(x, p1)));
  EXPECT_NE(host(b.moe(x, p1)), host(b.moe(x, p2)));
}

TEST(SbMoe, UsageCountsEveryChoiceOnce) {  // 6
  for (Index k : {1, 2, 3}) {
    Block b(trained(6, k, k == 1 ? RouterConfig::Weights::raw : RouterConfig::Weights::renormalise),
            24);
    Routes routes;
    Pass pass;
    pass.routes = &routes;
    b.moe(inputs(50, 24, 1, 8), pass);
    ASSERT_EQ(routes.seen.size(), 1u);
    auto expert = to_host<std::int32_t>(routes.seen[0].routing.expert);
    auto offsets = to_host<std::int32_t>(routes.seen[0].routing.offsets);
    EXPECT_EQ(static_cast<Index>(expert.size()), 50 * k);
    EXPECT_EQ(offsets.back(), 50 * k);
  }
}

// Central differences of `loss` in every element of every parameter that needs a gradient.
void check_gradients(const Parameters& parameters, const std::function<Tensor()>& loss,
                     double tolerance) {
  {
    Tape tape;
    tape.backward(loss());
  }
  for (const auto& entry : parameters.entries()) {
    if (!entry.tensor.needs_grad()) continue;
    Tensor g = entry.tensor.grad();
    std::vector<double> analytic =
        g ? host(g) : std::vector<double>(static_cast<std::size_t>(entry.tensor.size()));
    std::vector<double> numeric(analytic.size());
    for (std::size_t i = 0; i < analytic.size(); ++i) {
      double* value = entry.tensor.mut<double>() + i;
      double kept = *value, step = 1e-5;
      *value = kept + step;
      double up = item(loss());
      *value = kept - step;
      double down = item(loss());
      *value = kept;
      numeric[i] = (up - down) / (2 * step);
    }
    double size = 0, gap = 0;
    for (std::size_t i = 0; i < numeric.size(); ++i) {
      size = std::max(size, std::abs(numeric[i]));
      gap = std::max(gap, std::abs(numeric[i] - analytic[i]));
    }
    EXPECT_LE(gap, tolerance * std::max(size, 1e-4)) << entry.name;
  }
}

TEST(SbMoe, EveryGradientMatchesCentralDifferences) {  // 2, 7
  struct Case {
    const char* name;
    SbMoeConfig config;
  };
  SbMoeConfig soft = trained(3, 1);
  soft.route = RouterConfig::Select::all;
  soft.importance = 0.1;
  SbMoeConfig released_soft = soft;
  released_soft.combine = SbMoeConfig::Combine::weight_then_unit;
  SbMoeConfig top2 = trained(4, 2, RouterConfig::Weights::renormalise);
  top2.learn_lambda = true;
  SbMoeConfig scaled = trained(4, 1);
  scaled.combine = SbMoeConfig::Combine::scaled_sum;
  scaled.learn_lambda = true;
  for (const Case& c :
       {Case{"soft", soft}, Case{"soft, released order", released_soft},
        Case{"top-1 raw", trained(4, 1)}, Case{"top-2 renorm", top2}, Case{"scaled sum", scaled}}) {
    SCOPED_TRACE(c.name);
    Block b(c.config, 6);
    Tensor x = inputs(10, 6, 1, 9);
    check_gradients(
        b.parameters,
        [&] {
          Routes routes;
          Pass pass = training_pass(routes);
          Tensor loss = task_loss(b, x, pass);
          return add(loss, b.moe.auxiliary_loss(routes.seen[0]));
        },
        1e-6);
  }
}

TEST(SbMoe, EqualEmbeddingsLoseLogB) {  // 9
  for (Index rows : {2, 7, 64}) {
    Tensor x = full({rows, 8}, DType::f64, exact, 0.3);
    EXPECT_NEAR(
        item(contrastive(
            x, x, {},
            {.temperature = 0.05, .symmetric = true, .factor = 1 / static_cast<double>(rows)})),
        std::log(static_cast<double>(rows)), 1e-6);
  }
}

TEST(SbMoe, MemorisesSixtyFourPairs) {  // 9
  for (SbMoeConfig c :
       {SbMoeConfig::faithful(6), trained(6, 2, RouterConfig::Weights::renormalise)}) {
    SCOPED_TRACE(name_of(c.mode));
    Parameters parameters({.dtype = DType::f32,
                           .device = Device::cpu,
                           .seed = 5,
                           .source = nullptr,
                           .may_be_missing = {}});
    c.size = 32;
    SbMoe block(parameters.root() / "moe", c);
    // The encoder stands in as a table of free vectors, one per text.
    Tensor q = parameters.root().matrix("q", {64, 32}, Init::normal(1));
    Tensor d = parameters.root().matrix("d", {64, 32}, Init::normal(1));
    AdamW optimizer(parameters, {{"*", 1, 0}}, {});
    double accuracy = 0;
    for (int step = 0; step < 200 && accuracy < 1; ++step) {
      Routes routes;
      Pass pass = training_pass(routes);
      pass.draw.step = static_cast<std::uint32_t>(step);
      Tape tape;
      Tensor a = block(q, pass), b = block(d, pass);
      tape.backward(
          contrastive(a, b, {}, {.temperature = 1, .symmetric = false, .factor = 1.0 / 64}));
      optimizer.step(0.01);
      auto scores = to_host<float>(matmul_nt(block(q, {}), block(d, {})));
      Index right = 0;
      for (Index i = 0; i < 64; ++i) {
        auto row = scores.begin() + i * 64;
        right += std::max_element(row, row + 64) - row == i;
      }
      accuracy = static_cast<double>(right) / 64;
    }
    EXPECT_EQ(accuracy, 1.0);
  }
}

TEST(SbMoe, ParameterCounts) {  // 11
  struct Row {
    Index size;
    Index expert;
    std::vector<Index> block;  // m = 3, 6, 9, 12
  };
  const std::vector<Row> rows{{312, 97'812, {343'674, 638'520, 933'366, 1'228'212}},
                              {384, 148'032, {519'750, 965'580, 1'411'410, 1'857'240}},
                              {512, 262'912, {922'374, 1'713'420, 2'504'466, 3'295'512}},
                              {768, 590'976, {2'071'686, 3'848'076, 5'624'466, 7'400'856}}};
  for (const Row& row : rows)
    for (std::size_t i = 0; i < 4; ++i) {
      Index m = static_cast<Index>(3 * (i + 1));
      Block b(SbMoeConfig::faithful(m), row.size, DType::f32, Device::cpu);
      EXPECT_EQ(b.parameters.count(), row.block[i]);
      Index bank = b.moe.experts.down.size() + b.moe.experts.down_bias.size() +
                   b.moe.experts.up.size() + b.moe.experts.up_bias.size();
      EXPECT_EQ(bank, m * row.expert);
    }
}

TEST(SbMoe, EncoderParameterCounts) {  // 11
  auto count = [](Index layers, Index hidden, Index heads, Index ffn) {
    Parameters p({.dtype = DType::f32,
                  .device = Device::cpu,
                  .seed = 1,
                  .source = nullptr,
                  .may_be_missing = {}});
    BertConfig c;
    c.layers = layers;
    c.hidden = hidden;
    c.heads = heads;
    c.feed_forward = ffn;
    Bert bert(p.root(), c);
    return p.count();
  };
  EXPECT_EQ(count(4, 312, 12, 1200), 14'350'248);
  EXPECT_EQ(count(6, 384, 12, 1536), 22'713'216);
  EXPECT_EQ(count(4, 512, 8, 2048), 28'763'648);
  // BERT-base by its layers: making all twelve would only take time.
  Index one = count(1, 768, 12, 3072), two = count(2, 768, 12, 3072);
  EXPECT_EQ(one + 11 * (two - one), 109'482'240);
}

TEST(SbMoe, TrainedGateIsBoundedByLambda) {  // 12
  SbMoeConfig c = trained(6, 1);
  c.lambda = 0.7;
  Block one(c, 24);
  Tensor x = inputs(32, 24, 1, 10);
  Routes routes;
  Pass pass;
  pass.routes = &routes;
  auto norms = row_norms(one.moe(x, pass), x);
  auto weight = host(routes.seen[0].routing.weight);
  for (std::size_t i = 0; i < norms.size(); ++i) EXPECT_NEAR(norms[i], 0.7 * weight[i], 1e-12);
  Block three(trained(6, 3, RouterConfig::Weights::renormalise), 24);
  for (double n : row_norms(three.moe(x, {}), x)) EXPECT_LE(n, 1 + 1e-12);
}

TEST(SbMoe, AuxiliaryLossesByHand) {  // 13
  auto rows = [](const std::vector<double>& v, Index n, Index m) {
    return from_host(v, {n, m}, exact);
  };
  // f = (.75, .25), P = (.7, .3): 2 (.75 .7 + .25 .3) = 1.2
  Tensor prob = rows({.7, .3, .7, .3, .7, .3, .7, .3}, 4, 2);
  EXPECT_NEAR(
      item(balance_loss(prob, from_host(std::vector<std::int32_t>{0, 0, 0, 1}, {4, 1}, exact))),
      1.2, 1e-9);
  Tensor even = rows({.5, .5, .5, .5}, 2, 2);
  EXPECT_NEAR(item(balance_loss(even, from_host(std::vector<std::int32_t>{0, 1}, {2, 1}, exact))),
              1, 1e-9);
  EXPECT_NEAR(item(importance_loss(rows({3, 1}, 1, 2))), 0.25, 1e-9);
  EXPECT_NEAR(item(z_loss(rows({0, 0}, 1, 2))), 0.4804530139, 1e-9);
  EXPECT_NEAR(item(z_loss(rows({1, 0}, 1, 2))), 1.7246562599, 1e-9);
}

TEST(SbMoe, NoiseSchedule) {  // 14
  NoiseSchedule linear{NoiseSchedule::Kind::linear, 1, 0, 0.5};
  EXPECT_DOUBLE_EQ(linear.tau(0, 100), 1);
  EXPECT_DOUBLE_EQ(linear.tau(25, 100), 0.5);
  EXPECT_DOUBLE_EQ(linear.tau(50, 100), 0);
  EXPECT_DOUBLE_EQ(linear.tau(100, 100), 0);
  NoiseSchedule cosine{NoiseSchedule::Kind::cosine, 2, 1, 0.5};
  EXPECT_DOUBLE_EQ(cosine.tau(0, 100), 2);
  EXPECT_DOUBLE_EQ(cosine.tau(25, 100), 1.5);
  EXPECT_DOUBLE_EQ(cosine.tau(60, 100), 1);
  NoiseSchedule constant{NoiseSchedule::Kind::constant, 0.3, 0, 0.5};
  EXPECT_DOUBLE_EQ(constant.tau(99, 100), 0.3);
}

TEST(SbMoe, ARowDoesNotDependOnItsBatchOrThreads) {  // 15
  for (SbMoeConfig c :
       {SbMoeConfig::faithful(6), trained(6, 2, RouterConfig::Weights::renormalise)}) {
    Block b(c, 48, DType::f32, Device::cpu);
    Tensor x = inputs(40, 48, 1, 11, DType::f32, Device::cpu);
    std::vector<float> all = to_host<float>(b.moe(x, {}));
    for (int team : {1, 2, 3}) {
      set_threads(team);
      EXPECT_EQ(to_host<float>(b.moe(x, {})), all);
      for (Index r : {0, 17, 39}) {
        std::vector<float> alone = to_host<float>(b.moe(x.slice_rows(r, r + 1), {}));
        EXPECT_EQ(alone, std::vector<float>(all.begin() + r * 48, all.begin() + (r + 1) * 48))
            << "row " << r;
      }
    }
  }
}

TEST(SbMoe, SettingsSurviveJson) {  // 16
  SbMoeConfig c = trained(9, 3, RouterConfig::Weights::renormalise);
  c.lambda = 0.25;
  c.learn_lambda = true;
  c.combine = SbMoeConfig::Combine::scaled_sum;
  c.balance = 0.123;
  EXPECT_EQ(to_json(sbmoe_from_json(to_json(c), "memory")), to_json(c));
  EXPECT_THROW(sbmoe_from_json("{\"format\": 2}", "memory"), Error);
  EXPECT_THROW(sbmoe_from_json("{", "memory"), Error);
}

TEST(SbMoe, SelectionBiasMovesAgainstTheLoad) {
  SbMoeConfig c = trained(3, 1);
  c.selection_bias = true;
  Block b(c, 12);
  std::vector<std::int64_t> load{10, 2, 3};
  b.moe.router.update_bias(load, 0.1);
  auto bias = host(b.moe.router.bias);
  EXPECT_DOUBLE_EQ(bias[0], -0.1);
  EXPECT_DOUBLE_EQ(bias[1], 0.1);
  EXPECT_DOUBLE_EQ(bias[2], 0.1);
}

}  // namespace
}  // namespace moe
