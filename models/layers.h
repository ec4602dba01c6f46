// The small pieces models are made of, and what travels through a forward pass.
#pragma once

#include "ops/ops.h"
#include "runtime/parameters.h"

namespace moe {

struct Routes;  // models/router.h: what routers need and leave; other modules hand it on unread

// Travels with the rows of one forward.
struct Pass {
  Segments rows;             // texts of this batch
  Draw draw;                 // dropout and noise
  Routes* routes = nullptr;  // null where nothing routes
};

// A batch of token sequences, packed without padding.
struct TokenBatch {
  Tensor ids, types, positions;  // (T) int32
  Segments segments;             // one a text
};
// Positions count from 0 in each text; `types` may be empty (all 0).
TokenBatch make_batch(std::span<const std::vector<std::int32_t>> texts, Device device,
                      std::span<const std::vector<std::int32_t>> types = {});

struct Linear {
  Tensor weight, bias;  // (out,in), (out)
  Linear() = default;
  Linear(const Scope& s, Index in, Index out, const Init& init, const Init& bias_init = {})
      : weight(s.matrix("weight", {out, in}, init)), bias(s.vector("bias", out, bias_init)) {}
  Tensor operator()(const Tensor& x, const LinearOptions& options = {}) const {
    return linear(x, weight, bias, options);
  }
};

// The framework default of the released SB-MoE code: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
Init uniform_fan_in(Index fan_in);

struct LayerNorm {
  Tensor weight, bias;  // (D)
  double eps = 1e-12;
  LayerNorm() = default;
  LayerNorm(const Scope& s, Index size, double e)
      : weight(s.vector("weight", size, Init::ones())),
        bias(s.vector("bias", size, Init::zeros())),
        eps(e) {}
  Tensor operator()(const Tensor& x) const { return layer_norm(x, weight, bias, eps); }
};

}  // namespace moe
