// Readers and writers of judgements and runs.
#include "tools/qrels.h"

#include "runtime/file.h"
#include "tools/json_lines.h"
#include "tools/line_reader.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <memory>
#include <optional>
#include <system_error>
#include <unordered_set>
#include <utility>

namespace moe {
namespace {

// Grades are small integers; "1.0", as some exports write them, is one too.
std::optional<int> parse_grade(std::string_view text) {
  auto value = parse_real(trimmed(text));
  if (!value || *value != std::floor(*value) || std::abs(*value) > 1e9) return std::nullopt;
  return static_cast<int>(*value);
}

bool is_json(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;  // a pipe cannot be read twice
  LineReader reader(path, {}, 1'000'000'000);
  while (reader.next()) {
    auto line = trimmed(reader.line());
    if (!line.empty()) return line.front() == '{';
  }
  return false;
}

Qrels read_json_qrels(const std::filesystem::path& path) {
  Qrels qrels;
  read_json_table(path, [&](const std::string& query, const std::string& document, double value) {
    if (value != std::floor(value) || std::abs(value) > 1e9)
      fail(Fault::bad_data, "{}: query '{}', document '{}': grade {} is not an integer",
           path.string(), query, document, value);
    qrels[query][document] = static_cast<int>(value);
  });
  return qrels;
}

Run read_json_run(const std::filesystem::path& path) {
  Run run;
  read_json_table(path, [&](const std::string& query, const std::string& document, double value) {
    run[query].push_back({document, value});
  });
  return run;
}

void refuse_blanks(const std::string& id, const char* what) {
  if (id.empty() || id.find_first_of(" \t\r\n\f\v") != std::string::npos)
    fail(
        Fault::bad_data,
        "{} id '{}' is empty or holds a blank, which the TREC format cannot carry; use JSON output",
        what, id);
}

// Gives `body` a function that takes text. Regular files appear whole or not at all; standard
// output, devices and pipes are written in place (a rename would replace the device).
template <class Body>
void write_whole(const std::filesystem::path& path, const Body& body) {
  std::error_code error;
  bool in_place =
      std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error);
  if (path != "-" && !in_place) {
    AtomicFile file(path.string());
    body([&](std::string_view text) { file.write(text); });
    return file.commit();
  }
  using Stream = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
  Stream stream = path == "-" ? Stream(stdout, std::fflush)
                              : Stream(std::fopen(path.c_str(), "wb"), std::fclose);
  if (!stream) fail(Fault::io, "{}: cannot be opened for writing", path.string());
  body([&](std::string_view text) { std::fwrite(text.data(), 1, text.size(), stream.get()); });
  if (std::fflush(stream.get()) != 0 || std::ferror(stream.get()))
    fail(Fault::io, "{}: write failed", path.string());
}

}  // namespace

Index judgement_count(const Qrels& qrels) {
  Index count = 0;
  for (const auto& [query, grades] : qrels) count += static_cast<Index>(grades.size());
  return count;
}

Qrels read_qrels(const std::filesystem::path& path) {
  if (is_json(path)) return read_json_qrels(path);
  Qrels qrels;
  std::vector<std::string_view> fields;
  bool first = true;
  for (LineReader reader(path); reader.next();) {
    if (trimmed(reader.line()).empty()) continue;
    split_tabs(reader.line(), fields);
    bool beir = fields.size() == 3;
    if (!beir) split_blanks(reader.line(), fields);
    if (!beir && fields.size() != 4)
      reader.reject(
          "expected query-id<tab>corpus-id<tab>score or 'query 0 document grade', found {} fields",
          fields.size());
    std::string_view query = fields[0], document = fields[beir ? 1 : 2];
    auto grade = parse_grade(fields.back());
    if (!grade && beir && std::exchange(first, false)) continue;  // the header line
    first = false;
    if (!grade) reader.reject("grade '{}' is not an integer", fields.back());
    if (query.empty() || document.empty()) reader.reject("a query or document id is empty");
    if (!qrels[std::string(query)].emplace(document, *grade).second)
      reader.reject("document '{}' is judged twice for query '{}'", document, query);
  }
  return qrels;
}

Run read_run(const std::filesystem::path& path) {
  if (is_json(path)) return read_json_run(path);
  Run run;
  std::map<std::string, std::unordered_set<std::string>, std::less<>> seen;
  std::vector<std::string_view> fields;
  std::string query;
  std::vector<ScoredDocument>* ranking = nullptr;
  std::unordered_set<std::string>* documents = nullptr;
  for (LineReader reader(path); reader.next();) {
    split_blanks(reader.line(), fields);
    if (fields.empty()) continue;
    if (fields.size() != 6)
      reader.reject("expected 'query Q0 document rank score tag', found {} fields", fields.size());
    auto score = parse_real(fields[4]);
    if (!score || std::isnan(*score)) reader.reject("score '{}' is not a number", fields[4]);
    if (!ranking || query != fields[0]) {
      query = fields[0];
      ranking = &run[query];
      documents = &seen[query];
    }
    ranking->push_back({std::string(fields[2]), *score});
    if (!documents->emplace(fields[2]).second)
      reader.reject("document '{}' is there twice for query '{}'", fields[2], query);
  }
  return run;
}

void write_trec_run(const std::filesystem::path& path, const Run& run, std::string_view tag) {
  refuse_blanks(std::string(tag), "run tag, as");
  write_whole(path, [&](const auto& out) {
    fmt::memory_buffer block;
    std::vector<const ScoredDocument*> order;
    for (const auto& [query, ranking] : run) {
      refuse_blanks(query, "query");
      order.clear();
      for (const auto& entry : ranking) order.push_back(&entry);
      std::sort(order.begin(), order.end(), [](const ScoredDocument* a, const ScoredDocument* b) {
        return ranks_before(a->score, a->document, b->score, b->document);
      });
      block.clear();
      for (std::size_t rank = 0; rank < order.size(); ++rank) {
        refuse_blanks(order[rank]->document, "document");
        fmt::format_to(std::back_inserter(block), "{} Q0 {} {} {:.9g} {}\n", query,
                       order[rank]->document, rank + 1, order[rank]->score, tag);
      }
      out(std::string_view(block.data(), block.size()));
    }
  });
}

void write_trec_qrels(const std::filesystem::path& path, const Qrels& qrels) {
  write_whole(path, [&](const auto& out) {
    for (const auto& [query, grades] : qrels) {
      refuse_blanks(query, "query");
      for (const auto& [document, grade] : grades) {
        refuse_blanks(document, "document");
        out(fmt::format("{} 0 {} {}\n", query, document, grade));
      }
    }
  });
}

void write_beir_qrels(const std::filesystem::path& path, const Qrels& qrels) {
  auto refuse_breaks = [](const std::string& id) {
    if (id.empty() || id.find_first_of("\t\r\n") != std::string::npos)
      fail(Fault::bad_data,
           "id '{}' is empty or holds a tab or line break: not possible in a TSV file", id);
  };
  write_whole(path, [&](const auto& out) {
    out("query-id\tcorpus-id\tscore\n");
    for (const auto& [query, grades] : qrels) {
      refuse_breaks(query);
      for (const auto& [document, grade] : grades) {
        refuse_breaks(document);
        out(fmt::format("{}\t{}\t{}\n", query, document, grade));
      }
    }
  });
}

}  // namespace moe
