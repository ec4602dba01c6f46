#include "tools/trainer.h"

#include "runtime/checkpoint.h"
#include "runtime/file.h"
#include "runtime/profile.h"
#include "tools/batch.h"
#include "tools/embedding.h"
#include "tools/index.h"
#include "tools/progress.h"
#include "tools/run_log.h"
#include "tools/signals.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <unordered_map>

namespace moe {

namespace {

using Clock = std::chrono::steady_clock;

std::vector<ParameterGroup> groups_of(const TrainConfig& c) {
  double block = c.rate > 0 ? c.block_rate / c.rate : 0;
  double small = c.decay_all ? c.decay : 0;  // biases and norms are not decayed
  return {{"bert.*.bias", 1, small}, {"bert.*LayerNorm*", 1, small}, {"bert.*", 1, c.decay},
          {"*.bias", block, small},  {"*lambda", block, 0},          {"*", block, c.decay}};
}

// RMS of the gradients of the parameters that match; -1 when none was touched.
double gradient_rms(const Parameters& parameters, std::string_view pattern) {
  double sum = 0;
  Index count = 0;
  for (const auto& entry : parameters.entries()) {
    if (!matches(pattern, entry.name) || !entry.tensor.needs_grad()) continue;
    Tensor g = entry.tensor.grad();
    if (!g) continue;
    double part = 0;
    with_type(g, [&]<class T>(const Kernels<T>& k) {
      k.norm_squared(g.data<Stat<T>>(), g.size(), &part);
    });
    sum += part;
    count += g.size();
  }
  return count > 0 ? std::sqrt(sum / static_cast<double>(count)) : -1;
}

void count_choices(const Routes& routes, std::vector<std::int64_t>& counts) {
  for (const RouteOut& route : routes.seen)
    for (std::int32_t e : to_host<std::int32_t>(route.routing.expert))
      if (e >= 0) ++counts[static_cast<std::size_t>(e)];
}

}  // namespace

LoadReport load_report(const std::vector<std::int64_t>& counts) {
  LoadReport report{counts, 0, 0};
  double total = 0;
  for (auto n : counts) total += static_cast<double>(n);
  if (total == 0 || counts.empty()) return report;
  for (auto n : counts) {
    double share = static_cast<double>(n) / total;
    report.busiest = std::max(report.busiest, share * static_cast<double>(counts.size()));
    if (n > 0) report.entropy -= share * std::log(share);
  }
  if (counts.size() > 1) report.entropy /= std::log(static_cast<double>(counts.size()));
  return report;
}

RetrievalOutcome evaluate_retrieval(const TextEncoder& encoder, const Collection& collection,
                                    std::string_view split, const RetrievalOptions& options) {
  std::vector<std::string> documents, document_ids, queries, query_ids;
  for (const Document& d : collection.documents) {
    documents.push_back(encoder.config().document_prompt + d.full());
    document_ids.push_back(d.id);
  }
  std::vector<Index> query_rows = collection.query_rows(split);
  for (Index row : query_rows) {
    const Query& q = collection.queries[static_cast<std::size_t>(row)];
    queries.push_back(encoder.config().query_prompt + q.text);
    query_ids.push_back(q.id);
  }
  EmbedOptions embed;
  embed.batch_tokens = options.batch_tokens;
  embed.seed = options.seed;
  std::unique_ptr<Progress> progress;
  if (!options.what.empty()) {
    progress = std::make_unique<Progress>(
        options.what, static_cast<Index>(documents.size() + queries.size()), "texts");
    embed.progress = [&](Index done) { progress->update(done); };
  }
  RetrievalOutcome outcome;
  ExpertLoad document_load, query_load;
  embed.max_length = options.document_length;
  std::vector<float> d = embed_texts(encoder, documents, embed, &document_load);
  embed.max_length = options.query_length;
  if (progress)
    embed.progress = [&](Index done) {
      progress->update(done + static_cast<Index>(documents.size()));
    };
  std::vector<float> q = embed_texts(encoder, queries, embed, &query_load);
  progress.reset();

  Index size = encoder.size();
  Device device = encoder.device();
  Tensor query_vectors = from_host(q, {static_cast<Index>(queries.size()), size}, device);
  Tensor document_vectors = from_host(d, {static_cast<Index>(documents.size()), size}, device);
  auto hits = search(query_vectors, static_cast<Index>(documents.size()), tie_ranks(document_ids),
                     {.k = options.k, .block = 4096}, [&](Index begin, Index end) {
                       return document_vectors.slice_rows(begin, end);
                     });
  outcome.run = to_run(hits, query_ids, document_ids);
  outcome.evaluation =
      evaluate(collection.qrels(split), outcome.run, options.metrics, options.evaluation);
  outcome.query_load = query_load.counts;
  outcome.document_load = document_load.counts;
  if (encoder.moe() != nullptr) {
    Index pairs = 0, same = 0;
    const Qrels& qrels = collection.qrels(split);
    for (std::size_t i = 0; i < query_ids.size(); ++i) {
      auto judged = qrels.find(query_ids[i]);
      if (judged == qrels.end()) continue;
      for (const auto& [id, grade] : judged->second) {
        Index row = collection.document_row(id);
        if (grade < 1 || row < 0) continue;
        ++pairs;
        same += query_load.first[i] == document_load.first[static_cast<std::size_t>(row)];
      }
    }
    if (pairs > 0) outcome.agreement = static_cast<double>(same) / static_cast<double>(pairs);
  }
  return outcome;
}

// Everything that lives through a run. What a checkpoint holds is exactly what cannot be computed
// again from the configuration and the step number: weights, moments, the best so far, patience.
struct Trainer::State {
  TextEncoder& encoder;
  const Collection& collection;
  TrainConfig config;
  std::string directory, resolved;
  RunLog log;

