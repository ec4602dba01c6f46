// A folder of embeddings: what `embed` writes and `search` reads.
//   embeddings.npy  (n,D) f32 rows, C order, mappable    ids.txt  one id a line, in the order of
//   the rows manifest.json   where the vectors came from: model, source, settings, hashes. Written
//   last: a folder
//                   without it is unfinished.
#pragma once

#include "models/text_encoder.h"
#include "tools/npy.h"

#include <memory>
#include <string>
#include <vector>

namespace moe {

struct EmbeddingManifest {
  std::string version;                 // of the program
  std::string model, model_hash;       // folder; hash over all weights, see weights_hash()
  std::string kind = "document";       // document or query
  std::string pooling, prompt, route;  // route: SB-MoE evaluation routing, empty without a block
  bool normalize = false;              // rows have unit length
  Index dim = 0, count = 0, max_length = 0, k = 0;
  std::uint64_t seed = 0;  // of random routing
  std::string device;
  std::string source, source_hash;  // hash empty: standard input
  std::int64_t source_bytes = 0;
  std::string embeddings_hash,
      ids_hash;  // of the whole files (XXH3-128: `xxh128sum` gives the same)
};
std::string to_json(const EmbeddingManifest& manifest);
EmbeddingManifest manifest_from_json(const std::string& text, const std::string& file);

// What in `a` and `b` makes vectors differ though the texts are the same, for people: "pooling
// mean, not cls". Empty: nothing.
std::string differences(const EmbeddingManifest& a, const EmbeddingManifest& b);

// One hash over names, shapes and values of all parameters, whatever files they came from: a
// converted model keeps its hash, a fine-tuned one changes it.
std::string weights_hash(const TextEncoder& encoder);

// What embedding with this encoder writes into a manifest; source, count and file hashes stay
// empty.
EmbeddingManifest manifest_of(const TextEncoder& encoder, const std::string& model,
                              const std::string& kind, std::uint64_t seed);

class EmbeddingFolder {
 public:
  explicit EmbeddingFolder(const std::string& path);

  const EmbeddingManifest& manifest() const { return manifest_; }
  const std::vector<std::string>& ids() const { return ids_; }
  Index rows() const { return array_->rows(); }
  Index cols() const { return array_->cols(); }
  // Rows begin .. end-1 as a (n,D) f32 tensor: a view of the mapped file where the device reads
  // host memory.
  Tensor block(Index begin, Index end, Device device) const;

 private:
  EmbeddingManifest manifest_;
  std::vector<std::string> ids_;
  std::shared_ptr<const NpyFile> array_;
};

}  // namespace moe
