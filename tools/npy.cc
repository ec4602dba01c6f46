// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0. The
// header is a Python literal; only the exact keys and value forms that numpy writes for plain
// arrays are understood.
#include "tools/npy.h"

#include "runtime/bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <vector>

namespace moe {

namespace {

constexpr std::string_view magic("\x93NUMPY\x01\x00", 8);
constexpr std::size_t written_header =
    128;  // room for any two sizes; a multiple of 64, as numpy aligns

std::size_t size_of(NpyType type) {
  return type == NpyType::f32 ? 4 : type == NpyType::f16 ? 2 : 1;
}

struct Header {
  NpyType type = NpyType::f32;
  std::vector<std::uint64_t> shape;
};

// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class HeaderScanner {
 public:
  HeaderScanner(std::string_view text, const std::string& path) : rest_(text), path_(path) {}

  Header scan() {
    Header header;
    bool descr = false, order = false, shape = false;
    expect("{");
    while (!accept("}")) {
      std::string_view key = quoted_text();
      expect(":");
      if (key == "descr" && !descr) {
        header.type = type_of(quoted_text());
        descr = true;
      } else if (key == "fortran_order" && !order) {
        if (accept("True"))
          reject("the array is in Fortran order; save numpy.ascontiguousarray(x)");
        expect("False");
        order = true;
      } else if (key == "shape" && !shape) {
        header.shape = scan_shape();
        shape = true;
      } else {
        reject("unexpected key {}", in_quotes(key));
      }
      if (!accept(",")) {
        expect("}");
        break;
      }
    }
    skip_blanks();
    if (!rest_.empty()) reject("{} follows the header", in_quotes(rest_));
    if (!descr || !order || !shape) reject("descr, fortran_order or shape is missing");
    return header;
  }

 private:
  template <class... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Fault::bad_data, "{}: npy header: {}.", path_,
         fmt::format(format, std::forward<Args>(args)...));
  }
  void skip_blanks() {
    auto start = rest_.find_first_not_of(" \n");
    rest_.remove_prefix(start == std::string_view::npos ? rest_.size() : start);
  }
  bool accept(std::string_view word) {
    skip_blanks();
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  void expect(std::string_view word) {
    if (!accept(word)) reject("{} expected before {}", in_quotes(word), in_quotes(rest_));
  }
  std::string_view quoted_text() {
    skip_blanks();
    if (rest_.starts_with("[")) reject("an array of records; save a plain float32 array");
    char quote = rest_.empty() ? ' ' : rest_[0];
    auto end = quote == '\'' || quote == '"' ? rest_.find(quote, 1) : std::string_view::npos;
    if (end == std::string_view::npos) reject("a text expected before {}", in_quotes(rest_));
    std::string_view text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }
  NpyType type_of(std::string_view descr) const {
    if (descr == "<f4") return NpyType::f32;
    if (descr == "<f2") return NpyType::f16;
    if (descr == "|i1") return NpyType::i8;
    if (descr == "|u1") return NpyType::u8;
    if (descr.find('O') != std::string_view::npos)
      reject(
          "an array of Python objects, which is a pickle and may run code; save x.astype('<f4')");
    reject("element type {}; save x.astype('<f4')", in_quotes(descr));
  }
  std::vector<std::uint64_t> scan_shape() {
    std::vector<std::uint64_t> shape;
    expect("(");
    while (!accept(")")) {
      skip_blanks();
      std::uint64_t value = 0;
      auto [end, status] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
      if (status != std::errc() || value > largest_count)
        reject("a size expected before {}", in_quotes(rest_));
      rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
      if (shape.size() == 2) reject("more than two dimensions");
      shape.push_back(value);
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    if (shape.empty()) reject("no dimension; a matrix is expected");
    return shape;
  }

  std::string_view rest_;
  const std::string& path_;
};

std::string header_text(Index rows, Index cols) {
  std::string text =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, cols);
  text.resize(written_header - magic.size() - 3, ' ');
  auto length = static_cast<std::uint16_t>(text.size() + 1);
  std::string header(magic);
  header += static_cast<char>(length & 255);
  header += static_cast<char>(length >> 8);
  return header + text + '\n';
}

