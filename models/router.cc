#include "models/router.h"

#include <algorithm>

namespace moe {

Router::Router(const Scope& s, const RouterConfig& c, Index size) : config(c) {
  check(c.experts >= 1, "a router needs at least one expert");
  check(c.k >= 1 && c.k <= c.experts, "the router's k is {}, it has {} experts", c.k, c.experts);
  Index half = size / 2;
  Scope gate = s / "gate";
  if (c.score == RouterConfig::Score::mlp) {
    hidden = Linear(gate / "hidden", size, half, uniform_fan_in(size), uniform_fan_in(size));
    out = Linear(gate / "out", half, c.experts, uniform_fan_in(half), uniform_fan_in(half));
  } else if (c.score == RouterConfig::Score::linear) {
    out = Linear(gate / "out", size, c.experts, uniform_fan_in(size), uniform_fan_in(size));
  }
  if (c.noise == RouterConfig::Noise::softplus_gauss)
    noise = Linear(s / "noise", size, c.experts, uniform_fan_in(size), uniform_fan_in(size));
  if (c.selection_bias) {
    bias = gate.vector("selection_bias", c.experts, Init::zeros());
    bias.storage()->gradient.reset();
  }
  stream = stream_hash("route:" + s.name("gate"));
}

namespace {
Tensor normalise(RouterConfig::Norm norm, const Tensor& logits) {
  switch (norm) {
    case RouterConfig::Norm::softmax:
      return softmax(logits);
    case RouterConfig::Norm::sigmoid:
      return sigmoid(logits);
    case RouterConfig::Norm::identity:
      break;
  }
  return logits;
}
}  // namespace

RouteOut Router::operator()(const Tensor& x, const Pass& pass) const {
  using Select = RouterConfig::Select;
  RouteOut r;
  const Routes* routes = pass.routes;
  if (config.select == Select::given) {
    check(routes != nullptr && routes->given,
          "this router takes its choices from outside: none came");
    r.routing =
        given(routes->given, full(routes->given.shape(), x.dtype(), x.device(), 1), config.experts);
  } else if (config.select == Select::random) {
    // r ~ U[0,1)^E, k = argmax r, weight r_k: drawn by counter, in training and in evaluation.
    r.noisy_prob = random_uniform({x.rows(), config.experts}, x.dtype(), x.device(),
                                  pass.draw.dice(stream + 1));
    r.routing = top_k(r.noisy_prob, 1);
  } else {
    r.logit = config.score == RouterConfig::Score::mlp
                  ? out(hidden(x, {.activation = Activation::relu, .residual = {}}))
                  : out(x);
    r.prob = normalise(config.norm, r.logit);
    r.noisy_prob = r.prob;
    double tau = routes ? routes->noise_scale : 1;
    if (pass.draw.train && noise.weight && tau > 0) {
      Tensor spread = softplus(noise(x));
      Tensor draw = random_normal(r.logit.shape(), x.dtype(), x.device(), pass.draw.dice(stream));
      r.noisy_prob = normalise(config.norm, add(r.logit, scale(mul(draw, spread), tau)));
    }
    TopKOptions options{
        .renormalise = config.weights == RouterConfig::Weights::renormalise,
        .floor = 0,
        .straight_through = config.weights == RouterConfig::Weights::straight_through,
        .bias = bias,
        .allow = routes ? routes->allow : Tensor(),
        .selection = {}};
    Index k = config.select == Select::all ? config.experts : config.k;
    if (config.select == Select::all) options.renormalise = options.straight_through = false;
    r.routing = top_k(r.noisy_prob, k, options);
  }
  if (pass.routes != nullptr) pass.routes->seen.push_back(r);
  return r;
}

void Router::update_bias(std::span<const std::int64_t> load, double rate) const {
  check(bool(bias), "this router has no selection bias");
  double mean = 0;
  for (auto n : load) mean += static_cast<double>(n) / static_cast<double>(load.size());
  auto shift = [&]<class T>(const Kernels<T>&) {
    auto values = to_host<Stat<T>>(bias);
    for (std::size_t i = 0; i < values.size(); ++i) {
      double gap = mean - static_cast<double>(load[i]);
      values[i] += static_cast<Stat<T>>(gap > 0 ? rate : gap < 0 ? -rate : 0);
    }
    backend(bias.device())
        .upload(bias.mut<Stat<T>>(), values.data(), values.size() * sizeof(Stat<T>));
  };
  with_type(bias, shift);
}

const char* name_of(RouterConfig::Select select) {
  switch (select) {
    case RouterConfig::Select::top_k:
      return "topk";
    case RouterConfig::Select::all:
      return "all";
    case RouterConfig::Select::random:
      return "random";
    case RouterConfig::Select::given:
      return "given";
  }
  return "?";
}

const char* name_of(RouterConfig::Weights weights) {
  switch (weights) {
    case RouterConfig::Weights::raw:
      return "raw";
    case RouterConfig::Weights::renormalise:
      return "renorm";
    case RouterConfig::Weights::straight_through:
      return "straight-through";
  }
  return "?";
}

RouterConfig::Select parse_select(const std::string& name) {
  if (name == "topk" || name == "top1") return RouterConfig::Select::top_k;
  if (name == "all") return RouterConfig::Select::all;
  if (name == "random") return RouterConfig::Select::random;
  fail(Fault::usage, "unknown route '{}': use top1, topk, all or random", name);
}

RouterConfig::Weights parse_weights(const std::string& name) {
  if (name == "raw") return RouterConfig::Weights::raw;
  if (name == "renorm") return RouterConfig::Weights::renormalise;
  if (name == "straight-through") return RouterConfig::Weights::straight_through;
  fail(Fault::usage, "unknown weight rule '{}': use raw, renorm or straight-through", name);
}

}  // namespace moe