  // Training pairs: query row and its positives (document rows).
  std::vector<Index> query_rows;
  std::vector<std::vector<Index>> positives;
  std::vector<std::vector<std::int32_t>> query_tokens, document_tokens;
  std::vector<std::uint64_t> document_text;  // hash of the text: equal texts are no negatives
  std::vector<std::uint64_t> query_text;
  std::vector<std::int32_t> lengths;

  std::unique_ptr<AdamW> adamw;
  std::unique_ptr<Adafactor> adafactor;
  Schedule schedule;
  NoiseSchedule noise;
  std::vector<Index> epoch_steps;  // steps of each epoch: the token budget may cut them differently
  Index total_steps = 0, step = 0, bad_steps = 0;
  TrainResult result;
  Index since_best = 0;
  double loss_sum = 0;  // since the last evaluation
  Index loss_count = 0;
  std::vector<std::int64_t> query_load, document_load;
  Index plan_epoch_number = -1;
  std::vector<std::vector<Index>> plan;

  State(TextEncoder& e, const Collection& c, TrainConfig t, std::string d, std::string r)
      : encoder(e),
        collection(c),
        config(std::move(t)),
        directory(std::move(d)),
        resolved(std::move(r)),
        log(directory) {
    collect_pairs();
    if (config.freeze_encoder) encoder.parameters().freeze("bert.*");
    if (config.optimizer == "adamw")
      adamw = std::make_unique<AdamW>(
          encoder.parameters(), groups_of(config),
          AdamWOptions{config.beta1, config.beta2, config.eps, config.clip_norm});
    else if (config.optimizer == "adafactor")
      adafactor = std::make_unique<Adafactor>(encoder.parameters(), groups_of(config),
                                              AdafactorOptions{0.8, config.clip_norm});
    else
      fail(Fault::usage, "unknown optimizer '{}': use adamw or adafactor", config.optimizer);
    for (Index epoch = 0; epoch < config.epochs; ++epoch) {
      epoch_steps.push_back(
          static_cast<Index>(plan_epoch(lengths, limits(), config.seed, epoch).size()));
      total_steps += epoch_steps.back();
    }
    if (config.max_steps > 0) total_steps = std::min(total_steps, config.max_steps);
    check(total_steps > 0, "no training step: raise --epochs, or the split '{}' has no usable pair",
          config.split);
    schedule.kind = parse_schedule(config.schedule);
    schedule.total = total_steps;
    schedule.warmup =
        static_cast<Index>(std::llround(config.warmup * static_cast<double>(total_steps)));
    noise = {parse_noise(config.noise), config.noise_start, config.noise_end,
             config.noise_fraction};
    std::size_t experts =
        encoder.moe() ? static_cast<std::size_t>(encoder.moe()->config.experts) : 0;
    query_load.assign(experts, 0);
    document_load.assign(experts, 0);
  }

