// A model folder's weights (one file, or shards under an index) and the step from file entries to
// tensors.
#include "runtime/tensor_file.h"

#include "runtime/bytes.h"
#include "runtime/file.h"
#include "runtime/strict_json.h"

#include <nlohmann/json.hpp>

#include <set>
#include <utility>

namespace moe {

namespace {

constexpr std::size_t largest_index = 100'000'000, most_shards = 10'000;

using Reader = TensorFile (*)(const std::string&);

// {"metadata": {...}, "weight_map": {tensor: file, ...}}: every named tensor must be in its file,
// none in two files. metadata.total_size is not compared: published indexes count tied weights
// differently.
TensorFile read_sharded(const std::string& directory, const std::string& index, Reader read) {
  std::string path = directory + "/" + index;
  nlohmann::json root = parse_json(read_text_file(path, largest_index), path);
  auto map = root.find("weight_map");
  if (!root.is_object() || map == root.end() || !map->is_object())
    fail(Fault::bad_data, "{}: no \"weight_map\" from tensors to files.\nDownload the index again.",
         path);

  std::set<std::string> shards;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string() || !plain_file_name(file.get_ref<const std::string&>()))
      fail(Fault::bad_data, "{}: tensor {} stands in {}, which is not a plain file name.", path,
           in_quotes(name),
           in_quotes(file.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)));
    shards.insert(file.get<std::string>());
    if (shards.size() > most_shards) fail(Fault::bad_data, "{}: over {} files.", path, most_shards);
  }

  TensorFile all;
  all.source = path;
  for (const std::string& shard : shards) {
    std::string shard_path = directory + "/" + shard;
    if (!file_exists(shard_path))
      fail(Fault::missing_input, "{} is not there, but {} names it.\nDownload the missing file.",
           shard_path, path);
    TensorFile part = read(shard_path);
    all.metadata.merge(part.metadata);
    for (auto& [name, entry] : part.tensors) {
      auto found = map->find(name);
      if (found != map->end() && *found != shard)
        fail(Fault::bad_data, "{}: tensor {} stands in {}, but also in {}.", path, in_quotes(name),
             in_quotes(found->get<std::string>()), in_quotes(shard));
      auto [at, fresh] = all.tensors.try_emplace(name, std::move(entry));
      if (!fresh)
        fail(Fault::bad_data, "{}: tensor {} is in two files: {} and {}.", path, in_quotes(name),
             at->second.file, shard_path);
    }
  }
  for (const auto& [name, file] : map->items())
    if (all.tensors.find(name) == all.tensors.end())
      fail(Fault::bad_data,
           "{}: tensor {} is not in {}.\nThe shards belong to another index; download them again.",
           path, in_quotes(name), in_quotes(file.get<std::string>()));
  return all;
}

// The target must hold the value: integers in range, floats never to integers.
template <class To, class From>
To converted(From value, bool* fits) {
  if constexpr (std::is_same_v<To, bf16>) {
    return bf16(static_cast<float>(value));
  } else if constexpr (std::is_floating_point_v<To>) {
    return static_cast<To>(value);
  } else if constexpr (std::is_integral_v<From>) {
    if (!std::in_range<To>(value)) *fits = false;
    return static_cast<To>(value);
  } else {
    *fits = false;
    return To{};
  }
}

template <class To, class Stored, class Decode>
bool convert_all(const TensorEntry& entry, To* to, const Decode& decode) {
  bool fits = true;
  std::size_t count = entry.bytes / sizeof(Stored);
  for (std::size_t i = 0; i < count; ++i)
    to[i] = converted<To>(decode(load_little<Stored>(entry.data + i * sizeof(Stored))), &fits);
  return fits;
}

// False when a value does not fit. entry.data may be unaligned; `to` has room for entry's elements.
template <class To>
bool convert(const TensorEntry& entry, To* to) {
  auto same = [](auto value) { return value; };
  const std::string& from = entry.dtype;
  if (from == "F32") return convert_all<To, float>(entry, to, same);
  if (from == "F16") return convert_all<To, std::uint16_t>(entry, to, half_to_float);
  if (from == "BF16")
    return convert_all<To, bf16>(entry, to, [](bf16 value) { return static_cast<float>(value); });
  if (from == "F64") return convert_all<To, double>(entry, to, same);
  if (from == "I64") return convert_all<To, std::int64_t>(entry, to, same);
  if (from == "I32") return convert_all<To, std::int32_t>(entry, to, same);
  if (from == "I16") return convert_all<To, std::int16_t>(entry, to, same);
  if (from == "I8") return convert_all<To, std::int8_t>(entry, to, same);
  if (from == "U8") return convert_all<To, std::uint8_t>(entry, to, same);
  return false;
}

