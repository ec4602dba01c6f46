// numpy's .npy, version 1.0, for matrices of embeddings: "\x93NUMPY" 1 0, u16 header length, a
// Python dict
// {'descr': '<f4', 'fortran_order': False, 'shape': (rows, cols), }, then the rows, C order,
// little-endian. Read: f32, f16, i8, u8 of one or two dimensions. Written: f32. Object arrays
// (pickles) are refused.
#pragma once

#include "runtime/file_calls.h"
#include "runtime/kernels.h"

#include <optional>
#include <string>

namespace moe {

enum class NpyType : std::uint8_t { f32, f16, i8, u8 };

// A mapped array. One dimension (n) counts as (n, 1).
class NpyFile {
 public:
  explicit NpyFile(const std::string& path);

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  NpyType type() const { return type_; }
  const std::byte* data() const { return data_; }  // rows x cols elements, no padding

  // The rows without a copy, when they are f32 and aligned; keep this object alive.
  std::optional<Rows<const float>> floats() const;
  // Rows begin .. end-1, converted to f32, into (end - begin) x cols.
  void read_rows(Index begin, Index end, float* to) const;

 private:
  MappedFile file_;
  Index rows_ = 0, cols_ = 0;
  NpyType type_ = NpyType::f32;
  const std::byte* data_ = nullptr;
};

// Writes row by row into PATH.partial, which finish() renames to PATH. save() makes what is there
// durable; a writer opened with `resume` after a crash continues behind the last saved row.
class NpyWriter {
 public:
  NpyWriter(const std::string& path, Index cols, bool resume = false);

  Index rows() const { return rows_; }  // after resuming: how many are there already
  void append(const float* values, Index rows);
  void save();    // fsync the rows, then write their count into the header
  void finish();  // save, then rename

 private:
  void write_header(Index rows);
  void open_new();
  bool open_saved();

  std::string path_, partial_;
  Index rows_ = 0, cols_;
  Descriptor file_{-1};
};

// The whole array at once, atomically.
void write_npy(const std::string& path, const float* values, Index rows, Index cols);

}  // namespace moe
