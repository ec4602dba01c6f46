// Reads BERT tokenizers: tokenizer.json, or vocab.txt with its two small companions. Every
// component that is not supported is refused by its name; none is skipped, because a nearly right
// tokenizer is a wrong one.
#include "models/wordpiece_model.h"
#include "runtime/file.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

namespace moe {
namespace {

using Json = nlohmann::json;

constexpr std::size_t largest_file = std::size_t{256} << 20;
constexpr int deepest_json = 32;
constexpr std::size_t most_json_values = 3 * Vocabulary::largest_count;
constexpr int deepest_sequence = 8;

// Runs `read`; what nlohmann throws (a wrong type, a missing key) becomes an error that names the
// file.
template <class F>
auto reading(const std::string& path, F read) {
  try {
    return read();
  } catch (const Json::exception& error) {
    std::string why;  // quotes the file: may be long, or not UTF-8
    Normalizer(NormalizerSteps{}).append(std::string_view(error.what()).substr(0, 200), why);
    fail(Fault::bad_data, "{}: not a valid tokenizer file: {}", path, why);
  }
}

std::string shown(const Json& json) {
  return json.dump().substr(0, 60);
}

Json parse_json(const std::string& path) {
  const std::string text = read_text_file(path, largest_file);
  std::size_t values = 0;
  auto bounded = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > deepest_json)
      fail(Fault::bad_data, "{}: JSON nested over {} deep", path, deepest_json);
    if (++values > most_json_values)
      fail(Fault::bad_data, "{}: more than {} JSON values", path, most_json_values);
    return true;
  };
  Json json = reading(path, [&] { return Json::parse(text, bounded); });
  if (!json.is_object()) fail(Fault::bad_data, "{}: not a JSON object", path);
  return json;
}

Json parse_json_if_there(const std::string& path) {
  return file_exists(path) ? parse_json(path) : Json::object();
}

// The value under `key`, or null: absent and null mean the same in these files.
const Json& get(const Json& object, const char* key) {
  static const Json null;
  const auto at = object.find(key);
  return at == object.end() ? null : *at;
}

template <class T>
T get_or(const Json& object, const char* key, T otherwise) {
  const Json& value = get(object, key);
  return value.is_null() ? std::move(otherwise) : value.get<T>();
}

std::string type_of(const Json& component) {
  return component.is_null() ? "null" : get_or<std::string>(component, "type", "(without type)");
}

[[noreturn]] void refuse(const std::string& path, const char* part, const std::string& name,
                         const char* supported) {
  fail(Fault::bad_data,
       "{}: {} \"{}\" is not supported (supported: {}).\n"
       "A tokenizer must be exact, so the model is refused; use one with a BERT WordPiece "
       "tokenizer.",
       path, part, name, supported);
}

// Not through get<int32_t> alone: that would wrap large numbers and cut fractions.
std::int32_t read_id(const Json& json, const std::string& path) {
  if (!json.is_number_unsigned() || json.get<std::uint64_t>() >= Vocabulary::id_limit)
    fail(Fault::bad_data, "{}: {} is not a token id; ids must lie in 0..{}", path, shown(json),
         Vocabulary::id_limit - 1);
  return json.get<std::int32_t>();
}

void read_normalizer(const Json& json, const std::string& path, int depth, WordPieceParts& parts) {
  if (json.is_null()) return;
  const std::string type = type_of(json);
  NormalizerSteps steps;
  std::string chain = type;
  if (type == "BertNormalizer") {
    steps.clean = get_or(json, "clean_text", true);
    steps.space_chinese = get_or(json, "handle_chinese_chars", true);
    steps.lowercase = get_or(json, "lowercase", true);
    steps.decompose = get_or(json, "strip_accents", steps.lowercase);
    if (steps.decompose) steps.strip = character_class::nonspacing_mark;
    chain =
        fmt::format("{}(clean_text={}, handle_chinese_chars={}, strip_accents={}, lowercase={})",
                    type, steps.clean, steps.space_chinese, steps.decompose, steps.lowercase);
  } else if (type == "Lowercase") {
    steps.lowercase = true;
  } else if (type == "NFD") {
    steps.decompose = true;
  } else if (type == "StripAccents") {
    steps.strip = character_class::combining_mark;
  } else if (type == "Sequence" && depth < deepest_sequence) {
    for (const Json& item : json.at("normalizers")) read_normalizer(item, path, depth + 1, parts);
    return;
  } else {
    refuse(path, "normalizer", type, "BertNormalizer, Lowercase, NFD, StripAccents, Sequence");
  }
  parts.normalizers.emplace_back(steps);
  parts.chain += chain + " > ";
}

