// safetensors: u64 little-endian length N; N bytes of JSON {"name": {"dtype", "shape",
// "data_offsets"}, ...,
// "__metadata__": {text: text}}; data. Offsets count from the start of the data.
// Layout: https://github.com/huggingface/safetensors (README, "Format"). The header goes through
// nlohmann's event (SAX) interface, because its DOM keeps the last of two equal keys silently and
// needs ten times the header's bytes. Every rule is checked before a tensor is handed out, so a
// wrong file costs an error and nothing else.
#include "runtime/bytes.h"
#include "runtime/file.h"
#include "runtime/tensor_file.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <optional>

namespace moe {

namespace {

using Json = nlohmann::json;

constexpr std::size_t longest_metadata = 16 << 20, most_metadata = 100'000;

struct FileType {
  std::string_view name;
  unsigned bits;
};
constexpr std::array<FileType, 21> file_types{{
    {"F64", 64},        {"I64", 64},    {"U64", 64},    {"C64", 64},    {"F32", 32},
    {"I32", 32},        {"U32", 32},    {"F16", 16},    {"BF16", 16},   {"I16", 16},
    {"U16", 16},        {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I8", 8},      {"U8", 8},      {"BOOL", 8},    {"F6_E2M3", 6},
    {"F6_E3M2", 6},
}};

std::optional<unsigned> bits_of(std::string_view dtype) {
  if (dtype == "F4") return 4;
  for (const FileType& type : file_types)
    if (type.name == dtype) return type.bits;
  return std::nullopt;
}

struct Described {
  std::string dtype;
  std::vector<Index> shape;
  std::vector<std::uint64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Depth 1: tensor names. Depth 2: the fields of one tensor, or the metadata. Depth 3: the two lists
// of numbers.
class HeaderEvents {
 public:
  explicit HeaderEvents(const std::string& path) : path_(path) {}

  std::map<std::string, Described> tensors;
  std::map<std::string, std::string> metadata;

  bool null() { wrong("null"); }
  bool boolean(bool) { wrong("a boolean"); }
  bool number_integer(std::int64_t value) { reject("negative number {}", value); }
  bool number_float(double, const std::string& written) {
    reject("{} is no size", in_quotes(written));
  }
  bool binary(Json::binary_t&) { wrong("binary data"); }

  bool number_unsigned(std::uint64_t value) {
    if (depth_ != 3) wrong("a number");
    if (value > largest_count) reject("{} is too large", value);
    if (field_ == Field::shape) {
      if (tensor_->shape.size() == largest_rank) reject("more than {} dimensions", largest_rank);
      tensor_->shape.push_back(static_cast<Index>(value));
    } else {
      if (tensor_->offsets.size() == 2) reject("data_offsets has more than two numbers");
      tensor_->offsets.push_back(value);
    }
    return true;
  }

  bool string(std::string& value) {
    if (depth_ != 2) wrong("a text");
    if (tensor_ == nullptr) {
      if (value.size() > longest_metadata) reject("over {} bytes long", longest_metadata);
      *text_ = std::move(value);
    } else {
      if (field_ != Field::dtype) wrong("a text");
      if (!bits_of(value)) reject("dtype {} is unknown to the format", in_quotes(value));
      tensor_->dtype = std::move(value);
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (depth_ > 1) wrong("an object");
    ++depth_;
    return true;
  }
  bool end_object() {
    --depth_;
    if (depth_ == 1 && tensor_ != nullptr) {
      if (!tensor_->has_dtype || !tensor_->has_shape || !tensor_->has_offsets)
        reject("one of dtype, shape, data_offsets is missing");
      if (tensor_->dtype.empty()) reject("dtype is not a text");
      if (tensor_->offsets.size() != 2) reject("data_offsets is not two numbers");
    }
    return true;
  }
  bool start_array(std::size_t) {
    if (depth_ != 2 || tensor_ == nullptr || field_ == Field::dtype) wrong("a list");
    ++depth_;
    return true;
  }
  bool end_array() {
    --depth_;
    return true;
  }

  bool key(std::string& name) {
    if (depth_ == 1) {
      begin_member(name);
    } else if (tensor_ == nullptr) {
      if (metadata.size() == most_metadata) reject("more than {} entries", most_metadata);
      auto [at, fresh] = metadata.try_emplace(name);
      if (!fresh) reject("key {} is there twice", in_quotes(name));
      text_ = &at->second;
    } else {
      begin_field(name);
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) {
    std::string_view reason = error.what();
    if (auto colon = reason.find(": "); colon != std::string_view::npos)
      reason.remove_prefix(colon + 2);
    fail(Fault::bad_data, "{} @ byte {}: the safetensors header is not valid JSON: {}", path_,
         position + 7,
         in_quotes(reason));  // 8 bytes of length before it, and positions count from 1
  }

 private:
  enum class Field { dtype, shape, offsets };

  template <class... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Fault::bad_data,
         "{}: {}: {}.\nThe file breaks the safetensors format; download or write it again.", path_,
         key_.empty() ? std::string("header") : in_quotes(key_),
         fmt::format(format, std::forward<Args>(args)...));
  }
  [[noreturn]] void wrong(const char* what) const { reject("{} where it cannot be", what); }

  void begin_member(const std::string& name) {
    key_ = name;
    tensor_ = nullptr;
    if (name == "__metadata__") {
      if (metadata_seen_) reject("is there twice");
      metadata_seen_ = true;
      return;
    }
    if (name.size() > longest_tensor_name) reject("name over {} bytes long", longest_tensor_name);
    if (tensors.size() == most_tensors) reject("more than {} tensors", most_tensors);
    auto [at, fresh] = tensors.try_emplace(name);
    if (!fresh) reject("is there twice");
    tensor_ = &at->second;
  }

  void begin_field(const std::string& name) {
    bool* seen = name == "dtype"          ? &tensor_->has_dtype
                 : name == "shape"        ? &tensor_->has_shape
                 : name == "data_offsets" ? &tensor_->has_offsets
                                          : nullptr;
    if (seen == nullptr) reject("unknown key {}", in_quotes(name));
    if (*seen) reject("{} is there twice", name);
    *seen = true;
    field_ = name == "dtype" ? Field::dtype : name == "shape" ? Field::shape : Field::offsets;
  }

  const std::string& path_;
  std::string key_;
  Described* tensor_ = nullptr;  // null inside the metadata
  std::string* text_ = nullptr;
  Field field_ = Field::dtype;
  int depth_ = 0;
  bool metadata_seen_ = false;
};

// Bytes that dtype and shape ask for; nullopt when they overflow or are no whole bytes. A zero
// dimension does not excuse an overflow of the others.
std::optional<std::uint64_t> bytes_asked(const Described& tensor) {
  std::uint64_t nonzero = *bits_of(tensor.dtype);
  bool empty = false;
  for (Index dim : tensor.shape) {
    empty = empty || dim == 0;
    if (dim != 0 && !product_fits(nonzero, static_cast<std::uint64_t>(dim), &nonzero))
      return std::nullopt;
  }
  if (empty) return 0;
  return nonzero % 8 == 0 ? std::optional(nonzero / 8) : std::nullopt;
}

HeaderEvents parse_header(const MappedFile& file) {
  const std::string& path = file.path();
  if (file.size() < 8)
    fail(Fault::bad_data, "{}: {} bytes are too few for a safetensors file; it is cut off.", path,
         file.size());
  auto length = load_little<std::uint64_t>(file.data());
  if (length > largest_safetensors_header)
    fail(Fault::bad_data,
         "{} @ byte 0: header of {} bytes, over the format's limit of {}; is it safetensors?", path,
         length, largest_safetensors_header);
  if (length > file.size() - 8)
    fail(Fault::bad_data, "{} @ byte 0: header of {} bytes in a file of {}; it is cut off.", path,
         length, file.size());
  std::string_view text = as_text(file.data() + 8, static_cast<std::size_t>(length));
  if (text.empty() || text.front() != '{')
    fail(Fault::bad_data, "{} @ byte 8: the header does not start with '{{'; is it safetensors?",
         path);
  // The JSON parser takes a zero byte for the end of its input and would ignore what follows.
  if (auto zero = text.find('\0'); zero != std::string_view::npos)
    fail(Fault::bad_data, "{} @ byte {}: zero byte in the header.", path, zero + 8);
  HeaderEvents events(path);
  Json::sax_parse(text.begin(), text.end(), &events);
  return events;
}

}  // namespace

TensorFile read_safetensors(const std::string& path) {
  auto file = std::make_shared<const MappedFile>(path);
  HeaderEvents header = parse_header(*file);
  std::size_t start = 8 + static_cast<std::size_t>(load_little<std::uint64_t>(file->data()));
  std::uint64_t size = file->size() - start;

  using Named = std::pair<const std::string, Described>;
  std::vector<const Named*> order;
  order.reserve(header.tensors.size());
  for (const Named& named : header.tensors) order.push_back(&named);
  std::sort(order.begin(), order.end(), [](const Named* a, const Named* b) {
    return a->second.offsets < b->second.offsets;  // empty tensors before the one that starts there
  });

  TensorFile result;
  std::uint64_t expected = 0;
  for (const Named* named : order) {
    const Described& tensor = named->second;
    std::uint64_t begin = tensor.offsets[0], end = tensor.offsets[1];
    auto reject = [&](const std::string& why) {
      fail(Fault::bad_data,
           "{} @ byte {}: tensor {}: {}.\nThe file is damaged; download or write it again.", path,
           start + std::min(begin, size), in_quotes(named->first), why);
    };
    if (begin > end || end > size)
      reject(fmt::format("data_offsets [{}, {}] outside the {} data bytes", begin, end, size));
    if (begin != expected)
      reject(fmt::format("data starts at {} where {} is expected ({})", begin, expected,
                         begin < expected ? "overlap" : "hole"));
    if (auto asked = bytes_asked(tensor); !asked || *asked != end - begin)
      reject(fmt::format("{} [{}] {} in {} bytes", tensor.dtype, fmt::join(tensor.shape, ","),
                         asked ? "does not fit" : "has no valid size", end - begin));
    expected = end;
    result.tensors.emplace_hint(
        result.tensors.end(), named->first,
        TensorEntry{tensor.dtype, tensor.shape, file->data() + start + begin,
                    static_cast<std::size_t>(end - begin), file, path});
  }
  if (expected != size)
    fail(Fault::bad_data, "{} @ byte {}: {} bytes behind the last tensor.\nThe file is damaged.",
         path, start + expected, size - expected);
  result.metadata = std::move(header.metadata);
  result.source = path;
  return result;
}

}  // namespace moe
