// Streaming readers of the four record formats.
#include "tools/corpus_reader.h"

#include <utility>

namespace moe {
namespace {

struct Source {
  std::filesystem::path file;
  RecordFormat format;
};

// Positions in the JsonRecord below: ids, title, texts.
constexpr std::size_t id_keys = 0, title_key = 5, text_keys = 6, key_count = 11;

Source find_source(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) {
    auto plain = path.extension() == ".gz" ? path.stem() : path.filename();
    if (plain.extension() == ".tsv") return {path, RecordFormat::tsv};
    if (plain == "cran.all.1400") return {path, RecordFormat::smart};
    if (plain == "doc-text") return {path, RecordFormat::npl};
    return {path, RecordFormat::json_lines};
  }
  constexpr std::pair<const char*, RecordFormat> known[] = {
      {"corpus.jsonl", RecordFormat::json_lines},
      {"collection.jsonl", RecordFormat::json_lines},
      {"collection.tsv", RecordFormat::tsv},
      {"cran.all.1400", RecordFormat::smart},
      {"doc-text", RecordFormat::npl},
  };
  for (auto [name, format] : known)
    if (auto file = find_plain_or_gzip(path, name)) return {*file, format};
  fail(Fault::missing_input,
       "{}: no corpus found; expected corpus.jsonl, collection.jsonl, collection.tsv, "
       "cran.all.1400 or doc-text "
       "(each plain or .gz)",
       path.string());
}

void append_line(std::string& text, std::string_view line) {
  line = trimmed(line);
  if (line.empty()) return;
  if (!text.empty()) text.push_back(' ');
  text.append(line);
}

// ".I 12" -> 'I'; 0 for a line of text. Text lines may begin with a full stop, so the form is
// checked whole.
char smart_section(std::string_view line) {
  bool marker = line.size() >= 2 && line[0] == '.' && line[1] >= 'A' && line[1] <= 'Z' &&
                (line.size() == 2 || line[2] == ' ');
  if (!marker) return 0;
  return line[1] == 'I' || trimmed(line).size() == 2 ? line[1] : '\0';
}

}  // namespace

void require_id(const std::string& id, const LineReader& reader) {
  if (id.empty()) reader.reject("the id is empty");
  for (char c : id)
    if (c == '\t' || c == '\n' || c == '\r' || c == '\0')
      reader.reject("the id '{}' holds a tab, line break or zero byte", id);
}

CorpusReader::CorpusReader(const std::filesystem::path& path, Position start)
    : CorpusReader(find_source(path).file, find_source(path).format, start) {}

CorpusReader::CorpusReader(const std::filesystem::path& file, RecordFormat format, Position start)
    : reader_(file, start),
      format_(format),
      record_({"_id", "id", "docid", "doc_id", "query_id", "title", "text", "document_text",
               "query_text", "contents", "passage"}),
      after_(start) {}

bool CorpusReader::next(Document& document) {
  document.id.clear();
  document.title.clear();
  document.text.clear();
  switch (format_) {
    case RecordFormat::json_lines:
      return next_json(document);
    case RecordFormat::tsv:
      return next_tsv(document);
    case RecordFormat::smart:
      return next_smart(document);
    case RecordFormat::npl:
      return next_npl(document);
  }
  return false;
}

bool CorpusReader::advance() {
  if (std::exchange(line_pending_, false)) return true;
  return reader_.next();
}

bool CorpusReader::next_json(Document& document) {
  do {
    if (!advance()) return false;
  } while (trimmed(reader_.line()).empty());
  line_ = reader_.number();
  offset_ = reader_.offset();
  record_.parse(reader_);
  const std::string* id = record_.text(id_keys, title_key, reader_);
  if (!id) reader_.reject("no \"_id\" (or id, docid, doc_id, query_id) in this record");
  const std::string* title = record_.text(title_key, text_keys, reader_);
  const std::string* text = record_.text(text_keys, key_count, reader_);
  if (!title && !text) reader_.reject("no \"text\" and no \"title\" in this record");
  document.id = *id;
  require_id(document.id, reader_);
  if (title && !trimmed(*title).empty()) document.title = *title;
  if (text && !trimmed(*text).empty()) document.text = *text;
  after_ = reader_.after();
  return true;
}

bool CorpusReader::next_tsv(Document& document) {
  do {
    if (!advance()) return false;
  } while (trimmed(reader_.line()).empty());
  line_ = reader_.number();
  offset_ = reader_.offset();
  std::string_view line = reader_.line();
  std::size_t tab = line.find('\t');
  if (tab == std::string_view::npos) reader_.reject("expected id<tab>text, found no tab");
  document.id = line.substr(0, tab);
  require_id(document.id, reader_);
  document.text = line.substr(tab + 1);
  after_ = reader_.after();
  return true;
}

bool CorpusReader::next_smart(Document& document) {
  do {
    if (!advance()) return false;
  } while (trimmed(reader_.line()).empty());
  if (smart_section(reader_.line()) != 'I')
    reader_.reject("expected '.I number' at the start of a record");
  line_ = reader_.number();
  offset_ = reader_.offset();
  document.id = trimmed(reader_.line().substr(2));
  require_id(document.id, reader_);
  char section = 'I';
  while (true) {
    after_ = reader_.after();
    if (!reader_.next()) break;
    char mark = smart_section(reader_.line());
    if (mark == 'I') {
      line_pending_ = true;
      break;
    }
    if (mark != 0)
      section = mark;
    else if (section == 'I' && !trimmed(reader_.line()).empty())
      reader_.reject("text before the first section (.T, .W) of record {}", document.id);
    else if (section == 'T')
      append_line(document.title, reader_.line());
    else if (section == 'W')
      append_line(document.text, reader_.line());
  }
  return true;
}

bool CorpusReader::next_npl(Document& document) {
  do {
    if (!advance()) return false;
    if (trimmed(reader_.line()) == "/") reader_.reject("a block without a number");
  } while (trimmed(reader_.line()).empty());
  line_ = reader_.number();
  offset_ = reader_.offset();
  document.id = trimmed(reader_.line());
  if (!parse_integer(document.id))
    reader_.reject("expected the number of a block, found '{}'", document.id);
  while (true) {
    if (!reader_.next())
      fail(Fault::bad_data, "{}:{}: block {} has no closing line '/'", reader_.name(), line_,
           document.id);
    if (trimmed(reader_.line()) == "/") break;
    append_line(document.text, reader_.line());
  }
  after_ = reader_.after();
  return true;
}

}  // namespace moe
