// What every reader of untrusted bytes needs: checked arithmetic, little-endian loads, names safe
// to show and safe to open. Sizes from a file pass through product_fits / sum_fits before anything
// is allocated or indexed.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace moe {

static_assert(std::endian::native == std::endian::little, "files are mapped as they are");

// Limits shared by the tensor readers: far above any real model, low enough to keep memory bounded.
constexpr std::size_t longest_tensor_name = 4096;
constexpr std::size_t most_tensors = 1'000'000;
constexpr std::uint64_t largest_safetensors_header = 100'000'000;  // the format's own limit
constexpr std::size_t largest_rank = 64;
constexpr std::uint64_t largest_count = std::uint64_t{1}
                                        << 62;  // of elements or bytes: fits an Index

inline bool product_fits(std::uint64_t a, std::uint64_t b, std::uint64_t* product) {
  return !__builtin_mul_overflow(a, b, product) && *product <= largest_count;
}
inline bool sum_fits(std::uint64_t a, std::uint64_t b, std::uint64_t* sum) {
  return !__builtin_add_overflow(a, b, sum) && *sum <= largest_count;
}

template <class T>
T load_little(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);  // files promise no alignment
  return value;
}

inline std::string_view as_text(const std::byte* data, std::size_t bytes) {
  return {reinterpret_cast<const char*>(data), bytes};
}

// The text in single quotes for a message: control bytes as \xNN, so that a file cannot write to
// the terminal, and cut after 100 bytes (at the start of a UTF-8 character).
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t enough = 100;
  std::size_t end = text.size();
  if (end > enough) {
    end = enough;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0u) == 0x80u) --end;
  }
  std::string shown = "'";
  for (char c : text.substr(0, end)) {
    auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      shown += c;
    } else {
      constexpr char digits[] = "0123456789abcdef";
      shown += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    }
  }
  return shown + (end < text.size() ? "...'" : "'");
}

// A name written inside a file that we will open: one path component, nothing that leaves its
// folder.
inline bool plain_file_name(std::string_view name) {
  if (name.empty() || name.size() > 255 || name == "." || name == "..") return false;
  for (char c : name)
    if (c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20) return false;
  return true;
}

}  // namespace moe
