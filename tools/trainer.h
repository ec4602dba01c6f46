// The training loop of a bi-encoder: in-batch contrastive loss with false-negative masking, an
// optional SB-MoE block with its auxiliary losses, two learning-rate groups, retrieval validation,
// best and last checkpoints, early stop and bit-exact resume.
#pragma once

#include "models/text_encoder.h"
#include "runtime/optimizer.h"
#include "tools/dataset.h"
#include "tools/metrics.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace moe {

struct TrainConfig {
  std::string split = "train", dev_split = "dev";
  Index epochs = 5;
  Index batch = 64;        // queries per step
  Index batch_tokens = 0;  // token budget of a step (query + document), 0: none
  Index window = 8;        // batches whose pairs are sorted by length together; 1: none
  Index max_steps = 0;     // 0: epochs decide
  Index query_length = 0, document_length = 0;  // tokens, 0: the encoder's maximum
  double temperature = 0.05;
  bool symmetric = false;
  bool mask_false_negatives = true;
  double rate = 2e-5;        // encoder
  double block_rate = 1e-3;  // SB-MoE block and Dense modules
  double decay = 0.01;
  bool decay_all = false;  // also biases and norms, as the released SB-MoE code does
  double warmup = 0.1;     // share of all steps
  std::string schedule = "linear";
  double clip_norm = 1.0;  // 0: none
  std::string optimizer = "adamw";
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  std::uint64_t seed = 42;
  bool freeze_encoder = false;
  std::string metric = "nDCG@10";  // decides what is best
  Index evaluations_per_epoch = 1;
  Index patience = 0;            // evaluations without improvement before stopping, 0: never
  Index keep = 2;                // checkpoints kept besides the best
  double max_minutes = 0;        // 0: no limit
  bool skip_bad_steps = false;   // a step with a non-finite gradient: skip it (else stop)
  std::string noise = "linear";  // schedule of the router's noise
  double noise_start = 1, noise_end = 0, noise_fraction = 0.5;
  double selection_bias_rate = 1e-3;  // loss-free balancing, when the block has a selection bias
};

struct EvaluationPoint {
  Index step = 0;
  double epoch = 0, metric = 0, train_loss = 0;
};

struct TrainResult {
  Index steps = 0, best_step = 0;
  double best_metric = -1, last_metric = -1, seconds = 0, first_loss = 0, last_loss = 0;
  bool stopped_early = false;
  std::vector<EvaluationPoint> history;
};

// Load of the experts over one stretch of training or one evaluation.
struct LoadReport {
  std::vector<std::int64_t> counts;
  double entropy = 0;  // of the shares, divided by log E: 1 = even
  double busiest = 0;  // largest share times E
};
LoadReport load_report(const std::vector<std::int64_t>& counts);

// Embeds documents and the split's queries, searches exactly, evaluates.
struct RetrievalOutcome {
  Evaluation evaluation;
  Run run;
  std::vector<std::int64_t> query_load, document_load;  // SB-MoE: texts per expert, empty without
  double agreement = -1;  // share of judged (query, positive) pairs that chose the same expert
};
struct RetrievalOptions {
  std::vector<Metric> metrics;
  Index k = 100;
  Index query_length = 0, document_length = 0;
  Index batch_tokens = 8192;
  std::uint64_t seed = 42;
  EvaluationOptions evaluation;
  std::string what;  // progress line, empty: silent
};
RetrievalOutcome evaluate_retrieval(const TextEncoder& encoder, const Collection& collection,
                                    std::string_view split, const RetrievalOptions& options);

class Trainer {
 public:
  // `directory` empty: nothing is written (the demo's quick runs, tests).
  Trainer(TextEncoder& encoder, const Collection& collection, TrainConfig config,
          std::string directory, std::string resolved_config);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Continues from the newest complete checkpoint of the directory; false when there is none.
  bool resume();
  // Runs to the end, to early stop, or to a stop signal (then saves and throws Interrupted).
  TrainResult run();
  // Called after every step: step, total, loss. For the demo's display and for tests.
  std::function<void(Index, Index, double)> on_step;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe
