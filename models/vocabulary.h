// Token strings and their ids: lookup both ways, and the longest token at the start of a text.
// A hash table with linear probing; the hash runs byte by byte, so all prefixes of a word cost one
// pass, and a token is compared with the word only when 32 further bits of its hash agree.
#pragma once

#include "runtime/shape.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe {

class Vocabulary {
 public:
  static constexpr std::size_t largest_count = 2'000'000, longest_token = 65'536;
  static constexpr std::int32_t id_limit = 1 << 22;  // ids may have gaps, but not absurd ones

  struct Match {
    std::int32_t id;
    std::size_t bytes;
  };
  // Space for the running hashes of one word; belongs to the caller, so lookups are const.
  using Scratch = std::vector<std::uint64_t>;

  Vocabulary() : Vocabulary({}, {}, {}) {}
  // A token given twice keeps its last id. `where` names the file in errors.
  Vocabulary(const std::vector<std::pair<std::string, std::int32_t>>& tokens,
             std::string continuation_prefix, const std::string& where);

  Index size() const { return static_cast<Index>(spans_.size()); }  // highest id + 1
  Index count() const { return static_cast<Index>(count_); }
  std::optional<std::int32_t> find(std::string_view token) const;
  std::optional<std::string_view> token(std::int32_t id) const;

  // The longest token that begins `rest` (when `continued`: that is the prefix followed by a
  // beginning of `rest`), of at least one byte.
  std::optional<Match> longest(std::string_view rest, bool continued, Scratch& scratch) const;

 private:
  struct Slot {
    std::uint32_t tag = 0;
    std::int32_t id = -1;
  };
  struct Span {
    std::uint64_t begin = 0;
    std::int64_t bytes = -1;  // -1: no token has this id
  };

  void insert(std::string_view token, std::int32_t id, const std::string& where);
  std::int32_t probe(std::uint64_t state, std::string_view head, std::string_view tail) const;

  std::string text_, prefix_;
  std::vector<Span> spans_;  // by id
  std::vector<Slot> slots_;
  std::size_t count_ = 0;
  int shift_ = 0;
  std::uint64_t prefix_state_ = 0;
  std::size_t longest_first_ = 0, longest_continued_ = 0;  // bytes, the prefix not counted
};

}  // namespace moe
