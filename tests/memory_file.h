// A TensorFile made in memory, as a reader would have made it from a checkpoint.
#pragma once

#include "runtime/tensor_file.h"

#include <cstring>

namespace moe::testing {

// Values of T under a name; the entry owns its bytes.
template <class T>
TensorEntry entry_of(const std::vector<T>& values, std::vector<Index> shape,
                     const std::string& file) {
  auto owner = std::make_shared<std::vector<T>>(values);
  const char* type = std::is_same_v<T, double>         ? "F64"
                     : std::is_same_v<T, float>        ? "F32"
                     : std::is_same_v<T, std::int64_t> ? "I64"
                                                       : "I32";
  return {type,
          std::move(shape),
          reinterpret_cast<const std::byte*>(owner->data()),
          values.size() * sizeof(T),
          owner,
          file};
}

inline TensorFile memory_file(const std::vector<NamedTensor>& tensors,
                              const std::string& name = "memory") {
  TensorFile file;
  file.source = name;
  for (const NamedTensor& one : tensors) {
    std::vector<Index> shape;
    for (int i = 0; i < one.tensor.shape().rank(); ++i) shape.push_back(one.tensor.shape()[i]);
    switch (one.tensor.dtype()) {
      case DType::f64:
        file.tensors[one.name] = entry_of(to_host<double>(one.tensor), shape, name);
        break;
      case DType::i64:
        file.tensors[one.name] = entry_of(to_host<std::int64_t>(one.tensor), shape, name);
        break;
      default:
        file.tensors[one.name] = entry_of(to_host<float>(one.tensor), shape, name);
    }
  }
  return file;
}

}  // namespace moe::testing
