// Cuts added tokens ("[MASK]") out of a text: leftmost match, the longest where several begin.
// A `single_word` match next to a word character is passed over; lstrip and rstrip also swallow the
// white space on that side. Tokens with `normalized` are searched in the normalised text by the
// caller.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

struct AddedToken {
  std::string content;
  std::int32_t id = -1;
  bool special = false;  // left out when decoding
  bool single_word = false, lstrip = false, rstrip = false;
  bool normalized = false;
};

class AddedTokenCutter {
 public:
  struct Piece {
    std::size_t begin = 0, end = 0;
    std::int32_t id = -1;  // -1: ordinary text
  };

  // Walks over the pieces of one text: while (cursor.next(piece)) ...
  class Cursor {
   public:
    Cursor(const AddedTokenCutter& cutter, std::string_view text) : cutter_(cutter), text_(text) {}
    bool next(Piece& piece);

   private:
    const AddedTokenCutter& cutter_;
    std::string_view text_;
    std::size_t search_ = 0;  // behind the last match
    std::size_t done_ = 0;    // behind the last piece
    Piece held_;              // a match whose preceding text was handed out first
  };

  AddedTokenCutter() = default;
  // Searches the `content` of each token. `where` names the file in errors: empty and equal
  // contents.
  AddedTokenCutter(std::vector<AddedToken> tokens, const std::string& where);
  bool empty() const { return tokens_.empty(); }

 private:
  struct Match {
    const AddedToken* token;
    std::size_t begin;
  };
  Match find(std::string_view text, std::size_t from) const;
  const AddedToken* longest_at(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  std::array<bool, 256> begins_{};  // first bytes
  int only_first_byte_ = -1;        // set when all tokens begin alike
};

}  // namespace moe
