// The vocabulary: every op, with shapes. An op checks, allocates, calls the forward kernel through
// the table of its input's device and dtype, and records the backward kernel when a tape is open.
//
// Letters:  T rows   D model dim   E experts   k choices   G segments   V classes
#pragma once

#include "runtime/segments.h"
#include "runtime/tape.h"

namespace moe {

// ---- pointwise.cc
Tensor add(const Tensor& a, const Tensor& b);       // (T,D) + (T,D)
Tensor scale(const Tensor& x, double factor);       // factor * x
Tensor scale_by(const Tensor& x, const Tensor& s);  // s[0] * x, s (1) learnt
Tensor mul(const Tensor& a, const Tensor& b);       // a * b, element by element
Tensor activate(Activation f, const Tensor& x);
inline Tensor relu(const Tensor& x) {
  return activate(Activation::relu, x);
}
inline Tensor gelu(const Tensor& x) {
  return activate(Activation::gelu, x);
}
inline Tensor gelu_tanh(const Tensor& x) {
  return activate(Activation::gelu_tanh, x);
}
inline Tensor tanh(const Tensor& x) {
  return activate(Activation::tanh, x);
}
inline Tensor sigmoid(const Tensor& x) {
  return activate(Activation::sigmoid, x);
}
inline Tensor softplus(const Tensor& x) {
  return activate(Activation::softplus, x);
}
// x / (1 - rate) where kept; x itself when draw.train is off or the rate is 0. `stream` names the
// site.
Tensor dropout(const Tensor& x, const Draw& draw, std::uint64_t stream, double rate);
// Uniform [0,1) or standard normal numbers by counter; no gradient.
Tensor random_uniform(const Shape& shape, DType dtype, Device device, const Dice& dice);
Tensor random_normal(const Shape& shape, DType dtype, Device device, const Dice& dice);

// ---- linear.cc
struct LinearOptions {
  Activation activation = Activation::none;
  Tensor residual;  // (T,out), added after the activation
};
// act(x W^T + b) + residual          x (T,in)  W (out,in)  b (out) or absent -> (T,out)
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b, const LinearOptions& options = {});
// a b^T of two activations           a (T,D)  b (U,D) -> (T,U)
Tensor matmul_nt(const Tensor& a, const Tensor& b);

// ---- grouped.cc
// act(x_g W_g^T + b_g) for the rows of each group     x (T,in)  W (E,out,in)  b (E,out) or absent
// -> (T,out)
Tensor grouped_linear(const Tensor& x, const Tensor& w, const Tensor& b, const Segments& groups,
                      Activation activation = Activation::none);

// ---- norm.cc
Tensor layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps);  // w, b (D)
Tensor l2_normalize(const Tensor& x, double eps);

// ---- softmax.cc
Tensor softmax(const Tensor& x);
Tensor log_softmax(const Tensor& x);

// ---- embedding.cc
// table[ids]                         table (V,D)  ids (n) int32 -> (n,D)
Tensor lookup(const Tensor& table, const Tensor& ids);

// ---- attention.cc
struct AttentionOptions {
  Index heads = 1;
  double scale = 1;
  bool causal = false;
  double dropout = 0;
  Draw draw;
  std::uint64_t stream = 0;
};
// softmax(scale q k^T) v inside each segment pair     q (Tq,H*K)  k, v (Tk,H*K) -> (Tq,H*K)
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Segments& queries,
                 const Segments& keys, const AttentionOptions& options);

// ---- segment.cc
Tensor segment_mean(const Tensor& x, const Segments& segments);  // (T,D) -> (G,D)
Tensor segment_max(const Tensor& x, const Segments& segments);   // (T,D) -> (G,D)
Tensor segment_first(const Tensor& x,
                     const Segments& segments);  // (T,D) -> (G,D); no empty segments

// ---- routing.cc
struct Routing {
  Tensor weight;    // (T,k) combine weights, differentiable
  Tensor expert;    // (T,k) int32; -1 = not taken: weight 0, no row below
  Tensor slot;      // (T,k) int32 row of this (token, choice) in expert order, or -1
  Tensor source;    // (T*k) int32 token of each row in expert order (stable: token, then choice)
  Tensor offsets;   // (E+1) int32 on the device; offsets[E] rows exist
  Segments groups;  // E segments over the T*k rows
};
struct TopKOptions {
  bool renormalise = false;       // divide the chosen weights by their sum + floor
  double floor = 0;               // GLIDER's faithful mode adds 1e-6
  bool straight_through = false;  // forward weight 1, backward as raw (k = 1)
  Tensor bias;                    // (E) added to the score for selection only
  Tensor allow;                   // (E) or (T,E) u8: experts that may be chosen
  Tensor selection;               // (T,E) scores to select by; absent: prob itself
};
// The k largest of each row of prob (T,E), ties to the lowest index.
Routing top_k(const Tensor& prob, Index k, const TopKOptions& options = {});
// A routing from ready choices: expert (T,k) int32, weight (T,k).
Routing given(const Tensor& expert, const Tensor& weight, Index experts);
// Rows in expert order: x (T,D) -> (T*k,D); rows past offsets[E] hold zero.
Tensor gather(const Tensor& x, const Routing& routing);
// sum_j weight[t,j] y[slot[t,j]]     y (T*k,D) -> (T,D)
Tensor combine(const Tensor& y, const Routing& routing);

// ---- loss.cc          each gives a scalar (1)
// factor * sum_t -log softmax(logits_t)[target_t]      logits (T,V)  target (T) int32, -1 = skip
//   blocked (T,V) u8: nonzero entries are no candidates (false negatives)
Tensor cross_entropy(const Tensor& logits, const Tensor& target, double factor,
                     const Tensor& blocked = {});
// In-batch contrastive (InfoNCE): cross entropy of q d^T / temperature against the diagonal, factor
// per query;
//   symmetric: half of it plus half of the same from documents to queries.
//   q (B,D)  d (C,D), C >= B: row i's positive is document i    blocked (B,C) u8 or absent
struct ContrastiveOptions {
  double temperature = 1;
  bool symmetric = false;  // needs C == B
  double factor = 1;       // usually 1 / (rows of the whole step)
};
Tensor contrastive(const Tensor& q, const Tensor& d, const Tensor& blocked,
                   const ContrastiveOptions& options);
Tensor balance_loss(const Tensor& prob,
                    const Tensor& expert);    // E sum_i f_i P_i; prob (T,E), expert (T,k)
Tensor z_loss(const Tensor& logits);          // mean (logsumexp)^2
Tensor importance_loss(const Tensor& value);  // CV^2 of the column sums

}  // namespace moe
