#include "models/vocabulary.h"

#include "models/unicode.h"

#include <algorithm>
#include <bit>

namespace moe {
namespace {

// FNV-1a; `mixed` spreads it so that the top bits choose the slot and the low bits are the tag.
constexpr std::uint64_t start_state = 0xCBF29CE484222325u;
std::uint64_t step(std::uint64_t state, char byte) {
  return (state ^ static_cast<unsigned char>(byte)) * 0x100000001B3u;
}
std::uint64_t step(std::uint64_t state, std::string_view text) {
  for (char byte : text) state = step(state, byte);
  return state;
}
std::uint64_t mixed(std::uint64_t state) {
  state *= 0x9E3779B97F4A7C15u;
  return state ^ (state >> 29);
}

// A file made to collide would load in quadratic time; honest ones stay far below.
constexpr std::size_t longest_probe = 1024;

}  // namespace

Vocabulary::Vocabulary(const std::vector<std::pair<std::string, std::int32_t>>& tokens,
                       std::string continuation_prefix, const std::string& where)
    : prefix_(std::move(continuation_prefix)), prefix_state_(step(start_state, prefix_)) {
  if (tokens.size() > largest_count)
    fail(Fault::bad_data, "{}: a vocabulary of {} tokens; at most {} are supported", where,
         tokens.size(), largest_count);
  std::size_t bytes = 0;
  std::int32_t last = -1;
  for (const auto& entry : tokens) {
    const std::string& token = entry.first;
    const std::int32_t id = entry.second;
    if (token.size() > longest_token)
      fail(Fault::bad_data, "{}: token {} is {} bytes long; at most {} are supported", where, id,
           token.size(), longest_token);
    if (id < 0 || id >= id_limit)
      fail(Fault::bad_data, "{}: token \"{}\" has id {}; ids must lie in 0..{}", where, token, id,
           id_limit - 1);
    bytes += token.size();
    last = std::max(last, id);
  }
  text_.reserve(bytes);
  spans_.resize(static_cast<std::size_t>(last + 1));
  slots_.resize(std::bit_ceil(2 * tokens.size() + 2));
  shift_ = 64 - std::countr_zero(slots_.size());
  for (const auto& entry : tokens) insert(entry.first, entry.second, where);
}

void Vocabulary::insert(std::string_view token, std::int32_t id, const std::string& where) {
  const std::uint64_t hash = mixed(step(start_state, token));
  const auto tag = static_cast<std::uint32_t>(hash);
  Span& span = spans_[static_cast<std::size_t>(id)];
  if (span.bytes >= 0)
    fail(Fault::bad_data, "{}: tokens \"{}\" and \"{}\" have the same id {}", where,
         *this->token(id), token, id);
  span = {text_.size(), static_cast<std::int64_t>(token.size())};
  text_ += token;

  std::size_t at = hash >> shift_;
  std::size_t steps = 0;
  for (; slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].tag == tag && this->token(slots_[at].id) == token) {
      spans_[static_cast<std::size_t>(slots_[at].id)].bytes = -1;
      --count_;
      break;
    }
    if (++steps > longest_probe)
      fail(Fault::bad_data, "{}: the token strings collide in the hash table", where);
  }
  slots_[at] = {tag, id};
  ++count_;
  longest_first_ = std::max(longest_first_, token.size());
  if (token.starts_with(prefix_))
    longest_continued_ = std::max(longest_continued_, token.size() - prefix_.size());
}

// The id of the token head + tail, whose running hash is `state`; -1 if there is none.
std::int32_t Vocabulary::probe(std::uint64_t state, std::string_view head,
                               std::string_view tail) const {
  const std::uint64_t hash = mixed(state);
  const auto tag = static_cast<std::uint32_t>(hash);
  for (std::size_t at = hash >> shift_; slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].tag != tag) continue;
    const Span& span = spans_[static_cast<std::size_t>(slots_[at].id)];
    const std::string_view token(text_.data() + span.begin, static_cast<std::size_t>(span.bytes));
    if (token.size() == head.size() + tail.size() && token.starts_with(head) &&
        token.ends_with(tail))
      return slots_[at].id;
  }
  return -1;
}

std::optional<std::int32_t> Vocabulary::find(std::string_view token) const {
  const std::int32_t id = probe(step(start_state, token), {}, token);
  return id < 0 ? std::nullopt : std::optional(id);
}

std::optional<std::string_view> Vocabulary::token(std::int32_t id) const {
  if (id < 0 || id >= size() || spans_[static_cast<std::size_t>(id)].bytes < 0) return std::nullopt;
  const Span& span = spans_[static_cast<std::size_t>(id)];
  return std::string_view(text_).substr(span.begin, static_cast<std::size_t>(span.bytes));
}

std::optional<Vocabulary::Match> Vocabulary::longest(std::string_view rest, bool continued,
                                                     Scratch& scratch) const {
  const std::string_view head = continued ? std::string_view(prefix_) : std::string_view();
  const std::size_t limit = std::min(rest.size(), continued ? longest_continued_ : longest_first_);
  if (scratch.size() < limit) scratch.resize(limit);
  std::uint64_t state = continued ? prefix_state_ : start_state;
  for (std::size_t i = 0; i < limit; ++i) scratch[i] = state = step(state, rest[i]);
  for (std::size_t bytes = limit; bytes > 0; --bytes) {
    if (bytes < rest.size() && is_utf8_continuation(rest[bytes])) continue;
    const std::int32_t id = probe(scratch[bytes - 1], head, rest.substr(0, bytes));
    if (id >= 0) return Match{id, bytes};
  }
  return std::nullopt;
}

}  // namespace moe
