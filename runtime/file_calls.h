// The careful system calls under runtime/file.h, for the other files that keep descriptors of their
// own: they retry EINTR, finish short writes and turn errno into an error that names the path.
// Writes go through file_system().
#pragma once

#include "runtime/file.h"

#include <utility>

namespace moe {

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  int get() const { return value_; }
  int release() {
    int value = value_;
    value_ = -1;
    return value;
  }

 private:
  int value_;
};

// Opens a regular file to read and tells its size; folders, FIFOs and devices are refused without
// blocking.
Descriptor open_regular(const std::string& path, std::size_t* size);
// At most `bytes` (fewer only at the end of the file); returns how many.
std::size_t read_up_to(int descriptor, void* to, std::size_t bytes, const std::string& path);

int open_to_write(const std::string& path, int flags);  // -1 and errno
void write_fully(int descriptor, const void* data, std::size_t bytes, const std::string& path);
void sync_fully(int descriptor, const std::string& path);
void rename_durably(const std::string& from,
                    const std::string& to);      // rename, then fsync the folder
std::string folder_of(const std::string& path);  // "." when the path has none

// Throws Fault::io, or missing_input when the path is not there: "cannot VERB 'path': reason".
[[noreturn]] void fail_system(const char* verb, const std::string& path, int error);

}  // namespace moe
