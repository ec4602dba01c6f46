// A set of named tensors from one or several files, before they become Tensors: what a safetensors
// file, a sharded index and a pytorch_model.bin all read into.
#pragma once

#include "runtime/tensor.h"

#include <map>
#include <string>
#include <vector>

namespace moe {

struct TensorEntry {
  std::string dtype;         // the file's name for it: "F32", "BF16", "F16", "I64", "F8_E4M3", ...
  std::vector<Index> shape;  // any rank: ours are checked on use
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::shared_ptr<const void> owner;  // keeps `data` alive
  std::string file;                   // for messages
};

struct TensorFile {
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
  std::string source;  // path, for messages
};

// safetensors.cc. Every validity rule of the format is checked before a tensor is handed out.
TensorFile read_safetensors(const std::string& path);

struct NamedTensor {
  std::string name;
  Tensor tensor;
  std::vector<Index> shape;  // empty: the tensor's own
};
// Atomic and durable. Tensors by descending alignment, then name; header padded to 8 bytes.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

// pickle.cc: a strict reader of torch's zip + pickle files (torch >= 1.6); executes nothing.
TensorFile read_pytorch_bin(const std::string& path);

// tensor_file.cc: what stands in a model folder: model.safetensors, its sharded index,
// pytorch_model.bin or its index, in this order. `chosen` names the file taken, for people.
TensorFile read_model_weights(const std::string& directory, std::string* chosen = nullptr);

// The entry as a tensor of `dtype` (f32, f64, bf16, i64, i32): mapped without a copy when the
// file's type and alignment allow and the device is host memory, else converted or uploaded. Throws
// naming file and tensor when it cannot.
Tensor to_tensor(const std::string& name, const TensorEntry& entry, DType dtype, Device device);

}  // namespace moe
