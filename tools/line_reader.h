// Streams the lines of a text file, plain or gzip, in bounded memory, and knows where each line is.
// Accepted: LF and CRLF ends, a UTF-8 byte order mark, a last line without an end, concatenated
// gzip members. Refused with file and line: UTF-16, a line above 100 MB, a damaged or cut gzip
// stream, a `.gz` that is not gzip.
// "-" is standard input.
#pragma once

#include "runtime/error.h"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct gzFile_s;  // zlib's handle

namespace moe {

class LineReader {
 public:
  static constexpr std::size_t longest_line = 100'000'000;

  // A place in the *uncompressed* stream: byte `offset` is where line number `line + 1` begins.
  struct Position {
    std::int64_t offset = 0, line = 0;
  };

  explicit LineReader(const std::filesystem::path& path) : LineReader(path, Position{}) {}
  LineReader(const std::filesystem::path& path, Position start, std::size_t limit = longest_line);

  bool next();  // to the next line; false at the end of the file

  std::string_view line() const { return line_; }       // valid until the next call of next()
  std::int64_t number() const { return number_; }       // of this line, from 1
  std::int64_t offset() const { return line_offset_; }  // of this line's first byte
  Position after() const { return {next_offset_, number_}; }

  const std::string& name() const { return name_; }
  std::string where() const { return fmt::format("{}:{}", name_, number_); }

  // Throws bad_data with "file:line: " in front.
  template <class... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Fault::bad_data, "{}: {}", where(), fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  struct Close {
    void operator()(gzFile_s* file) const;
  };
  bool refill();
  void skip_byte_order_mark();

  std::string name_;
  std::unique_ptr<gzFile_s, Close> file_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // the unread part of buffer_
  std::string carry_;                // start of a line that crosses buffers
  std::string_view line_;
  std::int64_t number_ = 0, line_offset_ = 0, next_offset_ = 0;
  std::size_t limit_ = longest_line;
  bool named_gzip_ = false;
};

// Fields between single tabs, empty ones kept; `fields` is reused.
void split_tabs(std::string_view line, std::vector<std::string_view>& fields);
// Fields between runs of blanks and tabs.
void split_blanks(std::string_view line, std::vector<std::string_view>& fields);
std::string_view trimmed(std::string_view text);

// The whole text as a number, in the C locale whatever the process uses; nullopt when it is not
// one.
std::optional<std::int64_t> parse_integer(std::string_view text);
std::optional<double> parse_real(std::string_view text);

// folder/name or folder/name.gz, whichever is there (plain first).
std::optional<std::filesystem::path> find_plain_or_gzip(const std::filesystem::path& folder,
                                                        const std::string& name);

}  // namespace moe
