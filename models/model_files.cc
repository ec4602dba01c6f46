// The JSON files of a model folder: config.json, modules.json, 1_Pooling, Dense, SB-MoE, lengths
// and prompts. Unknown keys are ignored, missing ones get the Hugging Face defaults, impossible
// sizes are refused here.
#include "models/text_encoder.h"
#include "runtime/file.h"

#include <nlohmann/json.hpp>

namespace moe {

namespace {

using Json = nlohmann::ordered_json;
constexpr std::size_t max_config_bytes = std::size_t{16} << 20;

Json read_json(const std::string& path) {
  std::string text = read_text_file(path, max_config_bytes);
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::bad_data, "{}: not valid JSON: {}", path, e.what());
  }
}

// The value of a key, or the default; a value of another type is an error that names file and key.
template <class T>
T value_or(const Json& json, const std::string& path, const char* key, T fallback) {
  if (!json.is_object()) fail(Fault::bad_data, "{}: expected a JSON object", path);
  auto at = json.find(key);
  if (at == json.end() || at->is_null()) return fallback;
  try {
    return at->get<T>();
  } catch (const nlohmann::json::exception&) {
    fail(Fault::bad_data, "{}: '{}' has the wrong type: {}", path, key, at->dump().substr(0, 60));
  }
}

Index size_or(const Json& json, const std::string& path, const char* key, Index fallback, Index low,
              Index high) {
  double value = value_or<double>(json, path, key, static_cast<double>(fallback));
  if (!(value >= static_cast<double>(low) && value <= static_cast<double>(high)) ||
      value != static_cast<double>(static_cast<Index>(value)))
    fail(Fault::bad_data, "{}: '{}' is {}, allowed are whole numbers {}..{}", path, key, value, low,
         high);
  return static_cast<Index>(value);
}

Activation activation_of(const std::string& name, const std::string& path) {
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name == "tanh" || name.ends_with("activation.Tanh")) return Activation::tanh;
  if (name.ends_with("activation.ReLU")) return Activation::relu;
  if (name.ends_with("activation.GELU")) return Activation::gelu;
  if (name.ends_with("linear.Identity")) return Activation::none;
  fail(Fault::bad_data, "{}: activation '{}' is not supported (gelu, gelu_new, relu, tanh)", path,
       name);
}

const char* torch_name(Activation f) {
  switch (f) {
    case Activation::relu:
      return "torch.nn.modules.activation.ReLU";
    case Activation::gelu:
      return "torch.nn.modules.activation.GELU";
    case Activation::none:
      return "torch.nn.modules.linear.Identity";
    default:
      return "torch.nn.modules.activation.Tanh";
  }
}

// A module folder named inside a file: a plain name under the model folder.
std::string plain(const std::string& name, const std::string& file) {
  if (name.find("..") != std::string::npos || name.find('/') != std::string::npos ||
      name.find('\\') != std::string::npos || name.find('\0') != std::string::npos)
    fail(Fault::bad_data, "{}: module path '{}' leaves the model folder", file, name);
  return name;
}