std::uint64_t row_bytes(Index cols) {
  return static_cast<std::uint64_t>(cols) * sizeof(float);
}

}  // namespace

NpyFile::NpyFile(const std::string& path) : file_(path) {
  if (file_.size() < magic.size() + 2)
    fail(Fault::bad_data, "{}: {} bytes are too few for an npy file; it is cut off.", path,
         file_.size());
  std::string_view start = as_text(file_.data(), magic.size());
  if (start.substr(0, 6) != magic.substr(0, 6)) fail(Fault::bad_data, "{}: not an npy file.", path);
  if (start != magic)
    fail(Fault::bad_data, "{}: npy version {}.{}; only 1.0 is read (numpy.save writes it).", path,
         static_cast<unsigned>(start[6] & 255), static_cast<unsigned>(start[7] & 255));
  std::size_t begin = magic.size() + 2,
              length = load_little<std::uint16_t>(file_.data() + magic.size());
  if (length > file_.size() - begin) fail(Fault::bad_data, "{}: the npy header is cut off.", path);
  Header header = HeaderScanner(as_text(file_.data() + begin, length), path).scan();
  std::uint64_t rows = header.shape[0], cols = header.shape.size() == 2 ? header.shape[1] : 1,
                bytes = 0;
  std::uint64_t present = file_.size() - begin - length;
  if (!product_fits(rows, cols, &bytes) || !product_fits(bytes, size_of(header.type), &bytes) ||
      bytes != present)
    fail(Fault::bad_data,
         "{}: shape ({}, {}) does not fit its {} data bytes; the file is damaged or still being "
         "written.",
         path, rows, cols, present);
  rows_ = static_cast<Index>(rows);
  cols_ = static_cast<Index>(cols);
  type_ = header.type;
  data_ = file_.data() + begin + length;
}

std::optional<Rows<const float>> NpyFile::floats() const {
  if (type_ != NpyType::f32 || reinterpret_cast<std::uintptr_t>(data_) % alignof(float) != 0)
    return std::nullopt;
  return Rows<const float>{reinterpret_cast<const float*>(data_), rows_, cols_, cols_};
}

void NpyFile::read_rows(Index begin, Index end, float* to) const {
  check(0 <= begin && begin <= end && end <= rows_, "{}: rows {}..{} of {}", file_.path(), begin,
        end, rows_);
  auto count = static_cast<std::size_t>((end - begin) * cols_);
  if (count == 0) return;
  const std::byte* from = data_ + static_cast<std::size_t>(begin * cols_) * size_of(type_);
  switch (type_) {
    case NpyType::f32:
      std::memcpy(to, from, count * sizeof(float));
      break;
    case NpyType::f16:
      for (std::size_t i = 0; i < count; ++i)
        to[i] = half_to_float(load_little<std::uint16_t>(from + 2 * i));
      break;
    case NpyType::i8:
      for (std::size_t i = 0; i < count; ++i)
        to[i] = static_cast<float>(load_little<std::int8_t>(from + i));
      break;
    case NpyType::u8:
      for (std::size_t i = 0; i < count; ++i)
        to[i] = static_cast<float>(load_little<std::uint8_t>(from + i));
      break;
  }
}

NpyWriter::NpyWriter(const std::string& path, Index cols, bool resume)
    : path_(path), partial_(path + ".partial"), cols_(cols) {
  check(cols > 0 && static_cast<std::uint64_t>(cols) <= largest_count / 8, "{}: rows of {} columns",
        path, cols);
  struct stat about {};
  if (::stat(path.c_str(), &about) == 0 && !S_ISREG(about.st_mode))
    fail(Fault::bad_data, "{} is not a regular file and will not be replaced.", in_quotes(path));
  if (!resume || !open_saved()) open_new();
}

