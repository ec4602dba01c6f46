#include "tools/run_log.h"

#include "runtime/file.h"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <cmath>

namespace moe {

namespace {
using Json = nlohmann::ordered_json;

// JSON has no NaN; the log keeps the line and says null.
Json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<std::int64_t>(value);
  return value;
}
}  // namespace

RunLog::RunLog(const std::string& directory) {
  if (directory.empty()) return;
  make_directories(directory);
  path_ = directory + "/log.jsonl";
  file_.reset(std::fopen(path_.c_str(), "ae"));
  if (!file_) fail(Fault::io, "{}: cannot be opened for writing", path_);
}

void RunLog::line(const std::string& text) {
  if (!file_) return;
  if (std::fputs((text + "\n").c_str(), file_.get()) < 0 || std::fflush(file_.get()) != 0)
    fail(Fault::io, "{}: write failed (disk full?). The last checkpoint is whole.", path_);
}

void RunLog::step(std::initializer_list<std::pair<const char*, double>> values) {
  if (!file_) return;
  Json json{{"event", "step"}};
  for (const auto& [key, value] : values) json[key] = number(value);
  line(json.dump());
}

void RunLog::evaluation(Index step, double epoch, double train_loss, const std::string& metric,
                        double value, bool best, const std::vector<std::int64_t>& query_load,
                        const std::vector<std::int64_t>& document_load, double query_entropy,
                        double document_entropy) {
  if (!file_) return;
  Json json{{"event", "evaluation"}, {"step", step},
            {"epoch", epoch},        {"train_loss", number(train_loss)},
            {"metric", metric},      {"value", number(value)},
            {"best", best}};
  if (!query_load.empty()) {
    json["query_load"] = query_load;
    json["document_load"] = document_load;
    json["query_entropy"] = number(query_entropy);
    json["document_entropy"] = number(document_entropy);
  }
  line(json.dump());
}

void RunLog::sync() {
  if (file_) fsync(fileno(file_.get()));
}

void RunLog::truncate_to(Index step) {
  if (!file_) return;
  file_.reset();
  std::string text = read_text_file(path_, std::size_t{1} << 32), kept;
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // a torn last line
    std::string one = text.substr(begin, end - begin);
    begin = end + 1;
    Json json = Json::parse(one, nullptr, false);
    if (json.is_discarded() || !json.contains("step")) continue;
    double at = json["step"].get<double>();
    // An evaluation is logged with the number of steps done, a step with its own number.
    bool keep = json["event"] == "evaluation" ? at <= static_cast<double>(step)
                                              : at < static_cast<double>(step);
    if (keep) kept += one + "\n";
  }
  write_file_atomically(path_, kept);
  file_.reset(std::fopen(path_.c_str(), "ae"));
  if (!file_) fail(Fault::io, "{}: cannot be opened for writing", path_);
}

std::string to_json(const RunState& s) {
  Json json{{"format", 1},
            {"random", "philox4x32-10/1"},
            {"step", s.step},
            {"optimizer_steps", s.optimizer_steps},
            {"bad_steps", s.bad_steps},
            {"best_step", s.best_step},
            {"since_best", s.since_best},
            {"loss_count", s.loss_count},
            {"best_metric", number(s.best_metric)},
            {"last_metric", number(s.last_metric)},
            {"first_loss", number(s.first_loss)},
            {"loss_sum", number(s.loss_sum)},
            {"query_load", s.query_load},
            {"document_load", s.document_load},
            {"history", s.history},
            {"config", s.config}};
  return json.dump(1) + "\n";
}

RunState run_state_from_json(const std::string& text, const std::string& file) {
  try {
    Json json = Json::parse(text);
    if (json.at("format") != 1)
      fail(Fault::bad_data, "{}: state format {} is not known to this version", file,
           json.at("format").dump());
    RunState s;
    json.at("step").get_to(s.step);
    json.at("optimizer_steps").get_to(s.optimizer_steps);
    json.at("bad_steps").get_to(s.bad_steps);
    json.at("best_step").get_to(s.best_step);
    json.at("since_best").get_to(s.since_best);
    json.at("loss_count").get_to(s.loss_count);
    auto real = [&](const char* key, double& to) {
      if (!json.at(key).is_null()) json.at(key).get_to(to);
    };
    real("best_metric", s.best_metric);
    real("last_metric", s.last_metric);
    real("first_loss", s.first_loss);
    real("loss_sum", s.loss_sum);
    json.at("query_load").get_to(s.query_load);
    json.at("document_load").get_to(s.document_load);
    json.at("history").get_to(s.history);
    json.at("config").get_to(s.config);
    return s;
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::bad_data, "{}: not a state of this program: {}", file, e.what());
  }
}

}  // namespace moe
