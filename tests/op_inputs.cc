#include "tests/op_inputs.h"

#include <cmath>
#include <limits>

namespace moe::testing {

namespace {

constexpr Index before_rows = 2, after_rows = 1, before_cols = 3, after_cols = 2;

double number(std::uint32_t word, Values values) {
  double u = unit_real(word);
  switch (values) {
    case Values::uniform:
      return 2 * u - 1;  // 24 bits: exact in float
    case Values::apart: {
      double away = static_cast<double>(static_cast<float>(0.1 + 0.9 * u));
      return (word & 1u) != 0 ? -away : away;
    }
    case Values::positive:
      return static_cast<double>(static_cast<float>(0.05 + u));
  }
  return 0;
}

// The shape of the storage around a view of this shape.
Shape surrounding(const Shape& shape) {
  Shape larger{before_rows + shape.rows() + after_rows};
  if (shape.rank() == 2) larger.push(before_cols + shape.cols() + after_cols);
  for (int i = 1; shape.rank() > 2 && i < shape.rank(); ++i) larger.push(shape[i]);
  return larger;
}

Tensor inner(const Tensor& whole, const Shape& shape) {
  Tensor rows = whole.slice_rows(before_rows, before_rows + shape.rows());
  return shape.rank() == 2 ? rows.slice_cols(before_cols, before_cols + shape.cols()) : rows;
}

}  // namespace

std::string describe(const Sizes& s) {
  std::string text = fmt::format("rows {} cols {} out {} experts {} choices {}", s.rows, s.cols,
                                 s.out, s.experts, s.choices);
  if (!s.lengths.empty()) text += fmt::format(" lengths {}", fmt::join(s.lengths, ","));
  if (!s.key_lengths.empty()) text += fmt::format(" key lengths {}", fmt::join(s.key_lengths, ","));
  return text;
}

std::vector<double> numbers(const std::string& name, const Shape& shape, Values values,
                            Index first_row) {
  Draw draw{.seed = 7};
  Dice dice = draw.dice(stream_hash(name));
  std::vector<double> list;
  list.reserve(static_cast<std::size_t>(shape.size()));
  for (Index r = 0; r < shape.rows(); ++r)
    for (Index c = 0; c < shape.cols(); ++c)
      list.push_back(number(dice.word(first_row + r, c), values));
  return list;
}

Tensor tensor_of(const std::vector<double>& values, const Shape& shape, DType dtype,
                 Device device) {
  if (dtype == DType::f64) return from_host(values, shape, device);
  return from_host(std::vector<float>(values.begin(), values.end()), shape, device);
}

std::vector<double> elements(const Tensor& x) {
  if (x.dtype() == DType::f64) return to_host<double>(x);
  if (x.dtype() == DType::i32) {
    auto values = to_host<std::int32_t>(x);
    return {values.begin(), values.end()};
  }
  auto values = to_host<float>(x);
  return {values.begin(), values.end()};
}

Tensor Inputs::leaf(const std::string& name, const Shape& shape, Values values, Origin origin,
                    bool may_embed) {
  if (auto at = leaves_.find(name); at != leaves_.end()) return at->second.view;
  Index first = origin == Origin::rows   ? placement_.first_row
                : origin == Origin::keys ? placement_.first_key_row
                                         : 0;
  Leaf made;
  made.origin = origin;
  made.values = numbers(name, shape, values, first);
  if (placement_.embedded && may_embed) {
    Shape larger = surrounding(shape);
    made.whole =
        full(larger, placement_.dtype, placement_.device, std::numeric_limits<double>::quiet_NaN());
    made.view = inner(made.whole, shape);
  } else {
    made.whole = made.view = empty(shape, placement_.dtype, placement_.device);
  }
  for (std::size_t i = 0; i < made.values.size(); ++i) set(made, i, made.values[i]);
  if (name != placement_.frozen) made.view.require_grad();
  return leaves_.emplace(name, made).first->second.view;
}

Tensor Inputs::constant(const std::string& name, const Shape& shape) {
  return tensor_of(numbers(name, shape, Values::uniform, placement_.first_row), shape,
                   placement_.dtype, placement_.device);
}

std::vector<std::int32_t> Inputs::draw(const std::string& name, Index count, Index limit) const {
  Draw draw{.seed = 7};
  Dice dice = draw.dice(stream_hash(name));
  std::vector<std::int32_t> list;
  for (Index i = 0; i < count; ++i)
    list.push_back(static_cast<std::int32_t>(dice.word(placement_.first_row + i, 0) %
                                             static_cast<std::uint32_t>(limit)));
  return list;
}

void Inputs::set(Leaf& leaf, std::size_t element, double value) const {
  Index i = static_cast<Index>(element), cols = leaf.view.cols();
  Index at = i / cols * leaf.view.ld() + i % cols;
  const Backend& b = backend(leaf.view.device());
  if (leaf.view.dtype() == DType::f64) {
    b.upload(leaf.view.mut<double>() + at, &value, sizeof(value));
  } else {
    float single = static_cast<float>(value);
    b.upload(leaf.view.mut<float>() + at, &single, sizeof(single));
  }
}

bool Inputs::surroundings_intact(std::string* broken) const {
  for (const auto& [name, leaf] : leaves_) {
    if (leaf.whole.size() == leaf.view.size()) continue;
    std::vector<double> data = elements(leaf.whole);
    std::vector<double> gradient =
        leaf.whole.grad() ? elements(leaf.whole.grad()) : std::vector<double>(data.size(), 0.0);
    Index offset = leaf.view.offset(), ld = leaf.view.ld();
    for (std::size_t i = 0; i < data.size(); ++i) {
      Index from = static_cast<Index>(i) - offset;
      bool inside = from >= 0 && from / ld < leaf.view.rows() && from % ld < leaf.view.cols();
      if (inside || (std::isnan(data[i]) && gradient[i] == 0)) continue;
      *broken =
          fmt::format("{} at element {}: data {}, gradient {}", name, i, data[i], gradient[i]);
      return false;
    }
  }
  return true;
}

}  // namespace moe::testing
