// Measures against hand values (trec_eval's rules), significance tests against published tables and
// SciPy, BM25 against the figures known for public collections (those need the folder in MOE_DATA).
#include "tools/metrics.h"

#include "runtime/error.h"
#include "runtime/random.h"
#include "tools/bm25.h"
#include "tools/significance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace moe {
namespace {

double value(const Qrels& qrels, const moe::Run& run, const std::string& metric,
             const EvaluationOptions& options = {}) {
  return evaluate(qrels, run, {parse_metric(metric)}, options).means[0];
}

Fault fault_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.fault();
  }
  ADD_FAILURE() << "no error was thrown";
  return Fault::failure;
}

TEST(Metrics, GradedHandValues) {
  Qrels qrels{{"q", {{"a", 2}, {"b", 1}, {"c", 0}}}};
  moe::Run run{{"q", {{"a", .9}, {"c", .8}, {"b", .7}}}};
  EXPECT_NEAR(value(qrels, run, "nDCG@3"), 2.5 / (2 + 1 / std::log2(3.0)), 1e-12);
  EXPECT_NEAR(value(qrels, run, "nDCG@3"), 0.950234, 1e-6);
  EXPECT_NEAR(value(qrels, run, "nDCG@3", {.exponential_gain = true}), 0.963940, 1e-6);
  EXPECT_NEAR(value(qrels, run, "MAP"), 0.833333, 1e-6);
  EXPECT_NEAR(value(qrels, run, "P@3"), 0.666667, 1e-6);
  EXPECT_EQ(value(qrels, run, "MRR"), 1);
  EXPECT_EQ(value(qrels, run, "Recall@2"), 0.5);
  EXPECT_EQ(value(qrels, run, "Recall@3"), 1);
  EXPECT_EQ(value(qrels, run, "Success@1"), 1);
}

TEST(Metrics, TiesGoByDocumentIdDescending) {
  Qrels qrels{{"q", {{"b", 1}}}};
  moe::Run run{{"q", {{"a", .5}, {"b", .5}, {"c", .5}}}};
  EXPECT_EQ(value(qrels, run, "MRR@10"), 0.5);
  EXPECT_NEAR(value(qrels, run, "nDCG@10"), 0.630930, 1e-6);
  // Bytes, not letters or numbers: "9" after "10", "Z" before "a", UTF-8 above ASCII.
  EXPECT_TRUE(ranks_before(1, "9", 1, "10"));
  EXPECT_TRUE(ranks_before(1, "a", 1, "Z"));
  EXPECT_TRUE(ranks_before(1, "\xC3\xA9", 1, "z"));
  EXPECT_TRUE(ranks_before(1, "a", 0.5, "b"));
}

TEST(Metrics, FloatScoresMakeTies) {
  Qrels qrels{{"q", {{"a", 1}}}};
  moe::Run run{{"q", {{"a", 0.123456789}, {"b", 0.123456788}}}};
  EXPECT_EQ(value(qrels, run, "MRR"), 1);
  EXPECT_EQ(value(qrels, run, "MRR", {.float_scores = true}), 0.5);
}

TEST(Metrics, MissingQueriesCountAsZero) {
  Qrels qrels{{"q1", {{"a", 1}}}, {"q2", {{"b", 1}}}, {"q3", {{"c", 0}}}};
  moe::Run run{{"q1", {{"a", 1.0}}}, {"other", {{"a", 1.0}}}};
  Evaluation evaluation = evaluate(qrels, run, parse_metrics("nDCG@10,MRR"));
  EXPECT_NEAR(evaluation.mean("nDCG@10"), 1.0 / 3, 1e-15);
  EXPECT_NEAR(evaluation.mean("mrr"), 1.0 / 3, 1e-15);
  EXPECT_EQ(evaluation.missing, 2);
  EXPECT_EQ(evaluation.without_relevant, 1);
  EXPECT_EQ(evaluation.unjudged, 1);
  ASSERT_EQ(evaluation.queries.size(), 3u);
  EXPECT_TRUE(evaluation.queries[1].missing);
  EXPECT_EQ(evaluation.column("ndcg@10"), (std::vector<double>{1, 0, 0}));
  qrels.erase("q3");
  EXPECT_EQ(value(qrels, run, "nDCG@10"), 0.5);
  EXPECT_EQ(value(qrels, run, "MRR"), 0.5);
  EXPECT_EQ(fault_of([&] { value(qrels, run, "MRR", {.strict = true}); }), Fault::bad_data);
  EXPECT_EQ(fault_of([&] { evaluation.mean("MAP"); }), Fault::usage);
}

