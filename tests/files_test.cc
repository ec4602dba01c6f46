// The file layer: what is refused, and what survives faults of the operating system.
#include "runtime/bytes.h"
#include "tests/file_support.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

namespace moe::testing {
namespace {

TEST(Files, ReadsAndBounds) {
  TemporaryFolder folder;
  std::string path = folder / "text with blanks \xc3\xa4 \xff";  // a name that is not UTF-8
  write_raw(path, "12345");
  EXPECT_EQ(read_text_file(path, 5), "12345");
  EXPECT_EQ(read_text_file(path, SIZE_MAX), "12345");
  EXPECT_ERROR(read_text_file(path, 4), "more than the 4 bytes");
  write_raw(path, "");
  EXPECT_EQ(read_text_file(path, 0), "");
  MappedFile empty(path);
  EXPECT_EQ(empty.size(), 0u);
  EXPECT_FALSE(read_text_file("/proc/self/status", 1 << 20).empty());  // claims to have 0 bytes
}

TEST(Files, MissingIsMissingInput) {
  TemporaryFolder folder;
  try {
    MappedFile file(folder / "absent");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::missing_input);
    EXPECT_TRUE(mentions(error.what(), "absent"));
  }
  EXPECT_FALSE(file_exists(folder / "absent"));
  EXPECT_FALSE(file_exists(folder.path()));
  EXPECT_TRUE(directory_exists(folder.path()));
}

// Neither reading nor writing may hang or touch the device.
TEST(Files, SpecialFilesAreRefused) {
  TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  ASSERT_EQ(symlink("/dev/null", (folder / "link").c_str()), 0);
  for (const std::string& path :
       {folder / "fifo", folder / "link", folder.path(), std::string("/dev/zero")}) {
    EXPECT_ERROR(MappedFile file(path), "not a regular file");
    EXPECT_ERROR(read_text_file(path, 100), "not a regular file");
    EXPECT_ERROR(read_safetensors(path), "not a regular file");
    EXPECT_ERROR(read_pytorch_bin(path), "not a regular file");
    EXPECT_ERROR(AtomicFile file(path), "not a regular file");
  }
}

TEST(Files, MapOutlivesRename) {
  TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  MappedFile file(folder / "a");
  write_file_atomically(folder / "a", "new");
  EXPECT_EQ(as_text(file.data(), file.size()), "old");
  EXPECT_EQ(read_raw(folder / "a"), "new");
}

TEST(Files, NoCommitNoTrace) {
  TemporaryFolder folder;
  {
    AtomicFile file(folder / "a");
    file.write("text");
    EXPECT_FALSE(file_exists(folder / "a"));
  }
  EXPECT_EQ(files_in(folder.path()), 0u);
  AtomicFile file(folder / "a");
  file.commit();
  EXPECT_ERROR(file.commit(), "already committed");
  EXPECT_ERROR(file.write("x"), "already committed");
  EXPECT_EQ(read_raw(folder / "a"), "");
  EXPECT_ERROR(AtomicFile(folder / "nowhere/a"), "nowhere/a");
}

TEST(Files, MakesFolders) {
  TemporaryFolder folder;
  make_directories(folder / "a/b//c/");
  EXPECT_TRUE(directory_exists(folder / "a/b/c"));
  make_directories(folder / "a/b/c");
  write_raw(folder / "file", "");
  EXPECT_ERROR(make_directories(folder / "file/x"), "cannot create the folder");
}

TEST(Files, HashIsXxh3) {
  EXPECT_EQ(content_hash({}),
            "99aa06d3014798d86001c324468d497f");  // of nothing: from the xxHash test vectors
  std::string text = "a";
  auto bytes = std::as_bytes(std::span(text));
  EXPECT_EQ(content_hash(bytes).size(), 32u);
  EXPECT_NE(content_hash(bytes), content_hash({}));
}

TEST(Files, NamesAreShownSafely) {
  EXPECT_EQ(in_quotes("a\x1b[2J\n"), "'a\\x1b[2J\\x0a'");
  EXPECT_EQ(in_quotes(std::string(200, 'x')).size(), 105u);
  for (const char* bad : {"", ".", "..", "a/b", "/a", "a\\b", "a\nb"})
    EXPECT_FALSE(plain_file_name(bad)) << bad;
  EXPECT_TRUE(plain_file_name("model-00001-of-00002.safetensors"));
}

class FileFaults : public ::testing::TestWithParam<FaultKind> {};

// Whatever call fails: the old file or the new one, whole, and nothing else in the folder.
TEST_P(FileFaults, AtomicWriteIsAllOrNothing) {
  bool harmless = GetParam() == FaultKind::interrupt || GetParam() == FaultKind::short_write;
  const std::string old_text = "old", new_text(10'000, 'n');
  int failures = 0;
  for (int call = 1;; ++call) {
    TemporaryFolder folder;
    write_file_atomically(folder / "a", old_text);
    bool reached = false, thrown = false;
    {
      Faults faults(GetParam(), call);
      try {
        AtomicFile file(folder / "a");
        file.write(new_text.substr(0, 4000));
        file.write(new_text.substr(4000));
        file.commit();
      } catch (const Error& error) {
        thrown = true;
        EXPECT_EQ(error.fault(), Fault::io) << error.what();
        EXPECT_TRUE(mentions(error.what(), folder.path())) << error.what();
        if (GetParam() == FaultKind::disk_full) {
          EXPECT_TRUE(mentions(error.what(), "disk full")) << error.what();
        }
      }
      reached = faults.reached();
    }
    EXPECT_EQ(files_in(folder.path()), 1u) << call;
    std::string now = read_raw(folder / "a");
    if (thrown)
      EXPECT_TRUE(now == old_text || now == new_text) << call;
    else
      EXPECT_EQ(now, new_text) << call;
    failures += thrown;
    if (!reached) break;
    EXPECT_EQ(thrown, !harmless) << call;
  }
  EXPECT_EQ(failures, harmless ? 0 : 7);  // open, write, write, fsync, rename, open, fsync
}

INSTANTIATE_TEST_SUITE_P(Kinds, FileFaults,
                         ::testing::Values(FaultKind::short_write, FaultKind::interrupt,
                                           FaultKind::input_output, FaultKind::disk_full));

TEST(Files, FailedWriteCannotBeCommitted) {
  TemporaryFolder folder;
  AtomicFile file(folder / "a");
  {
    Faults faults(FaultKind::disk_full, 1);
    EXPECT_ERROR(file.write("12345"), "5 bytes");
  }
  EXPECT_ERROR(file.commit(), "failed");
  EXPECT_EQ(files_in(folder.path()), 0u);
}

}  // namespace
}  // namespace moe::testing
