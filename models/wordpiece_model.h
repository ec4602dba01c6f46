// The parts of a BERT tokenizer, as read by models/wordpiece.cc, and the tokenizer they make.
#pragma once

#include "models/added_tokens.h"
#include "models/tokenizer.h"
#include "models/unicode.h"
#include "models/vocabulary.h"

#include <memory>
#include <string>
#include <vector>

namespace moe {

// One element of the frame around one text or two.
struct TemplatePiece {
  enum class Kind { special, first, second };
  Kind kind = Kind::special;
  std::vector<std::int32_t> ids;  // of a special
  std::int32_t type = 0;
};
using Template = std::vector<TemplatePiece>;

struct WordPieceParts {
  std::string source;  // file name, for errors and info()
  std::string chain;   // component names, for info()
  std::vector<Normalizer> normalizers;
  bool split_punctuation = true;  // else at white space only
  Vocabulary vocabulary;
  std::string unknown;             // token for words without a match
  std::size_t longest_word = 100;  // characters; longer words are unknown
  std::vector<AddedToken> added;   // ids equal the vocabulary's where it has the token
  Template single, pair;
  bool join_pieces =
      true;  // decoding: glue pieces with continuation_prefix, else blanks between all
  std::string continuation_prefix;
  bool clean_up = true;  // decoding: no blank before punctuation and contractions
  std::string cls = "[CLS]", sep = "[SEP]", pad = "[PAD]", mask = "[MASK]";
};

std::unique_ptr<Tokenizer> make_wordpiece(WordPieceParts parts);

// Specials at the sides, types 0 and 1: the frame of BERT.
Template bert_template(std::int32_t cls, std::int32_t sep, bool pair);

}  // namespace moe