void read_pre_tokenizer(const Json& json, const std::string& path, int depth,
                        WordPieceParts& parts) {
  const std::string type = type_of(json);
  if (type == "Sequence" && depth < deepest_sequence && !json.at("pretokenizers").empty()) {
    for (const Json& item : json.at("pretokenizers"))
      read_pre_tokenizer(item, path, depth + 1, parts);
    return;
  }
  if (type == "BertPreTokenizer") {
    parts.split_punctuation = true;
  } else if (type != "WhitespaceSplit") {
    refuse(path, "pre_tokenizer", type, "BertPreTokenizer, WhitespaceSplit, Sequence");
  }
  parts.chain += type + " > ";
}

void read_model(const Json& json, const std::string& path, WordPieceParts& parts) {
  std::string type = type_of(json);
  // Files of 2020 carry no type; only WordPiece has a word length limit.
  if (get(json, "type").is_null() && json.contains("max_input_chars_per_word")) type = "WordPiece";
  if (type != "WordPiece") refuse(path, "model", type, "WordPiece");
  const Json& vocabulary = json.at("vocab");
  if (!vocabulary.is_object()) fail(Fault::bad_data, "{}: model.vocab is not an object", path);
  std::vector<std::pair<std::string, std::int32_t>> tokens;
  tokens.reserve(vocabulary.size());
  for (const auto& item : vocabulary.items()) {
    tokens.emplace_back(item.key(), read_id(item.value(), path));
  }
  parts.unknown = get_or<std::string>(json, "unk_token", "[UNK]");
  const auto prefix = get_or<std::string>(json, "continuing_subword_prefix", "##");
  const Json& longest = get(json, "max_input_chars_per_word");
  if (!longest.is_null()) {
    if (!longest.is_number_unsigned())
      fail(Fault::bad_data, "{}: model.max_input_chars_per_word is {}", path, shown(longest));
    parts.longest_word = longest.get<std::size_t>();
  }
  parts.vocabulary = Vocabulary(tokens, prefix, path);
  parts.chain += "WordPiece > ";
}

AddedToken read_added_token(const Json& json, std::int32_t id) {
  AddedToken token;
  token.content = json.at("content").get<std::string>();
  token.id = id;
  token.special = get_or(json, "special", false);
  token.single_word = get_or(json, "single_word", false);
  token.lstrip = get_or(json, "lstrip", false);
  token.rstrip = get_or(json, "rstrip", false);
  token.normalized = get_or(json, "normalized", !token.special);
  return token;
}

void read_added_tokens(const Json& json, const std::string& path, WordPieceParts& parts) {
  for (const Json& item : json) {
    AddedToken token = read_added_token(item, read_id(item.at("id"), path));
    if (!token.content.empty()) parts.added.push_back(std::move(token));
  }
}

Template read_template(const Json& json, const Json& specials, const std::string& path,
                       const char* which) {
  Template frame;
  int first = 0, second = 0;
  for (const Json& item : json.at(which)) {
    TemplatePiece piece;
    if (item.contains("SpecialToken")) {
      const Json& special = item["SpecialToken"];
      const Json& entry = specials.at(special.at("id").get<std::string>());
      for (const Json& id : entry.at("ids")) piece.ids.push_back(read_id(id, path));
      piece.type = read_id(special.at("type_id"), path);
    } else {
      const Json& sequence = item.at("Sequence");
      const bool is_first = sequence.at("id") == "A";
      piece.kind = is_first ? TemplatePiece::Kind::first : TemplatePiece::Kind::second;
      piece.type = read_id(sequence.at("type_id"), path);
      ++(is_first ? first : second);
    }
    frame.push_back(std::move(piece));
  }
  const bool pair = which == std::string_view("pair");
  if (first != 1 || second != (pair ? 1 : 0))
    fail(Fault::bad_data, "{}: the {} template must hold each of its texts exactly once", path,
         which);
  const bool plain = std::all_of(frame.begin(), frame.end(),
                                 [](const TemplatePiece& piece) { return piece.type == 0; });
  if (!pair && !plain)
    fail(Fault::bad_data, "{}: the template of a single text uses a type other than 0", path);
  return frame;
}

void read_post_processor(const Json& json, const std::string& path, int depth,
                         WordPieceParts& parts) {
  const std::string type = type_of(json);
  using Kind = TemplatePiece::Kind;
  if (json.is_null()) {
    parts.single = {{Kind::first, {}, 0}};
    parts.pair = {{Kind::first, {}, 0}, {Kind::second, {}, 1}};
  } else if (type == "TemplateProcessing") {
    parts.single = read_template(json, json.at("special_tokens"), path, "single");
    parts.pair = read_template(json, json.at("special_tokens"), path, "pair");
  } else if (type == "BertProcessing") {
    const std::int32_t cls = read_id(json.at("cls").at(1), path);
    const std::int32_t sep = read_id(json.at("sep").at(1), path);
    parts.single = bert_template(cls, sep, false);
    parts.pair = bert_template(cls, sep, true);
  } else if (type == "Sequence" && depth < deepest_sequence && json.at("processors").size() == 1) {
    return read_post_processor(json["processors"][0], path, depth + 1, parts);
  } else {
    refuse(path, "post_processor", type, "TemplateProcessing, BertProcessing, a Sequence of one");
  }
  parts.chain += type;
}

