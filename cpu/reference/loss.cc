// Losses, each one number of Stat<T>: the definition.
//   logits (T,V)   prob, value (T,E)   expert (T,k)
#include "cpu/cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace moe::reference {

namespace {

// log sum exp of a row, over the entries that are not blocked; minus infinity when all are
template <class T>
double log_sum_exp(const T* logits, const std::uint8_t* blocked, Index cols) {
  double peak = -std::numeric_limits<double>::infinity(), sum = 0;
  for (Index v = 0; v < cols; ++v)
    if (!blocked || !blocked[v]) peak = std::max<double>(peak, logits[v]);
  for (Index v = 0; v < cols; ++v)
    if (!blocked || !blocked[v]) sum += std::exp(logits[v] - peak);
  return peak + std::log(sum);
}

const std::uint8_t* row_of(const std::uint8_t* blocked, Index row, Index cols) {
  return blocked ? blocked + row * cols : nullptr;
}

// loss = factor sum_t (lse_t - logits[t, target_t]);  a target of -1 counts nothing
template <class T>
void cross_entropy(Rows<const T> logits, const std::int32_t* target, const std::uint8_t* blocked,
                   double factor, Stat<T>* loss, Stat<T>* lse) {
  double sum = 0;
  for (Index t = 0; t < logits.rows; ++t) {
    double l = log_sum_exp(logits[t], row_of(blocked, t, logits.cols), logits.cols);
    if (target[t] >= 0) sum += l - logits[t][target[t]];
    lse[t] = static_cast<Stat<T>>(l);
  }
  loss[0] = static_cast<Stat<T>>(factor * sum);
}

// dlogits[t,v] += dloss factor (exp(logits - lse) - [v == target])
template <class T>
void cross_entropy_backward(Rows<const T> logits, const std::int32_t* target,
                            const std::uint8_t* blocked, double factor, const Stat<T>* lse,
                            const Stat<T>* dloss, Rows<T> dlogits) {
  if (!dlogits) return;
  for (Index t = 0; t < logits.rows; ++t) {
    if (target[t] < 0) continue;
    const std::uint8_t* mask = row_of(blocked, t, logits.cols);
    for (Index v = 0; v < logits.cols; ++v) {
      double p = mask && mask[v] ? 0 : std::exp(double{logits[t][v]} - lse[t]);
      double g = dloss[0] * factor * (p - (v == target[t] ? 1 : 0));
      dlogits[t][v] = static_cast<T>(dlogits[t][v] + g);
    }
  }
}

// f_i: the share of the choices taken that went to expert i. They sum to 1, unless nobody chose.
std::vector<double> load_shares(const std::int32_t* expert, Index choices, Index experts) {
  std::vector<double> share(static_cast<std::size_t>(experts), 0.0);
  double taken = 0;
  for (Index i = 0; i < choices; ++i) {
    if (expert[i] < 0) continue;
    share[expert[i]] += 1;
    taken += 1;
  }
  for (double& f : share) f /= std::max(taken, 1.0);
  return share;
}

// loss = E sum_i f_i P_i,  P_i = mean_t prob[t,i]: 1 at uniform use
//   Fedus, Zoph, Shazeer 2022, eq. 4-6
template <class T>
void balance_loss(Rows<const T> prob, const std::int32_t* expert, Index k, Stat<T>* loss) {
  std::vector<double> share = load_shares(expert, prob.rows * k, prob.cols);
  double sum = 0, rows = static_cast<double>(std::max<Index>(prob.rows, 1));
  for (Index i = 0; i < prob.cols; ++i)
    for (Index t = 0; t < prob.rows; ++t) sum += share[i] * prob[t][i] / rows;
  loss[0] = static_cast<Stat<T>>(static_cast<double>(prob.cols) * sum);
}

// dprob[t,i] += dloss E f_i / T
template <class T>
void balance_loss_backward(Rows<const T> prob, const std::int32_t* expert, Index k,
                           const Stat<T>* dloss, Rows<T> dprob) {
  if (!dprob) return;
  std::vector<double> share = load_shares(expert, prob.rows * k, prob.cols);
  double factor = dloss[0] * static_cast<double>(prob.cols) / static_cast<double>(prob.rows);
  for (Index t = 0; t < prob.rows; ++t)
    for (Index i = 0; i < prob.cols; ++i)
      dprob[t][i] = static_cast<T>(dprob[t][i] + factor * share[i]);
}

// loss = mean_t lse_t^2                                    Zoph et al. 2022, eq. 5
template <class T>
void z_loss(Rows<const T> logits, Stat<T>* loss) {
  double sum = 0;
  for (Index t = 0; t < logits.rows; ++t) {
    double l = log_sum_exp(logits[t], nullptr, logits.cols);
    sum += l * l;
  }
  loss[0] = static_cast<Stat<T>>(sum / static_cast<double>(std::max<Index>(logits.rows, 1)));
}

// dlogits[t,i] += dloss 2 lse_t exp(logits - lse_t) / T
template <class T>
void z_loss_backward(Rows<const T> logits, const Stat<T>* dloss, Rows<T> dlogits) {
  if (!dlogits) return;
  for (Index t = 0; t < logits.rows; ++t) {
    double l = log_sum_exp(logits[t], nullptr, logits.cols);
    double factor = dloss[0] * 2 * l / static_cast<double>(logits.rows);
    for (Index i = 0; i < logits.cols; ++i)
      dlogits[t][i] = static_cast<T>(dlogits[t][i] + factor * std::exp(logits[t][i] - l));
  }
}

// The importance of expert i is I_i = sum_t value[t,i]; their mean and population variance.
struct Importance {
  std::vector<double> sum;
  double mean = 0, variance = 0;
};
template <class T>
Importance importance(Rows<const T> value) {
  Importance result{std::vector<double>(static_cast<std::size_t>(value.cols), 0.0)};
  for (Index t = 0; t < value.rows; ++t)
    for (Index i = 0; i < value.cols; ++i) result.sum[i] += value[t][i];
  double experts = static_cast<double>(value.cols);
  for (double s : result.sum) result.mean += s / experts;
  for (double s : result.sum) result.variance += (s - result.mean) * (s - result.mean) / experts;
  return result;
}

// loss = variance / mean^2; 0 for a batch without rows     Shazeer et al. 2017, eq. 6-7
template <class T>
void importance_loss(Rows<const T> value, Stat<T>* loss) {
  Importance all = importance(value);
  loss[0] = static_cast<Stat<T>>(all.mean == 0 ? 0 : all.variance / (all.mean * all.mean));
}

// dvalue[t,i] += dloss (2 / E) ((I_i - mean) / mean^2 - variance / mean^3)
template <class T>
void importance_loss_backward(Rows<const T> value, const Stat<T>* dloss, Rows<T> dvalue) {
  if (!dvalue) return;
  Importance all = importance(value);
  if (all.mean == 0) return;
  double factor = dloss[0] * 2 / (static_cast<double>(value.cols) * all.mean * all.mean);
  for (Index t = 0; t < value.rows; ++t)
    for (Index i = 0; i < value.cols; ++i) {
      double slope = all.sum[i] - all.mean - all.variance / all.mean;
      dvalue[t][i] = static_cast<T>(dvalue[t][i] + factor * slope);
    }
}

}  // namespace

template <class T>
void fill_loss(Kernels<T>& table) {
  table.cross_entropy = cross_entropy<T>;
  table.cross_entropy_backward = cross_entropy_backward<T>;
  table.balance_loss = balance_loss<T>;
  table.balance_loss_backward = balance_loss_backward<T>;
  table.z_loss = z_loss<T>;
  table.z_loss_backward = z_loss_backward<T>;
  table.importance_loss = importance_loss<T>;
  table.importance_loss_backward = importance_loss_backward<T>;
}

template void fill_loss(Kernels<float>&);
template void fill_loss(Kernels<double>&);

}  // namespace moe::reference
