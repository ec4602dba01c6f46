// A checkpoint is visible exactly when a folder checkpoint-STEP holds a manifest and every file it
// lists, whole:
//   write all files into checkpoint-STEP.partial (each fsynced), the manifest last, then rename the
//   folder.
// Replacing an existing one takes two renames (old -> checkpoint-STEP.replaced, new ->
// checkpoint-STEP); between them, and after a crash there, the .replaced folder counts as the
// checkpoint. Removal starts with a rename to .partial, so a half-removed folder is never taken for
// a damaged one.
#include "runtime/checkpoint.h"

#include "runtime/bytes.h"
#include "runtime/file.h"
#include "runtime/file_calls.h"
#include "runtime/strict_json.h"

#include <nlohmann/json.hpp>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

namespace moe {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t largest_manifest = 16 << 20;
constexpr int manifest_version = 1;
constexpr const char* manifest_name = "manifest.json";
constexpr const char* partial = ".partial";
constexpr const char* replaced = ".replaced";
constexpr std::string_view prefix = "checkpoint-";

std::string folder_of_step(const std::string& run_directory, Index step) {
  return fmt::format("{}/{}{}", run_directory, prefix, step);
}

// content_hash of a file read in pieces: files are larger than we want to map, and may shrink.
std::string hash_of_file(const std::string& path, std::size_t* size) {
  std::size_t expected = 0;
  Descriptor file = open_regular(path, &expected);
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                        XXH3_freeState);
  check(state != nullptr, "out of memory");
  XXH3_128bits_reset(state.get());
  std::vector<std::byte> piece(std::min<std::size_t>(expected, 1 << 20) + 1);
  *size = 0;
  for (std::size_t count = piece.size(); count == piece.size(); *size += count) {
    count = read_up_to(file.get(), piece.data(), piece.size(), path);
    XXH3_128bits_update(state.get(), piece.data(), count);
  }
  XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

Index whole_number(const nlohmann::json& object, const char* key, const std::string& path) {
  const auto& value = object.at(key);
  if (!value.is_number_integer())
    fail(Fault::bad_data, "{}: \"{}\" is not a whole number.", path, key);
  return value.get<Index>();
}

struct Manifest {
  Index step = 0;
  struct File {
    std::string name, hash;
    Index bytes = 0;
  };
  std::vector<File> files;
};

Manifest read_manifest(const std::string& directory) {
  std::string path = directory + "/" + manifest_name;
  nlohmann::json root = parse_json(read_text_file(path, largest_manifest), path);
  Manifest manifest;
  try {
    if (whole_number(root, "version", path) != manifest_version)
      fail(Fault::bad_data, "{}: version {} of the checkpoint format; this program reads {}.", path,
           root.at("version").dump(), manifest_version);
    manifest.step = whole_number(root, "step", path);
    for (const auto& file : root.at("files"))
      manifest.files.push_back({file.at("name").get<std::string>(),
                                file.at("xxh3").get<std::string>(),
                                whole_number(file, "bytes", path)});
  } catch (const nlohmann::json::exception& error) {
    fail(Fault::bad_data, "{}: not the manifest of a checkpoint: {}", path,
         in_quotes(error.what()));
  }
  for (const auto& file : manifest.files)
    if (!plain_file_name(file.name))
      fail(Fault::bad_data, "{}: {} is not a plain file name.", path, in_quotes(file.name));
  return manifest;
}

void verify(const std::string& directory, const Manifest& manifest) {
  for (const auto& file : manifest.files) {
    std::string path = directory + "/" + file.name;
    std::size_t size = 0;
    std::string hash = hash_of_file(path, &size);
    if (static_cast<Index>(size) != file.bytes)
      fail(Fault::bad_data,
           "{}: {} bytes, the manifest says {}.\nThe checkpoint is damaged; resume from an older "
           "one.",
           path, size, file.bytes);
    if (hash != file.hash)
      fail(Fault::bad_data,
           "{}: the hash of its content is {}, the manifest says {}.\n"
           "The checkpoint is damaged; resume from an older one.",
           path, hash, in_quotes(file.hash));
  }
}

struct Found {
  std::string directory, fallback, leftover;  // checkpoint-STEP, .replaced, .partial; or empty
};

std::map<Index, Found> find_folders(const std::string& run_directory) {
  std::map<Index, Found> found;
  std::error_code error;
  for (fs::directory_iterator at(run_directory, error), end; !error && at != end;
       at.increment(error)) {
    std::string name = at->path().filename().string();
    if (!name.starts_with(prefix) || !directory_exists(run_directory + "/" + name)) continue;
    Index step = -1;
    auto [rest, status] =
        std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
    if (status != std::errc() || step < 0) continue;
    Found& here = found[step];
    std::string bare = fmt::format("{}{}", prefix, step);  // "checkpoint-007" is none of ours
    std::string* place = name == bare              ? &here.directory
                         : name == bare + replaced ? &here.fallback
                         : name == bare + partial  ? &here.leftover
                                                   : nullptr;
    if (place != nullptr) *place = run_directory + "/" + name;
  }
  return found;
}

std::optional<CheckpointInfo> verified(const std::string& directory, Index step,
                                       std::vector<std::string>* problems) {
  if (directory.empty()) return std::nullopt;
  try {
    Manifest manifest = read_manifest(directory);
    if (manifest.step != step)
      fail(Fault::bad_data, "{}: its manifest is of step {}.", directory, manifest.step);
    verify(directory, manifest);
    return CheckpointInfo{directory, step};
  } catch (const Error& error) {
    if (problems != nullptr) problems->push_back(error.what());
    return std::nullopt;
  }
}

std::optional<CheckpointInfo> verified(const Found& found, Index step,
                                       std::vector<std::string>* problems) {
  auto info = verified(found.directory, step, problems);
  return info ? info : verified(found.fallback, step, problems);
}

void remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail(Fault::io, "cannot remove {}: {}.", in_quotes(path), error.message());
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::string run_directory, Index step) : step_(step) {
  check(step >= 0, "a checkpoint of step {}", step);
  make_directories(run_directory);
  final_ = folder_of_step(run_directory, step);
  partial_ = final_ + partial;
  remove_folder(partial_);
  make_directories(partial_);
}

