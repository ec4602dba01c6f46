// clang-format off
// (This page is set by hand: a formula on its own line.)
// THE CONTRACT between ops and backends: a table of plain functions on pointers and sizes.
//
// Letters:  T rows (tokens, texts)   D model dim   H heads   K head dim   N out   E experts   V vocabulary   G groups
//
// Rules
//  1. `T` is the element type of activations and weight matrices; Stat<T> (float, or double for double) of
//     everything small or summed: biases, norm weights, statistics, router scores, losses, gradients of
//     parameters. Sums are carried in Stat<T> or wider. Sizes are Index (int64), ids int32.
//  2. Outputs named y, out are overwritten. Outputs named d... are ADDED to, except where a `beta` stands
//     (0 overwrites, 1 adds). An empty output (data == nullptr) is skipped: a frozen input costs nothing.
//  3. Results another kernel reads are parameters; private scratch comes from the backend's own arena.
//  4. No stream parameter and no errors: ops check, kernels assert.
//  5. Partition outputs, never a sum: every result is the same bits for any thread count, and a row's result
//     does not depend on which other rows are in the call.
#pragma once

#include "runtime/dtype.h"
#include "runtime/random.h"
#include "runtime/shape.h"

namespace moe {

// Rows with a stride: row r starts at data + r * ld. Empty (absent) when data is null.
template <class T>
struct Rows {
  T* data = nullptr;
  Index rows = 0, cols = 0, ld = 0;
  constexpr T* operator[](Index r) const { return data + r * ld; }
  constexpr explicit operator bool() const { return data != nullptr; }
  constexpr operator Rows<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, rows, cols, ld};
  }
};

// Group i owns rows begin[i] .. end[i]-1. `longest` bounds every group's length from above.
struct Ragged {
  const std::int32_t* begin = nullptr;
  const std::int32_t* end = nullptr;
  Index count = 0, longest = 0;
};

enum class Activation : std::uint8_t { none, relu, gelu, gelu_tanh, tanh, sigmoid, softplus };

// A weight matrix, out x in, or a bank of `groups` such matrices one below the other: (groups * out, in).
// `packed` holds the form pack_weight made for this use, or null: both give the same bits.
template <class T>
struct Weight {
  Rows<const T> rows;
  const void* packed = nullptr;
};

// Which product a packed form serves: forward y = x W^T or input_grad dx = dy W.
enum class Packing : std::uint8_t { forward, input_grad };

// What a product does to its result before storing it:  y = act(x W^T + bias) + residual
template <class T>
struct Epilogue {
  const Stat<T>* bias = nullptr;  // (groups * out), or null
  Activation activation = Activation::none;
  Rows<const T> residual;         // (T, out), or empty
  Rows<T> preactivation;          // (T, out) x W^T + bias, kept for backward; or empty
};

struct AttentionShape {
  Index heads = 0, head_dim = 0;  // q, k, v, out are (T, heads * head_dim)
  double scale = 1;
  bool causal = false;  // query i sees key j iff j <= i + (keys - queries): aligned at the end
  // Dropout on probabilities: dropped when dice.at_head(h).word(query row, key number in its segment)
  // < drop_threshold(dropout); the query row is its number in q, dice.row0 adds the batch's offset.
  double dropout = 0;
  Dice dice;
};

struct AdamWStep {  // read by the kernel from memory, so a captured graph can change it
  double rate = 0, clip = 1;                   // learning rate; factor on every gradient
  double correction1 = 1, correction2 = 1;     // 1 - beta1^t, 1 - beta2^t
};

template <class T>
struct AdamWChunk {
  Stat<T>* parameter;  // f32 masters
  Stat<T>*moment1, *moment2;
  const Stat<T>* gradient;
  Index count;
  double rate_factor, decay;  // rate = step.rate * rate_factor; decoupled: p -= rate * decay * p
};

struct AdafactorStep {
  double rate = 0, clip = 1;  // rate is relative: the step is rate * max(eps2, rms(parameter))
  double beta2 = 0;           // 1 - t^-0.8
};

// One matrix (factored: row and column set, full null) or vector (full set, row and column null).
template <class T>
struct AdafactorChunk {
  Stat<T>* parameter;  // (rows, cols) contiguous
  Stat<T>*row, *column, *full;
  const Stat<T>* gradient;
  Index rows, cols;
  double rate_factor, decay;
};

