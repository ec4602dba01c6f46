// The router pipeline: score -> + bias -> + noise -> norm -> select -> weigh. Every system's router
// is a point of this space; a new one is a new scorer, never a flag of a system.
#pragma once

#include "models/layers.h"

#include <string>

namespace moe {

struct RouterConfig {
  enum class Score : std::uint8_t {
    none,
    linear,
    mlp
  } score = Score::mlp;  // mlp: d -> d/2 -> E, ReLU
  enum class Noise : std::uint8_t { none, softplus_gauss } noise = Noise::softplus_gauss;
  enum class Norm : std::uint8_t { softmax, sigmoid, identity } norm = Norm::softmax;
  enum class Select : std::uint8_t { top_k, all, random, given } select = Select::top_k;
  enum class Weights : std::uint8_t { raw, renormalise, straight_through } weights = Weights::raw;
  Index experts = 6, k = 1;
  bool selection_bias = false;  // a bias b_i used for selection only, updated outside the loss
};

// One decision, with what losses and traces read.
struct RouteOut {
  Routing routing;
  Tensor logit;       // (N,E) clean; absent when select is random or given
  Tensor prob;        // (N,E) norm of the clean logits
  Tensor noisy_prob;  // (N,E) norm of the noisy ones; prob itself without noise
};

// What routers need from outside and leave behind. One object per forward, owned by the caller.
struct Routes {
  double noise_scale = 1;      // tau of the noise schedule; 0 equals evaluation
  Tensor allow;                // (E) or (N,E) u8, or absent
  Tensor given;                // (N,k) int32 for Select::given
  std::vector<RouteOut> seen;  // in call order
};

struct Router {
  RouterConfig config;
  Linear hidden, out, noise;
  Tensor bias;  // (E) selection bias, no gradient
  std::uint64_t stream = 0;

  Router() = default;
  Router(const Scope& s, const RouterConfig& c, Index size);
  RouteOut operator()(const Tensor& x, const Pass& pass) const;

  // Loss-free balancing (Wang et al. 2024): b_i += rate * sign(mean load - load_i).
  void update_bias(std::span<const std::int64_t> load, double rate) const;
};

// Names for configuration files and options.
const char* name_of(RouterConfig::Select select);
const char* name_of(RouterConfig::Weights weights);
RouterConfig::Select parse_select(const std::string& name);
RouterConfig::Weights parse_weights(const std::string& name);

}  // namespace moe
