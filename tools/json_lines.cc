// Event (SAX) handlers over nlohmann's parser, which keeps its own stack: deep nesting cannot
// exhaust ours.
#include "tools/json_lines.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <set>

namespace moe {
namespace {

using Json = nlohmann::json;

constexpr std::size_t largest_json_file = 1'000'000'000;

// "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error ..." -> from
// "syntax" on.
std::string reason(const char* message) {
  std::string text = message;
  auto colon = text.find(": ");
  text = colon == std::string::npos ? text : text.substr(colon + 2);
  constexpr std::size_t enough =
      160;  // the parser quotes the text it read, which may be the whole line
  return text.size() > enough ? text.substr(0, enough) + "..." : text;
}

// What the handlers share: scalars arrive as text, whatever their type.
class Handler {
 public:
  bool null() { return scalar(JsonValue::Kind::absent, {}); }
  bool boolean(bool) { return scalar(JsonValue::Kind::other, {}); }
  bool number_integer(std::int64_t v) { return scalar(JsonValue::Kind::number, std::to_string(v)); }
  bool number_unsigned(std::uint64_t v) {
    return scalar(JsonValue::Kind::number, std::to_string(v));
  }
  bool number_float(double, const std::string& written) {
    return scalar(JsonValue::Kind::number, written);
  }
  bool string(std::string& v) { return scalar(JsonValue::Kind::text, std::move(v)); }
  bool binary(Json::binary_t&) { return false; }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& exception) {
    error_column = position;
    error = reason(exception.what());
    return false;
  }

  std::string error;
  std::size_t error_column = 0;

 protected:
  ~Handler() = default;
  virtual bool scalar(JsonValue::Kind kind, std::string text) = 0;
};

class RecordHandler final : public Handler {
 public:
  RecordHandler(const std::vector<std::string>& keys, std::vector<JsonValue>& values)
      : keys_(keys), values_(values) {}

  bool start_object(std::size_t) {
    if (depth_ == 0) object_seen = true;
    if (depth_ == 1 && current_) current_->kind = JsonValue::Kind::other;
    if (depth_ == 2 && in_list()) current_->objects.emplace_back();
    ++depth_;
    return true;
  }
  bool end_object() {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) {
    if (depth_ == 0) return false;
    if (depth_ == 1 && current_) current_->kind = JsonValue::Kind::list;
    ++depth_;
    return true;
  }
  bool end_array() { return end_object(); }

  bool key(std::string& name) {
    if (depth_ == 1) {
      current_ = nullptr;
      for (std::size_t i = 0; i < keys_.size(); ++i)
        if (keys_[i] == name) current_ = &values_[i];
      if (current_) *current_ = JsonValue{};
    }
    if (depth_ == 3) inner_key_ = name;
    return true;
  }

  bool object_seen = false;

 private:
  bool in_list() const { return current_ && current_->kind == JsonValue::Kind::list; }

  bool scalar(JsonValue::Kind kind, std::string text) override {
    bool word = kind == JsonValue::Kind::text || kind == JsonValue::Kind::number;
    if (depth_ == 0) return false;
    if (depth_ == 1 && current_) {
      current_->kind = kind;
      current_->text = std::move(text);
    } else if (depth_ == 2 && in_list() && word) {
      current_->items.push_back(std::move(text));
    } else if (depth_ == 3 && in_list() && word && !current_->objects.empty()) {
      current_->objects.back()[inner_key_] = std::move(text);
    }
    return true;
  }

  const std::vector<std::string>& keys_;
  std::vector<JsonValue>& values_;
  JsonValue* current_ = nullptr;
  std::string inner_key_;
  int depth_ = 0;
};

using TableRow = std::function<void(const std::string&, const std::string&, double)>;

class TableHandler final : public Handler {
 public:
  TableHandler(std::string name, const TableRow& row) : name_(std::move(name)), row_(row) {}

  bool start_object(std::size_t) { return ++depth_ <= 2 || not_a_table(); }
  bool end_object() {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) { return not_a_table(); }
  bool end_array() { return true; }
  bool key(std::string& name) {
    if (depth_ == 1) {
      query_ = name;
      documents_.clear();
      if (!queries_.insert(name).second)
        fail(Fault::bad_data, "{}: query '{}' is there twice", name_, name);
    } else {
      document_ = name;
      if (!documents_.insert(name).second)
        fail(Fault::bad_data, "{}: query '{}' has document '{}' twice", name_, query_, name);
    }
    return true;
  }

