// What the person at the keyboard asked for while work was running. First Ctrl-C (or SIGTERM):
// finish the step, save, exit 130 (143); second: quit at once. SIGUSR1: save and go on.
#pragma once

namespace moe {

void install_signal_handlers();
int stop_signal();         // 0, or the signal that asked to stop
bool take_save_request();  // true once per SIGUSR1

// Thrown by long commands after they saved: main turns it into the exit code 128 + signal.
struct Interrupted {
  int signal;
};
// Throws Interrupted when a stop was asked for; for loops that have nothing to save.
void throw_if_stopped();

}  // namespace moe
