// moe-run inspect: what a model folder, tensor file, array, run folder or folder of embeddings
// holds.
#include "runtime/bytes.h"
#include "runtime/checkpoint.h"
#include "runtime/file.h"
#include "tools/commands.h"
#include "tools/embedding_folder.h"
#include "tools/progress.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <limits>

namespace moe {

namespace {

using Json = nlohmann::ordered_json;

// A report is built as JSON; with --json it is printed, else written out for people.
void print_json(const Json& json) {
  fmt::print("{}\n", json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void line(const std::string& what, const std::string& value) {
  fmt::print("{:<13}{}\n", what, value);
}

// A name from a file, control bytes shown as text.
std::string shown(std::string_view name) {
  std::string quoted = in_quotes(name);
  return quoted.substr(1, quoted.size() - 2);
}

Index elements(const TensorEntry& entry) {
  Index n = 1;
  for (Index d : entry.shape) n *= d;
  return n;
}

// ---- tensors

Json tensor_list(const TensorFile& file, bool hash) {
  Json list = Json::array();
  for (const auto& [name, entry] : file.tensors) {
    Json one{
        {"name", name}, {"dtype", entry.dtype}, {"shape", entry.shape}, {"bytes", entry.bytes}};
    if (hash) one["hash"] = content_hash({entry.data, entry.bytes});
    list.push_back(std::move(one));
  }
  return list;
}

void print_tensors(const Json& list) {
  std::size_t width = 4;
  for (const auto& t : list)
    width = std::max(width, t["name"].get_ref<const std::string&>().size());
  width = std::min<std::size_t>(width, 72);
  fmt::print("\n{:<{}}  {:>8}  {:>16}  {:>12}\n", "name", width, "dtype", "shape", "bytes");
  for (const auto& t : list) {
    std::string shape = fmt::format("({})", fmt::join(t["shape"].get<std::vector<Index>>(), ","));
    fmt::print("{:<{}}  {:>8}  {:>16}  {:>12}", shown(t["name"].get_ref<const std::string&>()),
               width, t["dtype"].get<std::string>(), shape, t["bytes"].get<std::size_t>());
    if (t.contains("hash")) fmt::print("  {}", t["hash"].get<std::string>());
    fmt::print("\n");
  }
}

Json dtype_counts(const TensorFile& file) {
  std::map<std::string, std::size_t> counts;
  for (const auto& [name, entry] : file.tensors) ++counts[entry.dtype];
  return counts;
}

int inspect_tensors(const InspectCommand& command, const TensorFile& file) {
  Index count = 0;
  std::size_t bytes = 0;
  for (const auto& [name, entry] : file.tensors) {
    count += elements(entry);
    bytes += entry.bytes;
  }
  Json json{{"kind", "tensors"},        {"path", command.path}, {"tensors", file.tensors.size()},
            {"elements", count},        {"bytes", bytes},       {"dtypes", dtype_counts(file)},
            {"metadata", file.metadata}};
  Json list = tensor_list(file, command.hash);
  if (command.common.json) {
    json["list"] = list;
    print_json(json);
    return 0;
  }
  line("file", command.path);
  line("tensors", fmt::format("{}, {} elements, {}", file.tensors.size(), count,
                              human_bytes(static_cast<double>(bytes))));
  std::string types;
  for (const auto& [type, n] : json["dtypes"].items())
    types += fmt::format("{}{} x {}", types.empty() ? "" : ", ", n.get<std::size_t>(), type);
  line("dtypes", types);
  for (const auto& [key, value] : file.metadata)
    line("metadata", in_quotes(key) + ": " + in_quotes(value));
  print_tensors(list);
  return 0;
}

// ---- model folder

// The module a tensor belongs to, for the table: "embeddings.word_embeddings", "encoder", "pooler",
// ...
std::string module_of(std::string_view name) {
  if (name.starts_with("bert.")) name.remove_prefix(5);
  if (name.starts_with("encoder.")) return "encoder";
  if (name.starts_with("embeddings.")) {
    std::size_t end = name.find('.', 11);
    return std::string(name.substr(0, end));
  }
  return std::string(name.substr(0, name.find('.')));
}

struct ModuleSize {
  std::string name;
  Index parameters = 0;
};

void add_sizes(std::vector<ModuleSize>& sizes, const TensorFile& file, const std::string& folder) {
  for (const auto& [name, entry] : file.tensors) {
    if (entry.dtype[0] == 'I') continue;  // stored position numbers are no parameters
    std::string module = folder.empty() ? module_of(name) : folder + " " + module_of(name);
    if (sizes.empty() || sizes.back().name != module) sizes.push_back({module, 0});
    sizes.back().parameters += elements(entry);
  }
}

Json block_json(const SbMoeConfig& c) {
  return Json::parse(to_json(c));
}

int inspect_model(const InspectCommand& command) {
  EncoderConfig config = read_encoder_config(command.path);
  const BertConfig& b = config.bert;
  TensorFile weights = read_model_weights(command.path, &config.weights_file);
  std::vector<ModuleSize> sizes;
  add_sizes(sizes, weights, "");
  Json list = tensor_list(weights, command.hash);
  std::vector<std::string> chain;
  for (std::size_t i = 0; i < config.modules.size(); ++i) {
    const HeadModule& module = config.modules[i];
    std::string folder = module_folder(config, i);
    chain.push_back(module.kind == HeadModule::Kind::dense
                        ? fmt::format("{} ({} -> {})", folder, module.in, module.out)
                        : folder);
    if (module.kind == HeadModule::Kind::normalize) continue;
    TensorFile part = read_model_weights(command.path + "/" + folder);
    add_sizes(sizes, part, folder);
    for (Json& tensor : tensor_list(part, command.hash)) {
      tensor["name"] = folder + "/" + tensor["name"].get<std::string>();
      list.push_back(std::move(tensor));
    }
  }
  auto tokenizer = load_wordpiece(config.tokenizer_directory);
  Index total = 0;
  for (const ModuleSize& m : sizes) total += m.parameters;

  Json json{{"kind", "model"},
            {"path", command.path},
            {"architecture", "bert"},
            {"layers", b.layers},
            {"hidden", b.hidden},
            {"heads", b.heads},
            {"feed_forward", b.feed_forward},
            {"vocabulary", b.vocabulary},
            {"positions", b.positions},
            {"activation", config.activation_name},
            {"pooling", config.pooling ? Json(name_of(*config.pooling)) : Json(nullptr)},
            {"pooling_source", config.pooling_source},
            {"max_length", config.max_length},
            {"max_length_source", config.max_length_source},
            {"modules", chain},
            {"query_prompt", config.query_prompt},
            {"document_prompt", config.document_prompt},
            {"weights_file", config.weights_file},
            {"parameters", total},
            {"dtypes", dtype_counts(weights)},
            {"tokenizer", tokenizer->info()}};
  for (const ModuleSize& m : sizes) json["parameters_by_module"][m.name] = m.parameters;
  if (config.moe) json["sbmoe"] = block_json(*config.moe);
  if (command.common.json) {
    if (command.tensors || command.hash) json["list"] = list;
    print_json(json);
    return 0;
  }
  line("model", command.path);
  line("architecture", fmt::format("BERT, {} layers x {}, {} heads, feed-forward {}, {}", b.layers,
                                   b.hidden, b.heads, b.feed_forward, config.activation_name));
  line("vocabulary", fmt::format("{} rows; {} positions", b.vocabulary, b.positions));
  line("pooling", config.pooling
                      ? fmt::format("{} ({})", name_of(*config.pooling), config.pooling_source)
                      : std::string("no file says it: commands need --pooling"));
  line("max length", fmt::format("{} ({})", config.max_length, config.max_length_source));
  line("modules", chain.empty() ? "none after pooling" : fmt::format("{}", fmt::join(chain, ", ")));
  if (config.moe) {
    const SbMoeConfig& m = *config.moe;
    line("SB-MoE",
         fmt::format("{}, {} experts, k {}, route {}, {}, weights {}, lambda {}{}", name_of(m.mode),
                     m.experts, m.k, name_of(m.route), name_of(m.combine), name_of(m.weights),
                     m.lambda, m.learn_lambda ? " (learnt)" : ""));
    line("", fmt::format("losses: balance {}, z {}, importance {}; noise {}, selection bias {}",
                         m.balance, m.z, m.importance, m.noise ? "on" : "off",
                         m.selection_bias ? "on" : "off"));
  }
  if (!config.query_prompt.empty() || !config.document_prompt.empty())
    line("prompts", fmt::format("query {}, document {}", in_quotes(config.query_prompt),
                                in_quotes(config.document_prompt)));
  line("weights", config.weights_file);
  fmt::print("{}", tokenizer->info());
  line("parameters", fmt::format("{}", total));
  for (const ModuleSize& m : sizes) fmt::print("  {:>14}  {}\n", m.parameters, shown(m.name));
  if (command.tensors || command.hash) print_tensors(list);
  return 0;
}

// ---- arrays, folders of embeddings, run folders

int inspect_npy(const InspectCommand& command) {
  NpyFile file(command.path);
  const char* type = file.type() == NpyType::f32   ? "float32"
                     : file.type() == NpyType::f16 ? "float16"
                     : file.type() == NpyType::i8  ? "int8"
                                                   : "uint8";
  double low = std::numeric_limits<double>::infinity(), high = -low, shortest = low, longest = -low;
  Index bad = 0;
  std::vector<float> row(static_cast<std::size_t>(file.cols()));
  for (Index r = 0; r < file.rows(); ++r) {
    file.read_rows(r, r + 1, row.data());
    double square = 0;
    for (float v : row) {
      if (!std::isfinite(v)) {
        ++bad;
        continue;
      }
      low = std::min(low, double{v});
      high = std::max(high, double{v});
      square += double{v} * double{v};
    }
    shortest = std::min(shortest, std::sqrt(square));
    longest = std::max(longest, std::sqrt(square));
  }
  Json json{{"kind", "array"},
            {"path", command.path},
            {"rows", file.rows()},
            {"cols", file.cols()},
            {"dtype", type}};
  if (file.rows() > 0 && file.cols() > 0) {
    json["not_finite"] = bad;
    if (std::isfinite(low)) {
      json["least"] = low;
      json["greatest"] = high;
    }
    json["shortest_row"] = shortest;
    json["longest_row"] = longest;
  }
  if (command.hash) {
    MappedFile whole(command.path);
    json["hash"] = content_hash({whole.data(), whole.size()});
  }
  if (command.common.json) {
    print_json(json);
    return 0;
  }
  line("array", command.path);
  line("shape", fmt::format("({},{}) {}", file.rows(), file.cols(), type));
  if (json.contains("shortest_row")) {
    line("values",
         std::isfinite(low) ? fmt::format("{:.6g} to {:.6g}", low, high) : "none is finite");
    line("row lengths", fmt::format("{:.6g} to {:.6g}", shortest, longest));
    if (bad > 0) line("not finite", fmt::format("{} values are NaN or infinite", bad));
  }
  if (command.hash) line("hash", json["hash"].get<std::string>());
  return 0;
}

int inspect_embeddings(const InspectCommand& command) {
  EmbeddingFolder folder(command.path);
  Json json = Json::parse(to_json(folder.manifest()));
  MappedFile array(command.path + "/embeddings.npy"), ids(command.path + "/ids.txt");
  bool whole = content_hash({array.data(), array.size()}) == folder.manifest().embeddings_hash &&
               content_hash({ids.data(), ids.size()}) == folder.manifest().ids_hash;
  if (command.common.json) {
    Json out{{"kind", "embeddings"}, {"path", command.path}, {"hashes_agree", whole}};
    out.update(json);
    print_json(out);
  } else {
    line("embeddings", command.path);
    for (const auto& [key, value] : json.items())
      fmt::print("{:<18}{}\n", key,
                 value.is_string() ? in_quotes(value.get_ref<const std::string&>()) : value.dump());
    line("files", whole ? "agree with their hashes" : "DIFFER from the hashes in manifest.json");
  }
  if (!whole)
    fail(Fault::bad_data, "{}: embeddings.npy or ids.txt is not the file that was written",
         command.path);
  return 0;
}

int inspect_run(const InspectCommand& command) {
  std::vector<std::string> problems;
  Json checkpoints = Json::array();
  for (const CheckpointInfo& c : list_checkpoints(command.path, &problems)) {
    std::string problem;
    try {
      verify_checkpoint(c.directory);
    } catch (const Error& error) {
      problem = error.what();
    }
    checkpoints.push_back(
        {{"step", c.step}, {"folder", c.directory}, {"verified", problem.empty()}});
    if (!problem.empty()) problems.push_back(problem);
  }
  std::vector<std::string> models;
  for (const char* name : {"best", "last"})
    if (file_exists(command.path + "/" + name + "/config.json")) models.emplace_back(name);
  if (command.common.json) {
    print_json({{"kind", "run"},
                {"path", command.path},
                {"checkpoints", checkpoints},
                {"problems", problems},
                {"models", models}});
    return 0;
  }
  line("run", command.path);
  line("models", models.empty() ? "none yet" : fmt::format("{}", fmt::join(models, ", ")));
  for (const auto& c : checkpoints)
    line("checkpoint",
         fmt::format("step {}: {}", c["step"].get<Index>(),
                     c["verified"].get<bool>() ? "complete, every hash agrees" : "DAMAGED"));
  if (checkpoints.empty()) line("checkpoints", "none");
  for (const std::string& problem : problems) line("problem", problem);
  return 0;
}

bool has_ending(const std::string& path, std::string_view ending) {
  return path.ends_with(ending);
}

}  // namespace

int run_inspect(const InspectCommand& command) {
  const std::string& path = command.path;
  if (directory_exists(path)) {
    if (file_exists(path + "/config.json")) return inspect_model(command);
    if (file_exists(path + "/embeddings.npy") || file_exists(path + "/progress.json"))
      return inspect_embeddings(command);
    if (file_exists(path + "/manifest.json") &&
        file_exists(path + "/state.json")) {  // one checkpoint
      verify_checkpoint(path);
      return inspect_tensors(command, read_safetensors(path + "/model.safetensors"));
    }
    if (file_exists(path + "/log.jsonl") || file_exists(path + "/config.toml"))
      return inspect_run(command);
    fail(Fault::bad_data,
         "{}: neither a model folder (config.json), a run folder (log.jsonl), a checkpoint "
         "(state.json) nor a "
         "folder of embeddings (embeddings.npy)",
         path);
  }
  if (!file_exists(path)) fail(Fault::missing_input, "{}: no such file or folder", path);
  if (has_ending(path, ".npy")) return inspect_npy(command);
  if (has_ending(path, ".safetensors")) return inspect_tensors(command, read_safetensors(path));
  if (has_ending(path, ".bin") || has_ending(path, ".pt") || has_ending(path, ".pth"))
    return inspect_tensors(command, read_pytorch_bin(path));
  fail(Fault::usage,
       "{}: what kind of file is it? Known endings: .safetensors, .bin, .pt, .pth, .npy", path);
}

}  // namespace moe