TEST(Metrics, DenominatorsCountAllRelevant) {
  Grades grades{{"minus", -1}, {"zero", 0}};
  for (int i = 0; i < 20; ++i) grades["d" + std::to_string(i)] = 1;
  Qrels qrels{{"q", grades}};
  moe::Run run{{"q", {{"d0", 3}, {"minus", 2}, {"unjudged", 1.5}, {"d1", 1}}}};
  EXPECT_NEAR(value(qrels, run, "Recall@4"), 2.0 / 20, 1e-15);
  EXPECT_NEAR(value(qrels, run, "MAP@4"), (1.0 + 0.5) / 20, 1e-15);
  EXPECT_NEAR(value(qrels, run, "P@10"), 2.0 / 10, 1e-15);  // though only 4 were retrieved
  EXPECT_EQ(value(qrels, run, "Success@1"), 1);
  EXPECT_EQ(value(qrels, {{"q", {}}}, "nDCG@10"), 0);
  for (const char* metric : {"nDCG@10", "MAP", "MRR", "Recall@10", "P@10", "Success@10"})
    EXPECT_EQ(value({{"q", {{"d0", -1}, {"d1", -2}}}}, run, metric), 0) << metric;
}

TEST(Metrics, RelevanceLevelLeavesGainsAlone) {
  Qrels qrels{{"q", {{"a", 1}, {"b", 2}}}};
  moe::Run run{{"q", {{"a", 2}, {"b", 1}}}};
  EvaluationOptions strict_level{.relevance_level = 2};
  EXPECT_EQ(value(qrels, run, "MRR", strict_level), 0.5);
  EXPECT_EQ(value(qrels, run, "Recall@1", strict_level), 0);
  EXPECT_EQ(value(qrels, run, "nDCG@10", strict_level), value(qrels, run, "nDCG@10"));
  EXPECT_EQ(fault_of([&] { value(qrels, run, "MRR", {.relevance_level = 0}); }), Fault::usage);
}

TEST(Metrics, DropsTheQueryItself) {
  Qrels qrels{{"x", {{"a", 1}}}};
  moe::Run run{{"x", {{"x", 9}, {"a", 1}}}};
  EXPECT_EQ(value(qrels, run, "MRR"), 0.5);
  EXPECT_EQ(value(qrels, run, "MRR", {.drop_same_id = true}), 1);
}

TEST(Metrics, RefusesWhatHasNoMeaning) {
  Qrels qrels{{"q", {{"a", 1}}}};
  auto bad = [&](const moe::Run& run) { return fault_of([&] { value(qrels, run, "MRR"); }); };
  EXPECT_EQ(bad({{"q", {{"a", 1}, {"b", 2}, {"a", 3}}}}), Fault::bad_data);
  EXPECT_EQ(bad({{"q", {{"a", std::nan("")}}}}), Fault::bad_data);
  EXPECT_EQ(fault_of([] { value({}, {}, "MRR"); }), Fault::bad_data);
  EXPECT_EQ(fault_of([] {
              value({{"q", {{"a", 400}}}}, {}, "nDCG@3", {.exponential_gain = true});
            }),
            Fault::bad_data);
  EXPECT_EQ(value(qrels, {{"q", {{"a", INFINITY}, {"b", -INFINITY}}}}, "MRR"), 1);
}

