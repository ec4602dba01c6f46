// Text to token ids and back. A tokenizer is exact or useless: `encode` equals the fast reference
// tokenizer (the Rust `tokenizers` package) id by id. All functions are const and may run on many
// threads at once.
#pragma once

#include "runtime/shape.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

struct Encoded {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> types;  // segment of each id: 0 or 1
};

struct SpecialIds {
  std::optional<std::int32_t> cls, sep, pad, unk, mask;
};

class Tokenizer {
 public:
  static constexpr Index unlimited = std::numeric_limits<Index>::max();

  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  virtual ~Tokenizer() = default;

  // At most max_length ids, specials ([CLS] A [SEP]) counted; the text is cut, never the specials.
  // Malformed UTF-8 reads as U+FFFD. Work stops where the limit is reached, however long the text.
  virtual std::vector<std::int32_t> encode(std::string_view text, Index max_length,
                                           bool special = true) const = 0;

  // [CLS] A [SEP] B [SEP], types 0 0 0 1 1; the longer text is cut first, before specials are
  // added.
  virtual Encoded encode_pair(std::string_view a, std::string_view b, Index max_length) const = 0;

  // Ids without a token are passed over.
  virtual std::string decode(std::span<const std::int32_t> ids, bool skip_special) const = 0;

  virtual Index vocab_size() const = 0;  // highest id + 1: the embedding rows it needs
  virtual std::optional<std::int32_t> id(std::string_view token) const = 0;
  virtual std::optional<std::string_view> token(std::int32_t id) const = 0;
  virtual const SpecialIds& special_ids() const = 0;
  virtual std::string info() const = 0;  // a few lines for people: source, chain, table versions
};

// How a BERT tokenizer treats text when no tokenizer.json says so; the defaults are
// bert-base-uncased.
struct WordPieceOptions {
  bool clean_text = true;
  bool tokenize_chinese_chars = true;
  bool lowercase = true;
  std::optional<bool> strip_accents;  // absent: as lowercase
  std::string cls = "[CLS]", sep = "[SEP]", pad = "[PAD]", unk = "[UNK]", mask = "[MASK]";
  Index max_input_chars_per_word = 100;
};

// A BERT tokenizer over `vocabulary` (the id of a token is its position), which must hold unk, cls
// and sep.
std::unique_ptr<Tokenizer> make_wordpiece(const std::vector<std::string>& vocabulary,
                                          const WordPieceOptions& options = {});

// From a model directory: tokenizer.json, else vocab.txt with tokenizer_config.json and
// special_tokens_map.json. Stored truncation and padding are ignored; what is not supported is
// refused by name.
std::unique_ptr<Tokenizer> load_wordpiece(const std::string& directory);

}  // namespace moe
