// A text encoder as a folder: transformer, pooling, and a chain of modules on the pooled vector
// (Normalize, Dense, SB-MoE), read and written in the sentence-transformers layout. Plain Hugging
// Face BERT folders load too.
#pragma once

#include "models/bert.h"
#include "models/sbmoe.h"
#include "models/tokenizer.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace moe {

enum class Pooling : std::uint8_t { mean, cls, max, pooler };
const char* name_of(Pooling pooling);
Pooling parse_pooling(const std::string& name);

// One module after pooling, in order.
struct HeadModule {
  enum class Kind : std::uint8_t { normalize, dense, sbmoe } kind = Kind::normalize;
  Index in = 0, out = 0;                     // dense
  Activation activation = Activation::tanh;  // dense
  bool bias = true;                          // dense
  std::string name;                          // scope of its parameters: "dense2", "moe"
};

struct EncoderConfig {
  BertConfig bert;
  std::string activation_name = "gelu";  // as config.json spells it
  std::optional<Pooling> pooling;        // absent: no file says it
  std::string pooling_source = "nowhere";
  Index max_length = 512;
  std::string max_length_source = "position table";
  std::vector<HeadModule> modules;
  std::optional<SbMoeConfig> moe;
  std::string query_prompt, document_prompt;
  std::string weights_file;         // which file the weights came from
  std::string tokenizer_directory;  // where the tokenizer files lie
};

// Reads every JSON file of a model folder; no weights.
EncoderConfig read_encoder_config(const std::string& directory);

class TextEncoder {
 public:
  struct Options {
    Device device = Device::cpu;
    DType dtype = DType::f32;
    std::uint64_t seed = 42;
    std::optional<Pooling> pooling;  // overrides the folder's
    std::optional<bool> normalize;   // adds or removes Normalize modules
    std::optional<Index> max_length;
    std::optional<double> dropout;              // both rates of the transformer
    std::optional<SbMoeConfig> add_moe;         // puts a fresh block on the pooled vector
    std::optional<RouterConfig::Select> route;  // overrides the stored block's evaluation routing
    std::optional<Index> k;
  };

  // From a folder with weights.
  static std::unique_ptr<TextEncoder> load(const std::string& directory, const Options& options);
  // With random weights from a configuration; the tokenizer is the caller's.
  static std::unique_ptr<TextEncoder> create(EncoderConfig config,
                                             std::unique_ptr<Tokenizer> tokenizer,
                                             const Options& options);

  // (B,size) vectors of the packed batch.
  Tensor operator()(const TokenBatch& batch, Pass pass) const;
  // Token ids with [CLS] and [SEP], truncated to max_length.
  std::vector<std::int32_t> tokenize(std::string_view text) const;

  Index size() const { return size_; }
  const EncoderConfig& config() const { return config_; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const SbMoe* moe() const { return moe_.get(); }
  const Bert& bert() const { return *bert_; }
  Device device() const { return parameters_.device(); }
  Pooling pooling() const { return *config_.pooling; }

  // The folder: config.json, model.safetensors, tokenizer files, modules.json and one folder per
  // module. Complete before it appears: written beside `directory` and renamed.
  void save(const std::string& directory, std::string_view card) const;
  // The weights of all modules under their own names, for checkpoints.
  std::vector<NamedTensor> state() const { return parameters_.named_tensors(); }

 private:
  TextEncoder(EncoderConfig config, std::unique_ptr<Tokenizer> tokenizer,
              Parameters::Options options);
  void build();

  EncoderConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Parameters parameters_;
  std::unique_ptr<Bert> bert_;
  std::vector<Linear> dense_;  // one per dense module, in order
  std::unique_ptr<SbMoe> moe_;
  Index size_ = 0;
};

// SB-MoE settings as JSON text (the block's config.json) and back.
std::string to_json(const SbMoeConfig& config);
SbMoeConfig sbmoe_from_json(const std::string& text, const std::string& file);

// JSON files of the sentence-transformers layout (model_files.cc).
struct FolderFile {
  std::string path, content;
};
std::vector<FolderFile> encoder_files(const EncoderConfig& config);
// The folder of module `index` in modules.json: "2_Normalize", "3_SBMoE".
std::string module_folder(const EncoderConfig& config, std::size_t index);

}  // namespace moe
