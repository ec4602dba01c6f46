#include "runtime/tensor.h"

#include <cstring>

namespace moe {

void* Gradient::touch() {
  bool first = !touched;
  void* memory = touch_for_overwrite();
  if (first) backend(device).zero(memory, static_cast<std::size_t>(elements) * size_of(dtype));
  return memory;
}

void* Gradient::touch_for_overwrite() {
  touched = true;
  if (!buffer)
    buffer = std::make_shared<Buffer>(device, static_cast<std::size_t>(elements) * size_of(dtype));
  return buffer->data();
}

Tensor::Tensor(Shape shape, std::shared_ptr<Storage> storage, Index offset, Index ld)
    : shape_(shape), offset_(offset), ld_(ld), storage_(std::move(storage)) {}

const void* Tensor::read(DType dtype) const {
  check(storage_ != nullptr, "an absent tensor was read");
  check(storage_->dtype == dtype, "a {} tensor was read as {}", storage_->dtype, dtype);
  return static_cast<const std::byte*>(storage_->buffer->data()) +
         static_cast<std::size_t>(offset_) * size_of(dtype);
}

void* Tensor::write(DType dtype) const {
  check(storage_ != nullptr, "an absent tensor was written");
  check(storage_->dtype == dtype, "a {} tensor was written as {}", storage_->dtype, dtype);
  storage_->packed.clear();
  if (storage_->buffer->read_only()) {
    auto own = std::make_shared<Buffer>(storage_->device, storage_->buffer->bytes());
    std::memcpy(own->data(), storage_->buffer->data(), own->bytes());
    storage_->buffer = std::move(own);
  }
  return static_cast<std::byte*>(storage_->buffer->data()) +
         static_cast<std::size_t>(offset_) * size_of(dtype);
}

Tensor Tensor::slice_rows(Index begin, Index end) const {
  check(0 <= begin && begin <= end && end <= rows(), "slice_rows: {}..{} is outside {}", begin, end,
        shape_);
  Shape shape{end - begin};
  for (int i = 1; i < shape_.rank(); ++i) shape.push(shape_[i]);
  return {shape, storage_, offset_ + begin * ld_, ld_};
}

Tensor Tensor::slice_cols(Index begin, Index end) const {
  check(0 <= begin && begin <= end && end <= cols(), "slice_cols: {}..{} is outside {}", begin, end,
        shape_);
  return {{rows(), end - begin}, storage_, offset_ + begin, ld_};
}

Tensor Tensor::reshape(Shape shape) const {
  check(shape.size() == size(), "reshape: {} does not hold the elements of {}", shape, shape_);
  bool same_rows = shape.rows() == rows();
  check(contiguous() || same_rows, "reshape: {} is a strided view", shape_);
  return {shape, storage_, offset_, same_rows ? ld_ : shape.cols()};
}

Tensor Tensor::detach() const {
  auto storage = std::make_shared<Storage>(
      Storage{storage_->dtype, storage_->device, storage_->buffer, nullptr, {}});
  return {shape_, std::move(storage), offset_, ld_};
}

void Tensor::require_grad() const {
  if (storage_->gradient) return;
  Index elements = static_cast<Index>(storage_->buffer->bytes() / size_of(storage_->dtype));
  storage_->gradient = std::make_shared<Gradient>(
      Gradient{storage_->dtype, storage_->device, elements, false, nullptr});
}

Tensor Tensor::grad() const {
  if (!needs_grad() || !storage_->gradient->touched) return {};
  const Gradient& g = *storage_->gradient;
  auto storage = std::make_shared<Storage>(Storage{g.dtype, g.device, g.buffer, nullptr, {}});
  return {shape_, std::move(storage), offset_, ld_};
}

Tensor empty(const Shape& shape, DType dtype, Device device) {
  auto buffer =
      std::make_shared<Buffer>(device, static_cast<std::size_t>(shape.size()) * size_of(dtype));
  auto storage = std::make_shared<Storage>(Storage{dtype, device, std::move(buffer), nullptr, {}});
  return {shape, std::move(storage), 0, shape.cols()};
}

Tensor zeros(const Shape& shape, DType dtype, Device device) {
  Tensor x = empty(shape, dtype, device);
  backend(device).zero(x.storage()->buffer->data(), x.storage()->buffer->bytes());
  return x;
}

Tensor full(const Shape& shape, DType dtype, Device device, double value) {
  std::size_t n = static_cast<std::size_t>(shape.size());
  if (dtype == DType::f64) return from_host(std::vector<double>(n, value), shape, device);
  check(dtype == DType::f32, "full: no fill for {}", dtype);
  return from_host(std::vector<float>(n, static_cast<float>(value)), shape, device);
}

template <class T>
Tensor from_host(std::span<const T> values, const Shape& shape, Device device) {
  check(static_cast<Index>(values.size()) == shape.size(), "{} values do not fill the shape {}",
        values.size(), shape);
  Tensor x = empty(shape, dtype_of<T>, device);
  backend(device).upload(x.mut<T>(), values.data(), values.size_bytes());
  return x;
}

template <class T>
std::vector<T> to_host(const Tensor& x) {
  std::vector<T> values(static_cast<std::size_t>(x.size()));
  const Backend& b = backend(x.device());
  const T* from = x.data<T>();
  std::size_t row = static_cast<std::size_t>(x.cols()) * sizeof(T);
  if (x.contiguous()) {
    b.download(values.data(), from, values.size() * sizeof(T));
  } else {
    for (Index r = 0; r < x.rows(); ++r)
      b.download(values.data() + r * x.cols(), from + r * x.ld(), row);
  }
  return values;
}

double item(const Tensor& x) {
  check(x.size() == 1, "item: {} is not one element", x.shape());
  return x.dtype() == DType::f64 ? to_host<double>(x)[0]
                                 : static_cast<double>(to_host<float>(x)[0]);
}

template Tensor from_host(std::span<const float>, const Shape&, Device);
template Tensor from_host(std::span<const double>, const Shape&, Device);
template Tensor from_host(std::span<const std::int32_t>, const Shape&, Device);
template Tensor from_host(std::span<const std::int64_t>, const Shape&, Device);
template Tensor from_host(std::span<const std::uint8_t>, const Shape&, Device);
template std::vector<float> to_host(const Tensor&);
template std::vector<double> to_host(const Tensor&);
template std::vector<std::int32_t> to_host(const Tensor&);
template std::vector<std::int64_t> to_host(const Tensor&);
template std::vector<std::uint8_t> to_host(const Tensor&);

}  // namespace moe
