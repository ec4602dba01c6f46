// Sizes. A tensor is a stack of rows: dimension 0 counts rows, the rest multiplies to columns.
#pragma once

#include "runtime/error.h"

#include <array>
#include <cstdint>
#include <initializer_list>

namespace moe {

using Index = std::int64_t;  // 10 M x 768 rows pass 2^31

class Shape {
 public:
  static constexpr int max_rank = 4;

  Shape() = default;  // rank 0, size 0: an absent tensor
  Shape(std::initializer_list<Index> dims) {
    check(dims.size() <= max_rank, "a shape has at most {} dimensions, got {}", max_rank,
          dims.size());
    for (Index d : dims) push(d);
  }
  void push(Index dim) {
    check(rank_ < max_rank, "a shape has at most {} dimensions", max_rank);
    check(dim >= 0, "a dimension cannot be negative: {}", dim);
    check(dim == 0 || product_ <= max_size / dim, "a shape of over 2^62 elements");
    dims_[static_cast<std::size_t>(rank_++)] = dim;
    product_ *= dim == 0 ? 1 : dim;
  }

  int rank() const { return rank_; }
  Index operator[](int i) const { return dims_[static_cast<std::size_t>(i)]; }
  Index rows() const { return rank_ == 0 ? 0 : dims_[0]; }
  Index cols() const {
    Index n = rank_ == 0 ? 0 : 1;
    for (int i = 1; i < rank_; ++i) n *= (*this)[i];
    return n;
  }
  Index size() const { return rows() * cols(); }
  bool operator==(const Shape& other) const = default;

 private:
  static constexpr Index max_size = Index{1} << 62;
  std::array<Index, max_rank> dims_{};
  int rank_ = 0;
  Index product_ = 1;
};

}  // namespace moe

template <>
struct fmt::formatter<moe::Shape> : fmt::formatter<std::string> {
  auto format(const moe::Shape& shape, fmt::format_context& context) const {
    std::string text = "(";
    for (int i = 0; i < shape.rank(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
    return fmt::formatter<std::string>::format(text + ")", context);
  }
};
