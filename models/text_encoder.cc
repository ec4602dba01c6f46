#include "models/text_encoder.h"

#include "runtime/file.h"

#include <filesystem>

namespace moe {

namespace fs = std::filesystem;

namespace {

constexpr double normalize_floor = 1e-12;

std::string tensor_prefix(const HeadModule& module) {
  return module.name + ".";
}

// All tensors of a model folder under our names: "bert." for the transformer, the module's name for
// the rest.
TensorFile gather_weights(const std::string& directory, EncoderConfig& config) {
  TensorFile all =
      normalise_bert_names(read_model_weights(directory, &config.weights_file), "bert.");
  for (std::size_t i = 0; i < config.modules.size(); ++i) {
    const HeadModule& module = config.modules[i];
    if (module.kind == HeadModule::Kind::normalize) continue;
    std::string folder = directory + "/" + module_folder(config, i);
    TensorFile part = read_model_weights(folder);
    for (auto& [name, entry] : part.tensors) {
      // sentence-transformers calls a Dense module's layer "linear".
      std::string leaf = name.starts_with("linear.") ? name.substr(7) : name;
      all.tensors.emplace(tensor_prefix(module) + leaf, std::move(entry));
    }
  }
  return all;
}

void apply_overrides(EncoderConfig& config, const TextEncoder::Options& options) {
  if (options.pooling) {
    config.pooling = options.pooling;
    config.pooling_source = "--pooling";
  }
  if (options.dropout) {
    check(*options.dropout >= 0 && *options.dropout < 1, "the dropout rate {} is outside [0, 1)",
          *options.dropout);
    config.bert.dropout = config.bert.attention_dropout = *options.dropout;
  }
  if (options.max_length) {
    check(*options.max_length >= 2 && *options.max_length <= config.bert.positions,
          "max length {} is outside 2..{}, the positions of this model", *options.max_length,
          config.bert.positions);
    config.max_length = *options.max_length;
    config.max_length_source = "--max-length";
  }
  if (options.normalize && !*options.normalize)
    std::erase_if(config.modules,
                  [](const HeadModule& m) { return m.kind == HeadModule::Kind::normalize; });
  if (options.normalize && *options.normalize &&
      (config.modules.empty() || config.modules.back().kind != HeadModule::Kind::normalize))
    config.modules.push_back({});
  if (options.add_moe) {
    check(!config.moe, "this model has an SB-MoE block already");
    config.moe = options.add_moe;
    HeadModule block;
    block.kind = HeadModule::Kind::sbmoe;
    block.name = "moe";
    bool normalized =
        !config.modules.empty() && config.modules.back().kind == HeadModule::Kind::normalize;
    config.modules.push_back(block);
    // Normalisation acts twice when it is on: before the block and on its output.
    if (normalized) config.modules.push_back({});
  }
  if (config.moe) {
    if (options.route) config.moe->route = *options.route;
    if (options.k) config.moe->k = *options.k;
  }
}

}  // namespace

const char* name_of(Pooling pooling) {
  switch (pooling) {
    case Pooling::mean:
      return "mean";
    case Pooling::cls:
      return "cls";
    case Pooling::max:
      return "max";
    case Pooling::pooler:
      return "pooler";
  }
  return "?";
}

Pooling parse_pooling(const std::string& name) {
  for (Pooling p : {Pooling::mean, Pooling::cls, Pooling::max, Pooling::pooler})
    if (name == name_of(p)) return p;
  fail(Fault::usage, "unknown pooling '{}': use mean, cls, max or pooler", name);
}

TextEncoder::TextEncoder(EncoderConfig config, std::unique_ptr<Tokenizer> tokenizer,
                         Parameters::Options options)
    : config_(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      parameters_(std::move(options)) {
  build();
}

void TextEncoder::build() {
  Scope root = parameters_.root();
  bert_ = std::make_unique<Bert>(root / "bert", config_.bert);
  size_ = config_.bert.hidden;
  for (const HeadModule& module : config_.modules) {
    if (module.kind == HeadModule::Kind::dense) {
      check(module.in == size_, "module {}: takes vectors of {}, the one before gives {}",
            module.name, module.in, size_);
      Linear layer;
      Scope s = root / module.name;
      layer.weight = s.matrix("weight", {module.out, module.in}, uniform_fan_in(module.in));
      if (module.bias) layer.bias = s.vector("bias", module.out, uniform_fan_in(module.in));
      dense_.push_back(layer);
      size_ = module.out;
    } else if (module.kind == HeadModule::Kind::sbmoe) {
      config_.moe->size = size_;
      moe_ = std::make_unique<SbMoe>(root / module.name, *config_.moe);
    }
  }
}

std::unique_ptr<TextEncoder> TextEncoder::load(const std::string& directory,
                                               const Options& options) {
  EncoderConfig config = read_encoder_config(directory);
  bool fresh_block = options.add_moe.has_value();
  TensorFile weights = gather_weights(directory, config);
  // A checkpoint saved without its pooler is complete unless somebody pools by it.
  if (!weights.tensors.contains("bert.pooler.dense.weight")) config.bert.pooler = false;
  apply_overrides(config, options);
  if (!config.pooling)
    fail(Fault::usage,
         "{}: no file says how token vectors become a text vector (1_Pooling/config.json is "
         "absent).\n"
         "Add --pooling mean, cls or max.",
         directory);
  auto tokenizer = load_wordpiece(config.tokenizer_directory);
  check(tokenizer->vocab_size() <= config.bert.vocabulary,
        "{}: the tokenizer has {} tokens, the embedding table {} rows", directory,
        tokenizer->vocab_size(), config.bert.vocabulary);
  Parameters::Options p{options.dtype, options.device, options.seed, &weights, {}};
  if (fresh_block) p.may_be_missing.push_back("moe.*");
  std::unique_ptr<TextEncoder> encoder(
      new TextEncoder(std::move(config), std::move(tokenizer), std::move(p)));
  encoder->parameters_.finish({"cls.*", "bert.pooler.*"});
  return encoder;
}

std::unique_ptr<TextEncoder> TextEncoder::create(EncoderConfig config,
                                                 std::unique_ptr<Tokenizer> tokenizer,
                                                 const Options& options) {
  apply_overrides(config, options);
  if (!config.pooling) config.pooling = Pooling::mean;
  Parameters::Options p{options.dtype, options.device, options.seed, nullptr, {}};
  return std::unique_ptr<TextEncoder>(
      new TextEncoder(std::move(config), std::move(tokenizer), std::move(p)));
}

std::vector<std::int32_t> TextEncoder::tokenize(std::string_view text) const {
  return tokenizer_->encode(text, config_.max_length);
}

Tensor TextEncoder::operator()(const TokenBatch& batch, Pass pass) const {
  pass.rows = batch.segments;
  Tensor hidden = (*bert_)(batch, pass);
  Tensor x;
  switch (*config_.pooling) {
    case Pooling::mean:
      x = segment_mean(hidden, pass.rows);
      break;
    case Pooling::max:
      x = segment_max(hidden, pass.rows);
      break;
    case Pooling::cls:
      x = segment_first(hidden, pass.rows);
      break;
    case Pooling::pooler:
      x = bert_->pool(hidden, pass.rows);
      break;
  }
  std::size_t dense = 0;
  for (const HeadModule& module : config_.modules) {
    switch (module.kind) {
      case HeadModule::Kind::normalize:
        x = l2_normalize(x, normalize_floor);
        break;
      case HeadModule::Kind::dense:
        x = dense_[dense++](x, {.activation = module.activation, .residual = {}});
        break;
      case HeadModule::Kind::sbmoe:
        x = (*moe_)(x, pass);
        break;
    }
  }
  return x;
}

void TextEncoder::save(const std::string& directory, std::string_view card) const {
  fs::path target = fs::absolute(directory).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();
  fs::path partial = target.parent_path() / (target.filename().string() + ".partial");
  std::error_code ignored;
  fs::remove_all(partial, ignored);
  make_directories(partial.string());
  auto path = [&](const std::string& name) { return (partial / name).string(); };

  for (const FolderFile& file : encoder_files(config_)) {
    make_directories((partial / file.path).parent_path().string());
    write_file_atomically(path(file.path), file.content);
  }
  std::vector<NamedTensor> transformer;
  for (NamedTensor& t : parameters_.named_tensors("bert.*")) {
    t.name = t.name.substr(5);
    transformer.push_back(std::move(t));
  }
  write_safetensors(path("model.safetensors"), transformer, {{"format", "pt"}});
  for (std::size_t i = 0; i < config_.modules.size(); ++i) {
    const HeadModule& module = config_.modules[i];
    if (module.kind == HeadModule::Kind::normalize) continue;
    bool dense = module.kind == HeadModule::Kind::dense;
    std::vector<NamedTensor> tensors;
    for (NamedTensor& t : parameters_.named_tensors(tensor_prefix(module) + "*")) {
      t.name = (dense ? "linear." : "") + t.name.substr(tensor_prefix(module).size());
      tensors.push_back(std::move(t));
    }
    write_safetensors(path(module_folder(config_, i) + "/model.safetensors"), tensors,
                      {{"format", "pt"}});
  }
  if (!config_.tokenizer_directory.empty())
    for (const char* name :
         {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}) {
      std::string from = config_.tokenizer_directory + "/" + name;
      if (file_exists(from))
        write_file_atomically(path(name), read_text_file(from, std::size_t{1} << 28));
    }
  write_file_atomically(path("README.md"), card);
  sync_directory(partial.string());
  // Rename cannot replace a full folder: move the old one aside first, and remove it once the new
  // one stands.
  fs::path old = target.parent_path() / (target.filename().string() + ".old");
  fs::remove_all(old, ignored);
  if (fs::exists(target)) fs::rename(target, old);
  fs::rename(partial, target);
  sync_directory(target.parent_path().string());
  fs::remove_all(old, ignored);
}

}  // namespace moe