CheckpointWriter::~CheckpointWriter() {
  if (committed_) return;
  std::error_code ignored;  // what stays is invisible, and the next writer of this step removes it
  fs::remove_all(partial_, ignored);
}

void CheckpointWriter::tensors(const std::string& file, const std::vector<NamedTensor>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  add_to_manifest(file);
  write_safetensors(partial_ + "/" + file, tensors, metadata);
}

void CheckpointWriter::text(const std::string& file, std::string_view content) {
  add_to_manifest(file);
  write_file_atomically(partial_ + "/" + file, content);
}

void CheckpointWriter::add_to_manifest(const std::string& file) {
  check(!committed_, "checkpoint {} is already committed", in_quotes(final_));
  check(plain_file_name(file) && file != manifest_name, "a checkpoint cannot hold a file called {}",
        in_quotes(file));
  check(std::find(files_.begin(), files_.end(), file) == files_.end(),
        "checkpoint {} holds {} twice", in_quotes(final_), in_quotes(file));
  files_.push_back(file);
}

void CheckpointWriter::commit() {
  check(!committed_, "checkpoint {} is already committed", in_quotes(final_));
  nlohmann::ordered_json manifest{
      {"format", "moe-run checkpoint"}, {"version", manifest_version}, {"step", step_}};
  auto& files = manifest["files"] = nlohmann::ordered_json::array();
  for (const std::string& name : files_) {
    std::size_t bytes = 0;
    std::string hash = hash_of_file(partial_ + "/" + name, &bytes);
    files.push_back({{"name", name}, {"bytes", bytes}, {"xxh3", hash}});
  }
  write_file_atomically(partial_ + "/" + manifest_name, manifest.dump(2) + "\n");

  std::string old = final_ + replaced;
  bool replacing = directory_exists(final_);
  if (replacing) {
    remove_folder(old);
    rename_durably(final_, old);
  }
  try {
    rename_durably(partial_, final_);
  } catch (...) {
    committed_ = !directory_exists(
        partial_);  // only the fsync of the folder failed: the new one is in place
    if (replacing && !committed_) file_system().rename(old.c_str(), final_.c_str());
    throw;
  }
  committed_ = true;
  remove_folder(old);
}

std::vector<CheckpointInfo> list_checkpoints(const std::string& run_directory,
                                             std::vector<std::string>* problems) {
  std::vector<CheckpointInfo> complete;
  for (const auto& [step, found] : find_folders(run_directory))
    if (auto info = verified(found, step, problems)) complete.push_back(*info);
  return complete;
}

std::optional<CheckpointInfo> latest_checkpoint(const std::string& run_directory,
                                                std::vector<std::string>* problems) {
  auto folders = find_folders(run_directory);
  for (auto at = folders.rbegin(); at != folders.rend(); ++at)
    if (auto info = verified(at->second, at->first, problems)) return info;
  return std::nullopt;
}

void verify_checkpoint(const std::string& directory) {
  verify(directory, read_manifest(directory));
}

void prune_checkpoints(const std::string& run_directory, Index keep,
                       const std::vector<Index>& pinned) {
  check(keep >= 1, "at least one checkpoint must be kept, not {}", keep);
  auto folders = find_folders(run_directory);
  // Damaged ones do not count, or pruning could leave nothing to resume from.
  bool newest_seen = false;
  for (auto at = folders.rbegin(); at != folders.rend(); ++at) {
    Found& found = at->second;
    // Nobody writes a step older than the newest complete one: what is partial there was abandoned.
    if (newest_seen && !found.leftover.empty()) remove_folder(found.leftover);
    if (keep > 0) {
      if (verified(found, at->first, nullptr)) {
        --keep;
        newest_seen = true;
      }
      continue;
    }
    if (std::find(pinned.begin(), pinned.end(), at->first) != pinned.end()) continue;
    std::string hidden = folder_of_step(run_directory, at->first) + partial;
    for (const std::string& folder : {found.fallback, found.directory}) {
      if (folder.empty()) continue;
      remove_folder(hidden);
      rename_durably(folder, hidden);
      remove_folder(hidden);
    }
  }
}

}  // namespace moe