  BatchLimits limits() const {
    return {.rows = config.batch,
            .tokens = config.batch_tokens,
            .window = config.window,
            .drop_last = true};
  }

  void collect_pairs() {
    const Qrels& qrels = collection.qrels(config.split);
    std::vector<std::string> queries, documents;
    for (Index row : collection.query_rows(config.split)) {
      const Query& query = collection.queries[static_cast<std::size_t>(row)];
      auto judged = qrels.find(query.id);
      if (judged == qrels.end()) continue;
      std::vector<Index> rows;
      for (const auto& [id, grade] : judged->second)
        if (Index d = collection.document_row(id); grade >= 1 && d >= 0) rows.push_back(d);
      if (rows.empty()) continue;
      query_rows.push_back(row);
      positives.push_back(std::move(rows));
      queries.push_back(encoder.config().query_prompt + query.text);
      query_text.push_back(stream_hash(query.text));
    }
    check(query_rows.size() >= 2,
          "the split '{}' has {} queries with a positive document; at least two are needed",
          config.split, query_rows.size());
    for (const Document& d : collection.documents) {
      documents.push_back(encoder.config().document_prompt + d.full());
      document_text.push_back(stream_hash(documents.back()));
    }
    query_tokens = tokenize_all(encoder, queries, config.query_length);
    document_tokens = tokenize_all(encoder, documents, config.document_length);
    for (std::size_t i = 0; i < query_rows.size(); ++i)
      lengths.push_back(static_cast<std::int32_t>(
          query_tokens[i].size() +
          document_tokens[static_cast<std::size_t>(positives[i][0])].size()));
  }

  const std::vector<Index>& batch_at(Index epoch, Index position) {
    if (epoch != plan_epoch_number) {
      plan = plan_epoch(lengths, limits(), config.seed, epoch);
      plan_epoch_number = epoch;
    }
    return plan[static_cast<std::size_t>(position)];
  }

  // (epoch, position in it) of a step number below total_steps.
  std::pair<Index, Index> place_of(Index s) const {
    Index epoch = 0;
    while (s >= epoch_steps[static_cast<std::size_t>(epoch)])
      s -= epoch_steps[static_cast<std::size_t>(epoch++)];
    return {epoch, s};
  }

  // The positive of a pair in an epoch: uniform over its positives, by counter.
  Index positive_of(Index pair, Index epoch) const {
    const auto& rows = positives[static_cast<std::size_t>(pair)];
    std::uint64_t draw =
        mix64(config.seed ^
              mix64(stream_hash("positive") + static_cast<std::uint64_t>(epoch) * 0x10001u) ^
              mix64(static_cast<std::uint64_t>(pair)));
    return rows[draw % rows.size()];
  }

  // blocked[i,j]: document j is a known positive of query i, an equal text, or belongs to an equal
  // query.
  Tensor false_negatives(const std::vector<Index>& batch,
                         const std::vector<Index>& documents) const {
    std::size_t n = batch.size();
    std::vector<std::uint8_t> blocked(n * n, 0);
    bool any = false;
    for (std::size_t i = 0; i < n; ++i) {
      const auto& mine = positives[static_cast<std::size_t>(batch[i])];
      for (std::size_t j = 0; j < n; ++j) {
        if (i == j) continue;
        bool hit = std::binary_search(mine.begin(), mine.end(), documents[j]) ||
                   document_text[static_cast<std::size_t>(documents[i])] ==
                       document_text[static_cast<std::size_t>(documents[j])] ||
                   query_text[static_cast<std::size_t>(batch[i])] ==
                       query_text[static_cast<std::size_t>(batch[j])];
        blocked[i * n + j] = hit;
        any |= hit;
      }
    }
    Index rows = static_cast<Index>(n);
    return any ? from_host(blocked, {rows, rows}, encoder.device()) : Tensor();
  }

