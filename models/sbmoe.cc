#include "models/sbmoe.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moe {

namespace {
constexpr double unit_floor = 1e-6;  // the released code's guard against a zero mixture
}  // namespace

SbMoeConfig SbMoeConfig::faithful(Index experts) {
  SbMoeConfig c;
  c.mode = Mode::faithful;
  c.combine = Combine::weight_then_unit;
  c.experts = experts;
  c.balance = c.z = c.importance = 0;
  return c;
}

void validate(const SbMoeConfig& c) {
  using Weights = RouterConfig::Weights;
  check(c.experts >= 1, "SB-MoE: at least one expert is needed");
  check(c.k >= 1 && c.k <= c.experts, "SB-MoE: k is {}, there are {} experts", c.k, c.experts);
  check(c.size >= 2, "SB-MoE: the vector size {} is too small", c.size);
  check(c.weights != Weights::straight_through || c.k == 1,
        "SB-MoE: straight-through weights need k = 1, not {}", c.k);
  if (c.mode == SbMoeConfig::Mode::faithful) return;
  bool soft = c.route == RouterConfig::Select::all;
  check(!(c.k == 1 && c.weights == Weights::renormalise && !soft),
        "SB-MoE: 'renorm' with k = 1 makes every weight 1, so the gate cannot learn.\n"
        "Use weights = raw or straight-through, or k >= 2.");
  check(
      !(c.k == 1 && c.combine == SbMoeConfig::Combine::weight_then_unit && c.balance == 0 && !soft),
      "SB-MoE: 'weight-then-unit' with k = 1 cancels the weight, so the gate cannot learn.\n"
      "Use combine = unit-then-weight, k >= 2, or a balance loss.");
}

SbMoe::SbMoe(const Scope& s, const SbMoeConfig& c) : config(c) {
  validate(c);
  RouterConfig r;
  r.experts = c.experts;
  r.k = c.k;
  r.weights = c.weights;
  r.select = c.route;
  r.noise = c.noise ? RouterConfig::Noise::softplus_gauss : RouterConfig::Noise::none;
  r.selection_bias = c.selection_bias;
  router = Router(s, r, c.size);
  experts = FfnBank(s / "experts", c.experts, c.size, c.size / 2, Activation::relu);
  if (c.learn_lambda) lambda = s.vector("lambda", 1, Init::constant(c.lambda));
  // The released optimiser has no group for the noise layer: it stays as initialised.
  if (c.mode == SbMoeConfig::Mode::faithful && c.noise) {
    router.noise.weight.storage()->gradient.reset();
    router.noise.bias.storage()->gradient.reset();
  }
}

Tensor SbMoe::operator()(const Tensor& x, const Pass& pass) const {
  check(x.cols() == config.size, "SB-MoE: vectors of {}, the block was made for {}", x.cols(),
        config.size);
  Router r = router;
  // Faithful training is noisy top-1 whatever evaluation does ("all" exists in evaluation only).
  if (config.mode == SbMoeConfig::Mode::faithful && pass.draw.train &&
      config.route != RouterConfig::Select::random) {
    r.config.select = RouterConfig::Select::top_k;
    r.config.k = 1;
  }
  RouteOut route = r(x, pass);
  Tensor y = experts(gather(x, route.routing), route.routing.groups);
  switch (config.combine) {
    case SbMoeConfig::Combine::weight_then_unit:
      y = l2_normalize(combine(y, route.routing), unit_floor);
      break;
    case SbMoeConfig::Combine::unit_then_weight:
      y = combine(l2_normalize(y, unit_floor), route.routing);
      break;
    case SbMoeConfig::Combine::scaled_sum:
      y = combine(y, route.routing);
      break;
  }
  if (lambda)
    y = scale_by(y, lambda);
  else if (config.lambda != 1)
    y = scale(y, config.lambda);
  return add(x, y);
}

Tensor SbMoe::auxiliary_loss(const RouteOut& route) const {
  Tensor total;
  auto include = [&](double coefficient, const Tensor& term) {
    Tensor part = scale(term, coefficient);
    total = total ? add(total, part) : part;
  };
  if (!route.logit) return total;  // random or given routes have nothing to balance
  if (config.balance > 0) include(config.balance, balance_loss(route.prob, route.routing.expert));
  if (config.z > 0) include(config.z, z_loss(route.logit));
  if (config.importance > 0) include(config.importance, importance_loss(route.noisy_prob));
  return total;
}

double NoiseSchedule::tau(Index step, Index total) const {
  if (kind == Kind::constant) return start;
  double span = fraction * static_cast<double>(std::max<Index>(total, 1));
  double at = span > 0 ? std::min(static_cast<double>(step) / span, 1.0) : 1.0;
  double left = kind == Kind::linear ? 1 - at : 0.5 * (1 + std::cos(std::numbers::pi * at));
  return end + (start - end) * left;
}

const char* name_of(SbMoeConfig::Mode mode) {
  return mode == SbMoeConfig::Mode::faithful ? "faithful" : "trained-gate";
}

const char* name_of(SbMoeConfig::Combine combine) {
  switch (combine) {
    case SbMoeConfig::Combine::unit_then_weight:
      return "unit-then-weight";
    case SbMoeConfig::Combine::weight_then_unit:
      return "weight-then-unit";
    case SbMoeConfig::Combine::scaled_sum:
      return "scaled-sum";
  }
  return "?";
}

SbMoeConfig::Mode parse_mode(const std::string& name) {
  if (name == "faithful") return SbMoeConfig::Mode::faithful;
  if (name == "trained-gate") return SbMoeConfig::Mode::trained_gate;
  fail(Fault::usage, "unknown SB-MoE mode '{}': use faithful or trained-gate", name);
}

SbMoeConfig::Combine parse_combine(const std::string& name) {
  if (name == "unit-then-weight") return SbMoeConfig::Combine::unit_then_weight;
  if (name == "weight-then-unit") return SbMoeConfig::Combine::weight_then_unit;
  if (name == "scaled-sum") return SbMoeConfig::Combine::scaled_sum;
  fail(Fault::usage,
       "unknown combine rule '{}': use unit-then-weight, weight-then-unit or scaled-sum", name);
}

NoiseSchedule::Kind parse_noise(const std::string& name) {
  if (name == "constant") return NoiseSchedule::Kind::constant;
  if (name == "linear") return NoiseSchedule::Kind::linear;
  if (name == "cosine") return NoiseSchedule::Kind::cosine;
  fail(Fault::usage, "unknown noise schedule '{}': use constant, linear or cosine", name);
}

}  // namespace moe
