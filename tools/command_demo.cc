// moe-run demo: the main job on the embedded collection. Fine-tunes a small encoder three times
// (plain, SB-MoE as released, SB-MoE with a trained gate), compares them with significance, saves,
// reloads, searches.
#include "runtime/file.h"
#include "tools/commands.h"
#include "tools/demo_data.h"
#include "tools/embedding.h"
#include "tools/index.h"
#include "tools/progress.h"
#include "tools/significance.h"

#include <fmt/format.h>

#include <filesystem>

namespace moe {

namespace {

struct Variant {
  std::string name;
  std::optional<SbMoeConfig> block;
  RetrievalOutcome outcome;
  double seconds = 0, before = 0;
};

EncoderConfig small_encoder(Index vocabulary, const std::string& folder) {
  EncoderConfig c;
  c.bert.vocabulary = vocabulary;
  c.bert.hidden = 128;
  c.bert.layers = 2;
  c.bert.heads = 4;
  c.bert.feed_forward = 512;
  c.bert.positions = 128;
  c.bert.dropout = c.bert.attention_dropout = 0.1;
  c.bert.pooler = false;
  // From random weights a larger spread of the word vectors keeps texts apart from the first step
  // on.
  c.bert.init_deviation = 0.05;
  c.pooling = Pooling::mean;
  c.pooling_source = "the demo";
  c.max_length = 128;
  c.max_length_source = "the demo";
  c.tokenizer_directory = folder;
  c.modules.push_back({});
  return c;
}

// A few hundred queries cannot teach an encoder from random weights what words mean. Every passage
// lends its title and its sentences as further training queries; dev and test stay as they are.
Collection with_passage_queries(Collection c) {
  auto add = [&](const std::string& text, const std::string& document) {
    c.queries.push_back({fmt::format("own-{}", c.queries.size()), text});
    c.query_index.insert_last(c.queries);
    c.splits.find("train")->second[c.queries.back().id][document] = 1;
  };
  for (const Document& d : c.documents) {
    add(d.title, d.id);
    for (std::size_t begin = 0; begin < d.text.size();) {
      std::size_t end = std::min(d.text.find(". ", begin), d.text.size());
      if (end - begin > 20) add(d.text.substr(begin, end - begin), d.id);
      begin = end + 2;
    }
  }
  return c;
}

TrainConfig recipe(const DemoCommand& command) {
  TrainConfig c;
  c.epochs = command.epochs > 0 ? command.epochs : 4;
  c.batch = 64;
  c.rate = 1e-3;
  c.block_rate = 1e-3;
  c.temperature = 0.05;
  c.symmetric = true;
  c.warmup = 0.1;
  c.seed = command.common.seed;
  c.evaluations_per_epoch = 1;
  c.metric = "nDCG@10";
  return c;
}

RetrievalOptions test_options(std::uint64_t seed) {
  RetrievalOptions o;
  o.metrics = parse_metrics("nDCG@10,MRR@10,Recall@10,Recall@100");
  o.seed = seed;
  return o;
}

std::string shares(const std::vector<std::int64_t>& counts) {
  double total = 0;
  for (auto n : counts) total += static_cast<double>(n);
  std::string text;
  for (auto n : counts)
    text += fmt::format("{:4.0f}%", 100 * static_cast<double>(n) / std::max(total, 1.0));
  return text;
}

void print_comparison(const std::vector<Variant>& variants, std::uint64_t seed) {
  fmt::print("\n{:<22}{:>9}{:>9}{:>9}{:>11}{:>12}{:>16}{:>14}\n", "test queries", "nDCG@10",
             "MRR@10", "R@10", "R@100", "before", "vs plain (p)", "win/tie/loss");
  std::vector<double> p{1};
  std::vector<Comparison> all(variants.size());
  for (std::size_t i = 1; i < variants.size(); ++i) {
    ComparisonOptions options;
    options.seed = seed;
    all[i] = compare(variants[i].outcome.evaluation.column("nDCG@10"),
                     variants[0].outcome.evaluation.column("nDCG@10"), options);
    p.push_back(all[i].p_randomisation);
  }
  std::vector<double> corrected = holm(std::vector<double>(p.begin() + 1, p.end()));
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const Evaluation& e = variants[i].outcome.evaluation;
    fmt::print("{:<22}{:>9.4f}{:>9.4f}{:>9.4f}{:>11.4f}{:>12.4f}", variants[i].name, e.means[0],
               e.means[1], e.means[2], e.means[3], variants[i].before);
    if (i > 0) {
      std::string delta =
          fmt::format("{:+.4f} ({:.2f})", all[i].mean_a - all[i].mean_b, corrected[i - 1]);
      fmt::print("{:>16}{:>14}", delta,
                 fmt::format("{}/{}/{}", all[i].wins, all[i].ties, all[i].losses));
    }
    fmt::print("\n");
  }
  fmt::print(
      "(p: randomisation test over {} queries, Holm-corrected; \"before\": nDCG@10 of the random "
      "weights)\n",
      variants[0].outcome.evaluation.queries.size());
  fmt::print("\nexperts' share of the documents (and of the queries), query and positive agree:\n");
  for (const auto& v : variants)
    if (v.block)
      fmt::print("{:<22}{}  ({} ) {:.0f} %\n", v.name, shares(v.outcome.document_load),
                 shares(v.outcome.query_load), 100 * v.outcome.agreement);
}

void search_in_words(const TextEncoder& encoder, const Collection& collection,
                     const std::string& query) {
  std::vector<std::string> texts, ids;
  for (const Document& d : collection.documents) {
    texts.push_back(d.full());
    ids.push_back(d.id);
  }
  Index size = encoder.size();
  Tensor documents = from_host(embed_texts(encoder, texts),
                               {static_cast<Index>(texts.size()), size}, encoder.device());
  std::vector<std::string> one{query};
  Tensor vector = from_host(embed_texts(encoder, one), {1, size}, encoder.device());
  auto hits = search(vector, documents.rows(), tie_ranks(ids), {.k = 3, .block = 4096},
                     [&](Index b, Index e) { return documents.slice_rows(b, e); });
  fmt::print("\nsearch: \"{}\"\n", query);
  int rank = 1;
  for (const Hit& hit : hits[0]) {
    const Document& d = collection.documents[static_cast<std::size_t>(hit.row)];
    fmt::print("  {}. {:.3f}  {}: {}\n", rank++, hit.score, d.title,
               d.text.size() > 100 ? d.text.substr(0, d.text.rfind(' ', 100)) + " ..." : d.text);
  }
}

}  // namespace