BertConfig read_bert(const std::string& path, const Json& json, std::string& activation) {
  std::string type = value_or<std::string>(json, path, "model_type", "bert");
  if (type != "bert")
    fail(Fault::bad_data, "{}: model_type '{}' is not supported, only the BERT family ('bert')",
         path, type);
  std::string positions = value_or<std::string>(json, path, "position_embedding_type", "absolute");
  if (positions != "absolute")
    fail(Fault::bad_data, "{}: position_embedding_type '{}' is not supported, only 'absolute'",
         path, positions);
  BertConfig c;
  c.vocabulary = size_or(json, path, "vocab_size", c.vocabulary, 1, 10'000'000);
  c.hidden = size_or(json, path, "hidden_size", c.hidden, 1, 65'536);
  c.layers = size_or(json, path, "num_hidden_layers", c.layers, 1, 1'000);
  c.heads = size_or(json, path, "num_attention_heads", c.heads, 1, 4'096);
  c.feed_forward = size_or(json, path, "intermediate_size", c.feed_forward, 1, 1'000'000);
  c.positions = size_or(json, path, "max_position_embeddings", c.positions, 2, 1'000'000);
  c.types = size_or(json, path, "type_vocab_size", c.types, 1, 1'000);
  c.eps = value_or<double>(json, path, "layer_norm_eps", c.eps);
  c.dropout = value_or<double>(json, path, "hidden_dropout_prob", c.dropout);
  c.attention_dropout =
      value_or<double>(json, path, "attention_probs_dropout_prob", c.attention_dropout);
  c.init_deviation = value_or<double>(json, path, "initializer_range", c.init_deviation);
  activation = value_or<std::string>(json, path, "hidden_act", "gelu");
  c.activation = activation_of(activation, path);
  if (c.hidden % c.heads != 0)
    fail(Fault::bad_data, "{}: hidden_size {} does not split into {} heads", path, c.hidden,
         c.heads);
  for (double rate : {c.dropout, c.attention_dropout})
    if (!(rate >= 0 && rate < 1))
      fail(Fault::bad_data, "{}: a dropout probability is {}, outside [0, 1)", path, rate);
  return c;
}

Pooling read_pooling(const std::string& path) {
  Json json = read_json(path);
  auto by_name = [&](std::string mode) {
    if (mode == "mean") return Pooling::mean;
    if (mode == "cls") return Pooling::cls;
    if (mode == "max") return Pooling::max;
    if (mode == "pooler") return Pooling::pooler;  // our own: other loaders refuse it by name
    fail(Fault::bad_data, "{}: pooling '{}' is not supported (mean, cls, max)", path, mode);
  };
  if (auto at = json.find("pooling_mode"); at != json.end() && !at->is_null()) {
    if (at->is_string()) return by_name(at->get<std::string>());
    if (at->is_array() && at->size() == 1 && (*at)[0].is_string())
      return by_name((*at)[0].get<std::string>());
    fail(Fault::bad_data, "{}: several poolings at once are not supported", path);
  }
  std::vector<std::string> on;
  for (auto& [key, value] : json.items())
    if (key.starts_with("pooling_mode_") && value.is_boolean() && value.get<bool>())
      on.push_back(key);
  if (on.size() != 1)
    fail(Fault::bad_data, "{}: {} pooling modes are on, exactly one is supported", path, on.size());
  if (on[0] == "pooling_mode_mean_tokens") return Pooling::mean;
  if (on[0] == "pooling_mode_cls_token") return Pooling::cls;
  if (on[0] == "pooling_mode_max_tokens") return Pooling::max;
  fail(Fault::bad_data, "{}: '{}' is not supported (mean, cls, max)", path, on[0]);
}

HeadModule read_dense(const std::string& path, std::size_t number) {
  Json json = read_json(path);
  HeadModule m;
  m.kind = HeadModule::Kind::dense;
  m.name = "dense" + std::to_string(number);
  m.in = size_or(json, path, "in_features", 0, 1, 1'000'000);
  m.out = size_or(json, path, "out_features", 0, 1, 1'000'000);
  m.bias = value_or<bool>(json, path, "bias", true);
  m.activation = activation_of(
      value_or<std::string>(json, path, "activation_function", "torch.nn.modules.activation.Tanh"),
      path);
  return m;
}

void read_modules(const std::string& directory, EncoderConfig& config) {
  std::string file = directory + "/modules.json";
  Json list = read_json(file);
  if (!list.is_array()) fail(Fault::bad_data, "{}: expected a list of modules", file);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Json& entry = list[i];
    std::string type = value_or<std::string>(entry, file, "type", "");
    std::string folder = plain(value_or<std::string>(entry, file, "path", ""), file);
    std::string kind = type.substr(type.rfind('.') == std::string::npos ? 0 : type.rfind('.') + 1);
    std::string inside = directory + "/" + folder;
    if (kind == "Transformer" && i == 0) {
      if (!folder.empty())
        fail(Fault::bad_data, "{}: a transformer in its own folder ('{}') is not supported", file,
             folder);
    } else if (kind == "Pooling" && i == 1) {
      config.pooling = read_pooling(inside + "/config.json");
      config.pooling_source = folder + "/config.json";
    } else if (kind == "Normalize") {
      config.modules.push_back({});
    } else if (kind == "Dense") {
      config.modules.push_back(read_dense(inside + "/config.json", i));
    } else if (kind == "SBMoE") {
      if (config.moe) fail(Fault::bad_data, "{}: two SB-MoE blocks", file);
      config.moe = sbmoe_from_json(read_text_file(inside + "/config.json", max_config_bytes),
                                   inside + "/config.json");
      HeadModule block;
      block.kind = HeadModule::Kind::sbmoe;
      block.name = "moe";
      config.modules.push_back(block);
    } else {
      fail(Fault::bad_data,
           "{}: module {} of type '{}' is not supported (Transformer, Pooling, Normalize, Dense, "
           "SBMoE)",
           file, i, type);
    }
    // Weights are found again by module_folder(): the layout must be the usual one.
    if (i >= 2 && kind != "Normalize" && folder != module_folder(config, config.modules.size() - 1))
      fail(Fault::bad_data, "{}: module {} lies in '{}', expected '{}'", file, i, folder,
           module_folder(config, config.modules.size() - 1));
  }
}

void read_lengths_and_prompts(const std::string& directory, EncoderConfig& config) {
  config.max_length = config.bert.positions;
  for (const char* name : {"tokenizer_config.json", "sentence_bert_config.json"}) {
    std::string path = directory + "/" + name;
    if (!file_exists(path)) continue;
    Json json = read_json(path);
    // model_max_length may be a sentinel of about 1e30: read as a number, then bounded.
    const char* key = std::string_view(name)[0] == 's' ? "max_seq_length" : "model_max_length";
    double length = value_or<double>(json, path, key, static_cast<double>(config.max_length));
    if (!(length >= 2))
      fail(Fault::bad_data, "{}: '{}' is {}, expected at least 2", path, key, length);
    if (length <= static_cast<double>(config.bert.positions)) {
      config.max_length = static_cast<Index>(length);
      config.max_length_source = name;
    }
  }
  std::string path = directory + "/config_sentence_transformers.json";
  if (!file_exists(path)) return;
  Json json = read_json(path);
  auto prompts = json.find("prompts");
  if (prompts == json.end() || !prompts->is_object()) return;
  config.query_prompt = value_or<std::string>(*prompts, path, "query", "");
  config.document_prompt = value_or<std::string>(
      *prompts, path, "document", value_or<std::string>(*prompts, path, "passage", ""));
}

}  // namespace

EncoderConfig read_encoder_config(const std::string& directory) {
  if (!directory_exists(directory))
    fail(Fault::missing_input, "{}: no such model folder", directory);
  std::string path = directory + "/config.json";
  if (!file_exists(path))
    fail(Fault::missing_input, "{}: no config.json, so this is not a model folder", directory);
  EncoderConfig config;
  config.bert = read_bert(path, read_json(path), config.activation_name);
  config.tokenizer_directory = directory;
  if (file_exists(directory + "/modules.json")) {
    read_modules(directory, config);
  } else if (file_exists(directory + "/1_Pooling/config.json")) {
    config.pooling = read_pooling(directory + "/1_Pooling/config.json");
    config.pooling_source = "1_Pooling/config.json";
  }
  read_lengths_and_prompts(directory, config);
  return config;
}

std::string module_folder(const EncoderConfig& config, std::size_t index) {
  const char* name = config.modules[index].kind == HeadModule::Kind::normalize ? "Normalize"
                     : config.modules[index].kind == HeadModule::Kind::dense   ? "Dense"
                                                                               : "SBMoE";
  return std::to_string(index + 2) + "_" + name;
}

std::string to_json(const SbMoeConfig& c) {
  Json json;
  json["format"] = 1;
  json["mode"] = name_of(c.mode);
  json["size"] = c.size;
  json["experts"] = c.experts;
  json["k"] = c.k;
  json["route"] = name_of(c.route);
  json["combine"] = name_of(c.combine);
  json["weights"] = name_of(c.weights);
  json["lambda"] = c.lambda;
  json["learn_lambda"] = c.learn_lambda;
  json["noise"] = c.noise;
  json["selection_bias"] = c.selection_bias;
  json["balance"] = c.balance;
  json["z"] = c.z;
  json["importance"] = c.importance;
  return json.dump(2) + "\n";
}

SbMoeConfig sbmoe_from_json(const std::string& text, const std::string& file) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::bad_data, "{}: not valid JSON: {}", file, e.what());
  }
  Index format = size_or(json, file, "format", 0, 0, 1'000'000);
  if (format != 1)
    fail(Fault::bad_data, "{}: block format {} is not known to this version (1)", file, format);
  SbMoeConfig c;
  c.mode = parse_mode(value_or<std::string>(json, file, "mode", name_of(c.mode)));
  c.size = size_or(json, file, "size", c.size, 2, 1'000'000);
  c.experts = size_or(json, file, "experts", c.experts, 1, 100'000);
  c.k = size_or(json, file, "k", c.k, 1, c.experts);
  c.route = parse_select(value_or<std::string>(json, file, "route", name_of(c.route)));
  c.combine = parse_combine(value_or<std::string>(json, file, "combine", name_of(c.combine)));
  c.weights = parse_weights(value_or<std::string>(json, file, "weights", name_of(c.weights)));
  c.lambda = value_or<double>(json, file, "lambda", c.lambda);
  c.learn_lambda = value_or<bool>(json, file, "learn_lambda", c.learn_lambda);
  c.noise = value_or<bool>(json, file, "noise", c.noise);
  c.selection_bias = value_or<bool>(json, file, "selection_bias", c.selection_bias);
  c.balance = value_or<double>(json, file, "balance", c.balance);
  c.z = value_or<double>(json, file, "z", c.z);
  c.importance = value_or<double>(json, file, "importance", c.importance);
  return c;
}

