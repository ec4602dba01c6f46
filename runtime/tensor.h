// A tensor is a stack of rows: row-major, at most four dims, one row stride. No permute, no
// broadcasting, no in-place ops. A handle, copied freely; an empty one means "absent".
//
// The gradient belongs to the storage: a view's gradient is the same view of it, and kernels add
// into it, so slices, fan-out and accumulation need no code. Untouched means zero and costs
// nothing.
#pragma once

#include "runtime/memory.h"

#include <memory>
#include <span>
#include <vector>

namespace moe {

// Where the gradient of one storage accumulates. An object of its own, so that the tape can hold it
// without holding the data.
struct Gradient {
  DType dtype;
  Device device;
  Index elements;
  bool touched = false;
  std::shared_ptr<Buffer> buffer;  // made at first touch, kept across clears

  void* touch();                // buffer, zero-filled if it was untouched
  void* touch_for_overwrite();  // buffer, contents undefined if it was untouched
  void clear() { touched = false; }
};

// A weight in the layout a backend's GEMM wants, made at first use and dropped by mut().
struct PackedForm {
  Index offset, rows, cols, groups;
  Packing packing;
  std::shared_ptr<Buffer> buffer;
};

struct Storage {
  DType dtype;
  Device device;
  std::shared_ptr<Buffer> buffer;
  std::shared_ptr<Gradient> gradient;  // null: needs none
  std::vector<PackedForm> packed;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(Shape shape, std::shared_ptr<Storage> storage, Index offset, Index ld);

  explicit operator bool() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  Index rows() const { return shape_.rows(); }
  Index cols() const { return shape_.cols(); }
  Index size() const { return shape_.size(); }
  Index ld() const { return ld_; }
  Index offset() const { return offset_; }
  DType dtype() const { return storage_->dtype; }
  Device device() const { return storage_->device; }
  bool contiguous() const { return ld_ == cols() || rows() <= 1; }
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  // Who reads, who writes: visible at the call. Both check the dtype. mut() drops packed forms and
  // copies a read-only (mapped) buffer first.
  template <class T>
  const T* data() const {
    return static_cast<const T*>(read(dtype_of<T>));
  }
  template <class T>
  T* mut() const {
    return static_cast<T*>(write(dtype_of<T>));
  }
  template <class T>
  Rows<const T> view() const {
    return {data<T>(), rows(), cols(), ld_};
  }
  template <class T>
  Rows<T> mut_view() const {
    return {mut<T>(), rows(), cols(), ld_};
  }

  // Views, free. They share storage and gradient.
  Tensor slice_rows(Index begin, Index end) const;
  Tensor slice_cols(Index begin, Index end) const;
  Tensor reshape(Shape shape) const;  // contiguous, or the first dimension kept
  Tensor detach() const;              // same data, no gradient

  // True when backward will be asked for this tensor's gradient.
  bool needs_grad() const { return storage_ && storage_->gradient; }
  void require_grad() const;  // makes it a leaf; parameters are
  // The gradient as a tensor of this shape, or an empty tensor when untouched.
  Tensor grad() const;

 private:
  const void* read(DType dtype) const;
  void* write(DType dtype) const;

  Shape shape_;
  Index offset_ = 0, ld_ = 0;
  std::shared_ptr<Storage> storage_;
};

Tensor empty(const Shape& shape, DType dtype, Device device);
Tensor zeros(const Shape& shape, DType dtype, Device device);
Tensor full(const Shape& shape, DType dtype, Device device, double value);  // f32 or f64
inline Tensor empty_like(const Tensor& x) {
  return empty(x.shape(), x.dtype(), x.device());
}

// Host copies. from_host checks the count; to_host makes strided views dense.
template <class T>
Tensor from_host(std::span<const T> values, const Shape& shape, Device device);
template <class T>
Tensor from_host(const std::vector<T>& values, const Shape& shape, Device device) {
  return from_host(std::span<const T>(values), shape, device);
}
template <class T>
std::vector<T> to_host(const Tensor& x);
// The single element of a scalar, as double.
double item(const Tensor& x);

// Backward access: the rows of x's gradient to add into; empty when x is absent or needs none.
template <class T>
Rows<T> grad(const Tensor& x) {
  if (!x.needs_grad()) return {};
  Gradient& g = *x.storage()->gradient;
  check(g.dtype == dtype_of<T>, "gradient is {}, the kernel adds {}: cast the input first", g.dtype,
        dtype_of<T>);
  return {static_cast<T*>(g.touch()) + x.offset(), x.rows(), x.cols(), x.ld()};
}
// The same, for the first writer of a whole storage: beta 0 spares the zero-fill.
template <class T>
struct GradTarget {
  Rows<T> rows;
  double beta = 1;
};
template <class T>
GradTarget<T> grad_target(const Tensor& x) {
  if (!x.needs_grad()) return {};
  Gradient& g = *x.storage()->gradient;
  bool first = !g.touched && x.size() == g.elements;
  if (!first) return {grad<T>(x), 1.0};
  check(g.dtype == dtype_of<T>, "gradient is {}, the kernel adds {}: cast the input first", g.dtype,
        dtype_of<T>);
  return {{static_cast<T*>(g.touch_for_overwrite()), x.rows(), x.cols(), x.ld()}, 0.0};
}

// Calls f.operator()<T>(kernels) for the tensor's dtype and device.
template <class F>
void with_type(const Tensor& x, F&& f) {
  const Backend& b = backend(x.device());
  switch (x.dtype()) {
    case DType::f32:
      f.template operator()<float>(b.kernels<float>());
      return;
    case DType::f64:
      f.template operator()<double>(b.kernels<double>());
      return;
    default:
      fail(Fault::usage, "no op computes in {}", x.dtype());
  }
}

}  // namespace moe