  // One optimiser step; returns the contrastive loss.
  double train_step(const std::vector<Index>& batch, Index epoch) {
    std::vector<std::vector<std::int32_t>> q, d;
    std::vector<Index> documents;
    for (Index pair : batch) {
      documents.push_back(positive_of(pair, epoch));
      q.push_back(query_tokens[static_cast<std::size_t>(pair)]);
      d.push_back(document_tokens[static_cast<std::size_t>(documents.back())]);
    }
    Device device = encoder.device();
    TokenBatch query_batch = make_batch(q, device), document_batch = make_batch(d, device);
    Tensor blocked = config.mask_false_negatives ? false_negatives(batch, documents) : Tensor();
    Routes query_routes, document_routes;
    query_routes.noise_scale = document_routes.noise_scale = noise.tau(step, total_steps);
    Draw draw{.seed = config.seed,
              .step = static_cast<std::uint32_t>(step),
              .side = 0,
              .row0 = 0,
              .train = true};
    double loss_value = 0;
    {
      Zone zone("forward and backward");
      Tape tape;
      Pass pass;
      pass.draw = draw;
      pass.routes = &query_routes;
      Tensor query_vectors = encoder(query_batch, pass);
      pass.draw.side = 1;
      pass.routes = &document_routes;
      Tensor document_vectors = encoder(document_batch, pass);
      Tensor loss = contrastive(query_vectors, document_vectors, blocked,
                                {.temperature = config.temperature,
                                 .symmetric = config.symmetric,
                                 .factor = 1 / static_cast<double>(batch.size())});
      loss_value = item(loss);
      if (const SbMoe* block = encoder.moe())
        for (const Routes* routes : {&query_routes, &document_routes})
          for (const RouteOut& route : routes->seen)
            if (Tensor extra = block->auxiliary_loss(route)) loss = add(loss, scale(extra, 0.5));
      Zone back("backward");
      tape.backward(loss);
    }
    Zone zone("count, clip, update");
    count_choices(query_routes, query_load);
    count_choices(document_routes, document_load);
    double gate = encoder.moe() ? gradient_rms(encoder.parameters(), "moe.gate.*") : -1;
    double expert = encoder.moe() ? gradient_rms(encoder.parameters(), "moe.experts.up.*") : -1;
    double factor = schedule.factor(step);
    StepReport report =
        adamw ? adamw->step(config.rate * factor) : adafactor->step(config.rate * factor);
    if (!report.finite) {
      ++bad_steps;
      check(config.skip_bad_steps,
            "step {}: the gradient of '{}' is not finite (loss {}).\n"
            "Lower --lr, keep --clip 1, or pass --skip-bad-steps. Nothing was updated; the last "
            "checkpoint is whole.",
            step, report.bad_tensor, loss_value);
    } else if (const SbMoe* block = encoder.moe(); block && block->router.bias) {
      std::vector<std::int64_t> load(query_load.size(), 0);
      count_choices(query_routes, load);
      count_choices(document_routes, load);
      block->router.update_bias(load, config.selection_bias_rate);
    }
    log.step({{"step", static_cast<double>(step)},
              {"loss", loss_value},
              {"rate", config.rate * factor},
              {"gradient_norm", report.gradient_norm},
              {"gate_gradient_rms", gate},
              {"expert_gradient_rms", expert},
              {"noise", query_routes.noise_scale}});
    return loss_value;
  }

  void save_checkpoint() {
    if (directory.empty()) return;
    CheckpointWriter writer(directory, step);
    writer.tensors("model.safetensors", encoder.state(), {{"format", "pt"}});
    writer.tensors("optimizer.safetensors", adamw ? adamw->state() : adafactor->state(), {});
    RunState s;
    s.step = step;
    s.optimizer_steps = adamw ? adamw->steps() : adafactor->steps();
    s.bad_steps = bad_steps;
    s.best_step = result.best_step;
    s.since_best = since_best;
    s.best_metric = result.best_metric;
    s.last_metric = result.last_metric;
    s.first_loss = result.first_loss;
    s.loss_sum = loss_sum;
    s.loss_count = loss_count;
    s.query_load = query_load;
    s.document_load = document_load;
    for (const auto& p : result.history)
      s.history.push_back({static_cast<double>(p.step), p.epoch, p.metric, p.train_loss});
    s.config = resolved;
    writer.text("state.json", to_json(s));
    writer.text("config.toml", resolved);
    log.sync();
    writer.commit();
    prune_checkpoints(directory, config.keep, {result.best_step});
  }

