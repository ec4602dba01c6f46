// Files: mapping, bounded reads, atomic durable writes. Every system call that writes goes through
// FileSystem, so tests can inject short writes, EIO, ENOSPC and EINTR.
#pragma once

#include "runtime/error.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

bool file_exists(const std::string& path);
bool directory_exists(const std::string& path);

// The whole file; refuses folders, FIFOs and devices, and more than max_bytes.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

// A read-only map of a regular file. The mapping outlives the file name (rename keeps it intact).
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Writes temp file in the same folder -> fsync -> rename -> fsync folder. Nothing appears under
// `path` before commit(); a writer destroyed without commit leaves no trace.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::string path_, temporary_;
  int descriptor_ = -1;
};

void write_file_atomically(const std::string& path, std::string_view content);
void make_directories(const std::string& path);
void sync_directory(const std::string& path);

// The write side of the operating system, replaceable by tests. Each returns like its namesake (-1
// and errno).
struct FileSystem {
  std::function<long(int, const void*, std::size_t)> write;
  std::function<int(int)> fsync;
  std::function<int(const char*, const char*)> rename;
  std::function<int(const char*, int, unsigned)> open;
};
FileSystem& file_system();  // process-wide; the real one unless a test replaced it

// 128-bit content hash (XXH3), as 32 hex digits: for corruption, not a security claim.
std::string content_hash(std::span<const std::byte> bytes);

}  // namespace moe
