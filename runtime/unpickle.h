// Pickle as data: an interpreter of the opcodes that torch.save emits (protocol 2), which knows a
// handful of names and calls nothing. Values live in one array and refer to each other by index, so
// hostile nesting cannot exhaust the stack, neither here nor when they are freed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

struct PickleValue {
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    real,
    text,
    list,
    tuple,
    dict,
    global,
    storage,
    tensor
  };
  Kind kind = Kind::none;
  std::int64_t number = 0;  // boolean, integer; index of a global, storage or tensor
  std::string text;
  std::vector<std::uint32_t> items;  // list, tuple: elements; dict: key, value, key, value, ...
};

// torch.FloatStorage and its sisters: what they are called in a file of tensors, and bytes per
// element.
struct StorageType {
  std::string_view global, dtype;
  std::size_t bytes;
};

struct PickledStorage {
  const StorageType* type = nullptr;
  std::string key;  // the zip entry data/KEY
  std::uint64_t elements = 0;
};

struct PickledTensor {  // a strided view of a storage, in elements; not yet checked against it
  std::uint32_t storage = 0;
  std::uint64_t offset = 0;
  std::vector<std::int64_t> sizes, strides;
};

struct Unpickled {
  std::vector<PickleValue> values;
  std::vector<PickledStorage> storages;
  std::vector<PickledTensor> tensors;
  std::uint32_t root = 0;

  const PickleValue& at(std::uint32_t index) const { return values[index]; }
};

// `source` names the file in messages. Throws bad_data naming opcode and position.
Unpickled unpickle(std::span<const std::byte> bytes, const std::string& source);

}  // namespace moe
