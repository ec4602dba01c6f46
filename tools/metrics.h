// Retrieval measures by the rules of trec_eval (Buckley; versions 9.0.8 and 10).
//   order      score descending, then document id descending byte by byte; the rank column plays
//              no part
//   relevant   grade >= relevance_level (default 1); unjudged or negative = not relevant
//   nDCG@k     sum over ranks i <= k of gain / log2(i + 1), over the same sum of the ideal order of
//              *all* judged documents; gain = grade, or 2^grade - 1; relevance_level plays no part
//   MAP@k      sum of the precisions at relevant ranks <= k, over the number of *all* relevant ones
//   Recall@k   relevant ones within k, over all relevant ones
//   P@k        relevant ones within k, over k
//   MRR@k      1 / rank of the first relevant one within k
//   Success@k  1 when there is a relevant one within k
//   mean       over all judged queries; one missing from the run or without relevant documents is 0
#pragma once

#include "tools/qrels.h"

#include <string>
#include <string_view>
#include <vector>

namespace moe {

enum class Measure { ndcg, map, mrr, recall, precision, success };

struct Metric {
  Measure measure = Measure::ndcg;
  Index cutoff = 0;          // 0: the whole ranking
  std::string name() const;  // "nDCG@10", "MAP"
};

// "ndcg@10", "MAP", "MRR@10", "Recall@100", "R@100", "P@1", "Precision@1", "Success@5", any case.
Metric parse_metric(std::string_view name);
std::vector<Metric> parse_metrics(std::string_view names);  // separated by commas or blanks

struct EvaluationOptions {
  int relevance_level = 1;        // TREC Deep Learning uses 2 for all but nDCG
  bool exponential_gain = false;  // nDCG gain 2^grade - 1
  bool float_scores =
      false;  // round scores to float32 before ordering, as trec_eval up to 9.0.8 does
  bool drop_same_id = false;  // leave out the document whose id is the query's (ArguAna, Quora)
  bool strict = false;        // a run and judgements with different queries are an error
};

struct QueryEvaluation {
  std::string query;
  bool missing = false;        // judged, but not in the run
  Index retrieved = 0;         // documents in the run
  Index relevant = 0;          // all judged relevant ones
  std::vector<double> values;  // one a metric
};

struct Evaluation {
  std::vector<Metric> metrics;
  std::vector<double> means;             // one a metric
  std::vector<QueryEvaluation> queries;  // every judged query, ordered by id
  Index missing = 0;                     // judged queries that the run lacks: counted as 0
  Index without_relevant = 0;            // judged queries with nothing relevant: counted as 0
  Index unjudged = 0;                    // queries of the run without judgements: left out

  double mean(std::string_view metric) const;  // by name; usage error when it was not computed
  std::vector<double> column(
      std::string_view metric) const;  // per-query values, for significance tests
};

// bad_data for a document that a query's ranking holds twice, a NaN score or no judged query at
// all.
Evaluation evaluate(const Qrels& qrels, const Run& run, const std::vector<Metric>& metrics,
                    const EvaluationOptions& options = {});

// One line of JSON: {"metrics": {...}, "queries": n, "missing": n, "without_relevant": n,
// "unjudged": n}, and with `per_query` also {"per_query": {id: {metric: value}}}. Numbers have 17
// digits: reading gives them back.
std::string evaluation_json(const Evaluation& evaluation, bool per_query = false);

}  // namespace moe
