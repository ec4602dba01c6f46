// Student's t through the incomplete beta function; sign flips through the project's counter-based
// random numbers, so the p value depends on the seed alone.
#include "tools/significance.h"

#include "runtime/error.h"
#include "runtime/random.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace moe {
namespace {

// Continued fraction of the incomplete beta function by Lentz's method (Abramowitz and
// Stegun 26.5.8; converges fast for x below the mean a / (a + b)).
double beta_fraction(double a, double b, double x) {
  constexpr double tiny = 1e-300, enough = 1e-16;
  auto away_from_zero = [](double v) { return std::abs(v) < tiny ? tiny : v; };
  double c = 1, d = 1 / away_from_zero(1 - (a + b) * x / (a + 1)), fraction = d;
  for (int m = 1; m <= 10'000; ++m) {
    double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away_from_zero(1 + even * d);
    c = away_from_zero(1 + even / c);
    fraction *= d * c;
    double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away_from_zero(1 + odd * d);
    c = away_from_zero(1 + odd / c);
    fraction *= d * c;
    if (std::abs(d * c - 1) < enough) break;
  }
  return fraction;
}

// Sign patterns as or more extreme than the observed one, over the patterns looked at.
double randomisation_p(const std::vector<double>& differences, const ComparisonOptions& options) {
  double observed = 0, scale = 0;
  for (double d : differences) {
    observed += d;
    scale += std::abs(d);
  }
  // Sums of the same numbers in another sign pattern may differ in the last bits where they are
  // equal in truth.
  double bar = std::abs(observed) - 1e-12 * scale;
  std::size_t n = differences.size();
  Index extreme = 0;
  if (n < 62 && (Index{1} << n) <= options.permutations) {
    for (Index pattern = 0; pattern < (Index{1} << n); ++pattern) {
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i)
        sum += (pattern >> i) & 1 ? -differences[i] : differences[i];
      extreme += std::abs(sum) >= bar;
    }
    return static_cast<double>(extreme) / static_cast<double>(Index{1} << n);
  }
  Dice dice = Draw{options.seed}.dice(stream_hash("randomisation test"));
  for (Index permutation = 0; permutation < options.permutations; ++permutation) {
    double sum = 0;
    for (std::size_t i = 0; i < n; i += 128) {
      PhiloxBlock bits = dice.block(permutation, static_cast<Index>(i / 128));
      for (std::size_t j = i; j < std::min(n, i + 128); ++j)
        sum += (bits[(j - i) / 32] >> (j % 32)) & 1u ? -differences[j] : differences[j];
    }
    extreme += std::abs(sum) >= bar;
  }
  // The observed pattern is one of the possible ones: a p of 0 does not exist.
  return static_cast<double>(extreme + 1) / static_cast<double>(options.permutations + 1);
}

}  // namespace

double incomplete_beta(double a, double b, double x) {
  check(a > 0 && b > 0 && x >= 0 && x <= 1, "incomplete_beta({}, {}, {}): out of its domain", a, b,
        x);
  if (x == 0 || x == 1) return x;
  double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) +
                          b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

double student_t_two_sided(double t, double degrees_of_freedom) {
  check(degrees_of_freedom > 0, "Student's t needs degrees of freedom above 0, not {}",
        degrees_of_freedom);
  if (std::isinf(t)) return 0;
  return incomplete_beta(degrees_of_freedom / 2, 0.5,
                         degrees_of_freedom / (degrees_of_freedom + t * t));
}

Comparison compare(std::span<const double> a, std::span<const double> b,
                   const ComparisonOptions& options) {
  check(a.size() == b.size(), "comparison: {} against {} queries; both runs need the same queries",
        a.size(), b.size());
  check(a.size() >= 2, "comparison: {} queries; at least 2 are needed", a.size());
  check(options.permutations >= 1, "comparison: {} permutations; at least 1 is needed",
        options.permutations);
  Comparison result;
  double n = static_cast<double>(a.size());
  std::vector<double> differences;
  for (std::size_t i = 0; i < a.size(); ++i) {
    check(std::isfinite(a[i]) && std::isfinite(b[i]), "comparison: value {} is not finite", i);
    double d = a[i] - b[i];
    if (std::abs(d) < 1e-9)
      ++result.ties;
    else
      ++(d > 0 ? result.wins : result.losses);
    result.mean_a += a[i] / n;
    result.mean_b += b[i] / n;
    differences.push_back(d);
  }
  if (result.ties == static_cast<Index>(a.size())) return result;  // identical: t = 0, p = 1

  double mean = std::accumulate(differences.begin(), differences.end(), 0.0) / n, squares = 0;
  for (double d : differences) squares += (d - mean) * (d - mean);
  double error = std::sqrt(squares / (n - 1) / n);
  // Equal differences leave rounding in `error`; below this their spread is nothing but that.
  bool constant = error <= 1e-14 * std::abs(mean);
  result.t = constant ? std::copysign(std::numeric_limits<double>::infinity(), mean) : mean / error;
  result.p_t_test = student_t_two_sided(result.t, n - 1);
  result.p_randomisation = randomisation_p(differences, options);
  return result;
}

std::vector<double> bonferroni(std::span<const double> p) {
  std::vector<double> adjusted;
  for (double value : p) adjusted.push_back(std::min(1.0, value * static_cast<double>(p.size())));
  return adjusted;
}

std::vector<double> holm(std::span<const double> p) {
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return p[i] < p[j]; });
  std::vector<double> adjusted(p.size());
  double running = 0;  // step down: a larger p never gets a smaller adjusted one
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    running = std::max(running, p[order[rank]] * static_cast<double>(p.size() - rank));
    adjusted[order[rank]] = std::min(1.0, running);
  }
  return adjusted;
}

}  // namespace moe