// Products with `groups`: a dense product is a grouped one with one group; rows of group g meet weight block
// g. groups.count == 1 with begin == null means "all rows". Rows outside every group are not written.
template <class T>
struct Kernels {
  // ---- pointwise -------------------------------------------------------------------------------------
  // y = x                                            x, y (T,D)
  void (*copy)(Rows<const T> x, Rows<T> y);
  // y = a + b
  void (*add)(Rows<const T> a, Rows<const T> b, Rows<T> y);
  // y += factor * x          the backward of add, scale, copies
  void (*accumulate)(Rows<const T> x, double factor, Rows<T> y);
  // y = factor * x
  void (*scale)(Rows<const T> x, double factor, Rows<T> y);
  // y = s[0] * x                                     s (1), a learnt scalar
  void (*scale_by)(Rows<const T> x, const Stat<T>* s, Rows<T> y);
  // dx += s dy     ds[0] += sum x dy
  void (*scale_by_backward)(Rows<const T> x, const Stat<T>* s, Rows<const T> dy, Rows<T> dx,
                            Stat<T>* ds);
  // y = a * b
  void (*mul)(Rows<const T> a, Rows<const T> b, Rows<T> y);
  // da += dy b     db += dy a
  void (*mul_backward)(Rows<const T> a, Rows<const T> b, Rows<const T> dy, Rows<T> da, Rows<T> db);
  // y = f(x);  gelu is the erf form, gelu_tanh the tanh form
  void (*activate)(Activation f, Rows<const T> x, Rows<T> y);
  // dx = beta * dx + f'(x) dy                        dx may be dy itself when beta is 0
  void (*activate_backward)(Activation f, Rows<const T> x, Rows<const T> dy, double beta, Rows<T> dx);
  // y = x / (1 - rate) where kept, else 0;  kept by Dice::word(row, column) >= drop_threshold(rate)
  void (*dropout)(Rows<const T> x, Dice dice, double rate, Rows<T> y);
  // dx += dy / (1 - rate) where kept
  void (*dropout_backward)(Rows<const T> dy, Dice dice, double rate, Rows<T> dx);
  // db[d] += sum_t dy[t,d]                           partitioned by columns, rows in order
  void (*sum_rows)(Rows<const T> dy, Stat<T>* db);
  // y[r,c] = unit_real(word) (uniform), or normal_real of the word pair (normal)
  void (*random_uniform)(Dice dice, Rows<T> y);
  void (*random_normal)(Dice dice, Rows<T> y);

  // ---- gemm ------------------------------------------------------------------------------------------
  // y[t,:] = act(x[t,:] W_g^T + bias_g) + residual[t,:]   x (T,in)  W (G*out,in)  y (T,out)
  void (*gemm)(Rows<const T> x, Weight<T> w, Ragged groups, Epilogue<T> epilogue, Rows<T> y);
  // dx[t,:] = beta dx[t,:] + dy[t,:] W_g                   dy (T,out)  dx (T,in)
  void (*gemm_input_grad)(Rows<const T> dy, Weight<T> w, Ragged groups, double beta, Rows<T> dx);
  // dW_g = beta dW_g + sum_{t in g} dy[t,:]^T x[t,:]       dW (G*out,in); an empty group adds zero
  void (*gemm_weight_grad)(Rows<const T> dy, Rows<const T> x, Ragged groups, double beta,
                           Rows<Stat<T>> dw);
  // db_g[n] += sum_{t in g} dy[t,n]                        db (G,out)
  void (*grouped_sum_rows)(Rows<const T> dy, Ragged groups, Stat<T>* db);
  // Bytes of the packed form of w (groups blocks) for this use, 0 if this backend wants none; and the packing.
  Index (*packed_bytes)(Rows<const T> w, Index groups, Packing packing);
  void (*pack_weight)(Rows<const T> w, Index groups, Packing packing, void* packed);

