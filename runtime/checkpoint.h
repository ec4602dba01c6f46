// Resumable training state: a folder of safetensors and JSON files whose manifest.json, written
// last, lists every file with its size and hash. "Latest" is the newest folder with a complete,
// verified manifest, never a pointer. Layout under a run folder:
// checkpoint-STEP/{model.safetensors, optimizer.safetensors, state.json, manifest.json}.
#pragma once

#include "runtime/tensor_file.h"

#include <optional>

namespace moe {

class CheckpointWriter {
 public:
  // Prepares DIR/checkpoint-STEP.partial; commit() renames it to DIR/checkpoint-STEP after the
  // manifest.
  CheckpointWriter(std::string run_directory, Index step);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  void tensors(const std::string& file, const std::vector<NamedTensor>& tensors,
               const std::map<std::string, std::string>& metadata);
  void text(const std::string& file, std::string_view content);
  void commit();

 private:
  void add_to_manifest(const std::string& file);
  std::string final_, partial_;
  Index step_;
  std::vector<std::string> files_;
  bool committed_ = false;
};

struct CheckpointInfo {
  std::string directory;
  Index step = 0;
};

// Complete checkpoints, oldest first; damaged ones are skipped and named in `problems`.
std::vector<CheckpointInfo> list_checkpoints(const std::string& run_directory,
                                             std::vector<std::string>* problems = nullptr);
std::optional<CheckpointInfo> latest_checkpoint(const std::string& run_directory,
                                                std::vector<std::string>* problems = nullptr);
// Throws when a listed file is absent, of another size or of another hash.
void verify_checkpoint(const std::string& directory);
// Keeps the newest `keep` and those in `pinned` (steps).
void prune_checkpoints(const std::string& run_directory, Index keep,
                       const std::vector<Index>& pinned);

}  // namespace moe