void read_decoder(const Json& json, const std::string& path, WordPieceParts& parts) {
  const std::string type = type_of(json);
  parts.join_pieces = parts.clean_up = false;
  if (json.is_null()) return;
  if (type != "WordPiece") refuse(path, "decoder", type, "WordPiece");
  parts.join_pieces = true;
  parts.continuation_prefix = get_or<std::string>(json, "prefix", "##");
  parts.clean_up = get_or(json, "cleanup", true);
}

// A special token's name: a string, or an object with flags.
void read_role(const Json& json, const char* key, std::string& name) {
  const Json& value = get(json, key);
  if (value.is_null()) return;
  name = (value.is_object() ? value.at("content") : value).get<std::string>();
}

template <class Roles>
void read_roles(const Json& json, const std::string& path, Roles& roles) {
  reading(path, [&] {
    read_role(json, "cls_token", roles.cls);
    read_role(json, "sep_token", roles.sep);
    read_role(json, "pad_token", roles.pad);
    read_role(json, "mask_token", roles.mask);
  });
}

WordPieceParts read_tokenizer_json(const std::string& path) {
  const Json json = parse_json(path);
  WordPieceParts parts;
  parts.source = path;
  parts.split_punctuation = false;
  reading(path, [&] {
    read_normalizer(get(json, "normalizer"), path, 0, parts);
    read_pre_tokenizer(get(json, "pre_tokenizer"), path, 0, parts);
    read_model(json.at("model"), path, parts);
    read_added_tokens(get(json, "added_tokens"), path, parts);
    read_post_processor(get(json, "post_processor"), path, 0, parts);
    read_decoder(get(json, "decoder"), path, parts);
  });
  return parts;
}

// The chain of a BERT tokenizer given by options alone.
WordPieceParts bert_parts(const std::vector<std::pair<std::string, std::int32_t>>& tokens,
                          const WordPieceOptions& options, const std::string& source) {
  check(options.max_input_chars_per_word > 0, "max_input_chars_per_word is {}",
        options.max_input_chars_per_word);
  WordPieceParts parts;
  parts.source = source;
  const Json normalizer{{"type", "BertNormalizer"},
                        {"clean_text", options.clean_text},
                        {"handle_chinese_chars", options.tokenize_chinese_chars},
                        {"lowercase", options.lowercase},
                        {"strip_accents", options.strip_accents.value_or(options.lowercase)}};
  read_normalizer(normalizer, source, 0, parts);
  parts.vocabulary = Vocabulary(tokens, "##", source);
  parts.continuation_prefix = "##";
  parts.longest_word = static_cast<std::size_t>(options.max_input_chars_per_word);
  parts.unknown = options.unk;
  parts.cls = options.cls;
  parts.sep = options.sep;
  parts.pad = options.pad;
  parts.mask = options.mask;
  const auto cls = parts.vocabulary.find(options.cls), sep = parts.vocabulary.find(options.sep);
  if (!cls || !sep)
    fail(Fault::bad_data, "{}: the vocabulary lacks \"{}\"", source,
         cls ? options.sep : options.cls);
  parts.single = bert_template(*cls, *sep, false);
  parts.pair = bert_template(*cls, *sep, true);
  for (const std::string& name : {options.pad, options.unk, options.cls, options.sep, options.mask})
    if (const auto id = parts.vocabulary.find(name))
      parts.added.push_back({name, *id, true, false, false, false, false});
  parts.chain += "BertPreTokenizer > WordPiece > BertProcessing";
  return parts;
}

// One token a line, white space at its end removed; the id is the line number.
std::vector<std::pair<std::string, std::int32_t>> read_vocabulary_lines(const std::string& path) {
  const std::string text = read_text_file(path, largest_file);
  std::vector<std::pair<std::string, std::int32_t>> tokens;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    if (!is_valid_utf8(line)) fail(Fault::bad_data, "{}:{}: not UTF-8", path, tokens.size() + 1);
    while (!line.empty()) {
      const char32_t last = decode_utf8_before(line, line.size());
      if ((characters()[last] & character_class::white_space) == 0) break;
      line.remove_suffix(last < 0x80 ? 1 : last < 0x800 ? 2 : 3);
    }
    if (tokens.size() == Vocabulary::largest_count)
      fail(Fault::bad_data, "{}: more than {} lines", path, Vocabulary::largest_count);
    tokens.emplace_back(line, static_cast<std::int32_t>(tokens.size()));
    begin = end + 1;
  }
  return tokens;
}

