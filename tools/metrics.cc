// Measures of one ranking, then their means. The ranking is reduced to the grades of its documents
// in rank order; every measure is a function of that list and of the judged grades.
#include "tools/metrics.h"

#include "runtime/error.h"
#include "tools/json_lines.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <unordered_set>

namespace moe {
namespace {

constexpr int unjudged_grade = -1;
constexpr int largest_exponential_grade =
    60;  // 2^60 - 1 and sums of it stay exact enough and finite

struct Spelling {
  const char* text;
  Measure measure;
};
// The first spelling of a measure is its name in reports.
constexpr Spelling spellings[] = {
    {"nDCG", Measure::ndcg},       {"MAP", Measure::map},     {"AP", Measure::map},
    {"MRR", Measure::mrr},         {"RR", Measure::mrr},      {"Recall", Measure::recall},
    {"R", Measure::recall},        {"P", Measure::precision}, {"Precision", Measure::precision},
    {"Success", Measure::success}, {"Hit", Measure::success},
};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

// A judged query against its ranking.
struct Judged {
  std::vector<int> ranked;  // grade by rank, unjudged_grade where there is no judgement
  std::vector<int> ideal;   // judged grades above 0, descending
  Index relevant = 0;       // judged grades >= level
  int level = 1;
  bool exponential = false;
};

double gain(int grade, bool exponential) {
  return exponential ? std::exp2(grade) - 1.0 : grade;
}

double discounted_gain(const std::vector<int>& grades, std::size_t depth, bool exponential) {
  double sum = 0;
  for (std::size_t i = 0; i < std::min(depth, grades.size()); ++i)
    if (grades[i] > 0) sum += gain(grades[i], exponential) / std::log2(static_cast<double>(i + 2));
  return sum;
}

double measure_value(const Metric& metric, const Judged& judged) {
  std::size_t depth = metric.cutoff > 0 ? static_cast<std::size_t>(metric.cutoff)
                                        : std::max(judged.ranked.size(), judged.ideal.size());
  if (metric.measure == Measure::ndcg) {
    double ideal = discounted_gain(judged.ideal, depth, judged.exponential);
    return ideal > 0 ? discounted_gain(judged.ranked, depth, judged.exponential) / ideal : 0;
  }
  double found = 0, precisions = 0, first = 0;
  for (std::size_t i = 0; i < std::min(depth, judged.ranked.size()); ++i) {
    if (judged.ranked[i] < judged.level) continue;
    found += 1;
    precisions += found / static_cast<double>(i + 1);
    if (found == 1) first = 1.0 / static_cast<double>(i + 1);
  }
  double all = static_cast<double>(judged.relevant);
  switch (metric.measure) {
    case Measure::map:
      return all > 0 ? precisions / all : 0;
    case Measure::recall:
      return all > 0 ? found / all : 0;
    case Measure::precision:
      return found / static_cast<double>(metric.cutoff);
    case Measure::mrr:
      return first;
    case Measure::success:
      return found > 0 ? 1 : 0;
    case Measure::ndcg:
      break;
  }
  return 0;
}

struct Ranked {
  double score;
  const std::string* document;
};

// The run's documents of one query in trec_eval's order.
std::vector<Ranked> rank_documents(const std::string& query,
                                   const std::vector<ScoredDocument>& documents,
                                   const EvaluationOptions& options) {
  std::vector<Ranked> ranking;
  std::unordered_set<std::string_view> seen;
  ranking.reserve(documents.size());
  for (const ScoredDocument& entry : documents) {
    if (std::isnan(entry.score))
      fail(Fault::bad_data, "run: query '{}', document '{}': the score is not a number", query,
           entry.document);
    if (!seen.insert(entry.document).second)
      fail(Fault::bad_data, "run: query '{}' has document '{}' twice; keep its best score only",
           query, entry.document);
    if (options.drop_same_id && entry.document == query) continue;
    double score =
        options.float_scores ? static_cast<double>(static_cast<float>(entry.score)) : entry.score;
    ranking.push_back({score, &entry.document});
  }
  std::sort(ranking.begin(), ranking.end(), [](const Ranked& a, const Ranked& b) {
    return ranks_before(a.score, *a.document, b.score, *b.document);
  });
  return ranking;
}

Judged judge(const std::string& query, const Grades& grades, const EvaluationOptions& options) {
  Judged judged{{}, {}, 0, options.relevance_level, options.exponential_gain};
  for (const auto& [document, grade] : grades) {
    if (options.drop_same_id && document == query) continue;
    if (grade >= options.relevance_level) ++judged.relevant;
    if (grade > 0) judged.ideal.push_back(grade);
    if (options.exponential_gain && grade > largest_exponential_grade)
      fail(Fault::bad_data,
           "qrels: query '{}', document '{}': grade {} is too large for the gain 2^grade - 1",
           query, document, grade);
  }
  std::sort(judged.ideal.begin(), judged.ideal.end(), std::greater<>());
  return judged;
}

void refuse_different_queries(const Evaluation& evaluation) {
  if (evaluation.missing == 0 && evaluation.unjudged == 0) return;
  fail(Fault::bad_data,
       "strict: run and judgements have different queries: {} judged ones are missing from the "
       "run, {} of the "
       "run have no judgements; leave strict off to count the former as 0 and skip the latter",
       evaluation.missing, evaluation.unjudged);
}

std::size_t metric_position(const Evaluation& evaluation, std::string_view name) {
  Metric wanted = parse_metric(name);
  for (std::size_t i = 0; i < evaluation.metrics.size(); ++i)
    if (evaluation.metrics[i].measure == wanted.measure &&
        evaluation.metrics[i].cutoff == wanted.cutoff)
      return i;
  fail(Fault::usage, "{} was not computed; add it to the list of metrics", wanted.name());
}

}  // namespace

std::string Metric::name() const {
  for (const Spelling& spelling : spellings)
    if (spelling.measure == measure)
      return cutoff > 0 ? fmt::format("{}@{}", spelling.text, cutoff) : spelling.text;
  return {};
}

Metric parse_metric(std::string_view name) {
  std::string_view kind = name.substr(0, name.find('@'));
  for (const Spelling& spelling : spellings) {
    if (lower(kind) != lower(spelling.text)) continue;
    Metric metric{spelling.measure, 0};
    if (kind.size() < name.size()) {
      auto cutoff = parse_integer(name.substr(kind.size() + 1));
      check(cutoff && *cutoff > 0, "metric '{}': the number after @ must be a positive integer",
            name);
      metric.cutoff = *cutoff;
    }
    check(metric.measure != Measure::precision || metric.cutoff > 0,
          "metric '{}' needs a cutoff, for example P@10", name);
    return metric;
  }
  fail(Fault::usage,
       "unknown metric '{}'; known are nDCG@k, MAP@k, MRR@k, Recall@k, P@k, Success@k", name);
}

std::vector<Metric> parse_metrics(std::string_view names) {
  std::vector<Metric> metrics;
  for (std::size_t i = 0; i < names.size();) {
    std::size_t end = std::min(names.find_first_of(", \t", i), names.size());
    if (end > i) metrics.push_back(parse_metric(names.substr(i, end - i)));
    i = end + 1;
  }
  check(!metrics.empty(), "no metric given; for example nDCG@10,MRR@10,Recall@100");
  return metrics;
}

Evaluation evaluate(const Qrels& qrels, const Run& run, const std::vector<Metric>& metrics,
                    const EvaluationOptions& options) {
  check(options.relevance_level >= 1, "relevance level {}: must be 1 or more",
        options.relevance_level);
  if (qrels.empty()) fail(Fault::bad_data, "there are no judgements to evaluate with");
  Evaluation evaluation;
  evaluation.metrics = metrics;
  evaluation.means.assign(metrics.size(), 0.0);
  evaluation.queries.reserve(qrels.size());
  for (const auto& [query, ranking] : run) evaluation.unjudged += qrels.count(query) == 0;
  for (const auto& [query, grades] : qrels) {
    Judged judged = judge(query, grades, options);
    QueryEvaluation result{query, false, 0, judged.relevant, {}};
    if (auto found = run.find(query); found != run.end()) {
      for (const Ranked& ranked : rank_documents(query, found->second, options)) {
        auto grade = grades.find(*ranked.document);
        judged.ranked.push_back(grade == grades.end() ? unjudged_grade : grade->second);
      }
    } else {
      result.missing = true;
      ++evaluation.missing;
    }
    evaluation.without_relevant += judged.relevant == 0;
    result.retrieved = static_cast<Index>(judged.ranked.size());
    for (std::size_t i = 0; i < metrics.size(); ++i) {
      result.values.push_back(measure_value(metrics[i], judged));
      evaluation.means[i] += result.values.back();
    }
    evaluation.queries.push_back(std::move(result));
  }
  for (double& mean : evaluation.means) mean /= static_cast<double>(qrels.size());
  if (options.strict) refuse_different_queries(evaluation);
  return evaluation;
}

double Evaluation::mean(std::string_view metric) const {
  return means[metric_position(*this, metric)];
}

std::vector<double> Evaluation::column(std::string_view metric) const {
  std::size_t position = metric_position(*this, metric);
  std::vector<double> values;
  for (const QueryEvaluation& query : queries) values.push_back(query.values[position]);
  return values;
}

std::string evaluation_json(const Evaluation& evaluation, bool per_query) {
  auto values_json = [&](const std::vector<double>& values) {
    std::string text = "{";
    for (std::size_t i = 0; i < values.size(); ++i)
      text +=
          fmt::format("{}\"{}\": {:.17g}", i ? ", " : "", evaluation.metrics[i].name(), values[i]);
    return text + "}";
  };
  std::string text = fmt::format(
      "{{\"metrics\": {}, \"queries\": {}, \"missing\": {}, \"without_relevant\": {}, "
      "\"unjudged\": {}",
      values_json(evaluation.means), evaluation.queries.size(), evaluation.missing,
      evaluation.without_relevant, evaluation.unjudged);
  if (per_query) {
    text += ", \"per_query\": {";
    for (std::size_t i = 0; i < evaluation.queries.size(); ++i)
      text += fmt::format("{}{}: {}", i ? ", " : "", json_quote(evaluation.queries[i].query),
                          values_json(evaluation.queries[i].values));
    text += "}";
  }
  return text + "}";
}

}  // namespace moe
