// moe-run convert: a model folder or tensor file to safetensors. Pickles are read as data, nothing
// is executed.
#include "runtime/bytes.h"
#include "runtime/file_calls.h"
#include "runtime/tensor_file.h"
#include "tools/commands.h"
#include "tools/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

namespace moe {

namespace {

namespace fs = std::filesystem;

bool is_float(const std::string& dtype) {
  return dtype == "F32" || dtype == "F64" || dtype == "F16" || dtype == "BF16";
}

// What an entry of the file becomes. Floats follow --dtype; whole numbers keep their type. F16 has
// no storage of its own here and is kept as F32, which holds each of its values.
DType target_of(const std::string& name, const TensorEntry& entry, const std::string& dtype) {
  if (is_float(entry.dtype) && dtype == "bf16") return DType::bf16;
  if (is_float(entry.dtype) && dtype == "f32") return DType::f32;
  if (entry.dtype == "F32" || entry.dtype == "F16") return DType::f32;
  if (entry.dtype == "BF16") return DType::bf16;
  if (entry.dtype == "F64") return DType::f64;
  if (entry.dtype == "I64") return DType::i64;
  if (entry.dtype == "I32" || entry.dtype == "I16") return DType::i32;
  if (entry.dtype == "I8") return DType::i8;
  if (entry.dtype == "U8") return DType::u8;
  fail(Fault::bad_data, "{}: tensor {} is {}, which cannot be converted", entry.file,
       in_quotes(name), entry.dtype);
}

struct Totals {
  std::size_t tensors = 0, bytes = 0, widened = 0;
};

void write_converted(const TensorFile& file, const std::string& to, const std::string& dtype,
                     Totals& totals) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, entry] : file.tensors) {
    DType target = target_of(name, entry, dtype);
    if (dtype == "keep" && (entry.dtype == "F16" || entry.dtype == "I16")) ++totals.widened;
    // Any rank passes through as one long row; the written shape is the file's.
    TensorEntry flat = entry;
    Index count = 1;
    for (Index d : entry.shape) count *= d;
    flat.shape = {count};
    tensors.push_back({name, to_tensor(name, flat, target, Device::cpu), entry.shape});
    totals.bytes += static_cast<std::size_t>(count) * size_of(target);
  }
  std::map<std::string, std::string> metadata = file.metadata;
  metadata.emplace("format", "pt");
  write_safetensors(to, tensors, metadata);
  TensorFile again = read_safetensors(to);  // what was written can be read
  if (again.tensors.size() != tensors.size())
    fail(Fault::io, "{}: {} tensors were written, {} are there", to, tensors.size(),
         again.tensors.size());
  totals.tensors += tensors.size();
}

TensorFile read_any(const std::string& path) {
  if (path.ends_with(".safetensors")) return read_safetensors(path);
  if (path.ends_with(".bin") || path.ends_with(".pt") || path.ends_with(".pth"))
    return read_pytorch_bin(path);
  fail(Fault::usage, "{}: what kind of file is it? Known endings: .safetensors, .bin, .pt, .pth",
       path);
}

bool has_weights(const std::string& folder) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                           "pytorch_model.bin.index.json"})
    if (file_exists(folder + "/" + name)) return true;
  return false;
}

// Configuration, tokenizer and words; weights and their indexes are written anew.
bool is_copied(const fs::path& file) {
  std::string name = file.filename().string(), ending = file.extension().string();
  if (name.ends_with(".index.json")) return false;
  return ending == ".json" || ending == ".txt" || ending == ".md" || ending == ".model" ||
         name == "LICENSE" || name == "NOTICE";
}

// "1_Pooling", "2_Dense": the module folders of the sentence-transformers layout.
bool is_module_folder(const std::string& name) {
  std::size_t digits = name.find_first_not_of("0123456789");
  return digits != std::string::npos && digits > 0 && name[digits] == '_';
}

void copy_folder(const std::string& from, const std::string& to, const std::string& dtype, bool top,
                 Totals& totals, std::vector<std::string>& left_out) {
  make_directories(to);
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator at(from, error), end; !error && at != end; at.increment(error))
    entries.push_back(at->path());
  if (error) fail(Fault::io, "{}: cannot be listed: {}", from, error.message());
  std::sort(entries.begin(), entries.end());
  for (const fs::path& entry : entries) {
    std::string name = entry.filename().string();
    if (directory_exists(entry.string())) {
      if (top && is_module_folder(name))
        copy_folder(entry.string(), to + "/" + name, dtype, false, totals, left_out);
      else
        left_out.push_back(name + "/");
    } else if (is_copied(entry)) {
      write_file_atomically(to + "/" + name, read_text_file(entry.string(), std::size_t{1} << 28));
    } else if (!name.ends_with(".bin") && !name.ends_with(".safetensors") &&
               !name.ends_with(".index.json")) {
      left_out.push_back(name);
    }
  }
  if (!top && !has_weights(from)) return;
  std::string chosen;
  TensorFile weights = read_model_weights(from, &chosen);
  if (top) notice("weights: " + chosen);
  write_converted(weights, to + "/model.safetensors", dtype, totals);
}

void convert_folder(const ConvertCommand& command, Totals& totals) {
  fs::path target = fs::absolute(command.to).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();
  if (fs::exists(target) && !(fs::is_directory(target) && fs::is_empty(target)))
    fail(Fault::usage, "{}: is there already. Choose another --to, or remove it.", command.to);
  std::string partial = target.string() + ".partial";  // complete before it appears
  std::error_code ignored;
  fs::remove_all(partial, ignored);
  std::vector<std::string> left_out;
  copy_folder(command.from, partial, command.dtype, true, totals, left_out);
  sync_directory(partial);
  fs::remove(target, ignored);  // an empty folder
  rename_durably(partial, target.string());
  if (!left_out.empty()) notice(fmt::format("not copied: {}", fmt::join(left_out, ", ")));
}

}  // namespace

int run_convert(const ConvertCommand& command) {
  check(command.dtype == "keep" || command.dtype == "f32" || command.dtype == "bf16",
        "--dtype is keep, f32 or bf16, not '{}'", command.dtype);
  Totals totals;
  if (directory_exists(command.from)) {
    convert_folder(command, totals);
  } else {
    if (!file_exists(command.from))
      fail(Fault::missing_input, "{}: no such file or folder", command.from);
    check(command.to.ends_with(".safetensors"), "--to {}: a tensor file is written as .safetensors",
          command.to);
    std::error_code ignored;
    check(!fs::equivalent(command.from, command.to, ignored), "--from and --to are the same file");
    write_converted(read_any(command.from), command.to, command.dtype, totals);
  }
  if (totals.widened > 0)
    notice(
        fmt::format("{} half-precision tensors (F16, I16) are kept as F32 or I32: the same values, "
                    "twice the bytes",
                    totals.widened));
  if (command.common.json)
    fmt::print("{{\"tensors\":{},\"bytes\":{}}}\n", totals.tensors, totals.bytes);
  notice(fmt::format("{}: {} tensors, {}", command.to, totals.tensors,
                     human_bytes(static_cast<double>(totals.bytes))));
  return 0;
}

}  // namespace moe
