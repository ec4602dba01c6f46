// WordPiece, section 6 of the formats: added tokens are cut out, the rest is normalised, split at
// white space and punctuation, and each word is covered greedily by the longest tokens ("##"
// continues a word). A word that cannot be covered, or is too long, is one unknown token.
#include "models/wordpiece_model.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace moe {
namespace {

// Text is normalised in blocks of about this size, cut at a blank: they stay in the L1 cache, and a
// text of megabytes costs no more than the tokens that fit.
constexpr std::size_t block_bytes = 2048;

std::size_t block_end(std::string_view text, std::size_t begin) {
  if (text.size() - begin <= block_bytes) return text.size();
  const std::size_t blank = text.find_first_of(" \n", begin + block_bytes);
  return blank == std::string_view::npos ? text.size() : blank;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

// The reference's list, in its order; applied to each token with its leading blank.
void clean_up_token(std::string& text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> rules{
      {{" .", "."},
       {" ?", "?"},
       {" !", "!"},
       {" ,", ","},
       {" ' ", "'"},
       {" n't", "n't"},
       {" 'm", "'m"},
       {" do not", " don't"},
       {" 's", "'s"},
       {" 've", "'ve"},
       {" 're", "'re"}}};
  for (const auto& rule : rules) replace_all(text, rule.first, rule.second);
}

enum AsciiKind : std::uint8_t { in_word, white, punctuation };

class WordPiece final : public Tokenizer {
 public:
  explicit WordPiece(WordPieceParts parts);

  std::vector<std::int32_t> encode(std::string_view text, Index max_length,
                                   bool special) const override;
  Encoded encode_pair(std::string_view a, std::string_view b, Index max_length) const override;
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override;
  Index vocab_size() const override { return size_; }
  std::optional<std::int32_t> id(std::string_view token) const override;
  std::optional<std::string_view> token(std::int32_t id) const override;
  const SpecialIds& special_ids() const override { return special_; }
  std::string info() const override;

 private:
  struct Added {
    AddedToken token;
    std::string decoded;  // the normalised form, where that is searched
  };
  // What one call of encode fills and reuses.
  struct Work {
    std::size_t limit;
    std::vector<std::int32_t> ids;
    std::string normal, other;
    Vocabulary::Scratch scratch;
    bool full() const { return ids.size() >= limit; }
  };

  void add(const AddedToken& token);
  std::vector<std::int32_t> tokens_of(std::string_view text, Index limit) const;
  void cut_raw(std::string_view text, Work& work) const;
  void cut_normal(std::string_view text, Work& work) const;
  void normalize(std::string_view text, Work& work) const;
  void split(std::string_view normal, Work& work) const;
  void cover(std::string_view word, Work& work) const;
  Index room(const Template& frame, Index max_length) const;
  std::optional<std::string_view> decoded_token(std::int32_t id) const;

  WordPieceParts parts_;
  AddedTokenCutter raw_cutter_, normal_cutter_;
  std::unordered_map<std::int32_t, Added> added_;
  std::unordered_map<std::string_view, std::int32_t> added_ids_;  // views into added_
  std::unordered_set<std::string_view> special_contents_;
  std::array<AsciiKind, 128> ascii_{};
  const CharacterTable& table_ = characters();
  std::int32_t unknown_id_ = 0;
  SpecialIds special_;
  Index size_ = 0;
};

WordPiece::WordPiece(WordPieceParts parts) : parts_(std::move(parts)) {
  const std::string& where = parts_.source;
  const auto unknown = parts_.vocabulary.find(parts_.unknown);
  if (!unknown)
    fail(Fault::bad_data, "{}: the unknown token \"{}\" is not in the vocabulary", where,
         parts_.unknown);
  unknown_id_ = *unknown;
  size_ = parts_.vocabulary.size();
  for (const AddedToken& token : parts_.added) add(token);

  for (const Template* frame : {&parts_.single, &parts_.pair})
    for (const TemplatePiece& piece : *frame)
      for (const std::int32_t id : piece.ids)
        if (!token(id))
          fail(Fault::bad_data, "{}: the post-processor adds id {}, which no token has", where, id);

  std::vector<AddedToken> raw, normal;
  Work work{0, {}, {}, {}, {}};
  for (auto& entry : added_) {
    Added& added = entry.second;
    const std::string& content = added.token.content;
    added_ids_[content] = added.token.id;
    if (added.token.special) special_contents_.insert(content);
    size_ = std::max(size_, Index{added.token.id} + 1);
    added.decoded = content;
    if (added.token.normalized) {
      normalize(content, work);
      added.decoded = work.normal;
    }
    AddedToken searched = added.token;
    searched.content = added.decoded;
    (added.token.normalized ? normal : raw).push_back(std::move(searched));
  }
  raw_cutter_ = AddedTokenCutter(std::move(raw), where);
  normal_cutter_ = AddedTokenCutter(std::move(normal), where);

  for (char32_t c = 0; c < ascii_.size(); ++c) {
    const CharacterClass classes = table_[c];
    const bool alone = parts_.split_punctuation && (classes & character_class::punctuation) != 0;
    ascii_[c] = (classes & character_class::white_space) != 0 ? white
                : alone                                       ? punctuation
                                                              : in_word;
  }
  special_ = {id(parts_.cls), id(parts_.sep), id(parts_.pad), unknown, id(parts_.mask)};
}

// Added tokens name entries of the vocabulary, or extend it.
void WordPiece::add(const AddedToken& token) {
  const std::string& where = parts_.source;
  if (token.id < 0 || token.id >= Vocabulary::id_limit)
    fail(Fault::bad_data, "{}: added token \"{}\" has id {}; ids must lie in 0..{}", where,
         token.content, token.id, Vocabulary::id_limit - 1);
  const auto listed = parts_.vocabulary.find(token.content);
  if (listed && *listed != token.id)
    fail(Fault::bad_data, "{}: added token \"{}\" has id {}, the vocabulary gives it {}", where,
         token.content, token.id, *listed);
  const auto other = this->token(token.id);
  if (other && *other != token.content)
    fail(Fault::bad_data, "{}: added token \"{}\" has id {}, which belongs to \"{}\"", where,
         token.content, token.id, *other);
  added_[token.id].token = token;
}

// Greedy cover of one word (not empty) by the longest tokens.
void WordPiece::cover(std::string_view word, Work& work) const {
  const std::size_t first_id = work.ids.size();
  // A character has at least one byte, so only long words need counting.
  bool bad = word.size() > parts_.longest_word &&
             static_cast<std::size_t>(
                 word.size() - std::count_if(word.begin(), word.end(), is_utf8_continuation)) >
                 parts_.longest_word;
  for (std::size_t at = 0; at < word.size() && !bad;) {
    const auto match = parts_.vocabulary.longest(word.substr(at), at > 0, work.scratch);
    bad = !match;
    if (bad) break;
    work.ids.push_back(match->id);
    at += match->bytes;
  }
  if (!bad) return;
  work.ids.resize(first_id);
  work.ids.push_back(unknown_id_);
}

// Words of normalised text: white space separates, punctuation stands alone.
void WordPiece::split(std::string_view normal, Work& work) const {
  constexpr CharacterClass splits = character_class::white_space | character_class::punctuation;
  const CharacterClass boundary = parts_.split_punctuation ? splits : character_class::white_space;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < normal.size() && !work.full();) {
    const std::size_t start = at;
    const auto byte = static_cast<unsigned char>(normal[at]);
    bool blank = false;
    if (byte < 0x80) {
      ++at;
      if (ascii_[byte] == in_word) continue;
      blank = ascii_[byte] == white;
    } else {
      const CharacterClass classes = table_[decode_utf8(normal, at)] & boundary;
      if (classes == 0) continue;
      blank = (classes & character_class::white_space) != 0;
    }
    if (start > begin) cover(normal.substr(begin, start - begin), work);
    if (!blank) cover(normal.substr(start, at - start), work);
    begin = at;
  }
  if (begin < normal.size() && !work.full()) cover(normal.substr(begin), work);
}

// The normal form of `text`, in work.normal.
void WordPiece::normalize(std::string_view text, Work& work) const {
  work.normal.clear();
  if (parts_.normalizers.empty()) {
    static const Normalizer repair_utf8{NormalizerSteps{}};
    return repair_utf8.append(text, work.normal);
  }
  parts_.normalizers[0].append(text, work.normal);
  for (std::size_t i = 1; i < parts_.normalizers.size(); ++i) {
    work.other.clear();
    parts_.normalizers[i].append(work.normal, work.other);
    work.normal.swap(work.other);
  }
}

void WordPiece::cut_normal(std::string_view text, Work& work) const {
  if (normal_cutter_.empty()) {
    for (std::size_t begin = 0; begin < text.size() && !work.full();) {
      const std::size_t end = block_end(text, begin);
      normalize(text.substr(begin, end - begin), work);
      split(work.normal, work);
      begin = end;
    }
    return;
  }
  // A token may hold blanks, so the text stays whole.
  normalize(text, work);
  AddedTokenCutter::Cursor cursor(normal_cutter_, work.normal);
  for (AddedTokenCutter::Piece piece; !work.full() && cursor.next(piece);) {
    if (piece.id >= 0) {
      work.ids.push_back(piece.id);
    } else {
      split(std::string_view(work.normal).substr(piece.begin, piece.end - piece.begin), work);
    }
  }
}

void WordPiece::cut_raw(std::string_view text, Work& work) const {
  AddedTokenCutter::Cursor cursor(raw_cutter_, text);
  for (AddedTokenCutter::Piece piece; !work.full() && cursor.next(piece);) {
    if (piece.id >= 0) {
      work.ids.push_back(piece.id);
    } else {
      cut_normal(text.substr(piece.begin, piece.end - piece.begin), work);
    }
  }
}

std::vector<std::int32_t> WordPiece::tokens_of(std::string_view text, Index limit) const {
  Work work{static_cast<std::size_t>(limit), {}, {}, {}, {}};
  cut_raw(text, work);
  if (work.ids.size() > work.limit) work.ids.resize(work.limit);
  return std::move(work.ids);
}

// Ids left for text when the frame takes its part of max_length.
Index WordPiece::room(const Template& frame, Index max_length) const {
  Index taken = 0;
  for (const TemplatePiece& piece : frame) taken += static_cast<Index>(piece.ids.size());
  check(max_length >= taken,
        "tokenizer: a length limit of {} has no room for the {} special tokens", max_length, taken);
  return max_length - taken;
}

std::vector<std::int32_t> WordPiece::encode(std::string_view text, Index max_length,
                                            bool special) const {
  if (!special) {
    check(max_length >= 0, "tokenizer: the length limit {} is negative", max_length);
    return tokens_of(text, max_length);
  }
  const std::vector<std::int32_t> tokens = tokens_of(text, room(parts_.single, max_length));
  std::vector<std::int32_t> ids;
  ids.reserve(tokens.size() + parts_.single.size());
  for (const TemplatePiece& piece : parts_.single) {
    const auto& source = piece.kind == TemplatePiece::Kind::special ? piece.ids : tokens;
    ids.insert(ids.end(), source.begin(), source.end());
  }
  return ids;
}

Encoded WordPiece::encode_pair(std::string_view a, std::string_view b, Index max_length) const {
  const Index limit = room(parts_.pair, max_length);
  // What lies behind the whole room cannot change the result, except which text is the longer one:
  // that decides who gets the odd token when both are halved.
  std::vector<std::int32_t> first = tokens_of(a, limit), second = tokens_of(b, limit);
  if (limit % 2 == 1 && std::min(std::ssize(first), std::ssize(second)) == limit) {
    first = tokens_of(a, unlimited);
    second = tokens_of(b, unlimited);
  }
  auto& shorter = first.size() <= second.size() ? first : second;
  auto& longer = first.size() <= second.size() ? second : first;
  const auto room = static_cast<std::size_t>(limit);
  if (shorter.size() + longer.size() > room) {
    const std::size_t half = room / 2;
    if (shorter.size() > half) shorter.resize(half);
    longer.resize(room - shorter.size());
  }
  Encoded out;
  for (const TemplatePiece& piece : parts_.pair) {
    const auto& source = piece.kind == TemplatePiece::Kind::special ? piece.ids
                         : piece.kind == TemplatePiece::Kind::first ? first
                                                                    : second;
    out.ids.insert(out.ids.end(), source.begin(), source.end());
    out.types.insert(out.types.end(), source.size(), piece.type);
  }
  return out;
}

std::optional<std::string_view> WordPiece::decoded_token(std::int32_t id) const {
  const auto added = added_.find(id);
  if (added != added_.end()) return added->second.decoded;
  return parts_.vocabulary.token(id);
}

std::string WordPiece::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string out, piece;
  bool first = true;
  for (const std::int32_t id : ids) {
    const auto token = decoded_token(id);
    if (!token || (skip_special && special_contents_.contains(*token))) continue;
    piece = *token;
    if (!first) {
      if (parts_.join_pieces && piece.starts_with(parts_.continuation_prefix)) {
        piece.erase(0, parts_.continuation_prefix.size());
      } else {
        piece.insert(piece.begin(), ' ');
      }
    }
    if (parts_.clean_up) clean_up_token(piece);
    out += piece;
    first = false;
  }
  return out;
}