bool convert_to(DType dtype, const TensorEntry& entry, void* to) {
  switch (dtype) {
    case DType::f32:
      return convert(entry, static_cast<float*>(to));
    case DType::bf16:
      return convert(entry, static_cast<bf16*>(to));
    case DType::f64:
      return convert(entry, static_cast<double*>(to));
    case DType::i32:
      return convert(entry, static_cast<std::int32_t*>(to));
    case DType::i64:
      return convert(entry, static_cast<std::int64_t*>(to));
    case DType::u8:
      return convert(entry, static_cast<std::uint8_t*>(to));
    case DType::i8:
      return convert(entry, static_cast<std::int8_t*>(to));
  }
  return false;
}

std::size_t stored_element(std::string_view dtype) {
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16") return 2;
  return dtype == "I8" || dtype == "U8" ? 1 : 0;
}

bool stored_as(std::string_view file_type, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return file_type == "F32";
    case DType::bf16:
      return file_type == "BF16";
    case DType::f64:
      return file_type == "F64";
    case DType::i32:
      return file_type == "I32";
    case DType::i64:
      return file_type == "I64";
    case DType::u8:
      return file_type == "U8";
    case DType::i8:
      return file_type == "I8";
  }
  return false;
}

// A scalar of rank 0 becomes one row of one element: our rank 0 means "absent".
Shape shape_of(const std::string& name, const TensorEntry& entry) {
  if (entry.shape.size() > Shape::max_rank)
    fail(Fault::bad_data, "{}: tensor {} has {} dimensions; at most {} are supported.", entry.file,
         in_quotes(name), entry.shape.size(), Shape::max_rank);
  Shape shape;
  for (Index dim : entry.shape) shape.push(dim);
  if (entry.shape.empty()) shape.push(1);
  return shape;
}

}  // namespace

TensorFile read_model_weights(const std::string& directory, std::string* chosen) {
  struct Candidate {
    const char* file;
    Reader read;
    bool index;
  };
  constexpr Candidate candidates[] = {
      {"model.safetensors", read_safetensors, false},
      {"model.safetensors.index.json", read_safetensors, true},
      {"pytorch_model.bin", read_pytorch_bin, false},
      {"pytorch_model.bin.index.json", read_pytorch_bin, true},
  };
  const Candidate* taken = nullptr;
  std::string passed_over;
  for (const Candidate& candidate : candidates) {
    if (!file_exists(directory + "/" + candidate.file)) continue;
    if (taken == nullptr)
      taken = &candidate;
    else
      passed_over += (passed_over.empty() ? "" : ", ") + std::string(candidate.file);
  }
  if (taken == nullptr)
    fail(Fault::missing_input,
         "{}: no weights there.\nExpected model.safetensors, its index with shards, or "
         "pytorch_model.bin.",
         in_quotes(directory));
  if (chosen != nullptr) {
    *chosen = directory + "/" + taken->file;
    if (!passed_over.empty()) *chosen += " (preferred to " + passed_over + ")";
  }
  return taken->index ? read_sharded(directory, taken->file, taken->read)
                      : taken->read(directory + "/" + taken->file);
}

Tensor to_tensor(const std::string& name, const TensorEntry& entry, DType dtype, Device device) {
  Shape shape = shape_of(name, entry);
  std::size_t element = stored_element(entry.dtype);
  if (element == 0)
    fail(Fault::bad_data,
         "{}: tensor {} is {}, which nothing here computes with.\nConvert it to F32 first.",
         entry.file, in_quotes(name), entry.dtype);
  check(entry.bytes == static_cast<std::size_t>(shape.size()) * element,
        "{}: tensor {} {} has {} bytes of {}", entry.file, in_quotes(name), shape, entry.bytes,
        entry.dtype);

  bool same = stored_as(entry.dtype, dtype);
  bool aligned = reinterpret_cast<std::uintptr_t>(entry.data) % element == 0;
  bool mappable = device == Device::cpu || device == Device::reference;
  if (same && aligned && mappable && entry.owner != nullptr && entry.bytes > 0) {
    auto buffer = std::make_shared<Buffer>(entry.data, entry.bytes, entry.owner);
    auto storage =
        std::make_shared<Storage>(Storage{dtype, device, std::move(buffer), nullptr, {}});
    return {shape, std::move(storage), 0, shape.cols()};
  }

  Tensor x = empty(shape, dtype, device);
  if (entry.bytes == 0) return x;
  void* to = x.storage()->buffer->data();
  const Backend& b = backend(device);
  if (same) {
    b.upload(to, entry.data, entry.bytes);
    return x;
  }
  std::vector<double> staging;  // aligned for every type
  std::size_t bytes = static_cast<std::size_t>(shape.size()) * size_of(dtype);
  if (!b.host_memory) staging.resize((bytes + sizeof(double) - 1) / sizeof(double));
  if (!convert_to(dtype, entry, b.host_memory ? to : staging.data()))
    fail(Fault::bad_data, "{}: tensor {} is {} and does not fit {}: {}.", entry.file,
         in_quotes(name), entry.dtype, dtype,
         entry.dtype[0] == 'I' || entry.dtype[0] == 'U' ? "a value is out of range"
                                                        : "fractions would be lost");
  if (!b.host_memory) b.upload(to, staging.data(), bytes);
  return x;
}

}  // namespace moe
