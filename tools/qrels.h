// Relevance judgements (qrels) and rankings (runs), in the formats retrieval programs exchange.
//   BEIR qrels   query-id <tab> corpus-id <tab> score, after a header line; ids may hold blanks
//   TREC qrels   query 0 document grade
//   TREC run     query Q0 document rank score tag
//   ranx         {"query": {"document": number}}, both
// Both containers are ordered by query id, so every report and every sum has one order.
#pragma once

#include "runtime/shape.h"

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

using Grades = std::map<std::string, int, std::less<>>;    // document id -> grade
using Qrels = std::map<std::string, Grades, std::less<>>;  // query id -> its judged documents

struct ScoredDocument {
  std::string document;
  double score = 0;
};
using Run = std::map<std::string, std::vector<ScoredDocument>, std::less<>>;  // query id -> ranking

// Rank order of trec_eval: score descending, then document id descending, byte by byte.
inline bool ranks_before(double score_a, std::string_view a, double score_b, std::string_view b) {
  return score_a != score_b ? score_a > score_b : a > b;
}

Index judgement_count(const Qrels& qrels);

// The format is told by content: '{' is ranx, three fields between tabs BEIR, four between blanks
// TREC. A document judged twice for one query and anything malformed is bad_data with file and
// line.
Qrels read_qrels(const std::filesystem::path& path);

// TREC or ranx; the rank column is ignored, a NaN score or a document given twice for a query is
// bad_data.
Run read_run(const std::filesystem::path& path);

// TREC formats, "-" is standard output. Scores are written with %.9g, which gives every float32
// back exactly, so that reading the run again makes no new ties. Ids that are empty or hold blanks
// are refused: the format cannot carry them. Documents are written in trec_eval's order. The file
// appears whole or not at all.
void write_trec_run(const std::filesystem::path& path, const Run& run,
                    std::string_view tag = "moe-run");
void write_trec_qrels(const std::filesystem::path& path, const Qrels& qrels);

// BEIR's table with its header; ids that hold tabs or line breaks are refused.
void write_beir_qrels(const std::filesystem::path& path, const Qrels& qrels);

}  // namespace moe
