#include "models/unicode.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace moe {
namespace {

struct Range {
  char32_t first, last;
};
struct CombiningRange {
  char32_t first, last;
  std::uint8_t rank;  // canonical combining classes, renumbered 1.. in their order
};
struct LowercaseRange {  // every step-th code point c of first..last becomes c + delta
  char32_t first, last;
  std::uint32_t step;
  std::int32_t delta;
};
struct Decomposition {
  char32_t from, to[4];  // the full decomposition, padded with zeros
};

#include "models/unicode_tables.inc"

constexpr char32_t replacement = 0xFFFD;
constexpr std::uint8_t dropped = 0x80;  // no ASCII character
constexpr char32_t hangul_first = 0xAC00, hangul_last = 0xD7A3;

template <class T, std::size_t N>
const T* find_range(const T (&ranges)[N], char32_t c) {
  const T* at = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                 [](char32_t x, const T& range) { return x < range.first; });
  return at != std::begin(ranges) && c <= std::prev(at)->last ? std::prev(at) : nullptr;
}

char32_t lowercase_of(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  const LowercaseRange* range = find_range(lowercase_ranges, c);
  if (range == nullptr || (c - range->first) % range->step != 0) return c;
  return static_cast<char32_t>(static_cast<std::int32_t>(c) + range->delta);
}

char* write_utf8(char* at, char32_t c) {
  auto put = [&at](char32_t byte) { *at++ = static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 63));
    put(0x80 | ((c >> 6) & 63));
    put(0x80 | (c & 63));
  }
  return at;
}

}  // namespace

char32_t decode_utf8(std::string_view text, std::size_t& position) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(position++);
  if (lead < 0x80) return lead;
  if (lead < 0xC2 || lead > 0xF4) return replacement;
  int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  // The second byte has a narrower range where it would give overlong forms, surrogates or too
  // much.
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t c = lead & (0x3Fu >> more);
  for (; more > 0; --more, low = 0x80, high = 0xBF) {
    if (position == text.size() || byte(position) < low || byte(position) > high)
      return replacement;
    c = (c << 6) | (byte(position++) & 63u);
  }
  return c;
}

char32_t decode_utf8_before(std::string_view text, std::size_t end) {
  std::size_t start = end - 1;
  while (start > 0 && end - start < 4 && is_utf8_continuation(text[start])) --start;
  const char32_t c = decode_utf8(text, start);
  return start == end ? c : replacement;
}

void append_utf8(std::string& out, char32_t character) {
  char bytes[4];
  out.append(bytes, write_utf8(bytes, character));
}

bool is_valid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    if (decode_utf8(text, i) != replacement) continue;
    if (text.substr(start, i - start) != "\xEF\xBF\xBD") return false;
  }
  return true;
}

CharacterTable::CharacterTable() {
  namespace cc = character_class;
  std::vector<CharacterClass> all(0x110000, 0);
  auto mark = [&all](const auto& ranges, CharacterClass bit) {
    for (const auto& range : ranges)
      for (char32_t c = range.first; c <= range.last; ++c) all[c] |= bit;
  };
  mark(control_ranges, cc::control);
  mark(white_space_ranges, cc::white_space);
  mark(punctuation_ranges, cc::punctuation);
  mark(chinese_ranges, cc::chinese);
  mark(nonspacing_mark_ranges, cc::nonspacing_mark);
  mark(combining_mark_ranges, cc::combining_mark);
  mark(word_character_ranges, cc::word_character);
  mark(combining_ranges, cc::reorders);
  mark(std::array{Range{hangul_first, hangul_last}}, cc::decomposes);
  for (const Decomposition& entry : decompositions) all[entry.from] |= cc::decomposes;
  for (const LowercaseRange& range : lowercase_ranges)
    for (char32_t c = range.first; c <= range.last; c += range.step) all[c] |= cc::lowers;
  all[0x130] |= cc::lowers;  // the only lower case of two characters; see Pass::lower

  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    const CharacterClass* values = all.data() + block * 256;
    std::size_t same = classes_.size() / 256;  // the last different block is the likeliest twin
    while (same > 0 && std::memcmp(&classes_[(same - 1) * 256], values, 512) != 0) --same;
    if (same == 0) {
      classes_.insert(classes_.end(), values, values + 256);
      same = classes_.size() / 256;
    }
    blocks_[block] = static_cast<std::uint16_t>(same - 1);
  }
}

const CharacterTable& characters() {
  static const CharacterTable table;
  return table;
}

// One run over a text: output space, and the marks that wait for canonical ordering.
class Normalizer::Pass {
 public:
  Pass(const Normalizer& normalizer, std::string_view text, std::string& out)
      : normalizer_(normalizer), steps_(normalizer.steps_), text_(text), out_(out) {
    used_ = out_.size();
    out_.resize(used_ + text.size() + longest);
  }