void NpyWriter::open_new() {
  ::unlink(partial_.c_str());
  file_ = Descriptor(open_to_write(partial_, O_RDWR | O_CREAT | O_EXCL));
  if (file_.get() < 0) fail_system("create", partial_, errno);
  write_header(0);
}

// False when there is nothing to resume.
bool NpyWriter::open_saved() {
  struct stat about {};
  if (::stat(partial_.c_str(), &about) != 0 && errno == ENOENT) return false;
  std::size_t size = 0;
  Descriptor reader = open_regular(partial_, &size);
  std::string start(written_header, ' ');
  start.resize(read_up_to(reader.get(), start.data(), start.size(), partial_));
  if (start.empty()) return false;  // killed before the first header
  std::string prefix = header_text(0, cols_).substr(0, magic.size() + 2);
  if (start.size() != written_header || !start.starts_with(prefix))
    fail(Fault::bad_data, "{}: not a file this writer can continue.\nDelete it to start again.",
         partial_);
  Header header = HeaderScanner(std::string_view(start).substr(prefix.size()), partial_).scan();
  std::uint64_t bytes = 0;
  if (header.type != NpyType::f32 || header.shape.size() != 2 ||
      header.shape[1] != static_cast<std::uint64_t>(cols_))
    fail(Fault::bad_data,
         "{}: holds an array of another kind or width than {} columns.\nDelete it to start again.",
         partial_, cols_);
  if (!product_fits(header.shape[0], row_bytes(cols_), &bytes) || bytes > size - written_header)
    fail(Fault::bad_data,
         "{}: {} rows are promised, but the file is shorter.\nDelete it to start again.", partial_,
         header.shape[0]);
  rows_ = static_cast<Index>(header.shape[0]);
  file_ = Descriptor(open_to_write(partial_, O_RDWR));
  if (file_.get() < 0) fail_system("open", partial_, errno);
  return true;
}

void NpyWriter::write_header(Index rows) {
  if (::lseek(file_.get(), 0, SEEK_SET) < 0) fail_system("write", partial_, errno);
  std::string header = header_text(rows, cols_);
  write_fully(file_.get(), header.data(), header.size(), partial_);
}

void NpyWriter::append(const float* values, Index rows) {
  check(file_.get() >= 0, "{} is already finished", path_);
  std::uint64_t total = 0;
  check(rows >= 0 &&
            product_fits(static_cast<std::uint64_t>(rows_) + static_cast<std::uint64_t>(rows),
                         row_bytes(cols_), &total),
        "{}: {} more rows", path_, rows);
  // Seek every time: an earlier append may have failed in the middle of a row.
  auto end = static_cast<std::uint64_t>(rows_) * row_bytes(cols_) + written_header;
  if (::lseek(file_.get(), static_cast<off_t>(end), SEEK_SET) < 0)
    fail_system("write", partial_, errno);
  write_fully(file_.get(), values, static_cast<std::size_t>(rows) * row_bytes(cols_), partial_);
  rows_ += rows;
}

void NpyWriter::save() {
  check(file_.get() >= 0, "{} is already finished", path_);
  auto end = static_cast<std::uint64_t>(rows_) * row_bytes(cols_) + written_header;
  if (::ftruncate(file_.get(), static_cast<off_t>(end)) != 0) fail_system("write", partial_, errno);
  sync_fully(file_.get(), partial_);  // the rows before the count that vouches for them
  write_header(rows_);
  sync_fully(file_.get(), partial_);
}

void NpyWriter::finish() {
  save();
  file_ = Descriptor(-1);
  rename_durably(partial_, path_);
}

void write_npy(const std::string& path, const float* values, Index rows, Index cols) {
  std::uint64_t bytes = 0;
  check(rows >= 0 && cols >= 0 &&
            product_fits(static_cast<std::uint64_t>(rows), row_bytes(cols), &bytes),
        "{}: an array of ({}, {})", path, rows, cols);
  AtomicFile file(path);
  file.write(header_text(rows, cols));
  file.write(values, static_cast<std::size_t>(bytes));
  file.commit();
}

}  // namespace moe