std::vector<FolderFile> encoder_files(const EncoderConfig& config) {
  const BertConfig& b = config.bert;
  std::vector<FolderFile> files;
  auto put = [&](const std::string& path, const Json& json) {
    files.push_back({path, json.dump(2) + "\n"});
  };
  put("config.json", {{"architectures", {"BertModel"}},
                      {"model_type", "bert"},
                      {"vocab_size", b.vocabulary},
                      {"hidden_size", b.hidden},
                      {"num_hidden_layers", b.layers},
                      {"num_attention_heads", b.heads},
                      {"intermediate_size", b.feed_forward},
                      {"max_position_embeddings", b.positions},
                      {"type_vocab_size", b.types},
                      {"layer_norm_eps", b.eps},
                      {"hidden_dropout_prob", b.dropout},
                      {"attention_probs_dropout_prob", b.attention_dropout},
                      {"initializer_range", b.init_deviation},
                      {"hidden_act", config.activation_name},
                      {"pad_token_id", 0},
                      {"torch_dtype", "float32"}});
  Json modules = Json::array();
  auto module = [&](const std::string& path, const std::string& type) {
    std::string index = std::to_string(modules.size());
    modules.push_back({{"idx", modules.size()}, {"name", index}, {"path", path}, {"type", type}});
  };
  module("", "sentence_transformers.models.Transformer");
  module("1_Pooling", "sentence_transformers.models.Pooling");
  for (std::size_t i = 0; i < config.modules.size(); ++i) {
    const HeadModule& m = config.modules[i];
    std::string folder = module_folder(config, i);
    if (m.kind == HeadModule::Kind::normalize) {
      module(folder, "sentence_transformers.models.Normalize");
      put(folder + "/config.json", Json::object());
    } else if (m.kind == HeadModule::Kind::dense) {
      module(folder, "sentence_transformers.models.Dense");
      put(folder + "/config.json", {{"in_features", m.in},
                                    {"out_features", m.out},
                                    {"bias", m.bias},
                                    {"activation_function", torch_name(m.activation)}});
    } else {
      module(folder, "moe_run.SBMoE");
      files.push_back({folder + "/config.json", to_json(*config.moe)});
    }
  }
  put("modules.json", modules);
  Pooling p = *config.pooling;
  if (p == Pooling::pooler)
    put("1_Pooling/config.json",
        {{"word_embedding_dimension", b.hidden}, {"pooling_mode", "pooler"}});
  else
    put("1_Pooling/config.json", {{"word_embedding_dimension", b.hidden},
                                  {"pooling_mode_cls_token", p == Pooling::cls},
                                  {"pooling_mode_mean_tokens", p == Pooling::mean},
                                  {"pooling_mode_max_tokens", p == Pooling::max},
                                  {"pooling_mode_mean_sqrt_len_tokens", false}});
  put("sentence_bert_config.json",
      {{"max_seq_length", config.max_length}, {"do_lower_case", false}});
  Json prompts = Json::object();
  if (!config.query_prompt.empty()) prompts["query"] = config.query_prompt;
  if (!config.document_prompt.empty()) prompts["document"] = config.document_prompt;
  put("config_sentence_transformers.json",
      {{"prompts", prompts}, {"default_prompt_name", nullptr}, {"similarity_fn_name", "dot"}});
  return files;
}

}  // namespace moe
