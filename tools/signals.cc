#include "tools/signals.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace moe {

namespace {
std::atomic<int> stop{0};
std::atomic<bool> save{false};
static_assert(std::atomic<int>::is_always_lock_free);  // a handler may touch nothing else

void on_stop(int signal) {
  if (stop.exchange(signal) != 0) _exit(128 + signal);
}
void on_save(int) {
  save = true;
}
}  // namespace

void install_signal_handlers() {
  std::signal(SIGINT, on_stop);
  std::signal(SIGTERM, on_stop);
  std::signal(SIGUSR1, on_save);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe shows as a failed write, which has a message
}
int stop_signal() {
  return stop;
}
bool take_save_request() {
  return save.exchange(false);
}
void throw_if_stopped() {
  if (int signal = stop_signal()) throw Interrupted{signal};
}

}  // namespace moe