  // ---- norm ------------------------------------------------------------------------------------------
  // y = (x - mean) * inv * w + b      inv = 1/sqrt(var + eps), population variance     Ba, Kiros, Hinton 2016
  //   x, y (T,D)  w, b (D)  mean, inv (T) kept for backward, or null
  void (*layer_norm)(Rows<const T> x, const Stat<T>* w, const Stat<T>* b, double eps, Rows<T> y,
                     Stat<T>* mean, Stat<T>* inv);
  // xh = (x - mean) inv   g = dy w   dx += inv (g - mean_d(g) - xh mean_d(g xh))   dw += sum dy xh   db += sum dy
  void (*layer_norm_backward)(Rows<const T> x, const Stat<T>* w, const Stat<T>* mean,
                              const Stat<T>* inv, Rows<const T> dy, Rows<T> dx, Stat<T>* dw,
                              Stat<T>* db);
  // y = x / max(|x|_2, eps)                                norm (T) = |x|_2 kept for backward, or null
  void (*l2_normalize)(Rows<const T> x, double eps, Rows<T> y, Stat<T>* norm);
  // |x| > eps: dx += (dy - y (y . dy)) / |x|;  else dx += dy / eps
  void (*l2_normalize_backward)(Rows<const T> y, const Stat<T>* norm, double eps, Rows<const T> dy,
                                Rows<T> dx);

  // ---- softmax ---------------------------------------------------------------------------------------
  void (*softmax)(Rows<const T> x, Rows<T> y);
  // dx += y (dy - sum_d y dy)
  void (*softmax_backward)(Rows<const T> y, Rows<const T> dy, Rows<T> dx);
  void (*log_softmax)(Rows<const T> x, Rows<T> y);
  // dx += dy - exp(y) sum_d dy
  void (*log_softmax_backward)(Rows<const T> y, Rows<const T> dy, Rows<T> dx);

  // ---- embedding -------------------------------------------------------------------------------------
  // y[i,:] = table[ids[i],:]                               ids (n), all within the table
  void (*lookup)(Rows<const T> table, const std::int32_t* ids, Index n, Rows<T> y);
  // dtable[ids[i],:] += dy[i,:]                            added in order of i: partitioned by table rows
  void (*lookup_backward)(Rows<const T> dy, const std::int32_t* ids, Index n, Rows<Stat<T>> dtable);

  // ---- attention -------------------------------------------------------------------------------------
  // out = dropout(softmax(scale q k^T)) v per segment pair and head; lse (Tq, heads) = log-sum-exp of the
  // scaled scores, kept for backward, or null. Segments: queries.count == keys.count.
  // Online softmax over key blocks counted from the segment's begin.      Milakov, Gimelshein 2018; Dao 2022
  void (*attention)(Rows<const T> q, Rows<const T> k, Rows<const T> v, Ragged queries, Ragged keys,
                    const AttentionShape& shape, Rows<T> out, Stat<T>* lse);
  // p = exp(scale q k^T - lse), delta = sum_d dout out;  dv += (p m)^T dout;  ds = p (m (dout v^T) - delta);
  // dq += scale ds k;  dk += scale ds^T q        m: dropout factor (0 or 1/(1-rate))
  void (*attention_backward)(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out,
                             const Stat<T>* lse, Rows<const T> dout, Ragged queries, Ragged keys,
                             const AttentionShape& shape, Rows<T> dq, Rows<T> dk, Rows<T> dv);

  // ---- segment ---------------------------------------------------------------------------------------
  // y[g,:] = mean of x over segment g; 0 for an empty one  x (T,D)  y (G,D)
  void (*segment_mean)(Rows<const T> x, Ragged segments, Rows<T> y);
  void (*segment_mean_backward)(Rows<const T> dy, Ragged segments, Rows<T> dx);
  // y[g,:] = column-wise max; arg (G,D) = the row that gave it (first on ties), -1 and y = 0 when empty
  void (*segment_max)(Rows<const T> x, Ragged segments, Rows<T> y, std::int32_t* arg);
  void (*segment_max_backward)(Rows<const T> dy, const std::int32_t* arg, Rows<T> dx);

