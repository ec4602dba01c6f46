// moe-run train
#include "runtime/file.h"
#include "tools/commands.h"
#include "tools/progress.h"

#include <fmt/format.h>

#include <charconv>

namespace moe {

TextEncoder::Options encoder_options(const ModelOptions& model, const CommonOptions& common) {
  TextEncoder::Options o;
  o.device = parse_device(common.device);
  o.dtype = DType::f32;
  o.seed = common.seed;
  if (!model.pooling.empty()) o.pooling = parse_pooling(model.pooling);
  if (model.normalize != "auto") o.normalize = model.normalize == "on";
  if (model.max_length > 0) o.max_length = model.max_length;
  if (!model.route.empty()) {
    o.route = parse_select(model.route);
    if (model.route == "top1") o.k = 1;
  }
  if (model.k > 0) o.k = model.k;
  return o;
}

namespace {

std::vector<Index> parse_sizes(const std::string& text, std::size_t count, const char* option) {
  std::vector<Index> sizes;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    Index value = 0;
    auto [next, error] = std::from_chars(at, end, value);
    check(error == std::errc() && value > 0 && (next == end || *next == ','),
          "{} '{}': expected {} positive numbers with commas", option, text, count);
    sizes.push_back(value);
    at = next == end ? end : next + 1;
  }
  check(sizes.size() == count, "{} '{}': expected {} numbers, got {}", option, text, count,
        sizes.size());
  return sizes;
}

SbMoeConfig block_of(const MoeOptions& o) {
  SbMoeConfig c = o.mode == "faithful" ? SbMoeConfig::faithful(o.experts) : SbMoeConfig{};
  c.route = parse_select(o.route);
  if (o.mode == "faithful") {
    check(o.k == 1,
          "faithful training takes one expert per text: --moe-k {} needs --moe trained-gate", o.k);
    return c;
  }
  c.experts = o.experts;
  c.k = o.k;
  c.combine = parse_combine(o.combine);
  c.weights = o.weights.empty()
                  ? (o.k == 1 ? RouterConfig::Weights::raw : RouterConfig::Weights::renormalise)
                  : parse_weights(o.weights);
  c.lambda = o.lambda;
  c.learn_lambda = o.learn_lambda;
  c.noise = !o.no_noise;
  c.selection_bias = o.selection_bias;
  c.balance = o.balance;
  c.z = o.z;
  c.importance = o.importance;
  validate(c);
  return c;
}

std::unique_ptr<TextEncoder> open_encoder(const TrainCommand& command) {
  TextEncoder::Options options = encoder_options(command.model, command.common);
  if (command.moe.mode != "none") options.add_moe = block_of(command.moe);
  if (command.dropout >= 0) options.dropout = command.dropout;
  if (command.scratch.empty()) return TextEncoder::load(command.model.model, options);
  std::vector<Index> shape = parse_sizes(command.scratch, 4, "--scratch");
  auto tokenizer = load_wordpiece(command.model.model);
  EncoderConfig config;
  config.bert.layers = shape[0];
  config.bert.hidden = shape[1];
  config.bert.heads = shape[2];
  config.bert.feed_forward = shape[3];
  config.bert.vocabulary = tokenizer->vocab_size();
  config.bert.pooler = false;
  config.pooling = Pooling::mean;
  config.pooling_source = "--scratch";
  config.max_length = 256;
  config.max_length_source = "--scratch";
  config.tokenizer_directory = command.model.model;
  return TextEncoder::create(std::move(config), std::move(tokenizer), options);
}

void describe(const TextEncoder& encoder, const Collection& collection) {
  const EncoderConfig& c = encoder.config();
  notice(collection.summary());
  for (const auto& warning : collection.warnings) notice("warning: " + warning);
  notice(fmt::format(
      "encoder: {} layers x {}, {} heads, {} parameters; pooling {} ({}), max length {} ({})",
      c.bert.layers, c.bert.hidden, c.bert.heads, encoder.parameters().count(),
      name_of(encoder.pooling()), c.pooling_source, c.max_length, c.max_length_source));
  if (const SbMoe* block = encoder.moe())
    notice(fmt::format("SB-MoE: {}, {} experts, k {}, {}, weights {}, lambda {}",
                       name_of(block->config.mode), block->config.experts, block->config.k,
                       name_of(block->config.combine), name_of(block->config.weights),
                       block->config.lambda));
}

}  // namespace

int run_train(const TrainCommand& command) {
  TrainConfig config = command.config;
  config.mask_false_negatives = command.false_negatives == "auto"
                                    ? command.moe.mode != "faithful"
                                    : command.false_negatives == "mask";
  Collection collection = load_collection(command.data);
  auto encoder = open_encoder(command);
  describe(*encoder, collection);
  if (command.dry_run) {
    Index pairs = static_cast<Index>(collection.query_rows(config.split).size());
    double bytes = static_cast<double>(encoder->parameters().count()) * 4;
    fmt::print(
        "training queries: {}\nsteps per epoch: about {}\nparameters: {}\n"
        "memory: about {} for weights, gradients and moments, plus activations\n",
        pairs, (pairs + config.batch - 1) / config.batch, encoder->parameters().count(),
        human_bytes(4 * bytes));
    return 0;
  }
  std::string config_file = command.out + "/config.toml";
  make_directories(command.out);
  Trainer trainer(*encoder, collection, config, command.out, command.resolved);
  bool resumed = command.resume == "auto" && trainer.resume();
  if (resumed) notice(fmt::format("resumed from the newest checkpoint in {}", command.out));
  write_file_atomically(config_file, command.resolved);
  TrainResult result = trainer.run();
  notice(fmt::format("trained {} steps in {}; best {} {:.4f} at step {}{}", result.steps,
                     human_seconds(result.seconds), config.metric, result.best_metric,
                     result.best_step, result.stopped_early ? " (stopped early)" : ""));

  std::string best = command.out + "/best";
  if (collection.splits.contains(command.test_split) && directory_exists(best)) {
    TextEncoder::Options options = encoder_options(command.model, command.common);
    options.pooling.reset();
    options.normalize.reset();
    auto trained = TextEncoder::load(best, options);
    RetrievalOptions retrieval;
    retrieval.metrics = parse_metrics(command.metrics);
    retrieval.k = 1000;
    retrieval.query_length = config.query_length;
    retrieval.document_length = config.document_length;
    retrieval.seed = config.seed;
    retrieval.what = "test";
    auto outcome = evaluate_retrieval(*trained, collection, command.test_split, retrieval);
    write_trec_run(command.out + "/test-run.trec", outcome.run);
    write_file_atomically(command.out + "/test-metrics.json",
                          evaluation_json(outcome.evaluation, true) + "\n");
    if (command.common.json) {
      fmt::print("{}\n", evaluation_json(outcome.evaluation));
    } else {
      for (std::size_t i = 0; i < outcome.evaluation.metrics.size(); ++i)
        fmt::print("{:<12} {:.4f}\n", outcome.evaluation.metrics[i].name(),
                   outcome.evaluation.means[i]);
      if (outcome.agreement >= 0)
        fmt::print("experts: documents [{}], query and positive agree in {:.1f} %\n",
                   fmt::join(outcome.document_load, " "), 100 * outcome.agreement);
    }
  }
  return 0;
}

}  // namespace moe
