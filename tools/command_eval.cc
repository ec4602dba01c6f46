// moe-run eval: a run file, a model on a folder, or BM25; several runs with significance.
#include "runtime/file.h"
#include "tools/bm25.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/significance.h"

#include <fmt/format.h>

namespace moe {

namespace {

struct Named {
  std::string name;
  Evaluation evaluation;
};

void print_table(const std::vector<Named>& rows) {
  std::size_t width = 10;
  for (const auto& row : rows) width = std::max(width, row.name.size() + 2);
  fmt::print("{:<{}}", "", width);
  for (const Metric& m : rows[0].evaluation.metrics) fmt::print("{:>12}", m.name());
  fmt::print("\n");
  for (const auto& row : rows) {
    fmt::print("{:<{}}", row.name, width);
    for (double mean : row.evaluation.means) fmt::print("{:>12.4f}", mean);
    fmt::print("\n");
  }
  const Evaluation& e = rows[0].evaluation;
  fmt::print("{} judged queries, {} missing from the run, {} without a relevant document",
             e.queries.size(), e.missing, e.without_relevant);
  if (e.unjudged > 0) fmt::print(", {} queries of the run unjudged", e.unjudged);
  fmt::print("\n");
}

// Every further run against the first, per metric; p values corrected over all comparisons.
void print_significance(const std::vector<Named>& rows, std::uint64_t seed) {
  struct Line {
    std::string name, metric;
    Comparison c;
  };
  std::vector<Line> lines;
  std::vector<double> p;
  for (std::size_t r = 1; r < rows.size(); ++r)
    for (const Metric& m : rows[0].evaluation.metrics) {
      ComparisonOptions options;
      options.seed = seed;
      Comparison c = compare(rows[r].evaluation.column(m.name()),
                             rows[0].evaluation.column(m.name()), options);
      lines.push_back({rows[r].name, m.name(), c});
      p.push_back(c.p_t_test);
    }
  if (lines.empty()) return;
  std::vector<double> bonferroni_p = bonferroni(p), holm_p = holm(p);
  fmt::print("\nagainst {} ({} comparisons)\n", rows[0].name, lines.size());
  fmt::print("{:<24}{:>12}{:>10}{:>8}{:>8}{:>8}{:>12}{:>12}{:>12}{:>12}\n", "run", "metric",
             "delta", "win", "tie", "loss", "p t-test", "p random", "Bonferroni", "Holm");
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Comparison& c = lines[i].c;
    fmt::print("{:<24}{:>12}{:>+10.4f}{:>8}{:>8}{:>8}{:>12.3g}{:>12.3g}{:>12.3g}{:>12.3g}\n",
               lines[i].name, lines[i].metric, c.mean_a - c.mean_b, c.wins, c.ties, c.losses,
               c.p_t_test, c.p_randomisation, bonferroni_p[i], holm_p[i]);
  }
}

}  // namespace

int run_eval(const EvalCommand& command) {
  EvaluationOptions options{command.relevance_level, command.exponential_gain, command.float32,
                            command.drop_same_id, command.strict};
  std::vector<Metric> metrics = parse_metrics(command.metrics);
  std::vector<Named> rows;
  bool by_model = !command.model.model.empty(), by_bm25 = command.bm25 == "on",
       by_run = !command.run.empty();
  check(by_model + by_bm25 + by_run == 1,
        "eval needs one of: --run FILE (with --qrels or --data), --model FOLDER --data FOLDER, "
        "--bm25 on --data FOLDER");
  check(by_run ? !(command.qrels.empty() && command.data.empty()) : !command.data.empty(),
        "eval needs judgements: --qrels FILE or --data FOLDER");
  Qrels qrels;
  if (by_run) {
    if (!command.qrels.empty()) {
      qrels = read_qrels(command.qrels);
    } else {
      LoadOptions load;
      load.documents = false;
      qrels = load_collection(command.data, load).qrels(command.split);
    }
    rows.push_back({command.run, evaluate(qrels, read_run(command.run), metrics, options)});
  } else {
    Collection collection = load_collection(command.data);
    for (const auto& warning : collection.warnings) notice("warning: " + warning);
    qrels = command.qrels.empty() ? collection.qrels(command.split) : read_qrels(command.qrels);
    Run run;
    if (by_bm25) {
      run = bm25_run(collection, command.split, command.k);
    } else {
      auto encoder =
          TextEncoder::load(command.model.model, encoder_options(command.model, command.common));
      RetrievalOptions retrieval;
      retrieval.metrics = metrics;
      retrieval.k = command.k;
      retrieval.query_length = command.query_length;
      retrieval.document_length = command.document_length;
      retrieval.batch_tokens = command.batch_tokens;
      retrieval.seed = command.common.seed;
      retrieval.evaluation = options;
      retrieval.what = "embed";
      auto outcome = evaluate_retrieval(*encoder, collection, command.split, retrieval);
      run = std::move(outcome.run);
      if (outcome.agreement >= 0)
        notice(fmt::format(
            "experts: queries [{}], documents [{}], query and positive agree in {:.1f} %",
            fmt::join(outcome.query_load, " "), fmt::join(outcome.document_load, " "),
            100 * outcome.agreement));
    }
    if (!command.save_run.empty()) write_trec_run(command.save_run, run);
    rows.push_back(
        {by_bm25 ? "BM25" : command.model.model, evaluate(qrels, run, metrics, options)});
  }
  for (const std::string& file : command.compare)
    rows.push_back({file, evaluate(qrels, read_run(file), metrics, options)});

  if (command.common.json) {
    for (const auto& row : rows)
      fmt::print("{}\n", evaluation_json(row.evaluation, command.per_query));
    return 0;
  }
  print_table(rows);
  if (command.per_query)
    for (const auto& q : rows[0].evaluation.queries) {
      fmt::print("{}", q.query);
      for (double value : q.values) fmt::print("\t{:.6f}", value);
      fmt::print("{}\n", q.missing ? "\tmissing" : "");
    }
  print_significance(rows, command.common.seed);
  return 0;
}

}  // namespace moe
