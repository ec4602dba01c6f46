// Recognises the layout of a folder and loads it; the line formats themselves are in
// corpus_reader.cc, json_lines.cc and qrels.cc.
#include "tools/dataset.h"

#include <algorithm>
#include <optional>
#include <set>
#include <system_error>

namespace moe {
namespace {

using std::filesystem::path;

path require_file(const path& folder, const std::string& name) {
  if (auto file = find_plain_or_gzip(folder, name)) return *file;
  fail(Fault::missing_input, "{}: {} (or {}.gz) is missing", folder.string(), name, name);
}

// Splits to load: those asked for, or the usual ones.
std::vector<std::string> wanted_splits(const LoadOptions& options) {
  if (!options.splits.empty()) return options.splits;
  return {"train", "dev", "test"};
}

bool wants(const LoadOptions& options, const std::string& split) {
  auto wanted = wanted_splits(options);
  return std::find(wanted.begin(), wanted.end(), split) != wanted.end();
}

void add_documents(Collection& collection, CorpusReader reader, const LoadOptions& options) {
  if (!options.documents) return;
  Index empty = 0;
  std::int64_t first_empty = 0;
  for (Document document; reader.next(document);) {
    if (!options.titles) document.title.clear();
    if (document.title.empty() && document.text.empty() && empty++ == 0)
      first_empty = reader.line();
    collection.documents.push_back(std::move(document));
    Index earlier = collection.document_index.insert_last(collection.documents);
    if (earlier >= 0)
      fail(Fault::bad_data, "{}:{}: document id '{}' is already that of document number {}",
           reader.name(), reader.line(), collection.documents.back().id, earlier + 1);
  }
  if (empty > 0)
    collection.warnings.push_back(
        fmt::format("{}: {} documents have neither title nor text, the first at line {}",
                    reader.name(), empty, first_empty));
}

void add_query(Collection& collection, Query query, std::string_view where) {
  collection.queries.push_back(std::move(query));
  Index earlier = collection.query_index.insert_last(collection.queries);
  if (earlier >= 0)
    fail(Fault::bad_data, "{}: query id '{}' is already that of query number {}", where,
         collection.queries.back().id, earlier + 1);
}

// `number_by_order`: cranfield's judgements count the queries, they do not use the numbers after
// .I.
void add_queries(Collection& collection, CorpusReader reader, const LoadOptions& options,
                 bool number_by_order = false) {
  if (!options.queries) return;
  Index empty = 0, count = 0;
  for (Document record; reader.next(record);) {
    if (record.text.empty()) ++empty;
    std::string id = number_by_order ? std::to_string(++count) : std::move(record.id);
    add_query(collection, {std::move(id), std::move(record.text)},
              fmt::format("{}:{}", reader.name(), reader.line()));
  }
  if (empty > 0)
    collection.warnings.push_back(fmt::format("{}: {} queries have no text", reader.name(), empty));
}

void load_beir(Collection& collection, const path& folder, const LoadOptions& options) {
  collection.layout = "beir";
  if (options.documents) add_documents(collection, CorpusReader(folder), options);
  if (options.queries)
    add_queries(collection, CorpusReader(require_file(folder, "queries.jsonl")), options);
  for (const std::string& split : wanted_splits(options))
    if (auto file = find_plain_or_gzip(folder / "qrels", split + ".tsv"))
      collection.splits[split] = read_qrels(*file);
}

void load_ms_marco(Collection& collection, const path& folder, const LoadOptions& options) {
  collection.layout = "ms-marco";
  if (options.documents) add_documents(collection, CorpusReader(folder), options);
  for (const std::string& split : wanted_splits(options)) {
    // The 6,980 queries of dev.small are what "MS MARCO dev" means in papers.
    bool small = split == "dev" && find_plain_or_gzip(folder, "qrels.dev.small.tsv");
    std::string ending = (small ? "dev.small" : split) + ".tsv";
    if (auto file = find_plain_or_gzip(folder, "qrels." + ending)) {
      collection.splits[split] = read_qrels(*file);
      if (options.queries)
        add_queries(collection, CorpusReader(require_file(folder, "queries." + ending)), options);
    }
  }
}

// Queries carry their relevant documents (rel_doc_ids); a qrels.json beside them comes first.
void load_multi_domain(Collection& collection, const path& folder, const LoadOptions& options) {
  collection.layout = "multi-domain";
  if (options.documents) add_documents(collection, CorpusReader(folder), options);
  for (const std::string& split : wanted_splits(options)) {
    auto inside = folder / (split == "dev" ? "val" : split);
    auto file = find_plain_or_gzip(inside, "queries.jsonl");
    if (!file) continue;
    Qrels& qrels = collection.splits[split];
    auto judged = find_plain_or_gzip(inside, "qrels.json");
    if (judged) qrels = read_qrels(*judged);
    JsonRecord record({"_id", "id", "text", "rel_doc_ids"});
    for (LineReader reader(*file); reader.next();) {
      if (trimmed(reader.line()).empty()) continue;
      record.parse(reader);
      const std::string *id = record.text(0, 2, reader), *text = record.text(2, 3, reader);
      if (!id || !text) reader.reject("a query needs \"id\" (or \"_id\") and \"text\"");
      require_id(*id, reader);
      if (!judged)
        for (const std::string& document : record[3].items) qrels[*id][document] = 1;
      if (options.queries) add_query(collection, {*id, *text}, reader.where());
    }
  }
}

// Codes 1 (best) to 4 become gains 4 to 1; -1, one a query and explained nowhere, gains 0.
Qrels read_cranfield_qrels(const path& file) {
  Qrels qrels;
  std::vector<std::string_view> fields;
  for (LineReader reader(file); reader.next();) {
    split_blanks(reader.line(), fields);
    if (fields.empty()) continue;
    auto code = fields.size() == 3 ? parse_integer(fields[2]) : std::nullopt;
    if (!code || *code > 5 || (*code < 1 && *code != -1))
      reader.reject("expected 'query document code' with a code of 1..5 or -1");
    int gain = *code == -1 ? 0 : 5 - static_cast<int>(*code);
    if (!qrels[std::string(fields[0])].emplace(fields[1], gain).second)
      reader.reject("document '{}' is judged twice for query '{}'", fields[1], fields[0]);
  }
  return qrels;
}

void load_cranfield(Collection& collection, const path& folder, const LoadOptions& options) {
  collection.layout = "cranfield";
  add_documents(collection,
                CorpusReader(require_file(folder, "cran.all.1400"), RecordFormat::smart), options);
  add_queries(collection, CorpusReader(require_file(folder, "cran.qry"), RecordFormat::smart),
              options, true);
  if (wants(options, "test"))
    collection.splits["test"] = read_cranfield_qrels(require_file(folder, "cranqrel"));
}

void load_npl(Collection& collection, const path& folder, const LoadOptions& options) {
  collection.layout = "npl";
  add_documents(collection, CorpusReader(require_file(folder, "doc-text"), RecordFormat::npl),
                options);
  add_queries(collection, CorpusReader(require_file(folder, "query-text"), RecordFormat::npl),
              options);
  if (!wants(options, "test")) return;
  Qrels& qrels = collection.splits["test"];
  CorpusReader reader(require_file(folder, "rlv-ass"), RecordFormat::npl);
  std::vector<std::string_view> relevant;
  for (Document block; reader.next(block);) {
    split_blanks(block.text, relevant);
    Grades& grades = qrels[block.id];
    for (std::string_view document : relevant)
      if (!grades.emplace(document, 1).second)
        fail(Fault::bad_data, "{}:{}: document '{}' is given twice for query '{}'", reader.name(),
             reader.line(), document, block.id);
  }
}

void load_squad(Collection& collection, const path& file, const LoadOptions& options) {
  collection.layout = "squad";
  std::string split = file.filename().string().starts_with("train") ? "train" : "test";
  Qrels qrels;
  for (SquadParagraph& paragraph : read_squad(file)) {
    for (SquadQuestion& question : paragraph.questions) {
      if (!question.answerable) continue;
      qrels[question.id][paragraph.id] = 1;
      if (options.queries)
        add_query(collection, {std::move(question.id), std::move(question.text)}, file.string());
    }
    if (!options.documents) continue;
    collection.documents.push_back({std::move(paragraph.id), "", std::move(paragraph.text)});
    if (collection.document_index.insert_last(collection.documents) >= 0)
      fail(Fault::bad_data, "{}: paragraph id '{}' is there twice", file.string(),
           collection.documents.back().id);
  }
  if (wants(options, split)) collection.splits[split] = std::move(qrels);
}

void warn_of_unknown_ids(Collection& collection, const LoadOptions& options) {
  for (const auto& [split, qrels] : collection.splits) {
    Index judgements = 0, queries = 0;
    std::set<std::string_view> documents;
    std::string_view first_query;
    for (const auto& [query, grades] : qrels) {
      if (options.queries && collection.query_row(query) < 0 && queries++ == 0) first_query = query;
      if (!options.documents) continue;
      for (const auto& [document, grade] : grades)
        if (collection.document_row(document) < 0) {
          ++judgements;
          documents.insert(document);
        }
    }
    if (judgements > 0)
      collection.warnings.push_back(fmt::format(
          "{} judgements of split {} name {} documents that the corpus lacks, for example '{}'",
          judgements, split, documents.size(), *documents.begin()));
    if (queries > 0)
      collection.warnings.push_back(
          fmt::format("{} judged queries of split {} have no text, for example '{}': they will "
                      "count as missing",
                      queries, split, first_query));
  }
}

void load_folder(Collection& collection, const path& folder, const LoadOptions& options) {
  if (find_plain_or_gzip(folder, "corpus.jsonl") || find_plain_or_gzip(folder, "queries.jsonl"))
    return load_beir(collection, folder, options);
  if (find_plain_or_gzip(folder, "cran.all.1400"))
    return load_cranfield(collection, folder, options);
  if (find_plain_or_gzip(folder, "doc-text")) return load_npl(collection, folder, options);
  for (const char* name : {"dev-v2.0.json", "train-v2.0.json"})
    if (auto file = find_plain_or_gzip(folder, name)) return load_squad(collection, *file, options);
  if (find_plain_or_gzip(folder, "collection.tsv"))
    return load_ms_marco(collection, folder, options);
  if (find_plain_or_gzip(folder, "collection.jsonl"))
    return load_multi_domain(collection, folder, options);
  fail(Fault::missing_input,
       "{}: no known layout; expected corpus.jsonl + queries.jsonl + qrels/ (BEIR), collection.tsv "
       "(MS MARCO), "
       "collection.jsonl (multi-domain), cran.all.1400, doc-text (npl) or dev-v2.0.json (SQuAD)",
       folder.string());
}

}  // namespace

Collection load_collection(const path& place, const LoadOptions& options) {
  std::error_code error;
  if (!std::filesystem::exists(place, error))
    fail(Fault::missing_input, "{}: no such file or folder", place.string());
  Collection collection;
  path absolute = std::filesystem::absolute(place).lexically_normal();
  collection.name =
      (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
  if (std::filesystem::is_directory(place, error))
    load_folder(collection, place, options);
  else if (place.extension() == ".json")
    load_squad(collection, place, options);
  else
    fail(Fault::usage, "{}: give the folder of the collection (or a SQuAD .json file)",
         place.string());
  for (const std::string& split : options.splits) collection.qrels(split);
  warn_of_unknown_ids(collection, options);
  return collection;
}

const Qrels& Collection::qrels(std::string_view split) const {
  auto found = splits.find(split);
  if (found != splits.end()) return found->second;
  std::string known;
  for (const auto& [other, judged] : splits) known += (known.empty() ? "" : ", ") + other;
  fail(Fault::usage, "{}: no split '{}'; there {}", name, split,
       known.empty() ? "is none (no judgements were found)" : "is " + known);
}

std::vector<Index> Collection::query_rows(std::string_view split) const {
  std::vector<Index> rows;
  for (const auto& [query, grades] : qrels(split))
    if (Index row = query_row(query); row >= 0) rows.push_back(row);
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::string Collection::summary() const {
  bool titled = std::any_of(documents.begin(), documents.end(),
                            [](const Document& document) { return !document.title.empty(); });
  std::string text =
      fmt::format("{} ({}): {} documents ({}), {} queries", name, layout, documents.size(),
                  titled ? "title + text" : "text", queries.size());
  for (const auto& [split, judged] : splits)
    text += fmt::format("; {} {} queries / {} judgements", split, judged.size(),
                        judgement_count(judged));
  return text;
}

}  // namespace moe