TEST(Metrics, Names) {
  EXPECT_EQ(parse_metric("NDCG@10").name(), "nDCG@10");
  EXPECT_EQ(parse_metric("map").name(), "MAP");
  EXPECT_EQ(parse_metric("r@100").name(), "Recall@100");
  EXPECT_EQ(parse_metric("precision@1").name(), "P@1");
  EXPECT_EQ(parse_metrics("ndcg@3, mrr@10 map@100").size(), 3u);
  for (const char* name : {"ndgc@10", "ndcg@", "ndcg@0", "ndcg@-3", "ndcg@1.5", "P", "", "@10"})
    EXPECT_EQ(fault_of([&] { parse_metric(name); }), Fault::usage) << name;
}

TEST(Metrics, JsonReport) {
  Evaluation evaluation = evaluate({{"q \"1\"", {{"a", 1}}}}, {{"q \"1\"", {{"b", 2}, {"a", 1}}}},
                                   parse_metrics("MRR"));
  EXPECT_EQ(
      evaluation_json(evaluation, true),
      "{\"metrics\": {\"MRR\": 0.5}, \"queries\": 1, \"missing\": 0, \"without_relevant\": 0, "
      "\"unjudged\": 0, \"per_query\": {\"q \\\"1\\\"\": {\"MRR\": 0.5}}}");
}

// Written apart from the program's, from the definitions: sums over all documents and rank by
// counting.
TEST(Metrics, AgreeWithDefinitionsOnRandomRuns) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    std::uint64_t state = mix64(seed);
    auto draw = [&](std::uint64_t n) { return (state = mix64(state)) % n; };
    Grades grades;
    std::vector<ScoredDocument> ranking;
    for (int i = 0; i < 30; ++i) {
      std::string id = "d" + std::to_string(i);
      if (draw(3) == 0) grades[id] = static_cast<int>(draw(5)) - 1;
      if (draw(3) != 0) ranking.push_back({id, static_cast<double>(draw(6))});
    }
    if (grades.empty()) continue;
    double relevant = 0, found = 0, precision_sum = 0, dcg = 0, best_rank = 0, ideal = 0;
    auto rank_of = [&](const ScoredDocument& entry) {
      auto above = std::count_if(ranking.begin(), ranking.end(), [&](const ScoredDocument& other) {
        return other.score > entry.score ||
               (other.score == entry.score && other.document > entry.document);
      });
      return static_cast<double>(above + 1);
    };
    for (const auto& entry : ranking) {
      auto judged = grades.find(entry.document);
      if (judged == grades.end() || judged->second < 1 || rank_of(entry) > 10) continue;
      double rank = rank_of(entry), above = 0;
      for (const auto& other : ranking) {
        auto grade = grades.find(other.document);
        above += grade != grades.end() && grade->second >= 1 && rank_of(other) <= rank;
      }
      found += 1;
      precision_sum += above / rank;
      dcg += judged->second / std::log2(rank + 1);
      best_rank = best_rank == 0 ? rank : std::min(best_rank, rank);
    }
    std::vector<int> sorted;
    for (const auto& [id, grade] : grades)
      if (grade > 0) sorted.push_back(grade);
    relevant = static_cast<double>(sorted.size());
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::size_t i = 0; i < std::min<std::size_t>(10, sorted.size()); ++i)
      ideal += sorted[i] / std::log2(static_cast<double>(i) + 2);
    Qrels qrels{{"q", grades}};
    moe::Run run{{"q", ranking}};
    auto ratio = [](double a, double b) { return b > 0 ? a / b : 0; };
    EXPECT_NEAR(value(qrels, run, "nDCG@10"), ratio(dcg, ideal), 1e-12);
    EXPECT_NEAR(value(qrels, run, "MAP@10"), ratio(precision_sum, relevant), 1e-12);
    EXPECT_NEAR(value(qrels, run, "Recall@10"), ratio(found, relevant), 1e-12);
    EXPECT_NEAR(value(qrels, run, "P@10"), found / 10, 1e-12);
    EXPECT_NEAR(value(qrels, run, "MRR@10"), ratio(1, best_rank), 1e-12);
    EXPECT_EQ(value(qrels, run, "Success@10"), found > 0 ? 1 : 0);
  }
}

