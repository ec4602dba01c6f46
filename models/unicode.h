// Unicode for tokenizers: UTF-8, character classes, and the normalisation steps of the fast BERT
// tokenizer.
//
// The classes are those of the Rust `tokenizers` package, measured over every code point by
// tests/golden/make_unicode_tables.py. That package mixes versions, and a tokenizer is exact or
// wrong:
//   control, nonspacing mark, punctuation   Unicode 8.0: later characters are none of these
//   decompositions, combining marks         Unicode 9.0
//   lower case                              Unicode 17.0, one character at a time (no final sigma)
//   Chinese                                 fixed ranges; U+2B820..U+2B91F are missing, as there
// Nothing here depends on the locale or on a Unicode library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

// Reads the character at `position` and moves behind it. A malformed sequence reads as U+FFFD, one
// for each maximal well-formed beginning (what Python's errors="replace" does). Requires position <
// text.size().
char32_t decode_utf8(std::string_view text, std::size_t& position);

// The character that ends at `end`; U+FFFD when no well-formed one does. Requires 0 < end <=
// text.size().
char32_t decode_utf8_before(std::string_view text, std::size_t end);

void append_utf8(std::string& out, char32_t character);
bool is_valid_utf8(std::string_view text);

inline bool is_utf8_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

using CharacterClass = std::uint16_t;
namespace character_class {
inline constexpr CharacterClass control = 1,  // dropped by cleaning; holds U+0000 and U+FFFD too
    white_space = 2,
                                punctuation = 4,  // all ASCII punctuation and P*
    chinese = 8,                                  // gets spaces around it; not kana, not Hangul
    nonspacing_mark = 16,
                                combining_mark = 32,  // M*
    word_character = 64,                              // \w of a regular expression
    decomposes = 128,
                                reorders = 256,  // canonical combining class above 0
    lowers = 512;                                // has another lower case
}  // namespace character_class

// Two-stage table: a block number for every 256 code points, then the class.
class CharacterTable {
 public:
  CharacterTable();
  CharacterClass operator[](char32_t c) const {
    return classes_[std::size_t{blocks_[c >> 8]} * 256 + (c & 255)];
  }

 private:
  std::array<std::uint16_t, 0x1100> blocks_{};
  std::vector<CharacterClass> classes_;
};
const CharacterTable& characters();  // built on first use

// Which steps a Normalizer runs, always in this order.
struct NormalizerSteps {
  bool clean = false;          // drop controls, then turn each white space into U+0020
  bool space_chinese = false;  // " c "
  bool decompose = false;      // canonical decomposition and ordering (NFD)
  CharacterClass strip = 0;    // then drop the characters of these classes
  bool lowercase = false;
};

class Normalizer {
 public:
  explicit Normalizer(const NormalizerSteps& steps);
  // Appends the normal form of `text`, always valid UTF-8. Text cut at a space gives the same
  // pieces.
  void append(std::string_view text, std::string& out) const;

 private:
  class Pass;
  NormalizerSteps steps_;
  CharacterClass special_ = 0;           // a character outside these classes is copied
  std::array<std::uint8_t, 128> ascii_;  // what each ASCII character becomes; 0x80: nothing
};

std::string unicode_table_versions();  // for people

}  // namespace moe