  // ---- routing ---------------------------------------------------------------------------------------
  // expert (T,k) = the k largest of score + bias in each row, best first, ties to the lowest index.
  //   bias (E) or null; allow (E) bytes, or (T,E) when allow_rows, or null. Fewer than k allowed: -1 fills.
  void (*top_k)(Rows<const T> score, const Stat<T>* bias, const std::uint8_t* allow, bool allow_rows,
                Index k, std::int32_t* expert);
  // weight[t,j] = prob[t, expert[t,j]], divided by (sum_j + floor) if renormalise; 0 where expert is -1
  void (*pick)(Rows<const T> prob, const std::int32_t* expert, bool renormalise, double floor,
               Rows<T> weight);
  // raw: dprob[t,e_j] += dw_j.   renormalised, s = sum_j prob + floor: dprob[t,e_j] += (dw_j - sum_i dw_i w_i) / s
  void (*pick_backward)(Rows<const T> prob, const std::int32_t* expert, bool renormalise,
                        double floor, Rows<const T> weight, Rows<const T> dweight, Rows<T> dprob);
  // Counting sort of the (token, choice) pairs by expert, stable in token then choice:
  //   slot (T,k) row in expert order or -1;  source (T*k) token of each row;  begin (E+1) offsets
  void (*route)(const std::int32_t* expert, Index rows, Index k, Index experts, std::int32_t* slot,
                std::int32_t* source, std::int32_t* begin);
  // y[i,:] = x[source[i],:] for i < *count, count = begin[E] on the device; rows past it are not written
  void (*gather_rows)(Rows<const T> x, const std::int32_t* source, const std::int32_t* count,
                      Rows<T> y);
  // out[t,:] = sum_j weight[t,j] y[slot[t,j],:], or += when beta is 1; weight empty means 1; slot -1 is skipped
  void (*combine_rows)(Rows<const T> y, const std::int32_t* slot, Index k, Rows<const T> weight,
                       double beta, Rows<T> out);
  // dy[slot,:] += weight dout[t,:]      dweight[t,j] += y[slot,:] . dout[t,:]
  void (*combine_rows_backward)(Rows<const T> y, const std::int32_t* slot, Index k,
                                Rows<const T> weight, Rows<const T> dout, Rows<T> dy,
                                Rows<T> dweight);

  // ---- loss ------------------------------------------------------------------------------------------
  // loss[0] = factor * sum_t (lse_t - logits[t, target_t]);  lse (T) over the entries not blocked.
  //   target -1: the row counts nothing.  blocked (T,V) bytes, nonzero = not a candidate, or null.
  void (*cross_entropy)(Rows<const T> logits, const std::int32_t* target, const std::uint8_t* blocked,
                        double factor, Stat<T>* loss, Stat<T>* lse);
  // dlogits[t,v] += dloss[0] * factor * (exp(logits - lse) - [v == target])
  void (*cross_entropy_backward)(Rows<const T> logits, const std::int32_t* target,
                                 const std::uint8_t* blocked, double factor, const Stat<T>* lse,
                                 const Stat<T>* dloss, Rows<T> dlogits);
  // loss[0] = E * sum_i f_i P_i;  f_i = share of the (row, choice) slots sent to i, no gradient;
  //   P_i = mean over rows of prob[t,i].             Fedus, Zoph, Shazeer 2022
  void (*balance_loss)(Rows<const T> prob, const std::int32_t* expert, Index k, Stat<T>* loss);
  void (*balance_loss_backward)(Rows<const T> prob, const std::int32_t* expert, Index k,
                                const Stat<T>* dloss, Rows<T> dprob);
  // loss[0] = mean_t (log sum_i exp logits[t,i])^2    Zoph et al. 2022
  void (*z_loss)(Rows<const T> logits, Stat<T>* loss);
  void (*z_loss_backward)(Rows<const T> logits, const Stat<T>* dloss, Rows<T> dlogits);
  // loss[0] = Var / Mean^2 over experts of sum_t value[t,i], population variance   Shazeer et al. 2017
  void (*importance_loss)(Rows<const T> value, Stat<T>* loss);
  void (*importance_loss_backward)(Rows<const T> value, const Stat<T>* dloss, Rows<T> dvalue);

  // ---- optimizer -------------------------------------------------------------------------------------
  // m = b1 m + (1-b1) g   v = b2 v + (1-b2) g^2   p -= rate (m / c1 / (sqrt(v / c2) + eps) + decay p)
  //   Loshchilov, Hutter 2019
  void (*adamw)(const AdamWChunk<T>* chunks, Index count, const AdamWStep* step, double beta1,
                double beta2, double eps);
  // Shazeer, Stern 2018, without momentum:  g2 = g^2 + 1e-30; row = b2 row + (1-b2) mean_c(g2), column alike;
  // v = row column / mean(row); u = g / sqrt(v); u /= max(1, rms(u) / 1);
  // p -= rate max(1e-3, rms(p)) u + rate decay p.   scratch (rows * cols) holds u
  void (*adafactor)(const AdafactorChunk<T>& chunk, const AdafactorStep* step, Stat<T>* scratch);
  // result[0] = sum of squares, in double: blocks of 4096 summed in order, then the block sums in order
  void (*norm_squared)(const Stat<T>* x, Index count, double* result);
};

}  // namespace moe
// clang-format on
