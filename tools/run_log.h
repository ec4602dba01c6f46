// A run's written trace: log.jsonl (one JSON object per step or evaluation) and the small state of
// a checkpoint.
#pragma once

#include "runtime/shape.h"

#include <array>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace moe {

class RunLog {
 public:
  // DIR/log.jsonl, appended; an empty directory writes nothing.
  explicit RunLog(const std::string& directory);
  void step(std::initializer_list<std::pair<const char*, double>> values);
  void evaluation(Index step, double epoch, double train_loss, const std::string& metric,
                  double value, bool best, const std::vector<std::int64_t>& query_load,
                  const std::vector<std::int64_t>& document_load, double query_entropy,
                  double document_entropy);
  void sync();
  // Drops lines of steps at or after `step`: they will be run again.
  void truncate_to(Index step);

 private:
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  void line(const std::string& text);
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

struct RunState {
  Index step = 0, optimizer_steps = 0, bad_steps = 0, best_step = 0, since_best = 0, loss_count = 0;
  double best_metric = 0, last_metric = 0, first_loss = 0, loss_sum = 0;
  std::vector<std::int64_t> query_load, document_load;
  std::vector<std::array<double, 4>> history;  // step, epoch, metric, train loss
  std::string config;
};
std::string to_json(const RunState& state);
RunState run_state_from_json(const std::string& text, const std::string& file);

}  // namespace moe
