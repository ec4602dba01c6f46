#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ostream>

namespace moe::testing {

const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> all = [] {
    std::vector<OpCase> list;
    for (auto family : {pointwise_cases, linear_cases, row_cases, segment_cases, routing_cases,
                        loss_cases, kernel_cases})
      for (auto& c : family()) list.push_back(std::move(c));
    return list;
  }();
  return all;
}

std::vector<OpCase> op_cases_where(const std::function<bool(const OpCase&)>& holds) {
  std::vector<OpCase> list;
  for (const OpCase& c : op_cases())
    if (holds(c)) list.push_back(c);
  return list;
}

std::vector<Sizes> small_matrices() {
  return {{.rows = 1, .cols = 1}, {.rows = 2, .cols = 3}, {.rows = 3, .cols = 7}};
}

std::vector<Sizes> edge_matrices(bool empty_rows) {
  std::vector<Sizes> list;
  for (Index cols : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65})
    list.push_back({.rows = 3, .cols = cols});
  for (Index rows : {1, 2, 15, 16, 17}) list.push_back({.rows = rows, .cols = 17});
  if (empty_rows) list.push_back({.rows = 0, .cols = 17});
  return list;
}

std::vector<Sizes> large_matrices() {
  return {{.rows = 64, .cols = 771}, {.rows = 301, .cols = 260}};
}

Outcome run(const std::function<Tensor(Inputs&)>& call, Inputs& in, int passes) {
  Outcome outcome;
  for (int pass = 0; pass < std::max(passes, 1); ++pass) {
    Tensor y;
    if (passes == 0) {
      y = call(in);
    } else {
      Tape tape;
      y = call(in);
      // The loss is sum(y * dy) with fixed numbers dy.
      auto cotangent =
          numbers("cotangent", y.shape(), Values::uniform, in.placement().first_output_row);
      tape.backward(y, tensor_of(cotangent, y.shape(), y.dtype(), y.device()));
    }
    outcome.shape = y.shape();
    outcome.y = elements(y);
  }
  for (auto& [name, leaf] : in.leaves())
    if (Tensor g = leaf.view.grad()) outcome.gradients[name] = elements(g);
  return outcome;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b,
               std::string* difference) {
  if (a.size() != b.size()) {
    *difference = fmt::format("{} and {} elements", a.size(), b.size());
    return false;
  }
  std::size_t differ = 0, first = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(double)) != 0 && differ++ == 0) first = i;
  if (differ > 0)
    *difference = fmt::format("{} of {} elements differ, first [{}]: {} and {}", differ, a.size(),
                              first, a[first], b[first]);
  return differ == 0;
}

void expect_same(const Outcome& a, const Outcome& b, const std::string& where) {
  std::string difference;
  EXPECT_TRUE(same_bits(a.y, b.y, &difference)) << where << ", result: " << difference;
  for (const auto& [name, gradient] : a.gradients) {
    auto other = b.gradients.find(name);
    if (other == b.gradients.end()) continue;
    EXPECT_TRUE(same_bits(gradient, other->second, &difference))
        << where << ", gradient of " << name << ": " << difference;
  }
}

double largest(const std::vector<double>& values) {
  double most = 0;
  for (double v : values) most = std::isnan(v) ? v : std::max(most, std::abs(v));
  return most;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double gap = std::abs(a[i] - b[i]);
    if (!(gap <= most)) most = std::isnan(gap) ? INFINITY : gap;
  }
  return most;
}

std::string test_name(const OpCase& c) {
  std::string name = c.name;
  for (char& letter : name)
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
  return name;
}

void PrintTo(const OpCase& c, std::ostream* out) {
  *out << c.name;
}

}  // namespace moe::testing
