// Reading through zlib, which passes plain files on unchanged. A cut stream shows as Z_BUF_ERROR
// after the bytes that could still be decoded, so the error state is looked at after every read,
// not only on -1.
#include "tools/line_reader.h"

#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <system_error>

namespace moe {
namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 18;

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f' || c == '\v';
}

}  // namespace

void LineReader::Close::operator()(gzFile_s* file) const {
  gzclose(file);
}

LineReader::LineReader(const std::filesystem::path& path, Position start, std::size_t limit)
    : name_(path.string()),
      buffer_(buffer_bytes),
      number_(start.line),
      next_offset_(start.offset),
      limit_(limit) {
  check(start.offset >= 0 && start.line >= 0, "{}: cannot start at byte {}, line {}", name_,
        start.offset, start.line);
  named_gzip_ = path.extension() == ".gz";
  if (name_ == "-") {
    name_ = "standard input";
    file_.reset(gzdopen(dup(STDIN_FILENO), "rb"));
  } else {
    std::error_code error;
    auto status = std::filesystem::status(path, error);
    if (status.type() == std::filesystem::file_type::not_found)
      fail(Fault::missing_input, "{}: no such file", name_);
    if (std::filesystem::is_directory(status))
      fail(Fault::bad_data, "{}: is a folder, a file is expected here", name_);
    file_.reset(gzopen(path.c_str(), "rb"));
  }
  if (!file_) fail(Fault::io, "{}: cannot be opened: {}", name_, std::strerror(errno));
  gzbuffer(file_.get(), buffer_bytes);
  if (start.offset > 0) {
    if (gzseek(file_.get(), start.offset, SEEK_SET) != start.offset)
      fail(Fault::bad_data, "{}: cannot continue at byte {}: the file is shorter", name_,
           start.offset);
  } else {
    skip_byte_order_mark();
  }
}

bool LineReader::refill() {
  begin_ = end_ = 0;
  int got = gzread(file_.get(), buffer_.data(), static_cast<unsigned>(buffer_.size()));
  int code = Z_OK;
  const char* text = gzerror(file_.get(), &code);
  if (code == Z_ERRNO) fail(Fault::io, "{}: read failed: {}", name_, std::strerror(errno));
  if (code == Z_BUF_ERROR)
    fail(Fault::bad_data, "{}: the gzip stream is cut short after line {}; fetch the file again",
         name_, number_);
  if (got < 0 || code < 0)
    fail(Fault::bad_data, "{}: the gzip stream is damaged after line {}: {}", name_, number_, text);
  if (named_gzip_ && gzdirect(file_.get()) != 0)
    fail(Fault::bad_data, "{}: is named .gz but is not gzip; rename it or compress it", name_);
  end_ = static_cast<std::size_t>(got);
  return got > 0;
}

void LineReader::skip_byte_order_mark() {
  if (!refill() || end_ < 2) return;
  auto byte = [this](std::size_t i) { return static_cast<unsigned char>(buffer_[i]); };
  if ((byte(0) == 0xFF && byte(1) == 0xFE) || (byte(0) == 0xFE && byte(1) == 0xFF))
    fail(Fault::bad_data, "{}: is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)", name_);
  if (end_ >= 3 && byte(0) == 0xEF && byte(1) == 0xBB && byte(2) == 0xBF) begin_ = 3;
  next_offset_ = static_cast<std::int64_t>(begin_);
}

bool LineReader::next() {
  carry_.clear();
  line_offset_ = next_offset_;
  while (true) {
    if (begin_ == end_ && !refill()) {
      if (carry_.empty()) return false;
      line_ = carry_;
      break;
    }
    const char* first = buffer_.data() + begin_;
    std::size_t left = end_ - begin_;
    const void* found = std::memchr(first, '\n', left);
    std::size_t length =
        found ? static_cast<std::size_t>(static_cast<const char*>(found) - first) : left;
    if (carry_.size() + length > limit_)
      fail(Fault::bad_data,
           "{}:{}: the line is longer than {} MB; is this a text file of one record a line?", name_,
           number_ + 1, limit_ / 1'000'000);
    begin_ += length + (found ? 1 : 0);
    next_offset_ += static_cast<std::int64_t>(length + (found ? 1 : 0));
    if (found && carry_.empty()) {
      line_ = {first, length};
      break;
    }
    carry_.append(first, length);
    if (found) {
      line_ = carry_;
      break;
    }
  }
  if (!line_.empty() && line_.back() == '\r') line_.remove_suffix(1);
  ++number_;
  return true;
}

void split_tabs(std::string_view line, std::vector<std::string_view>& fields) {
  fields.clear();
  for (std::size_t tab = 0; (tab = line.find('\t')) != std::string_view::npos;) {
    fields.push_back(line.substr(0, tab));
    line.remove_prefix(tab + 1);
  }
  fields.push_back(line);
}

void split_blanks(std::string_view line, std::vector<std::string_view>& fields) {
  fields.clear();
  for (std::size_t i = 0; i < line.size();) {
    while (i < line.size() && is_blank(line[i])) ++i;
    std::size_t start = i;
    while (i < line.size() && !is_blank(line[i])) ++i;
    if (i > start) fields.push_back(line.substr(start, i - start));
  }
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  std::int64_t value = 0;
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_real(std::string_view text) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  double value = 0;
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::filesystem::path> find_plain_or_gzip(const std::filesystem::path& folder,
                                                        const std::string& name) {
  for (const char* ending : {"", ".gz"}) {
    std::filesystem::path path = folder / (name + ending);
    std::error_code error;
    if (std::filesystem::exists(path, error) && !std::filesystem::is_directory(path, error))
      return path;
  }
  return std::nullopt;
}

}  // namespace moe
