// One reader for all forms: the keys of a line tell which it is.
#include "tools/training_file.h"

#include <iterator>
#include <utility>

namespace moe {
namespace {

// Positions in the JsonRecord below.
constexpr std::size_t query_id = 0, query_text = 1, positive = 5, negative = 10, key_count = 14;

std::string field(const std::map<std::string, std::string>& object, const char* name) {
  auto found = object.find(name);
  return found == object.end() ? std::string() : found->second;
}

// All documents of the fields at positions [first, last), whatever their form.
void collect(const JsonRecord& record, std::size_t first, std::size_t last,
             const LineReader& reader, std::vector<Document>& documents) {
  for (std::size_t i = first; i < last; ++i) {
    const JsonValue& value = record[i];
    bool ids = record.keys()[i].ends_with("_ids");
    switch (value.kind) {
      case JsonValue::Kind::absent:
        break;
      case JsonValue::Kind::text:
      case JsonValue::Kind::number:
        documents.push_back(ids ? Document{value.text, "", ""} : Document{"", "", value.text});
        break;
      case JsonValue::Kind::list:
        for (const std::string& item : value.items)
          documents.push_back(ids ? Document{item, "", ""} : Document{"", "", item});
        for (const auto& object : value.objects)
          documents.push_back(
              {field(object, "docid"), field(object, "title"), field(object, "text")});
        break;
      case JsonValue::Kind::other:
        reader.reject("\"{}\" is neither a text nor a list", record.keys()[i]);
    }
  }
  for (const Document& document : documents)
    if (document.id.empty() && document.full().empty())
      reader.reject("a document without id and text");
}

}  // namespace

TrainingReader::TrainingReader(const std::filesystem::path& file, Position start)
    : reader_(file, start),
      record_({"query_id", "query_text", "query", "anchor", "question", "positive_document_ids",
               "positive_passages", "positive", "pos", "answer", "negative_document_ids",
               "negative_passages", "negative", "neg"}) {}

bool TrainingReader::next(TrainingExample& example) {
  example = {};
  std::string_view line;
  do {
    if (!reader_.next()) return false;
    line = trimmed(reader_.line());
  } while (line.empty());
  if (line.front() != '{') {
    read_triple(example);
    return true;
  }
  record_.parse(reader_);
  if (const std::string* id = record_.text(query_id, query_text, reader_)) example.query.id = *id;
  if (const std::string* text = record_.text(query_text, positive, reader_))
    example.query.text = *text;
  if (example.query.id.empty() && example.query.text.empty())
    reader_.reject("no query here; expected \"query\", \"query_text\", \"anchor\" or \"question\"");
  collect(record_, positive, negative, reader_, example.positives);
  collect(record_, negative, key_count, reader_, example.negatives);
  if (example.positives.empty())
    reader_.reject(
        "no positive document; expected \"positive\", \"pos\", \"positive_passages\" or "
        "\"positive_document_ids\"");
  return true;
}

void TrainingReader::read_triple(TrainingExample& example) {
  std::vector<std::string_view> ids;
  split_tabs(reader_.line(), ids);
  if (ids.size() != 3 || ids[0].empty() || ids[1].empty() || ids[2].empty())
    reader_.reject("expected a JSON object or query<tab>positive<tab>negative (ids)");
  example.query.id = ids[0];
  example.positives.push_back({std::string(ids[1]), "", ""});
  example.negatives.push_back({std::string(ids[2]), "", ""});
}

}  // namespace moe
