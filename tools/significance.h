// Is the difference between two runs more than luck? Tests over per-query values of one metric,
// paired by query.
//   t-test          t = mean(d) / (s / sqrt(n)), Student's t of n - 1 degrees of freedom, two-sided
//   randomisation   signs of the differences d flipped at random; p = share of the sign patterns
//                   whose |mean| reaches the observed one (Fisher; Smucker, Allan, Carterette,
//                   CIKM 2007)
// Several comparisons at once: Bonferroni, or Holm, which is never weaker.
#pragma once

#include "runtime/shape.h"

#include <cstdint>
#include <span>
#include <vector>

namespace moe {

// Regularised incomplete beta function I_x(a, b) for a, b > 0 and 0 <= x <= 1.
double incomplete_beta(double a, double b, double x);

// P(|T| >= |t|) for Student's t.
double student_t_two_sided(double t, double degrees_of_freedom);

struct Comparison {
  double mean_a = 0, mean_b = 0;
  double t = 0;  // positive: a is better; infinite when all differences are equal and not 0
  double p_t_test = 1;
  double p_randomisation = 1;
  Index wins = 0, ties = 0, losses = 0;  // of a against b; closer than 1e-9 is a tie
};

struct ComparisonOptions {
  Index permutations =
      10'000;  // when 2^n is not above it, all patterns are counted and the p is exact
  std::uint64_t seed = 42;
};

// Values of the same queries in the same order; at least two.
Comparison compare(std::span<const double> a, std::span<const double> b,
                   const ComparisonOptions& options = {});

// Adjusted p values, in the order given: significant at level alpha when <= alpha.
std::vector<double> bonferroni(std::span<const double> p);
std::vector<double> holm(std::span<const double> p);

}  // namespace moe
