// Durable writes follow the one order that survives a crash: write a temporary file in the same
// folder, fsync it, rename it over the name, fsync the folder. A failed fsync is never retried: the
// kernel may already have dropped the dirty pages (Rebello et al., "Can Applications Recover from
// fsync Failures?", USENIX ATC 2020).
#include "runtime/file.h"

#include "runtime/bytes.h"
#include "runtime/file_calls.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

namespace moe {

namespace {

template <class Call>
auto retry_interrupted(const Call& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

const char* kind_of(unsigned mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a folder";
    case S_IFIFO:
      return "a FIFO";
    case S_IFSOCK:
      return "a socket";
    default:
      return "a device";
  }
}

void refuse_special(const std::string& path, unsigned mode) {
  if (!S_ISREG(mode))
    fail(Fault::bad_data, "{} is {}, not a regular file.\nName a file on disk instead.",
         in_quotes(path), kind_of(mode));
}

// A page of a network file can vanish under a map (SIGBUS); such files are read instead. Numbers:
// statfs(2).
bool mapping_is_unsafe(int descriptor) {
  struct statfs system {};
  if (fstatfs(descriptor, &system) != 0) return true;
  switch (static_cast<std::uint32_t>(system.f_type)) {
    case 0x6969u:      // NFS
    case 0x65735546u:  // FUSE
    case 0xFF534D42u:  // CIFS
    case 0xFE534D42u:  // SMB2
    case 0x01021997u:  // 9P
      return true;
    default:
      return false;
  }
}

}  // namespace

Descriptor::~Descriptor() {
  if (value_ >= 0) ::close(value_);
}

void fail_system(const char* verb, const std::string& path, int error) {
  std::string reason = std::system_category().message(error);
  if (error == ENOENT || error == ENOTDIR)
    fail(Fault::missing_input, "cannot {} {}: {}.\nCheck the path.", verb, in_quotes(path), reason);
  if (error == ENOSPC || error == EDQUOT)
    fail(Fault::io, "cannot {} {}: disk full ({}).\nFree space there, or name another folder.",
         verb, in_quotes(path), reason);
  fail(Fault::io, "cannot {} {}: {}.", verb, in_quotes(path), reason);
}

Descriptor open_regular(const std::string& path, std::size_t* size) {
  // stat first: merely opening a device can have effects. fstat again: the name may have changed
  // hands.
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) fail_system("open", path, errno);
  refuse_special(path, about.st_mode);
  Descriptor file(retry_interrupted(
      [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); }));
  if (file.get() < 0) fail_system("open", path, errno);
  if (::fstat(file.get(), &about) != 0) fail_system("inspect", path, errno);
  refuse_special(path, about.st_mode);
  *size = static_cast<std::size_t>(about.st_size);
  return file;
}