TEST(Significance, IncompleteBetaAndStudentT) {
  EXPECT_NEAR(incomplete_beta(2, 3, 0.5), 0.6875, 1e-14);
  EXPECT_NEAR(incomplete_beta(0.5, 0.5, 0.3), 0.36901011956554536, 1e-13);
  EXPECT_NEAR(incomplete_beta(1150.5, 0.5, 0.99) / 1.5213583766641682e-06, 1, 1e-9);
  EXPECT_NEAR(incomplete_beta(10, 0.5, 0.2) / 1.994982493613096e-08, 1, 1e-10);
  EXPECT_EQ(incomplete_beta(3, 4, 0), 0);
  EXPECT_EQ(incomplete_beta(3, 4, 1), 1);
  EXPECT_NEAR(student_t_two_sided(2.2281388519649385, 10), 0.05, 1e-10);
  EXPECT_NEAR(student_t_two_sided(0.5, 3), 0.651447964848151, 1e-12);
  EXPECT_NEAR(student_t_two_sided(12.7062047361747, 1), 0.05, 1e-12);
  EXPECT_NEAR(student_t_two_sided(-4.1, 2301) / 4.274897968024207e-05, 1, 1e-9);
  EXPECT_NEAR(student_t_two_sided(40, 5) / 1.8411962171772954e-07, 1, 1e-9);
  EXPECT_EQ(student_t_two_sided(0, 7), 1);
}

TEST(Significance, PairedComparison) {
  std::vector<double> a{.12, .45, .33, .78, .91, .05, .66, .52, .4, .71};
  std::vector<double> b{.1, .5, .3, .6, .85, .1, .5, .52, .35, .6};
  Comparison result = compare(a, b);  // 2^10 sign patterns: exact
  EXPECT_NEAR(result.t, 2.0356618770680646, 1e-10);
  EXPECT_NEAR(result.p_t_test, 0.07227014931984425, 1e-12);
  EXPECT_EQ(result.p_randomisation, 88.0 / 1024);
  EXPECT_EQ(result.wins, 7);
  EXPECT_EQ(result.ties, 1);
  EXPECT_EQ(result.losses, 2);
  Comparison sampled = compare(a, b, {.permutations = 1000, .seed = 7});
  EXPECT_NEAR(sampled.p_randomisation, 88.0 / 1024, 0.03);
  EXPECT_EQ(sampled.p_randomisation,
            compare(a, b, {.permutations = 1000, .seed = 7}).p_randomisation);
  EXPECT_NE(sampled.p_randomisation,
            compare(a, b, {.permutations = 1000, .seed = 8}).p_randomisation);
  EXPECT_NEAR(compare(b, a).t, -result.t, 1e-12);
}