void check_tokenizer_class(const Json& config, const std::string& path) {
  constexpr std::array<std::string_view, 11> plain{
      "BertTokenizer",           "BertTokenizerFast",       "DistilBertTokenizer",
      "ElectraTokenizer",        "DistilBertTokenizerFast", "ElectraTokenizerFast",
      "RetriBertTokenizer",      "RetriBertTokenizerFast",  "MobileBertTokenizer",
      "MobileBertTokenizerFast", "PreTrainedTokenizerFast"};
  const auto name = get_or<std::string>(config, "tokenizer_class", "BertTokenizer");
  if (std::find(plain.begin(), plain.end(), name) == plain.end())
    refuse(path, "tokenizer_class", name, "BertTokenizer and its renamed copies");
  if (!get_or(config, "do_basic_tokenize", true))
    refuse(path, "setting", "do_basic_tokenize = false", "true");
}

// Tokens beyond the five of BERT. Later descriptions of the same token replace earlier ones.
void add_extra_tokens(const std::string& directory, const Json& map, const Json& config,
                      WordPieceParts& parts) {
  std::map<std::string, AddedToken> extra;
  const std::string added_path = directory + "/added_tokens.json";
  const Json added = parse_json_if_there(added_path);
  for (const auto& item : added.items()) {
    AddedToken token{item.key(), read_id(item.value(), added_path), false, false, false, false,
                     true};
    extra[item.key()] = token;
  }
  for (const Json* file : {&map, &config}) {
    for (const Json& item : get(*file, "additional_special_tokens")) {
      std::string name;
      read_role(Json{{"name", item}}, "name", name);
      const auto known = extra.find(name);
      const auto id =
          known != extra.end() ? std::optional(known->second.id) : parts.vocabulary.find(name);
      if (!id)
        fail(Fault::bad_data, "{}: additional special token \"{}\" is not in the vocabulary",
             parts.source, name);
      extra[name] = {name, *id, true, false, false, false, false};
    }
  }
  const Json& decoder = get(config, "added_tokens_decoder");
  for (const auto& item : decoder.items()) {
    const Json id = Json::parse(item.key());
    const AddedToken token =
        read_added_token(item.value(), read_id(id, directory + "/tokenizer_config.json"));
    extra[token.content] = token;
  }
  for (auto& entry : extra) {
    const auto same =
        std::find_if(parts.added.begin(), parts.added.end(),
                     [&](const AddedToken& token) { return token.content == entry.first; });
    if (same != parts.added.end()) {
      *same = entry.second;
    } else {
      parts.added.push_back(entry.second);
    }
  }
}

WordPieceParts read_vocabulary_directory(const std::string& directory) {
  const std::string config_path = directory + "/tokenizer_config.json";
  const std::string map_path = directory + "/special_tokens_map.json";
  const Json config = parse_json_if_there(config_path), map = parse_json_if_there(map_path);
  WordPieceOptions options;
  reading(config_path, [&] {
    check_tokenizer_class(config, config_path);
    options.lowercase = get_or(config, "do_lower_case", true);
    options.tokenize_chinese_chars = get_or(config, "tokenize_chinese_chars", true);
    options.strip_accents = get_or(config, "strip_accents", options.lowercase);
    read_role(map, "unk_token", options.unk);
    read_role(config, "unk_token", options.unk);
  });
  read_roles(map, map_path, options);
  read_roles(config, config_path, options);
  const std::string path = directory + "/vocab.txt";
  WordPieceParts parts = bert_parts(read_vocabulary_lines(path), options, path);
  reading(directory, [&] { add_extra_tokens(directory, map, config, parts); });
  return parts;
}

}  // namespace

std::unique_ptr<Tokenizer> make_wordpiece(const std::vector<std::string>& vocabulary,
                                          const WordPieceOptions& options) {
  std::vector<std::pair<std::string, std::int32_t>> tokens;
  tokens.reserve(vocabulary.size());
  for (const std::string& token : vocabulary)
    tokens.emplace_back(token, static_cast<std::int32_t>(tokens.size()));
  return make_wordpiece(bert_parts(tokens, options, "vocabulary"));
}

std::unique_ptr<Tokenizer> load_wordpiece(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  if (file_exists(path)) {
    WordPieceParts parts = read_tokenizer_json(path);
    for (const char* name : {"/special_tokens_map.json", "/tokenizer_config.json"})
      read_roles(parse_json_if_there(directory + name), directory + name, parts);
    return make_wordpiece(std::move(parts));
  }
  if (file_exists(directory + "/vocab.txt"))
    return make_wordpiece(read_vocabulary_directory(directory));
  fail(Fault::missing_input,
       "{}: no tokenizer: neither tokenizer.json nor vocab.txt is there.\n"
       "Give the folder of a downloaded BERT model.",
       directory);
}

}  // namespace moe
