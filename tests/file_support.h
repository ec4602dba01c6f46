// For the tests of files: a folder that disappears, hand-made files, error texts, and faults in
// system calls.
#pragma once

#include "runtime/checkpoint.h"
#include "runtime/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#ifndef MOE_SOURCE_DIR
#define MOE_SOURCE_DIR "."
#endif

namespace moe::testing {

inline std::string fixture(const std::string& name) {
  return std::string(MOE_SOURCE_DIR) + "/tests/golden/files/" + name;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    // In memory where possible: these tests call fsync thousands of times.
    std::string parent = access("/dev/shm", W_OK) == 0
                             ? "/dev/shm"
                             : std::filesystem::temp_directory_path().string();
    std::string pattern = parent + "/moe-files-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A new file each time: ext4 flushes a file that was truncated and rewritten, 5 ms a time.
inline void write_raw(const std::string& path, std::string_view content) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}
inline std::string read_raw(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
inline std::size_t files_in(const std::string& folder) {
  std::filesystem::directory_iterator begin(folder), end;
  return static_cast<std::size_t>(std::distance(begin, end));
}

// The message of the moe::Error that `action` must throw; a failure of the test otherwise.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}
inline bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
#define EXPECT_ERROR(action, part)                                     \
  do {                                                                 \
    std::string message_ = ::moe::testing::error_of([&] { action; });  \
    EXPECT_TRUE(::moe::testing::mentions(message_, part)) << message_; \
  } while (false)

// Fails the n-th system call on the write side (counted from 1), or ends the process there.
enum class FaultKind {
  none,
  short_write,
  interrupt,
  input_output,
  disk_full,
  exit_before,
  exit_half,
  exit_after
};

class Faults {
 public:
  Faults(FaultKind fault, int call) : saved_(file_system()) {
    FileSystem real = saved_;
    int* count = &count_;
    auto enter = [fault, call, count] {  // true: this call fails, errno is set
      if (++*count != call) return false;
      if (fault == FaultKind::exit_before) _exit(0);
      errno = fault == FaultKind::interrupt ? EINTR : fault == FaultKind::disk_full ? ENOSPC : EIO;
      return fault == FaultKind::interrupt || fault == FaultKind::input_output ||
             fault == FaultKind::disk_full;
    };
    auto leave = [fault, call, count] {
      if (*count == call && fault == FaultKind::exit_after) _exit(0);
    };
    file_system().write = [=](int file, const void* data, std::size_t bytes) -> long {
      if (enter()) return -1;
      bool here = *count == call && bytes > 1;
      if (here && fault == FaultKind::short_write) return real.write(file, data, bytes / 2);
      if (here && fault == FaultKind::exit_half) {
        real.write(file, data, bytes / 2);
        _exit(0);
      }
      long result = real.write(file, data, bytes);
      leave();
      return result;
    };
    file_system().fsync = [=](int file) {
      if (enter()) return -1;
      int result = real.fsync(file);
      leave();
      return result;
    };
    file_system().rename = [=](const char* from, const char* to) {
      if (enter()) return -1;
      int result = real.rename(from, to);
      leave();
      return result;
    };
    file_system().open = [=](const char* path, int flags, unsigned mode) {
      if (enter()) return -1;
      int result = real.open(path, flags, mode);
      leave();
      return result;
    };
    call_ = call;
  }
  ~Faults() { file_system() = saved_; }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;
  bool reached() const { return count_ >= call_; }

 private:
  FileSystem saved_;
  int count_ = 0, call_ = 0;
};

}  // namespace moe::testing
