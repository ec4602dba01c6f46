// JSON as data sets use it: one object a line, tables of scores, SQuAD. The parser (nlohmann) stays
// behind this header. Only wanted fields are kept, so a hostile or huge record costs no more memory
// than its text.
#pragma once

#include "tools/line_reader.h"

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

struct JsonValue {
  enum class Kind { absent, text, number, list, other };  // null counts as absent
  Kind kind = Kind::absent;
  std::string text;                // text, or a number as written
  std::vector<std::string> items;  // texts and numbers of a list
  std::vector<std::map<std::string, std::string>>
      objects;  // objects of a list, their scalar fields
};

// Top-level fields of one JSON object, by their position in `keys`. A key given twice: the last one
// counts.
class JsonRecord {
 public:
  explicit JsonRecord(std::vector<std::string> keys)
      : keys_(std::move(keys)), values_(keys_.size()) {}

  // Parses the reader's line; bad_data naming file, line and column when it is not one JSON object.
  void parse(const LineReader& reader);

  const JsonValue& operator[](std::size_t i) const { return values_[i]; }
  const std::vector<std::string>& keys() const { return keys_; }

  // First present field among positions [first, last) as text; nullptr when none is there. Numbers
  // count as text ("_id": 7 is the id "7"); any other kind is bad_data.
  const std::string* text(std::size_t first, std::size_t last, const LineReader& reader) const;

 private:
  std::vector<std::string> keys_;
  std::vector<JsonValue> values_;
};

// A table {"query": {"document": number}} (ranx qrels and runs); `row` gets each entry in file
// order. A document given twice for one query, or a query given twice, is bad_data.
void read_json_table(const std::filesystem::path& path,
                     const std::function<void(const std::string& query, const std::string& document,
                                              double value)>& row);

struct SquadQuestion {
  std::string id, text;
  bool answerable = true;
};
struct SquadParagraph {
  std::string id, text;  // id = article title + '#' + number of the paragraph in it, from 0
  std::vector<SquadQuestion> questions;
};
std::vector<SquadParagraph> read_squad(const std::filesystem::path& path);

// `text` as a JSON string with its quotes; bytes that are not UTF-8 become U+FFFD.
std::string json_quote(std::string_view text);

}  // namespace moe
