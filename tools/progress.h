// Progress on stderr: one line rewritten on a terminal, else a line every few seconds; with rate
// and ETA.
#pragma once

#include "runtime/shape.h"

#include <chrono>
#include <string>

namespace moe {

void set_quiet(bool quiet);  // no progress, no notices
bool quiet();
// A line for people on stderr, unless quiet.
void notice(const std::string& text);

class Progress {
 public:
  // `unit` is counted: "texts", "steps". total 0: unknown, no ETA.
  Progress(std::string what, Index total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // Sets the count; prints when it is time. `extra` is shown after it ("loss 1.23").
  void update(Index done, const std::string& extra = {});
  void finish(const std::string& summary = {});
  double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_, unit_;
  Index total_, start_count_ = 0, done_ = 0;
  Clock::time_point start_ = Clock::now(), last_{};
  bool terminal_, line_open_ = false, finished_ = false, counting_ = false;
};

std::string human_seconds(double seconds);  // "1.3 s", "4 min 05 s", "2 h 10 min"
std::string human_bytes(double bytes);      // "1.5 GiB"

}  // namespace moe