int run_demo(const DemoCommand& command) {
  std::string data = command.out + "/data";
  write_demo_collection(data);
  Collection collection = load_collection(data);
  fmt::print("{}\n", collection.summary());
  Collection lessons = with_passage_queries(collection);

  SbMoeConfig trained;
  trained.experts = 6;
  trained.k = 2;
  trained.weights = RouterConfig::Weights::renormalise;
  std::vector<Variant> variants;
  variants.push_back({"plain", std::nullopt, {}, 0, 0});
  variants.push_back({"SB-MoE faithful", SbMoeConfig::faithful(6), {}, 0, 0});
  variants.push_back({"SB-MoE trained gate", trained, {}, 0, 0});
  RetrievalOptions options = test_options(command.common.seed);
  for (Variant& v : variants) {
    TextEncoder::Options o;
    o.device = parse_device(command.common.device);
    o.seed = command.common.seed;
    o.add_moe = v.block;
    auto tokenizer = load_wordpiece(data);
    Index vocabulary = tokenizer->vocab_size();
    auto encoder = TextEncoder::create(small_encoder(vocabulary, data), std::move(tokenizer), o);
    v.before = evaluate_retrieval(*encoder, collection, "test", options).evaluation.mean("nDCG@10");
    TrainConfig config = recipe(command);
    config.mask_false_negatives = true;
    std::string folder =
        command.out + "/" +
        (v.block ? std::string("moe-") + name_of(v.block->mode) : std::string("plain"));
    std::filesystem::remove_all(folder);
    bool was_quiet = quiet();
    set_quiet(true);
    Trainer trainer(*encoder, lessons, config, folder, "[demo]\n");
    set_quiet(was_quiet);
    Progress progress(v.name, 0, "steps");
    trainer.on_step = [&](Index step, Index total, double loss) {
      progress.update(step, fmt::format("of {}, loss {:.3f}", total, loss));
    };
    TrainResult result = trainer.run();
    progress.finish();
    v.seconds = result.seconds;
    fmt::print(
        "{:<22}{:>9} parameters, {} steps in {}: loss {:.3f} -> {:.3f}, best dev nDCG@10 {:.4f}\n",
        v.name, encoder->parameters().count(), result.steps, human_seconds(result.seconds),
        result.first_loss, result.last_loss, result.best_metric);
    // What was saved is what is evaluated, and it must give the same numbers again.
    TextEncoder::Options reload;
    reload.device = o.device;
    auto saved = TextEncoder::load(folder + "/best", reload);
    v.outcome = evaluate_retrieval(*saved, collection, "test", options);
    write_trec_run(folder + "/test-run.trec", v.outcome.run);
  }
  print_comparison(variants, command.common.seed);

  auto again = TextEncoder::load(command.out + "/moe-trained-gate/best", {});
  double first = variants[2].outcome.evaluation.means[0];
  double second = evaluate_retrieval(*again, collection, "test", options).evaluation.means[0];
  fmt::print("\nreloaded {}/moe-trained-gate/best: nDCG@10 {:.6f}, before {:.6f}: {}\n",
             command.out, second, first, first == second ? "the same" : "DIFFERENT");
  search_in_words(*again, collection, command.query);
  fmt::print(
      "\nnext:\n  moe-run eval -m {0}/moe-trained-gate/best --data {0}/data --split test\n"
      "  moe-run embed -m {0}/moe-trained-gate/best -i {0}/data --out {0}/index\n"
      "  moe-run search -m {0}/moe-trained-gate/best --index {0}/index --data {0}/data --text "
      "\"how do plants make sugar\" -k 3\n"
      "  moe-run train -m YOUR-MODEL --data YOUR-BEIR-FOLDER --moe trained-gate --out runs/first\n",
      command.out);
  return first == second ? 0 : 1;
}

}  // namespace moe
