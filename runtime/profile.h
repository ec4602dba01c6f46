// Named zones, off by default: MOE_TRACE=FILE writes a Chrome trace (chrome://tracing, Perfetto) at
// exit. Off, a zone costs one test of a constant.
//   { Zone zone("forward"); ... }
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace moe {

class Trace {
 public:
  static Trace& instance() {
    static Trace trace;
    return trace;
  }
  bool on() const { return !path_.empty(); }
  double now() const {  // microseconds since the first use
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_)
        .count();
  }
  void add(const char* name, double begin, double end) {
    std::lock_guard lock(mutex_);
    events_.push_back({name, begin, end});
  }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

 private:
  struct Event {
    const char* name;  // a literal
    double begin, end;
  };
  Trace() {
    if (const char* path = std::getenv("MOE_TRACE")) path_ = path;
  }
  ~Trace() {
    if (!on()) return;
    std::FILE* file = std::fopen(path_.c_str(), "w");
    if (file == nullptr) {
      fmt::print(stderr, "MOE_TRACE: {} cannot be written\n", path_);
      return;
    }
    std::string text = "[";
    for (std::size_t i = 0; i < events_.size(); ++i)
      text += fmt::format(
          "{}\n{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":1,\"tid\":1,\"ts\":{:.3f},\"dur\":{:.3f}}}",
          i ? "," : "", events_[i].name, events_[i].begin, events_[i].end - events_[i].begin);
    text += "\n]\n";
    std::fwrite(text.data(), 1, text.size(), file);
    std::fclose(file);
  }

  std::string path_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::vector<Event> events_;
};

class Zone {
 public:
  explicit Zone(const char* name) : name_(Trace::instance().on() ? name : nullptr) {
    if (name_ != nullptr) begin_ = Trace::instance().now();
  }
  ~Zone() {
    if (name_ != nullptr) Trace::instance().add(name_, begin_, Trace::instance().now());
  }
  Zone(const Zone&) = delete;
  Zone& operator=(const Zone&) = delete;

 private:
  const char* name_;
  double begin_ = 0;
};

}  // namespace moe