  void save_model(const std::string& name) {
    if (!directory.empty()) encoder.save(directory + "/" + name, model_card(name));
  }

  std::string model_card(const std::string& name) const {
    std::string block = "none";
    if (const SbMoe* moe = encoder.moe())
      block = fmt::format("{}, {} experts, k {}", name_of(moe->config.mode), moe->config.experts,
                          moe->config.k);
    return fmt::format(
        "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n"
        "tags: [sentence-similarity, dense-retrieval, moe-run]\n---\n\n# Text encoder ({})\n\n"
        "Fine-tuned by moe-run on '{}' ({} queries), contrastive loss with in-batch negatives.\n\n"
        "| | |\n|---|---|\n| steps | {} |\n| {} on {} | {:.4f} (best {:.4f} at step {}) |\n"
        "| pooling | {} |\n| SB-MoE block | {} |\n| vector size | {} |\n| similarity | dot product "
        "|\n",
        name, collection.name, query_rows.size(), step, config.metric, config.dev_split,
        result.last_metric, result.best_metric, result.best_step, name_of(encoder.pooling()), block,
        encoder.size());
  }

  bool has_dev() const { return collection.splits.contains(config.dev_split); }

  // Validation by retrieval on the dev split; true when training should stop.
  bool evaluate_now(double epoch) {
    Zone zone("validate and save");
    EvaluationPoint point{step, epoch, 0,
                          loss_count ? loss_sum / static_cast<double>(loss_count) : 0};
    if (has_dev()) {
      RetrievalOptions options;
      options.metrics = {parse_metric(config.metric)};
      options.query_length = config.query_length;
      options.document_length = config.document_length;
      options.seed = config.seed;
      options.what = directory.empty() ? "" : "validate";
      auto outcome = evaluate_retrieval(encoder, collection, config.dev_split, options);
      point.metric = outcome.evaluation.means[0];
    } else {
      point.metric = -point.train_loss;  // without judgements the training loss decides
    }
    result.history.push_back(point);
    result.last_metric = point.metric;
    // NaN never becomes best: the comparison is false.
    bool better = point.metric > result.best_metric || result.history.size() == 1;
    if (std::isnan(point.metric)) better = false;
    since_best = better ? 0 : since_best + 1;
    if (better) {
      result.best_metric = point.metric;
      result.best_step = step;
    }
    LoadReport q = load_report(query_load), d = load_report(document_load);
    log.evaluation(step, epoch, point.train_loss, config.metric, point.metric, better, q.counts,
                   d.counts, q.entropy, d.entropy);
    if (!directory.empty()) {
      std::string line =
          fmt::format("step {}, epoch {:.2f}: loss {:.4f}, {} {:.4f}{}", step, epoch,
                      point.train_loss, config.metric, point.metric, better ? " (best)" : "");
      if (!q.counts.empty())
        line += fmt::format(", expert load q [{}] d [{}]", fmt::join(q.counts, " "),
                            fmt::join(d.counts, " "));
      notice(line);
      if (!d.counts.empty() && d.busiest > 0.9 * static_cast<double>(d.counts.size()) &&
          d.counts.size() > 1)
        notice(
            "warning: one expert takes over 90 % of the documents: the router has collapsed "
            "(raise --balance)");
    }
    std::fill(query_load.begin(), query_load.end(), 0);
    std::fill(document_load.begin(), document_load.end(), 0);
    loss_sum = 0;
    loss_count = 0;
    if (better) save_model("best");
    save_checkpoint();
    return config.patience > 0 && since_best >= config.patience;
  }
};

Trainer::Trainer(TextEncoder& encoder, const Collection& collection, TrainConfig config,
                 std::string directory, std::string resolved_config)
    : state_(std::make_unique<State>(encoder, collection, std::move(config), std::move(directory),
                                     std::move(resolved_config))) {}

Trainer::~Trainer() = default;

bool Trainer::resume() {
  State& s = *state_;
  std::vector<std::string> problems;
  auto found = latest_checkpoint(s.directory, &problems);
  for (const auto& problem : problems) notice("skipped: " + problem);
  if (!found) return false;
  std::string file = found->directory + "/state.json";
  RunState saved = run_state_from_json(read_text_file(file, std::size_t{64} << 20), file);
  if (saved.config != s.resolved)
    fail(Fault::usage,
         "{}: the checkpoint was made with another configuration ({}/config.toml).\n"
         "Resume with the same options, or choose another --out.",
         s.directory, found->directory);
  s.encoder.parameters().load_values(read_safetensors(found->directory + "/model.safetensors"));
  TensorFile moments = read_safetensors(found->directory + "/optimizer.safetensors");
  if (s.adamw)
    s.adamw->load_state(moments, saved.optimizer_steps);
  else
    s.adafactor->load_state(moments, saved.optimizer_steps);
  s.step = saved.step;
  s.bad_steps = saved.bad_steps;
  s.result.best_step = saved.best_step;
  s.result.best_metric = saved.best_metric;
  s.result.last_metric = saved.last_metric;
  s.result.first_loss = saved.first_loss;
  s.since_best = saved.since_best;
  s.loss_sum = saved.loss_sum;
  s.loss_count = saved.loss_count;
  if (saved.query_load.size() == s.query_load.size()) s.query_load = saved.query_load;
  if (saved.document_load.size() == s.document_load.size()) s.document_load = saved.document_load;
  for (const auto& p : saved.history)
    s.result.history.push_back({static_cast<Index>(p[0]), p[1], p[2], p[3]});
  s.log.truncate_to(saved.step);
  return true;
}

TrainResult Trainer::run() {
  State& s = *state_;
  auto start = Clock::now();
  Progress progress("train", s.total_steps, "steps");
  double shown = 0;
  while (s.step < s.total_steps) {
    auto [epoch, position] = s.place_of(s.step);
    double loss = s.train_step(s.batch_at(epoch, position), epoch);
    Index per_epoch = s.epoch_steps[static_cast<std::size_t>(epoch)];
    if (s.step == 0) s.result.first_loss = loss;
    s.result.last_loss = loss;
    s.loss_sum += loss;
    ++s.loss_count;
    ++s.step;
    shown = shown == 0 ? loss : 0.95 * shown + 0.05 * loss;
    if (!s.directory.empty())
      progress.update(
          s.step,
          fmt::format(
              "epoch {}/{}, loss {:.4f}, {}", epoch + 1, s.config.epochs, shown,
              human_bytes(static_cast<double>(memory_statistics(s.encoder.device()).peak_in_use))));
    if (on_step) on_step(s.step, s.total_steps, loss);
    // Evaluation points split an epoch evenly; its end is always one.
    Index parts = std::max<Index>(s.config.evaluations_per_epoch, 1);
    Index done = position + 1;
    bool point = done * parts / per_epoch > (done - 1) * parts / per_epoch;
    bool stop = false;
    if (point || s.step == s.total_steps)
      stop = s.evaluate_now(static_cast<double>(epoch) +
                            static_cast<double>(done) / static_cast<double>(per_epoch));
    double minutes = std::chrono::duration<double>(Clock::now() - start).count() / 60;
    bool out_of_time = s.config.max_minutes > 0 && minutes >= s.config.max_minutes;
    if (stop_signal() != 0 || out_of_time) {
      s.save_checkpoint();
      s.save_model("last");
      progress.finish();
      if (int signal = stop_signal()) {
        notice(s.directory.empty()
                   ? "stopped"
                   : fmt::format(
                         "stopped after step {}; continue with the same command and --resume auto",
                         s.step));
        throw Interrupted{signal};
      }
      notice(fmt::format("time limit reached after step {}", s.step));
      break;
    }
    if (take_save_request()) s.save_checkpoint();
    if (stop) {
      s.result.stopped_early = true;
      break;
    }
  }
  progress.finish();
  s.save_model("last");
  s.result.steps = s.step;
  s.result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return s.result;
}

}  // namespace moe
