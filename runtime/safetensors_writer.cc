// Writes what safetensors.cc reads. The order of the reference writer: descending alignment, then
// name, so every tensor is aligned to its elements and equal contents give equal files. Unlike it,
// we fsync (AtomicFile).
#include "runtime/bytes.h"
#include "runtime/file.h"
#include "runtime/tensor_file.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>
#include <tuple>

namespace moe {

namespace {

void write_elements(AtomicFile& file, const Tensor& x) {
  const Backend& b = backend(x.device());
  std::size_t element = size_of(x.dtype()), row = static_cast<std::size_t>(x.cols()) * element,
              stride = static_cast<std::size_t>(x.ld()) * element;
  const std::byte* from = static_cast<const std::byte*>(x.storage()->buffer->data()) +
                          static_cast<std::size_t>(x.offset()) * element;
  std::size_t bytes = row * static_cast<std::size_t>(x.rows());
  if (bytes == 0) return;
  if (x.contiguous() && b.host_memory) return file.write(from, bytes);
  constexpr std::size_t piece = 4 << 20;
  Index step = static_cast<Index>(std::max<std::size_t>(1, piece / row));
  std::vector<std::byte> dense;
  for (Index r = 0; r < x.rows(); r += step) {
    Index count = std::min(step, x.rows() - r);
    dense.resize(static_cast<std::size_t>(count) * row);
    if (x.contiguous())
      b.download(dense.data(), from + static_cast<std::size_t>(r) * row, dense.size());
    else
      for (Index i = 0; i < count; ++i)
        b.download(dense.data() + static_cast<std::size_t>(i) * row,
                   from + static_cast<std::size_t>(r + i) * stride, row);
    file.write(dense.data(), dense.size());
  }
}

const char* file_name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f64:
      return "F64";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
    case DType::u8:
      return "U8";
    case DType::i8:
      return "I8";
  }
  return "?";
}

std::string json_text(const std::string& path, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(Fault::usage, "{}: {} is not UTF-8 and cannot be written", path, in_quotes(text));
  }
}

std::vector<Index> written_shape(const std::string& path, const NamedTensor& named) {
  std::vector<Index> shape = named.shape;
  const Shape& own = named.tensor.shape();
  if (shape.empty())
    for (int i = 0; i < own.rank(); ++i) shape.push_back(own[i]);
  std::uint64_t elements = 1;
  for (Index dim : shape)
    check(dim >= 0 && product_fits(elements, static_cast<std::uint64_t>(dim), &elements),
          "{}: tensor {} cannot have the dimension {}", path, in_quotes(named.name), dim);
  check(elements == static_cast<std::uint64_t>(own.size()),
        "{}: tensor {} of shape {} cannot be written with {} elements", path, in_quotes(named.name),
        own, elements);
  return shape;
}

std::string build_header(const std::string& path, const std::vector<const NamedTensor*>& order,
                         const std::map<std::string, std::string>& metadata) {
  std::string header = "{", separator;
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      header += separator + json_text(path, key) + ":" + json_text(path, value);
      separator = ",";
    }
    header += "}";
  }
  std::uint64_t begin = 0;
  for (const NamedTensor* named : order) {
    check(named->name != "__metadata__" && named->name.size() <= longest_tensor_name,
          "{}: a tensor cannot be called {}", path, in_quotes(named->name));
    std::vector<Index> shape = written_shape(path, *named);
    std::uint64_t end =
        begin + static_cast<std::uint64_t>(named->tensor.size()) * size_of(named->tensor.dtype());
    header += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          separator, json_text(path, named->name),
                          file_name_of(named->tensor.dtype()), fmt::join(shape, ","), begin, end);
    separator = ",";
    begin = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return header;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& named : tensors) {
    check(bool(named.tensor), "{}: tensor {} is absent", path, in_quotes(named.name));
    order.push_back(&named);
  }
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    std::size_t first = size_of(a->tensor.dtype()), second = size_of(b->tensor.dtype());
    return std::tie(second, a->name) < std::tie(first, b->name);
  });
  std::set<std::string_view> names;
  for (const NamedTensor& named : tensors)
    check(names.insert(named.name).second, "{}: two tensors are called {}", path,
          in_quotes(named.name));

  std::string header = build_header(path, order, metadata);
  check(header.size() <= largest_safetensors_header,
        "{}: a header of {} bytes; the format allows {}", path, header.size(),
        largest_safetensors_header);
  AtomicFile file(path);
  std::uint64_t length = header.size();
  file.write(&length, sizeof length);
  file.write(header);
  for (const NamedTensor* named : order) write_elements(file, named->tensor);
  file.commit();
}

}  // namespace moe
