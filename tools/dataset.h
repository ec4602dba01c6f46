// A retrieval collection in memory: documents, queries and judgements by split, from a folder in
// any of these layouts.
//   BEIR          corpus.jsonl, queries.jsonl (all splits), qrels/{train,dev,test}.tsv
//   MS MARCO      collection.tsv, queries.SPLIT.tsv, qrels.SPLIT.tsv; dev.small is read as dev
//   multi-domain  collection.jsonl, {train,val,test}/queries.jsonl holding rel_doc_ids, which a
//                 qrels.json beside them replaces; val is read as dev
//   cranfield     cran.all.1400, cran.qry, cranqrel
//   npl           doc-text, query-text, rlv-ass
//   SQuAD v2      dev-v2.0.json or train-v2.0.json: paragraphs and their answerable questions
// Every text file may be .gz. Sets without a split of their own (cranfield, npl, SQuAD's dev file)
// are "test".
#pragma once

#include "tools/corpus_reader.h"
#include "tools/id_index.h"
#include "tools/qrels.h"

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

struct LoadOptions {
  bool documents = true;  // false: only queries and judgements (the index is built elsewhere)
  bool queries = true;
  bool titles = true;  // false: Document::full() is the text alone
  std::vector<std::string> splits =
      {};  // empty: every split that is there; named ones must be there
};

struct Collection {
  std::string name, layout;
  std::vector<Document> documents;
  std::vector<Query> queries;                        // of all splits, in file order
  std::map<std::string, Qrels, std::less<>> splits;  // "train", "dev", "test"
  std::vector<std::string> warnings;  // for people: counts of what is odd but not fatal

  Index document_row(std::string_view id) const { return document_index.find(documents, id); }
  Index query_row(std::string_view id) const { return query_index.find(queries, id); }

  const Qrels& qrels(std::string_view split) const;  // usage error naming the splits there are
  std::vector<Index> query_rows(
      std::string_view split) const;  // its queries with a text, in file order
  std::string summary() const;        // one line: layout, sizes, how texts are made

  IdIndex document_index, query_index;
};

// Fails: missing files, malformed lines, duplicate ids. Warns with counts:
// judgements that name unknown documents or queries (they stay: trec_eval's ideal ranking counts
// them), empty documents.
Collection load_collection(const std::filesystem::path& path, const LoadOptions& options = {});

}  // namespace moe
