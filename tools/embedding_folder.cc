#include "tools/embedding_folder.h"

#include "runtime/strict_json.h"
#include "tools/line_reader.h"
#include "tools/version.h"

#include <nlohmann/json.hpp>

namespace moe {

namespace {

using Json = nlohmann::ordered_json;
constexpr std::size_t largest_manifest = std::size_t{1} << 20;

std::span<const std::byte> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

template <class T>
std::string values_hash(const Tensor& x) {
  std::vector<T> values = to_host<T>(x);  // dense, whatever the stride was
  return content_hash(std::as_bytes(std::span<const T>(values)));
}

}  // namespace

std::string to_json(const EmbeddingManifest& m) {
  Json json{{"format", 1},
            {"version", m.version},
            {"model", m.model},
            {"model_hash", m.model_hash},
            {"kind", m.kind},
            {"dim", m.dim},
            {"count", m.count},
            {"dtype", "float32"},
            {"normalize", m.normalize},
            {"pooling", m.pooling},
            {"prompt", m.prompt},
            {"max_length", m.max_length},
            {"route", m.route},
            {"k", m.k},
            {"seed", m.seed},
            {"device", m.device},
            {"source", m.source},
            {"source_bytes", m.source_bytes},
            {"source_hash", m.source_hash},
            {"embeddings_hash", m.embeddings_hash},
            {"ids_hash", m.ids_hash}};
  // File names may be anything; a manifest is UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

EmbeddingManifest manifest_from_json(const std::string& text, const std::string& file) {
  EmbeddingManifest m;
  try {
    nlohmann::json json = parse_json(text, file);
    if (json.at("format") != 1)
      fail(Fault::bad_data, "{}: embedding format {} is not known to this version (1)", file,
           json.at("format").dump());
    json.at("version").get_to(m.version);
    json.at("model").get_to(m.model);
    json.at("model_hash").get_to(m.model_hash);
    json.at("kind").get_to(m.kind);
    json.at("dim").get_to(m.dim);
    json.at("count").get_to(m.count);
    json.at("normalize").get_to(m.normalize);
    json.at("pooling").get_to(m.pooling);
    json.at("prompt").get_to(m.prompt);
    json.at("max_length").get_to(m.max_length);
    json.at("route").get_to(m.route);
    json.at("k").get_to(m.k);
    json.at("seed").get_to(m.seed);
    json.at("device").get_to(m.device);
    json.at("source").get_to(m.source);
    json.at("source_bytes").get_to(m.source_bytes);
    json.at("source_hash").get_to(m.source_hash);
    json.at("embeddings_hash").get_to(m.embeddings_hash);
    json.at("ids_hash").get_to(m.ids_hash);
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::bad_data, "{}: not a manifest of this program: {}", file, e.what());
  }
  return m;
}

std::string differences(const EmbeddingManifest& a, const EmbeddingManifest& b) {
  std::string list;
  auto compare = [&](const char* what, const auto& x, const auto& y) {
    if (x != y) list += fmt::format("{}{} {}, not {}", list.empty() ? "" : "; ", what, x, y);
  };
  compare("model weights", a.model_hash, b.model_hash);
  compare("vector size", a.dim, b.dim);
  compare("pooling", a.pooling, b.pooling);
  compare("unit length", a.normalize, b.normalize);
  compare("routing", a.route, b.route);
  compare("experts per text", a.k, b.k);
  if (a.route == "random") compare("seed", a.seed, b.seed);
  return list;
}

std::string weights_hash(const TextEncoder& encoder) {
  std::string all;
  for (const NamedTensor& t : encoder.state())
    all += fmt::format("{} {} {}\n", t.name, t.tensor.shape(),
                       t.tensor.dtype() == DType::f64 ? values_hash<double>(t.tensor)
                                                      : values_hash<float>(t.tensor));
  return content_hash(bytes_of(all));
}

EmbeddingManifest manifest_of(const TextEncoder& encoder, const std::string& model,
                              const std::string& kind, std::uint64_t seed) {
  const EncoderConfig& c = encoder.config();
  EmbeddingManifest m;
  m.version = MOE_VERSION;
  m.model = model;
  m.model_hash = weights_hash(encoder);
  m.kind = kind;
  m.pooling = name_of(encoder.pooling());
  m.prompt = kind == "query" ? c.query_prompt : c.document_prompt;
  m.normalize = !c.modules.empty() && c.modules.back().kind == HeadModule::Kind::normalize;
  m.dim = encoder.size();
  m.max_length = c.max_length;
  m.seed = seed;
  m.device = name_of(encoder.device());
  if (encoder.moe() != nullptr) {
    m.route = name_of(encoder.moe()->config.route);
    m.k = encoder.moe()->config.k;
  }
  return m;
}

EmbeddingFolder::EmbeddingFolder(const std::string& path) {
  if (!directory_exists(path)) fail(Fault::missing_input, "{}: no such folder of embeddings", path);
  std::string file = path + "/manifest.json";
  if (!file_exists(file))
    fail(Fault::missing_input,
         "{}: no manifest.json, so this is no finished folder of embeddings.{}", path,
         file_exists(path + "/progress.json")
             ? "\nAn embedding run stopped here: run the same command again."
             : "\n`moe-run embed` writes one.");
  manifest_ = manifest_from_json(read_text_file(file, largest_manifest), file);
  std::string array = path + "/embeddings.npy", names = path + "/ids.txt";
  array_ = std::make_shared<NpyFile>(array);
  if (array_->rows() != manifest_.count || array_->cols() != manifest_.dim)
    fail(Fault::bad_data, "{}: holds ({},{}) values, its manifest says ({},{})", array,
         array_->rows(), array_->cols(), manifest_.count, manifest_.dim);
  ids_.reserve(static_cast<std::size_t>(manifest_.count));
  for (LineReader reader(names); reader.next();) ids_.emplace_back(reader.line());
  if (static_cast<Index>(ids_.size()) != manifest_.count)
    fail(Fault::bad_data, "{}: {} ids for {} rows", names, ids_.size(), manifest_.count);
}

Tensor EmbeddingFolder::block(Index begin, Index end, Device device) const {
  auto rows = array_->floats();
  bool direct = rows && backend(device).host_memory && rows->rows > 0;
  if (!direct) {
    std::vector<float> values(static_cast<std::size_t>((end - begin) * cols()));
    array_->read_rows(begin, end, values.data());
    return from_host(values, {end - begin, cols()}, device);
  }
  check(0 <= begin && begin <= end && end <= rows->rows, "rows {}..{} of {}", begin, end,
        rows->rows);
  std::size_t bytes =
      static_cast<std::size_t>(end - begin) * static_cast<std::size_t>(cols()) * sizeof(float);
  auto buffer = std::make_shared<Buffer>(rows->data + begin * cols(), bytes, array_);
  auto storage =
      std::make_shared<Storage>(Storage{DType::f32, device, std::move(buffer), nullptr, {}});
  return {{end - begin, cols()}, std::move(storage), 0, cols()};
}

}  // namespace moe
