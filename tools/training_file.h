// Training examples from files that carry their own positives and negatives, one JSON object a line
//   Tevatron      query_id, query_text, positive_document_ids, negative_document_ids
//   older form    query_id, query, positive_passages, negative_passages: [{docid, title, text}]
//   pairs         anchor, query or question; positive, pos or answer: a text or a list of texts
//   triplets      the same and negative or neg
// or MS MARCO triples, three ids between tabs: query, positive, negative.
#pragma once

#include "tools/corpus_reader.h"

#include <filesystem>
#include <vector>

namespace moe {

// A document known by id has no text, one known by text has no id; the older Tevatron form has
// both.
struct TrainingExample {
  Query query;
  std::vector<Document> positives, negatives;
};

class TrainingReader {
 public:
  using Position = LineReader::Position;

  explicit TrainingReader(const std::filesystem::path& file, Position start = {});

  // False at the end; an example without query or without positives is bad_data with file and line.
  bool next(TrainingExample& example);

  Position position() const { return reader_.after(); }
  std::int64_t line() const { return reader_.number(); }
  const std::string& name() const { return reader_.name(); }

 private:
  void read_triple(TrainingExample& example);

  LineReader reader_;
  JsonRecord record_;
};

}  // namespace moe
