// Errors. A user's mistake (bad file, wrong shape, absent device) throws moe::Error; a broken
// internal invariant is an assert. Nothing below tools/ prints or exits, nothing returns error
// codes. A message says what, where (file:line, file @ byte or tensor), why and how to fix, in at
// most four lines.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace moe {

// What kind of failure it was. tools/ turns it into the process exit code (README, "Exit codes").
enum class Fault {
  failure,        // 1   run-time failure without a better name
  usage,          // 2   wrong option, wrong configuration, wrong shape given by a caller
  bad_data,       // 65  a file is there but breaks its format
  missing_input,  // 66  a file or folder is not there
  unavailable,    // 69  device or optional component absent
  io,             // 74  read or write failed, disk full
};

class Error : public std::runtime_error {
 public:
  explicit Error(std::string message, Fault fault = Fault::failure)
      : std::runtime_error(std::move(message)), fault_(fault) {}
  Fault fault() const { return fault_; }

 private:
  Fault fault_;
};

// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(Fault fault, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...), fault);
}

// Throws a usage Error unless `condition` holds: check(w == x, "rms_norm: weight {} does not fit
// {}", w, x).
template <class... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    fail(Fault::usage, format, std::forward<Args>(args)...);
}

}  // namespace moe