std::optional<std::int32_t> WordPiece::id(std::string_view token) const {
  const auto added = added_ids_.find(token);
  return added != added_ids_.end() ? std::optional(added->second) : parts_.vocabulary.find(token);
}

std::optional<std::string_view> WordPiece::token(std::int32_t id) const {
  const auto added = added_.find(id);
  if (added != added_.end()) return added->second.token.content;
  return parts_.vocabulary.token(id);
}

std::string WordPiece::info() const {
  return fmt::format(
      "tokenizer    WordPiece, {} tokens, highest id {}, {} added tokens\n"
      "source       {}\n"
      "chain        {}\n"
      "unicode      {}\n",
      parts_.vocabulary.count(), size_ - 1, added_.size(), parts_.source, parts_.chain,
      unicode_table_versions());
}

}  // namespace

std::unique_ptr<Tokenizer> make_wordpiece(WordPieceParts parts) {
  return std::make_unique<WordPiece>(std::move(parts));
}

Template bert_template(std::int32_t cls, std::int32_t sep, bool pair) {
  using Kind = TemplatePiece::Kind;
  Template frame{{Kind::special, {cls}, 0}, {Kind::first, {}, 0}, {Kind::special, {sep}, 0}};
  if (pair) {
    frame.push_back({Kind::second, {}, 1});
    frame.push_back({Kind::special, {sep}, 1});
  }
  return frame;
}

}  // namespace moe
