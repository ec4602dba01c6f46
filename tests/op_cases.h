// THE LIST: every op, once, with the sizes to try it at. Gradient checks, parity, the laws
// (determinism, "+=", views, frozen inputs) and the coverage test all walk it. To add an op, add a
// case to its family's file.
#pragma once

#include "tests/op_inputs.h"

#include <functional>

namespace moe::testing {

struct OpCase {
  std::string name;  // "op" or "op/variation"; the op is one of ops.h, or a bare kernel slot
  std::vector<Sizes> small;  // for central differences on every element
  std::vector<Sizes> sweep;  // edges: 0 and 1 rows, a lane more and less, empty groups
  std::vector<Sizes> large;  // enough work to be split among threads
  std::function<Tensor(Inputs&)> call;
  // The same from simpler ops, where there is one.
  std::function<Tensor(Inputs&)> composition = {};

  // Row r of the result depends on row r of the inputs alone.
  bool row_wise = false;
  // Result rows belong to segments (lengths); a text alone gives what it gives in a batch.
  bool text_wise = false;
  // Forward differences say nothing about the gradient (straight-through), or there is none.
  bool numeric = true;
  // Results of "+=" come from several additions into memory, so twice is twice up to rounding only.
  bool scatters = false;
  // Absolute floor of parity, in units of 2^-24 of the largest element: sums in another order than
  // the reference's differ by some.
  double floor = 16;
  // The size of the terms a result is the small difference of, where that is more than the result
  // itself.
  double terms = 1e-3;

  std::string op() const { return name.substr(0, name.find('/')); }
};

const std::vector<OpCase>& op_cases();
std::vector<OpCase> op_cases_where(const std::function<bool(const OpCase&)>& holds);

// The families, one file each.
std::vector<OpCase> pointwise_cases();
std::vector<OpCase> linear_cases();
std::vector<OpCase> row_cases();  // norm, softmax, embedding
std::vector<OpCase> segment_cases();
std::vector<OpCase> routing_cases();
std::vector<OpCase> loss_cases();
std::vector<OpCase> kernel_cases();  // slots that no op calls

// Common sizes. Columns around every vector width up to 512 bits and four of them.
std::vector<Sizes> small_matrices();
std::vector<Sizes> edge_matrices(bool empty_rows = true);
std::vector<Sizes> large_matrices();

// A result and the gradients of all leaves.
struct Outcome {
  Shape shape;
  std::vector<double> y;
  std::map<std::string, std::vector<double>> gradients;  // absent: untouched or frozen
};
// Runs the case `passes` times with a fixed cotangent; gradients accumulate. passes 0: without a
// tape.
Outcome run(const std::function<Tensor(Inputs&)>& call, Inputs& in, int passes = 1);

// Equality of bits, NaN included, with a message for people.
bool same_bits(const std::vector<double>& a, const std::vector<double>& b, std::string* difference);
void expect_same(const Outcome& a, const Outcome& b, const std::string& where);
double largest(const std::vector<double>& values);
double distance(const std::vector<double>& a, const std::vector<double>& b);

// A GoogleTest-safe name of a case.
std::string test_name(const OpCase& c);
// How failures print a case.
void PrintTo(const OpCase& c, std::ostream* out);

}  // namespace moe::testing
