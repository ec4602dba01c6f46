// SB-MoE (Sokli, Kasela, Peikos, Pasi 2024/2025): one mixture-of-experts block after a dense
// retriever's pooling.
//
//   faithful      noisy top-1 in training; weight, sum, then normalise:  out = x + unit(sum_i w_i
//   e_i).
//                 Normalising cancels a single weight, so the task gives the gate exactly zero
//                 gradient.
//   trained-gate  normalise each expert, then weight and sum:            out = x + lambda sum_i w_i
//   unit(e_i).
//                 The gate learns; balance and z losses, noise schedule, selection bias.
#pragma once

#include "models/experts.h"
#include "models/router.h"

#include <string>

namespace moe {

struct SbMoeConfig {
  enum class Mode : std::uint8_t { faithful, trained_gate } mode = Mode::trained_gate;
  enum class Combine : std::uint8_t {
    unit_then_weight,
    weight_then_unit,
    scaled_sum
  } combine = Combine::unit_then_weight;
  Index size = 384;  // H, filled from the encoder
  Index experts = 6, k = 1;
  RouterConfig::Select route = RouterConfig::Select::top_k;  // in evaluation
  RouterConfig::Weights weights = RouterConfig::Weights::raw;
  double lambda = 1;
  bool learn_lambda = false;
  bool noise = true;
  bool selection_bias = false;
  // Loss coefficients, used in training only.
  double balance = 0.01, z = 1e-3, importance = 0;

  // The released settings: top-1, weight-then-unit, no auxiliary losses.
  static SbMoeConfig faithful(Index experts);
};
const char* name_of(SbMoeConfig::Mode mode);
const char* name_of(SbMoeConfig::Combine combine);
SbMoeConfig::Mode parse_mode(const std::string& name);
SbMoeConfig::Combine parse_combine(const std::string& name);
// Refuses what cannot learn: renorm with k = 1; weight-then-unit with k = 1 in trained-gate without
// a balance loss.
void validate(const SbMoeConfig& config);

struct SbMoe {
  SbMoeConfig config;
  Router router;
  FfnBank experts;
  Tensor lambda;  // (1), learnt; absent otherwise

  SbMoe(const Scope& s, const SbMoeConfig& c);
  // x (B,H) pooled vectors -> (B,H). Training routes as the mode says, evaluation by config.route
  // and config.k.
  Tensor operator()(const Tensor& x, const Pass& pass) const;
  // lambda_b L_b + lambda_z L_z + lambda_i L_i of one decision; absent when all coefficients are 0.
  Tensor auxiliary_loss(const RouteOut& route) const;
};

// tau(t) of the noise: from `start` to `end` over the first `fraction` of the steps, `end`
// afterwards.
struct NoiseSchedule {
  enum class Kind : std::uint8_t { constant, linear, cosine } kind = Kind::linear;
  double start = 1, end = 0, fraction = 0.5;
  double tau(Index step, Index total) const;
};
NoiseSchedule::Kind parse_noise(const std::string& name);

}  // namespace moe
