// From router scores to expert rows and back: the definition.
//   score, prob (T,E)   expert, slot, weight (T,k)   x, out (T,D)   y (T*k,D): rows in expert order
// An expert of -1 is a choice nobody took: weight 0, no row.
#include "cpu/cpu.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

namespace moe::reference {

namespace {

// expert[t,:] = the k largest of score + bias among the allowed, best first, ties to the lowest
// index. The sum is taken in Stat<T>, so that every backend sees the same ties. A NaN counts as
// minus infinity.
template <class T>
void top_k(Rows<const T> score, const Stat<T>* bias, const std::uint8_t* allow, bool allow_rows,
           Index k, std::int32_t* expert) {
  for (Index t = 0; t < score.rows; ++t) {
    std::int32_t* chosen = expert + t * k;
    const std::uint8_t* allowed = allow && allow_rows ? allow + t * score.cols : allow;
    for (Index j = 0; j < k; ++j) {
      std::int32_t best = -1;
      Stat<T> best_value = 0;
      for (std::int32_t e = 0; e < score.cols; ++e) {
        if ((allowed && !allowed[e]) || std::find(chosen, chosen + j, e) != chosen + j) continue;
        Stat<T> value = static_cast<Stat<T>>(score[t][e]) + (bias ? bias[e] : 0);
        if (std::isnan(value)) value = -std::numeric_limits<Stat<T>>::infinity();
        if (best >= 0 && value <= best_value) continue;
        best = e;
        best_value = value;
      }
      chosen[j] = best;
    }
  }
}

// The sum that renormalised weights of row t are divided by; 1 for raw ones.
template <class T>
double pick_sum(const T* prob, const std::int32_t* expert, Index k, bool renormalise,
                double floor) {
  if (!renormalise) return 1;
  double sum = floor;
  for (Index j = 0; j < k; ++j)
    if (expert[j] >= 0) sum += prob[expert[j]];
  return sum;
}

// weight[t,j] = prob[t, expert[t,j]] / s,  s = sum_j prob + floor, or 1
template <class T>
void pick(Rows<const T> prob, const std::int32_t* expert, bool renormalise, double floor,
          Rows<T> weight) {
  for (Index t = 0; t < prob.rows; ++t) {
    const std::int32_t* chosen = expert + t * weight.cols;
    double sum = pick_sum(prob[t], chosen, weight.cols, renormalise, floor);
    for (Index j = 0; j < weight.cols; ++j)
      weight[t][j] = chosen[j] < 0 ? T{0} : static_cast<T>(prob[t][chosen[j]] / sum);
  }
}

// raw:           dprob[t,e_j] += dw_j
// renormalised:  dprob[t,e_j] += (dw_j - sum_i dw_i w_i) / s
template <class T>
void pick_backward(Rows<const T> prob, const std::int32_t* expert, bool renormalise, double floor,
                   Rows<const T> weight, Rows<const T> dweight, Rows<T> dprob) {
  if (!dprob) return;
  for (Index t = 0; t < prob.rows; ++t) {
    const std::int32_t* chosen = expert + t * weight.cols;
    double sum = pick_sum(prob[t], chosen, weight.cols, renormalise, floor), dot = 0;
    if (renormalise)
      for (Index j = 0; j < weight.cols; ++j) dot += double{dweight[t][j]} * weight[t][j];
    for (Index j = 0; j < weight.cols; ++j) {
      if (chosen[j] < 0) continue;
      T& to = dprob[t][chosen[j]];
      to = static_cast<T>(to + (dweight[t][j] - dot) / sum);
    }
  }
}

// Counting sort of the (token, choice) pairs by expert, stable in token then choice.
//   slot (T,k) row in expert order, or -1   source (T*k) token of each row   begin (E+1) offsets
void route(const std::int32_t* expert, Index rows, Index k, Index experts, std::int32_t* slot,
           std::int32_t* source, std::int32_t* begin) {
  std::fill_n(begin, experts + 1, 0);
  for (Index pair = 0; pair < rows * k; ++pair) {
    assert(expert[pair] < experts);
    if (expert[pair] >= 0) ++begin[expert[pair] + 1];
  }
  for (Index e = 0; e < experts; ++e) begin[e + 1] += begin[e];
  // begin[e] walks to the next free row of e and ends at the old begin[e + 1]: shifted back below.
  for (Index pair = 0; pair < rows * k; ++pair) {
    slot[pair] = expert[pair] < 0 ? -1 : begin[expert[pair]]++;
    if (slot[pair] >= 0) source[slot[pair]] = static_cast<std::int32_t>(pair / k);
  }
  for (Index e = experts; e > 0; --e) begin[e] = begin[e - 1];
  begin[0] = 0;
}

// y[i,:] = x[source[i],:] for i < *count
template <class T>
void gather_rows(Rows<const T> x, const std::int32_t* source, const std::int32_t* count,
                 Rows<T> y) {
  for (Index i = 0; i < *count; ++i)
    for (Index d = 0; d < x.cols; ++d) y[i][d] = x[source[i]][d];
}

// out[t,:] = beta out[t,:] + sum_j weight[t,j] y[slot[t,j],:];  an empty weight means 1
// beta 0 does not read out, which may be new memory
template <class T>
void combine_rows(Rows<const T> y, const std::int32_t* slot, Index k, Rows<const T> weight,
                  double beta, Rows<T> out) {
  if (!out) return;
  for (Index t = 0; t < out.rows; ++t)
    for (Index d = 0; d < out.cols; ++d) {
      double sum = beta == 0 ? 0 : beta * out[t][d];
      for (Index j = 0; j < k; ++j) {
        Index row = slot[t * k + j];
        if (row >= 0) sum += (weight ? weight[t][j] : 1.0) * y[row][d];
      }
      out[t][d] = static_cast<T>(sum);
    }
}

// dy[slot,:] += weight dout[t,:]     dweight[t,j] += y[slot,:] . dout[t,:]
template <class T>
void combine_rows_backward(Rows<const T> y, const std::int32_t* slot, Index k, Rows<const T> weight,
                           Rows<const T> dout, Rows<T> dy, Rows<T> dweight) {
  for (Index t = 0; t < dout.rows; ++t)
    for (Index j = 0; j < k; ++j) {
      Index row = slot[t * k + j];
      if (row < 0) continue;
      double w = weight ? weight[t][j] : 1.0, dot = 0;
      for (Index d = 0; d < dout.cols; ++d) {
        if (dy) dy[row][d] = static_cast<T>(dy[row][d] + w * dout[t][d]);
        if (dweight) dot += double{y[row][d]} * dout[t][d];
      }
      if (dweight) dweight[t][j] = static_cast<T>(dweight[t][j] + dot);
    }
}

}  // namespace

template <class T>
void fill_routing(Kernels<T>& table) {
  table.top_k = top_k<T>;
  table.pick = pick<T>;
  table.pick_backward = pick_backward<T>;
  table.route = route;
  table.gather_rows = gather_rows<T>;
  table.combine_rows = combine_rows<T>;
  table.combine_rows_backward = combine_rows_backward<T>;
}

template void fill_routing(Kernels<float>&);
template void fill_routing(Kernels<double>&);

}  // namespace moe::reference