std::size_t read_up_to(int descriptor, void* to, std::size_t bytes, const std::string& path) {
  std::size_t done = 0;
  while (done < bytes) {
    auto count = retry_interrupted(
        [&] { return ::read(descriptor, static_cast<char*>(to) + done, bytes - done); });
    if (count < 0) fail_system("read", path, errno);
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return done;
}

int open_to_write(const std::string& path, int flags) {
  return retry_interrupted(
      [&] { return file_system().open(path.c_str(), flags | O_CLOEXEC, 0666); });
}

void write_fully(int descriptor, const void* data, std::size_t bytes, const std::string& path) {
  const char* from = static_cast<const char*>(data);
  std::size_t left = bytes;
  while (left > 0) {
    long count = retry_interrupted([&] { return file_system().write(descriptor, from, left); });
    if (count > 0) {
      from += count;
      left -= static_cast<std::size_t>(count);
      continue;
    }
    int error = count == 0 ? ENOSPC : errno;  // no progress and no reason: as good as full
    if (error == ENOSPC || error == EDQUOT)
      fail(Fault::io,
           "disk full: {} bytes of {} were still to be written.\nFree space in that folder, or "
           "name another one.",
           left, in_quotes(path));
    fail_system("write", path, error);
  }
}

void sync_fully(int descriptor, const std::string& path) {
  if (retry_interrupted([&] { return file_system().fsync(descriptor); }) != 0)
    fail_system("flush to disk", path, errno);
}

void rename_durably(const std::string& from, const std::string& to) {
  if (retry_interrupted([&] { return file_system().rename(from.c_str(), to.c_str()); }) != 0)
    fail_system("put in place", to, errno);
  sync_directory(folder_of(to));
}

std::string folder_of(const std::string& path) {
  auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool file_exists(const std::string& path) {
  struct stat about {};
  return ::stat(path.c_str(), &about) == 0 && !S_ISDIR(about.st_mode);
}

bool directory_exists(const std::string& path) {
  struct stat about {};
  return ::stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

std::string read_text_file(const std::string& path, std::size_t max_bytes) {
  std::size_t size = 0;
  Descriptor file = open_regular(path, &size);
  std::string text;
  max_bytes = std::min(max_bytes, text.max_size() - 1);
  // The size is a hint only: files under /proc say 0, and a log may grow while we read.
  for (std::size_t wanted = size + 1; text.size() <= max_bytes; wanted = 1 << 16) {
    if (size > max_bytes) break;
    std::size_t before = text.size();
    wanted = std::min(wanted, max_bytes + 1 - before);
    text.resize(before + wanted);
    std::size_t count = read_up_to(file.get(), text.data() + before, wanted, path);
    text.resize(before + count);
    if (count < wanted) return text;
  }
  fail(Fault::bad_data,
       "{} has more than the {} bytes allowed for such a file.\nIs it the right one?",
       in_quotes(path), max_bytes);
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  Descriptor file = open_regular(path, &size_);
  if (size_ == 0) return;
  bool copy = mapping_is_unsafe(file.get());
  void* memory = ::mmap(nullptr, size_, PROT_READ | (copy ? PROT_WRITE : 0),
                        MAP_PRIVATE | (copy ? MAP_ANONYMOUS : 0), copy ? -1 : file.get(), 0);
  if (memory == MAP_FAILED) fail_system("map", path, errno);
  data_ = static_cast<const std::byte*>(memory);
  if (!copy) return;
  try {
    if (read_up_to(file.get(), memory, size_, path) != size_)
      fail(Fault::io, "{} became shorter while it was read", in_quotes(path));
  } catch (...) {
    ::munmap(memory, size_);
    throw;
  }
  ::mprotect(memory, size_, PROT_READ);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  struct stat about {};
  if (::stat(path_.c_str(), &about) == 0) refuse_special(path_, about.st_mode);
  // A killed process leaves its temporary file behind, and process numbers come again: try further
  // names.
  static std::atomic<unsigned> counter{0};
  for (int attempt = 0; attempt < 1000 && descriptor_ < 0; ++attempt) {
    temporary_ = fmt::format("{}/.moe-{}-{}.tmp", folder_of(path_), ::getpid(), counter++);
    descriptor_ = open_to_write(temporary_, O_WRONLY | O_CREAT | O_EXCL);
    if (descriptor_ < 0 && errno != EEXIST) fail_system("create", path_, errno);
  }
  if (descriptor_ < 0) fail_system("create", path_, EEXIST);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  check(descriptor_ >= 0, "{} was already committed, or an earlier write failed", in_quotes(path_));
  try {
    write_fully(descriptor_, data, bytes, path_);
  } catch (...) {  // a file with a hole must never be committed
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
    descriptor_ = -1;
    throw;
  }
}

void AtomicFile::commit() {
  check(descriptor_ >= 0, "{} was already committed, or an earlier write failed", in_quotes(path_));
  sync_fully(descriptor_, path_);
  Descriptor file(descriptor_);
  descriptor_ = -1;
  // close() may report a delayed error (NFS); after EINTR the descriptor is gone on Linux, so never
  // again.
  int error = ::close(file.release()) == 0 || errno == EINTR ? 0 : errno;
  if (error == 0 && retry_interrupted([&] {
                      return file_system().rename(temporary_.c_str(), path_.c_str());
                    }) != 0)
    error = errno;
  if (error != 0) {
    ::unlink(temporary_.c_str());
    fail_system("put in place", path_, error);
  }
  sync_directory(folder_of(path_));
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void make_directories(const std::string& path) {
  if (path.empty() || directory_exists(path)) return;
  auto end = path.find_last_not_of('/');
  if (end == std::string::npos) return;  // "/"
  std::string folder = path.substr(0, end + 1), parent = folder_of(folder);
  make_directories(parent);
  if (::mkdir(folder.c_str(), 0777) == 0) return sync_directory(parent);
  int error = errno;
  if (error == EEXIST && directory_exists(folder)) return;  // another process was faster
  fail_system("create the folder", folder, error);
}

void sync_directory(const std::string& path) {
  Descriptor folder(open_to_write(path, O_RDONLY | O_DIRECTORY));
  if (folder.get() < 0) fail_system("open the folder", path, errno);
  if (retry_interrupted([&] { return file_system().fsync(folder.get()); }) == 0) return;
  if (errno != EINVAL && errno != ENOTSUP)  // file systems that keep no order of their own
    fail_system("flush to disk", path, errno);
}

FileSystem& file_system() {
  static FileSystem real{
      [](int descriptor, const void* data, std::size_t bytes) -> long {
        return ::write(descriptor, data, bytes);
      },
      [](int descriptor) { return ::fsync(descriptor); },
      [](const char* from, const char* to) { return std::rename(from, to); },
      [](const char* path, int flags, unsigned mode) { return ::open(path, flags, mode); },
  };
  return real;
}

std::string content_hash(std::span<const std::byte> bytes) {
  XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace moe