TEST(Significance, ManyQueriesAndDegenerateCases) {
  std::vector<double> a, b;
  for (int i = 0; i < 500; ++i) {
    a.push_back(unit_real(static_cast<std::uint32_t>(mix64(static_cast<std::uint64_t>(i)))));
    b.push_back(unit_real(static_cast<std::uint32_t>(mix64(static_cast<std::uint64_t>(i) + 1000))));
  }
  Comparison result = compare(a, b);
  EXPECT_NEAR(result.p_randomisation, result.p_t_test, 0.02);  // close for many queries
  for (double& v : a) v += 0.2;
  result = compare(a, b);
  EXPECT_LT(result.p_t_test, 1e-6);
  EXPECT_EQ(result.p_randomisation, 1.0 / 10'001);

  Comparison same = compare(a, a);
  EXPECT_EQ(same.t, 0);
  EXPECT_EQ(same.p_t_test, 1);
  EXPECT_EQ(same.p_randomisation, 1);
  Comparison constant = compare(std::vector<double>{1, 1, 1}, std::vector<double>{.9, .9, .9});
  EXPECT_TRUE(std::isinf(constant.t));
  EXPECT_EQ(constant.p_t_test, 0);
  EXPECT_EQ(constant.p_randomisation, 0.25);
  EXPECT_EQ(fault_of([] { compare(std::vector<double>{1}, std::vector<double>{2}); }),
            Fault::usage);
  EXPECT_EQ(fault_of([&] { compare(a, std::vector<double>{2, 3}); }), Fault::usage);
}

TEST(Significance, Corrections) {
  std::vector<double> p{0.01, 0.04, 0.03, 0.005};
  auto near = [](const std::vector<double>& got, const std::vector<double>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-15);
  };
  near(bonferroni(p), {0.04, 0.16, 0.12, 0.02});
  near(holm(p), {0.03, 0.06, 0.06, 0.02});
  near(bonferroni(std::vector<double>{0.6, 0.7}), {1, 1});
  near(holm({}), {});
}

TEST(Bm25, SmallCollection) {
  std::vector<Document> documents{
      {"a", "Red", "fox"}, {"b", "", "red RED wine"}, {"c", "", ""}, {"d", "", "fox-red"}};
  Bm25 index(documents);
  auto hits = index.search("Red!", 10);
  ASSERT_EQ(hits.size(), 3u);
  EXPECT_EQ(hits[0].row, 1);
  EXPECT_EQ(hits[1].row, 3);  // equal scores: the higher id first
  EXPECT_EQ(hits[2].row, 0);
  double idf = std::log(1 + 1.5 / 3.5), mean = 7.0 / 4;
  EXPECT_NEAR(hits[0].score, idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / mean)), 1e-12);
  EXPECT_NEAR(index.search("red red", 1)[0].score, 2 * hits[0].score, 1e-12);
  EXPECT_TRUE(index.search("unknown words", 10).empty());
  EXPECT_TRUE(index.search("", 10).empty());
}

struct Figure {
  const char* name;
  std::size_t documents;
  std::size_t queries;
  double ndcg, recall;
};

class PublicCollection : public testing::TestWithParam<Figure> {};

// The BM25 figures published with the collections: the readers and the measures fit together.
TEST_P(PublicCollection, Bm25Figures) {
  const char* folder = std::getenv("MOE_DATA");
  if (!folder) GTEST_SKIP() << "set MOE_DATA to the folder with the public collections";
  auto path = std::filesystem::path(folder) / GetParam().name;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  Collection collection = load_collection(path);
  EXPECT_EQ(collection.documents.size(), GetParam().documents);
  EXPECT_EQ(collection.qrels("test").size(), GetParam().queries);
  EXPECT_EQ(collection.query_rows("test").size(), GetParam().queries);
  Evaluation evaluation = evaluate(collection.qrels("test"), bm25_run(collection, "test", 100),
                                   parse_metrics("nDCG@10 Recall@100"));
  EXPECT_NEAR(evaluation.means[0], GetParam().ndcg, 0.001);
  EXPECT_NEAR(evaluation.means[1], GetParam().recall, 0.001);
}

INSTANTIATE_TEST_SUITE_P(All, PublicCollection,
                         testing::Values(Figure{"nfcorpus", 3633, 323, 0.305, 0.237},
                                         Figure{"tldr", 7424, 2302, 0.297, 0.601},
                                         Figure{"medquad", 16407, 1743, 0.521, 0.885},
                                         Figure{"cranfield", 1400, 225, 0.328, 0.685},
                                         Figure{"npl", 11429, 93, 0.370, 0.473},
                                         Figure{"squad-dev", 646, 2910, 0.876, 0.991}),
                         [](const testing::TestParamInfo<Figure>& figure) {
                           std::string name = figure.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace moe
