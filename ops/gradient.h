// What a closure holds of an input it does not read: the gradient and the view, without the data.
#pragma once

#include "runtime/tape.h"

namespace moe {

struct GradientView {
  std::shared_ptr<Gradient> gradient;
  Index offset = 0, count = 0, cols = 0, ld = 0;

  explicit operator bool() const { return gradient != nullptr; }
  template <class T>
  Rows<T> rows() const {
    if (!gradient) return {};
    check(gradient->dtype == dtype_of<T>,
          "gradient is {}, the kernel adds {}: cast the input first", gradient->dtype, dtype_of<T>);
    return {static_cast<T*>(gradient->touch()) + offset, count, cols, ld};
  }
};

inline GradientView gradient_of(const Tensor& x) {
  if (!x.needs_grad()) return {};
  return {x.storage()->gradient, x.offset(), x.rows(), x.cols(), x.ld()};
}

}  // namespace moe
