// Optimiser steps on f32 masters: the definition. The clip factor multiplies every gradient first.
#include "cpu/cpu.h"

#include <algorithm>
#include <cmath>

namespace moe::reference {

namespace {

// m = b1 m + (1 - b1) g   v = b2 v + (1 - b2) g^2
// p -= rate (m / c1 / (sqrt(v / c2) + eps) + decay p)      Loshchilov, Hutter 2019, algorithm 2
template <class T>
void adamw(const AdamWChunk<T>* chunks, Index count, const AdamWStep* step, double beta1,
           double beta2, double eps) {
  for (const AdamWChunk<T>* chunk = chunks; chunk != chunks + count; ++chunk) {
    double rate = step->rate * chunk->rate_factor;
    for (Index i = 0; i < chunk->count; ++i) {
      double g = step->clip * chunk->gradient[i], p = chunk->parameter[i];
      double m = beta1 * chunk->moment1[i] + (1 - beta1) * g;
      double v = beta2 * chunk->moment2[i] + (1 - beta2) * g * g;
      double u = m / step->correction1 / (std::sqrt(v / step->correction2) + eps);
      chunk->moment1[i] = static_cast<Stat<T>>(m);
      chunk->moment2[i] = static_cast<Stat<T>>(v);
      chunk->parameter[i] = static_cast<Stat<T>>(p - rate * (u + chunk->decay * p));
    }
  }
}

template <class S>
double root_mean_square(const S* x, Index count) {
  double sum = 0;
  for (Index i = 0; i < count; ++i) sum += double{x[i]} * x[i];
  return std::sqrt(sum / static_cast<double>(std::max<Index>(count, 1)));
}

constexpr double tiny_square = 1e-30;    // epsilon 1 of the paper: keeps 1 / sqrt(v) finite
constexpr double smallest_scale = 1e-3;  // epsilon 2: a zero parameter still moves
constexpr double update_limit = 1;       // d: the largest root mean square of an update

// v of a matrix is known by its row and column means only:
//   row_i = b2 row_i + (1 - b2) mean_j(g^2 + eps1)   column_j alike
//   v_ij = row_i column_j / mean(row)
template <class T>
void factored_update(const AdafactorChunk<T>& c, const AdafactorStep& step, Stat<T>* u) {
  auto square = [&](Index i, Index j) {
    double g = step.clip * c.gradient[i * c.cols + j];
    return g * g + tiny_square;
  };
  double mean_row = 0;
  for (Index i = 0; i < c.rows; ++i) {
    double mean = 0;
    for (Index j = 0; j < c.cols; ++j) mean += square(i, j) / static_cast<double>(c.cols);
    c.row[i] = static_cast<Stat<T>>(step.beta2 * c.row[i] + (1 - step.beta2) * mean);
    mean_row += c.row[i] / static_cast<double>(c.rows);
  }
  for (Index j = 0; j < c.cols; ++j) {
    double mean = 0;
    for (Index i = 0; i < c.rows; ++i) mean += square(i, j) / static_cast<double>(c.rows);
    c.column[j] = static_cast<Stat<T>>(step.beta2 * c.column[j] + (1 - step.beta2) * mean);
  }
  for (Index i = 0; i < c.rows; ++i)
    for (Index j = 0; j < c.cols; ++j) {
      double v = double{c.row[i]} * c.column[j] / mean_row;
      u[i * c.cols + j] =
          static_cast<Stat<T>>(step.clip * c.gradient[i * c.cols + j] / std::sqrt(v));
    }
}

// v of a vector is kept whole: v_i = b2 v_i + (1 - b2) (g^2 + eps1)
template <class T>
void full_update(const AdafactorChunk<T>& c, const AdafactorStep& step, Stat<T>* u) {
  for (Index i = 0; i < c.rows * c.cols; ++i) {
    double g = step.clip * c.gradient[i];
    c.full[i] =
        static_cast<Stat<T>>(step.beta2 * c.full[i] + (1 - step.beta2) * (g * g + tiny_square));
    u[i] = static_cast<Stat<T>>(g / std::sqrt(double{c.full[i]}));
  }
}

// u = g / sqrt(v) / max(1, rms(g / sqrt(v)) / d)
// p -= rate max(eps2, rms(p)) u + rate decay p             Shazeer, Stern 2018, algorithms 4, 5
template <class T>
void adafactor(const AdafactorChunk<T>& chunk, const AdafactorStep* step, Stat<T>* scratch) {
  Index count = chunk.rows * chunk.cols;
  if (chunk.full)
    full_update(chunk, *step, scratch);
  else
    factored_update(chunk, *step, scratch);
  double rate = step->rate * chunk.rate_factor;
  double scale = std::max(smallest_scale, root_mean_square(chunk.parameter, count)) /
                 std::max(1.0, root_mean_square(scratch, count) / update_limit);
  for (Index i = 0; i < count; ++i) {
    double p = chunk.parameter[i];
    chunk.parameter[i] = static_cast<Stat<T>>(p - rate * (scale * scratch[i] + chunk.decay * p));
  }
}

// Blocks of 4096 summed in order, then the block sums in order: a fixed tree for any thread count.
template <class T>
void norm_squared(const Stat<T>* x, Index count, double* result) {
  constexpr Index block = 4096;
  result[0] = 0;
  for (Index begin = 0; begin < count; begin += block) {
    double sum = 0;
    for (Index i = begin; i < std::min(count, begin + block); ++i) sum += double{x[i]} * x[i];
    result[0] += sum;
  }
}

}  // namespace

template <class T>
void fill_optimizer(Kernels<T>& table) {
  table.adamw = adamw<T>;
  table.adafactor = adafactor<T>;
  table.norm_squared = norm_squared<T>;
}

template void fill_optimizer(Kernels<float>&);
template void fill_optimizer(Kernels<double>&);

}  // namespace moe::reference
