// moe-run tokenize: token ids and pieces of texts, from the command line or line by line from
// standard input. Lines are read, encoded and formatted in blocks, each block by all threads, so
// millions of them stream through.
#include "runtime/parallel.h"
#include "tools/commands.h"
#include "tools/json_lines.h"
#include "tools/signals.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cstdio>

namespace moe {

namespace {

struct Line {
  std::string text, error, out;
};

void append_ids(std::string& out, const std::vector<std::int32_t>& ids, const char* separator) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += separator;
    fmt::format_int digits(ids[i]);
    out.append(digits.data(), digits.size());
  }
}

std::string_view piece_of(const Tokenizer& tokenizer, std::int32_t id) {
  return tokenizer.token(id).value_or("?");
}

// --ids: "101 2054 102"; --json: {"ids":[...],"tokens":[...]}; else the pieces and below them the
// ids.
void format_line(const Tokenizer& tokenizer, const TokenizeCommand& command,
                 const std::vector<std::int32_t>& ids, std::string& out) {
  if (command.common.json) {
    out += "{\"ids\":[";
    append_ids(out, ids, ",");
    out += "]";
    if (!command.ids) {
      out += ",\"tokens\":[";
      for (std::size_t i = 0; i < ids.size(); ++i) {
        if (i > 0) out += ',';
        out += json_quote(piece_of(tokenizer, ids[i]));
      }
      out += "]";
    }
    out += "}\n";
    return;
  }
  if (!command.ids) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) out += ' ';
      out += piece_of(tokenizer, ids[i]);
    }
    out += '\n';
  }
  append_ids(out, ids, " ");
  out += '\n';
}

// `line.text` holds a JSON string; afterwards the text itself.
void parse_json_text(Line& line) {
  nlohmann::json json = nlohmann::json::parse(line.text, nullptr, false);
  if (json.is_string())
    line.text = std::move(json.get_ref<std::string&>());
  else
    line.error =
        json.is_discarded() ? "not valid JSON" : "a JSON string is expected, not another value";
}

void write_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size())
    fail(Fault::io, "writing to standard output failed");
}

void encode_block(const Tokenizer& tokenizer, const TokenizeCommand& command,
                  std::vector<Line>& block) {
  Index limit = command.max_length > 0 ? command.max_length : Tokenizer::unlimited;
  parallel_for(static_cast<Index>(block.size()), 16, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      Line& line = block[static_cast<std::size_t>(i)];
      if (command.json_input) parse_json_text(line);
      line.out.clear();
      if (line.error.empty())
        format_line(tokenizer, command, tokenizer.encode(line.text, limit, !command.no_special),
                    line.out);
    }
  });
}

void tokenize_lines(const Tokenizer& tokenizer, const TokenizeCommand& command) {
  constexpr std::size_t most_lines = 8192, most_bytes = std::size_t{16} << 20;
  LineReader reader("-");
  std::vector<Line> block;
  std::int64_t before = 0;  // lines in earlier blocks
  bool more = true;
  while (more) {
    throw_if_stopped();
    block.clear();
    std::size_t bytes = 0;
    while (block.size() < most_lines && bytes < most_bytes && (more = reader.next())) {
      block.push_back({std::string(reader.line()), {}, {}});
      bytes += reader.line().size();
    }
    encode_block(tokenizer, command, block);
    for (std::size_t i = 0; i < block.size(); ++i) {
      if (!block[i].error.empty())
        fail(Fault::bad_data, "{}:{}: {}", reader.name(), before + static_cast<std::int64_t>(i) + 1,
             block[i].error);
      write_out(block[i].out);
    }
    before += static_cast<std::int64_t>(block.size());
  }
}

}  // namespace

int run_tokenize(const TokenizeCommand& command) {
  check(command.max_length >= 0, "--max-length must not be negative");
  auto tokenizer = load_wordpiece(command.model);
  if (command.info) {
    if (command.common.json)
      fmt::print("{{\"info\":{},\"vocabulary\":{}}}\n", json_quote(tokenizer->info()),
                 tokenizer->vocab_size());
    else
      fmt::print("{}", tokenizer->info());
    return 0;
  }
  if (command.text.empty()) {
    tokenize_lines(*tokenizer, command);
    return 0;
  }
  std::vector<Line> block;
  for (const std::string& text : command.text) block.push_back({text, {}, {}});
  encode_block(*tokenizer, command, block);
  for (const Line& line : block) {
    check(line.error.empty(), "'{}': {}", line.text, line.error);
    write_out(line.out);
  }
  return 0;
}

}  // namespace moe