 private:
  bool not_a_table() {
    fail(Fault::bad_data,
         "{}: expected {{\"query\": {{\"document\": number}}}}, broken at query '{}'", name_,
         query_);
  }
  bool scalar(JsonValue::Kind kind, std::string text) override {
    auto value = parse_real(text);
    if (depth_ != 2 || kind != JsonValue::Kind::number || !value) return not_a_table();
    row_(query_, document_, *value);
    return true;
  }

  std::string name_, query_, document_;
  const TableRow& row_;
  std::set<std::string> queries_, documents_;
  int depth_ = 0;
};

std::string whole_file(const std::filesystem::path& path) {
  LineReader reader(path, {}, largest_json_file);  // usually all on one line
  std::string text;
  while (reader.next()) {
    if (reader.number() > 1) text.push_back('\n');
    text.append(reader.line());
    if (text.size() > largest_json_file)
      fail(Fault::bad_data, "{}: is larger than 1 GB; use one JSON object a line instead",
           reader.name());
  }
  return text;
}

// Position in a text -> line number, for messages about files parsed whole.
std::size_t line_of(const std::string& text, std::size_t position) {
  std::size_t line = 1;
  for (std::size_t i = 0; i + 1 < position && i < text.size(); ++i) line += text[i] == '\n';
  return line;
}

std::string squad_text(const Json& object, const char* key, const std::string& where) {
  auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end() || !found->is_string())
    fail(Fault::bad_data, "{}: \"{}\" is missing or not a text; is this a SQuAD file?", where, key);
  return found->get<std::string>();
}

const Json& squad_list(const Json& object, const char* key, const std::string& where) {
  if (!object.is_object() || !object.contains(key) || !object.at(key).is_array())
    fail(Fault::bad_data, "{}: \"{}\" is missing or not a list; is this a SQuAD file?", where, key);
  return object.at(key);
}

}  // namespace

void JsonRecord::parse(const LineReader& reader) {
  for (auto& value : values_) value = JsonValue{};
  RecordHandler handler(keys_, values_);
  std::string_view line = reader.line();
  bool good = Json::sax_parse(line.begin(), line.end(), &handler);
  if (!handler.error.empty())
    reader.reject("not valid JSON at column {}: {}", handler.error_column, handler.error);
  if (!good || !handler.object_seen)
    reader.reject("a JSON object {{...}} is expected on each line");
}

const std::string* JsonRecord::text(std::size_t first, std::size_t last,
                                    const LineReader& reader) const {
  for (std::size_t i = first; i < last; ++i) {
    if (values_[i].kind == JsonValue::Kind::absent) continue;
    if (values_[i].kind != JsonValue::Kind::text && values_[i].kind != JsonValue::Kind::number)
      reader.reject("\"{}\" is neither a text nor a number", keys_[i]);
    return &values_[i].text;
  }
  return nullptr;
}

void read_json_table(const std::filesystem::path& path, const TableRow& row) {
  std::string text = whole_file(path);
  TableHandler handler(path.string(), row);
  bool good = Json::sax_parse(text, &handler);
  if (!handler.error.empty())
    fail(Fault::bad_data, "{}:{}: not valid JSON: {}", path.string(),
         line_of(text, handler.error_column), handler.error);
  if (!good) fail(Fault::bad_data, "{}: not a JSON object of scores", path.string());
}

std::vector<SquadParagraph> read_squad(const std::filesystem::path& path) {
  std::string text = whole_file(path), name = path.string();
  Json root;
  try {
    root = Json::parse(text, [&](int depth, Json::parse_event_t, Json&) {
      if (depth > 32) fail(Fault::bad_data, "{}: nested more than 32 deep; not a SQuAD file", name);
      return true;
    });
  } catch (const Json::parse_error& error) {
    fail(Fault::bad_data, "{}:{}: not valid JSON: {}", name, line_of(text, error.byte),
         reason(error.what()));
  }
  std::vector<SquadParagraph> paragraphs;
  for (const Json& article : squad_list(root, "data", name)) {
    std::string title = squad_text(article, "title", name);
    std::string where = fmt::format("{}: article '{}'", name, title);
    std::size_t number = 0;
    for (const Json& entry : squad_list(article, "paragraphs", where)) {
      SquadParagraph paragraph{
          fmt::format("{}#{}", title, number++), squad_text(entry, "context", where), {}};
      for (const Json& question : squad_list(entry, "qas", where)) {
        auto impossible = question.is_object() ? question.find("is_impossible") : question.end();
        bool answerable = !question.is_object() || impossible == question.end() ||
                          !impossible->is_boolean() || !impossible->get<bool>();
        paragraph.questions.push_back({squad_text(question, "id", where),
                                       squad_text(question, "question", where), answerable});
      }
      paragraphs.push_back(std::move(paragraph));
    }
  }
  return paragraphs;
}

std::string json_quote(std::string_view text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace moe
