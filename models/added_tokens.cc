#include "models/added_tokens.h"

#include "models/unicode.h"
#include "runtime/error.h"

#include <algorithm>
#include <utility>

namespace moe {
namespace {

bool has(char32_t c, CharacterClass classes) {
  return (characters()[c] & classes) != 0;
}

bool touches_word(std::string_view text, std::size_t begin, std::size_t end) {
  if (begin > 0 && has(decode_utf8_before(text, begin), character_class::word_character))
    return true;
  return end < text.size() && has(decode_utf8(text, end), character_class::word_character);
}

std::size_t before_white_space(std::string_view text, std::size_t end) {
  while (end > 0) {
    const char32_t c = decode_utf8_before(text, end);
    if (!has(c, character_class::white_space)) break;
    end -= c < 0x80 ? 1 : c < 0x800 ? 2 : 3;  // no white space lies above U+FFFF
  }
  return end;
}

std::size_t behind_white_space(std::string_view text, std::size_t begin) {
  for (std::size_t next = begin; next < text.size(); begin = next)
    if (!has(decode_utf8(text, next), character_class::white_space)) break;
  return begin;
}

}  // namespace

AddedTokenCutter::AddedTokenCutter(std::vector<AddedToken> tokens, const std::string& where)
    : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    if (token.content.empty())
      fail(Fault::bad_data, "{}: added token {} is empty once normalised", where, token.id);
    if (i > 0 && tokens_[i - 1].content == token.content)
      fail(Fault::bad_data, "{}: added tokens {} and {} are searched as the same text \"{}\"",
           where, tokens_[i - 1].id, token.id, token.content);
    begins_[static_cast<unsigned char>(token.content[0])] = true;
  }
  if (std::count(begins_.begin(), begins_.end(), true) == 1)
    only_first_byte_ = static_cast<unsigned char>(tokens_[0].content[0]);
}

// Narrows the sorted tokens byte by byte to those that share the text's next bytes.
const AddedToken* AddedTokenCutter::longest_at(std::string_view text, std::size_t at) const {
  auto low = tokens_.begin(), high = tokens_.end();
  const AddedToken* best = nullptr;
  for (std::size_t depth = 0; at + depth < text.size(); ++depth) {
    const auto wanted = static_cast<unsigned char>(text[at + depth]);
    auto byte = [depth](const AddedToken& token) {
      return depth < token.content.size() ? static_cast<unsigned char>(token.content[depth]) : -1;
    };
    low = std::partition_point(low, high, [&](const AddedToken& t) { return byte(t) < wanted; });
    high = std::partition_point(low, high, [&](const AddedToken& t) { return byte(t) <= wanted; });
    if (low == high) break;
    if (low->content.size() == depth + 1) best = &*low;
  }
  return best;
}

AddedTokenCutter::Match AddedTokenCutter::find(std::string_view text, std::size_t from) const {
  if (tokens_.empty()) return {nullptr, text.size()};
  for (std::size_t at = from; at < text.size(); ++at) {
    if (only_first_byte_ >= 0) {
      at = text.find(static_cast<char>(only_first_byte_), at);
      if (at == std::string_view::npos) break;
    } else if (!begins_[static_cast<unsigned char>(text[at])]) {
      continue;
    }
    if (const AddedToken* token = longest_at(text, at)) return {token, at};
  }
  return {nullptr, text.size()};
}

bool AddedTokenCutter::Cursor::next(Piece& piece) {
  if (held_.id >= 0) {
    piece = std::exchange(held_, Piece{});
    return true;
  }
  for (;;) {
    const Match match = cutter_.find(text_, search_);
    if (match.token == nullptr) {
      search_ = text_.size();
      if (done_ == text_.size()) return false;
      piece = {done_, text_.size(), -1};
      done_ = text_.size();
      return true;
    }
    const AddedToken& token = *match.token;
    std::size_t begin = match.begin, end = begin + token.content.size();
    search_ = end;
    if (token.single_word && touches_word(text_, begin, end)) continue;
    // White space may already belong to the token before.
    if (token.lstrip) begin = std::max(before_white_space(text_.substr(0, begin), begin), done_);
    if (token.rstrip) end = behind_white_space(text_, end);
    const Piece found{begin, end, token.id};
    const std::size_t text_begin = std::exchange(done_, end);
    if (text_begin >= begin) {
      piece = found;
    } else {
      held_ = found;
      piece = {text_begin, begin, -1};
    }
    return true;
  }
}

}  // namespace moe
