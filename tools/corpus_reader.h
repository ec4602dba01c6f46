// Documents and queries of a collection, one after the other, in bounded memory: what embedding a
// corpus larger than memory needs. Every document has a line and a byte offset, and reading can
// resume there.
//   JSON lines   {"_id": ..., "title": ..., "text": ...}; also id, docid, contents
//   TSV          id <tab> text (MS MARCO)
//   SMART        .I id, .T title, .W text (cranfield); other sections are skipped
//   npl          id line, text lines, a line "/"
#pragma once

#include "tools/json_lines.h"
#include "tools/line_reader.h"

#include <filesystem>
#include <optional>
#include <string>

namespace moe {

struct Document {
  std::string id, title, text;
  // Title, a space, text; an empty part takes its space with it.
  std::string full() const {
    return title.empty() || text.empty() ? title + text : title + " " + text;
  }
};

struct Query {
  std::string id, text;
};

enum class RecordFormat { json_lines, tsv, smart, npl };

class CorpusReader {
 public:
  using Position = LineReader::Position;

  // `path` is a file or a folder with corpus.jsonl, collection.jsonl, collection.tsv, cran.all.1400
  // or doc-text, each also as .gz. `start` is a position() of an earlier reader of the same file.
  explicit CorpusReader(const std::filesystem::path& path, Position start = {});
  CorpusReader(const std::filesystem::path& file, RecordFormat format, Position start = {});

  // False at the end. A record without id, without text field or cut off is bad_data with file and
  // line. Ids are not compared: whoever holds them all sees duplicates (load_collection does).
  bool next(Document& document);

  Position position() const { return after_; }     // where the next document begins
  std::int64_t line() const { return line_; }      // of the last document's first line, from 1
  std::int64_t offset() const { return offset_; }  // of its first byte, uncompressed
  const std::string& name() const { return reader_.name(); }

 private:
  bool next_json(Document& document);
  bool next_tsv(Document& document);
  bool next_smart(Document& document);
  bool next_npl(Document& document);
  bool advance();  // one line on, in npl and SMART files possibly one handed back before

  LineReader reader_;
  RecordFormat format_;
  JsonRecord record_;
  Position after_;
  std::int64_t line_ = 0, offset_ = 0;
  bool line_pending_ =
      false;  // SMART: the .I line that ended the last document is still to be used
};

// An id goes into TSV files and ids.txt: empty ids and ids with tabs or line breaks are bad_data.
void require_id(const std::string& id, const LineReader& reader);

}  // namespace moe