  void run() {
    for (std::size_t i = 0; i < text_.size();) {
      if (const auto byte = static_cast<unsigned char>(text_[i]); byte < 0x80) {
        if (normalizer_.ascii_[byte] ==
            dropped) {  // cleaning precedes ordering: marks around it meet
          ++i;
          continue;
        }
        flush();
        i = copy_ascii(i);
        continue;
      }
      const char32_t c = decode_utf8(text_, i);
      reserve(text_.size() - i);
      if ((table_[c] & normalizer_.special_) != 0) {
        clean(c);
      } else {
        flush();
        put(c);
      }
    }
    flush();
    out_.resize(used_);
  }

 private:
  // Upper bound of what one character may become, in bytes: three characters of four decomposed
  // ones.
  static constexpr std::size_t longest = 3 * 4 * 4;

  void reserve(std::size_t rest) {
    if (out_.size() - used_ < rest + longest)
      out_.resize(out_.size() + rest + out_.size() / 2 + longest);
  }

  std::size_t copy_ascii(std::size_t i) {
    char* at = out_.data() + used_;
    for (; i < text_.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text_[i]);
      if (byte >= 0x80) break;
      const std::uint8_t becomes = normalizer_.ascii_[byte];
      *at = static_cast<char>(becomes);
      at += becomes != dropped;
    }
    used_ = static_cast<std::size_t>(at - out_.data());
    return i;
  }

  void clean(char32_t c) {
    CharacterClass classes = table_[c];
    if (steps_.clean) {
      if ((classes & character_class::control) != 0) return;
      if ((classes & character_class::white_space) != 0) {
        c = U' ';
        classes = table_[c];
      }
    }
    const bool spaced = steps_.space_chinese && (classes & character_class::chinese) != 0;
    if (spaced) order(U' ');
    decompose(c, classes);
    if (spaced) order(U' ');
  }

  void decompose(char32_t c, CharacterClass classes) {
    if (!steps_.decompose || (classes & character_class::decomposes) == 0) return order(c);
    if (c >= hangul_first && c <= hangul_last) {
      const char32_t index = c - hangul_first;
      order(0x1100 + index / 588);
      order(0x1161 + index % 588 / 28);
      if (index % 28 != 0) order(0x11A7 + index % 28);
      return;
    }
    const Decomposition* entry =
        std::lower_bound(std::begin(decompositions), std::end(decompositions), c,
                         [](const Decomposition& item, char32_t x) { return item.from < x; });
    for (const char32_t* part = entry->to; part != std::end(entry->to) && *part != 0; ++part)
      order(*part);
  }

  // Marks between two starters are sorted by combining class, stably, before some are stripped.
  // Stripping first gives the same order, except that a stripped starter still ends the run.
  void order(char32_t c) {
    const CharacterClass classes = table_[c];
    const bool moves = steps_.decompose && (classes & character_class::reorders) != 0;
    if (!moves) flush();
    if ((classes & steps_.strip) != 0) return;
    if (moves) {
      waiting_.emplace_back(find_range(combining_ranges, c)->rank, c);
    } else {
      lower(c);
    }
  }

  void flush() {
    if (waiting_.empty()) return;
    std::stable_sort(waiting_.begin(), waiting_.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    reserve(4 * waiting_.size() + text_.size());
    for (const auto& mark : waiting_) lower(mark.second);
    waiting_.clear();
  }

  void lower(char32_t c) {
    if (!steps_.lowercase || (table_[c] & character_class::lowers) == 0) return put(c);
    if (c != 0x130) return put(lowercase_of(c));
    put(U'i');
    put(0x307);
  }

  void put(char32_t c) {
    used_ = static_cast<std::size_t>(write_utf8(out_.data() + used_, c) - out_.data());
  }

  const Normalizer& normalizer_;
  const NormalizerSteps& steps_;
  const CharacterTable& table_ = characters();
  std::string_view text_;
  std::string& out_;
  std::size_t used_ = 0;
  std::vector<std::pair<std::uint8_t, char32_t>> waiting_;
};

Normalizer::Normalizer(const NormalizerSteps& steps) : steps_(steps) {
  namespace cc = character_class;
  if (steps.clean) special_ |= cc::control | cc::white_space;
  if (steps.space_chinese) special_ |= cc::chinese;
  if (steps.decompose) special_ |= cc::decomposes | cc::reorders;
  if (steps.lowercase) special_ |= cc::lowers;
  special_ |= steps.strip;
  for (char32_t c = 0; c < ascii_.size(); ++c) {
    const CharacterClass classes = characters()[c];
    char32_t becomes = steps.lowercase ? lowercase_of(c) : c;
    if (steps.clean && (classes & cc::white_space) != 0) becomes = U' ';
    if (steps.clean && (classes & cc::control) != 0) becomes = dropped;
    ascii_[c] = static_cast<std::uint8_t>(becomes);
  }
}

void Normalizer::append(std::string_view text, std::string& out) const {
  Pass(*this, text, out).run();
}

std::string unicode_table_versions() {
  return std::string(
             "control, nonspacing mark, punctuation: Unicode 8.0; decomposition: 9.0; "
             "lower case: 17.0 (measured from ") +
         table_source + ")";
}

}  // namespace moe
