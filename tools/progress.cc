#include "tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace moe {

namespace {
bool silent = false;
}  // namespace

void set_quiet(bool q) {
  silent = q;
}
bool quiet() {
  return silent;
}

void notice(const std::string& text) {
  if (!silent) fmt::print(stderr, "{}\n", text);
}

std::string human_seconds(double s) {
  if (s < 100) return fmt::format("{:.1f} s", s);
  long whole = static_cast<long>(s + 0.5);
  if (whole < 3600) return fmt::format("{} min {:02d} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02d} min", whole / 3600, whole / 60 % 60);
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  for (; bytes >= 1024 && u < 4; ++u) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, u == 0 ? 0 : 1, units[u]);
}

Progress::Progress(std::string what, Index total, std::string unit)
    : what_(std::move(what)), unit_(std::move(unit)), total_(total), terminal_(isatty(2) == 1) {}

Progress::~Progress() {
  finish();
}

double Progress::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void Progress::update(Index done, const std::string& extra) {
  if (!counting_) {  // resumed work is not counted into the rate
    counting_ = true;
    start_count_ = done;
  }
  done_ = done;
  auto now = Clock::now();
  double wait = terminal_ ? 0.2 : 10.0;
  if (silent || std::chrono::duration<double>(now - std::max(last_, start_)).count() < wait) return;
  last_ = now;
  double elapsed = seconds();
  double rate = static_cast<double>(done - start_count_) / std::max(elapsed, 1e-9);
  std::string line = fmt::format("{}: {}", what_, done);
  if (total_ > 0) line += fmt::format("/{}", total_);
  line += fmt::format(" {}, {:.1f}/s", unit_, rate);
  if (total_ > 0 && rate > 0)
    line += fmt::format(", ETA {}", human_seconds(static_cast<double>(total_ - done) / rate));
  if (!extra.empty()) line += ", " + extra;
  if (terminal_) {
    fmt::print(stderr, "\r\033[K{}", line);
    std::fflush(stderr);
    line_open_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
}

void Progress::finish(const std::string& summary) {
  if (finished_) return;
  finished_ = true;
  if (line_open_) fmt::print(stderr, "\r\033[K");
  if (!summary.empty()) notice(summary);
}

}  // namespace moe
