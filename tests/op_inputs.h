// Inputs of an op case: named leaves whose numbers depend on (name, row, column) alone, never on
// dtype, device, batch size or order of creation. So the same case in float and double sees equal
// numbers (all are exact floats), and a case built from row 37 on holds row 37 of the larger case.
#pragma once

#include "ops/ops.h"

#include <map>
#include <string>
#include <vector>

namespace moe::testing {

// The sizes one variant of a case is built with; a case reads those it knows.
struct Sizes {
  Index rows = 3, cols = 5, out = 4;
  Index experts = 3, choices = 1;
  std::vector<std::int32_t> lengths = {};      // segments of the rows
  std::vector<std::int32_t> key_lengths = {};  // of keys, where they differ
};
std::string describe(const Sizes& sizes);

// What the rows of a leaf are numbered by: rows of the batch, key rows, or themselves (a weight).
enum class Origin { rows, keys, fixed };

// uniform: [-1,1)   apart: at least 0.1 away from zero (kinks)   positive: [0.05, 1.05)
enum class Values { uniform, apart, positive };

struct Placement {
  Device device = Device::reference;
  DType dtype = DType::f64;
  Index first_row = 0, first_key_row = 0;  // numbers of the first local rows in the whole batch
  Index first_output_row = 0;              // of the cotangent
  bool embedded = false;    // every float leaf is a view inside a larger NaN-filled storage
  std::string frozen = {};  // the leaf of this name needs no gradient
};

class Inputs {
 public:
  Inputs(Placement placement, Sizes sizes)
      : placement_(std::move(placement)), sizes_(std::move(sizes)) {}

  const Sizes& sizes() const { return sizes_; }
  const Placement& placement() const { return placement_; }
  Index rows() const { return sizes_.rows; }
  Index cols() const { return sizes_.cols; }
  Index out() const { return sizes_.out; }
  Index experts() const { return sizes_.experts; }
  Index choices() const { return sizes_.choices; }

  // Activations: (rows, cols) and the like. Asking again for a name gives the same leaf.
  Tensor x(const std::string& name, const Shape& shape, Values values = Values::uniform) {
    return leaf(name, shape, values, Origin::rows);
  }
  Tensor keys(const std::string& name, const Shape& shape) {
    return leaf(name, shape, Values::uniform, Origin::keys);
  }
  Tensor weight(const std::string& name, const Shape& shape, Values values = Values::uniform) {
    return leaf(name, shape, values, Origin::fixed);
  }
  // A matrix that kernels read as one vector (biases of a bank): contiguous by contract, so never
  // embedded.
  Tensor vector(const std::string& name, const Shape& shape) {
    return leaf(name, shape, Values::uniform, Origin::fixed, false);
  }
  // Numbers without gradient, of the case's dtype.
  Tensor constant(const std::string& name, const Shape& shape);

  Tensor integers(const std::vector<std::int32_t>& values, const Shape& shape) const {
    return from_host(values, shape, placement_.device);
  }
  Tensor bytes(const std::vector<std::uint8_t>& values, const Shape& shape) const {
    return from_host(values, shape, placement_.device);
  }
  // count numbers in [0, limit), by row of the batch.
  std::vector<std::int32_t> draw(const std::string& name, Index count, Index limit) const;
  Segments segments(const std::vector<std::int32_t>& lengths) const {
    return pack_segments(lengths, placement_.device);
  }
  // Dropout and noise of this batch, switched on.
  Draw dice() const {
    return {.seed = 11, .step = 3, .side = 0, .row0 = placement_.first_row, .train = true};
  }

  // The leaves, for those who walk them.
  struct Leaf {
    Tensor view, whole;  // the same unless embedded
    Origin origin = Origin::fixed;
    std::vector<double> values;
  };
  std::map<std::string, Leaf>& leaves() { return leaves_; }
  void set(Leaf& leaf, std::size_t element, double value) const;
  // True when everything around the embedded leaves is as it was: NaN data, zero or untouched
  // gradient.
  bool surroundings_intact(std::string* broken) const;

 private:
  Tensor leaf(const std::string& name, const Shape& shape, Values values, Origin origin,
              bool may_embed = true);

  Placement placement_;
  Sizes sizes_;
  std::map<std::string, Leaf> leaves_;
};

// Numbers for any tensor, as leaves get them.
std::vector<double> numbers(const std::string& name, const Shape& shape, Values values,
                            Index first_row);
Tensor tensor_of(const std::vector<double>& values, const Shape& shape, DType dtype, Device device);
// Elements as double: exact for f32 and f64, so equality of the result is equality of bits.
std::vector<double> elements(const Tensor& x);

}  // namespace moe::testing
