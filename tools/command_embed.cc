// moe-run embed: streams texts through the encoder into a folder of embeddings, in bounded memory.
//
// A step is `chunk` texts. After each, in this order, everything that far is durable: rows appended
// to embeddings.npy.partial and ids to ids.txt.partial, then progress.json (this step and the one
// before), then the row count in the array's header. Whatever moment the process dies at, the
// header names one of the two steps, and the run continues there; a text's row does not depend on
// its batch, so the files end up the same.
#include "runtime/bytes.h"
#include "runtime/strict_json.h"
#include "tools/commands.h"
#include "tools/embedding.h"
#include "tools/embedding_folder.h"
#include "tools/progress.h"
#include "tools/signals.h"
#include "tools/text_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

namespace moe {

namespace {

using Json = nlohmann::ordered_json;
using Position = LineReader::Position;

// The state after a whole number of chunks.
struct Step {
  Index count = 0, tokens = 0;
  std::int64_t ids_bytes = 0;
  Position position;
  std::string hash;  // chain over the chunks: content_hash(hash before + hash of the chunk's rows)
};

Json to_json(const Step& s) {
  return {{"count", s.count},         {"tokens", s.tokens},
          {"ids_bytes", s.ids_bytes}, {"offset", s.position.offset},
          {"line", s.position.line},  {"hash", s.hash}};
}

Step step_from(const nlohmann::json& json) {
  Step s;
  json.at("count").get_to(s.count);
  json.at("tokens").get_to(s.tokens);
  json.at("ids_bytes").get_to(s.ids_bytes);
  json.at("offset").get_to(s.position.offset);
  json.at("line").get_to(s.position.line);
  json.at("hash").get_to(s.hash);
  return s;
}

std::string chained(const std::string& before, const void* rows, std::size_t bytes) {
  return content_hash(
      as_bytes_of(before + content_hash({static_cast<const std::byte*>(rows), bytes})));
}

struct Paths {
  std::string array, array_partial, ids, ids_partial, manifest, progress;
  explicit Paths(const std::string& out)
      : array(out + "/embeddings.npy"),
        array_partial(array + ".partial"),
        ids(out + "/ids.txt"),
        ids_partial(ids + ".partial"),
        manifest(out + "/manifest.json"),
        progress(out + "/progress.json") {}
};

void remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0) {
    if (errno != ENOENT) fail_system("remove", path, errno);
    return;
  }
  sync_directory(folder_of(path));
}

// The folder being written: its files, the last durable step, and how to go on from it.
class Output {
 public:
  Output(const EmbedCommand& command, const EmbeddingManifest& wanted)
      : paths_(command.out), wanted_(wanted), chunk_(command.chunk) {
    make_directories(command.out);
    bool resume = !command.no_resume && !wanted.source_hash.empty() && file_exists(paths_.progress);
    if (!resume) remove_file(paths_.progress);
    // A run that died while finishing has renamed files already: back, so there is one way on.
    if (resume && !file_exists(paths_.array_partial) && file_exists(paths_.array))
      rename_durably(paths_.array, paths_.array_partial);
    if (resume && !file_exists(paths_.ids_partial) && file_exists(paths_.ids))
      rename_durably(paths_.ids, paths_.ids_partial);
    rows_.emplace(paths_.array, wanted.dim, resume);
    if (resume) restore();
    int flags = O_RDWR | O_CREAT | (resume ? 0 : O_TRUNC);
    ids_ = Descriptor(open_to_write(paths_.ids_partial, flags));
    if (ids_.get() < 0) fail_system("open", paths_.ids_partial, errno);
    if (resume) verify();
    if (::ftruncate(ids_.get(), step_.ids_bytes) != 0 ||
        ::lseek(ids_.get(), step_.ids_bytes, SEEK_SET) < 0)
      fail_system("write", paths_.ids_partial, errno);
  }

  const Step& step() const { return step_; }

  void append(const std::vector<float>& rows, const std::string& ids, Index tokens,
              Position position) {
    Step next = step_;
    next.count += static_cast<Index>(rows.size()) / wanted_.dim;
    next.tokens += tokens;
    next.ids_bytes += static_cast<std::int64_t>(ids.size());
    next.position = position;
    next.hash = chained(step_.hash, rows.data(), rows.size() * sizeof(float));
    rows_->append(rows.data(), next.count - step_.count);
    write_fully(ids_.get(), ids.data(), ids.size(), paths_.ids_partial);
    sync_fully(ids_.get(), paths_.ids_partial);
    if (!wanted_.source_hash.empty()) {
      Json json{{"format", 1},
                {"chunk", chunk_},
                {"run", Json::parse(moe::to_json(wanted_))},
                {"steps", {to_json(step_), to_json(next)}}};
      write_file_atomically(paths_.progress, json.dump(1) + "\n");
    }
    rows_->save();
    step_ = next;
  }

  // The manifest vouches for the two files, so the old one goes before and the new one comes after
  // them.
  EmbeddingManifest finish() {
    sync_fully(ids_.get(), paths_.ids_partial);
    remove_file(paths_.manifest);
    rows_->finish();
    rename_durably(paths_.ids_partial, paths_.ids);
    EmbeddingManifest manifest = wanted_;
    manifest.count = step_.count;
    manifest.embeddings_hash = hash_of(paths_.array);
    manifest.ids_hash = hash_of(paths_.ids);
    write_file_atomically(paths_.manifest, moe::to_json(manifest));
    remove_file(paths_.progress);
    return manifest;
  }

 private:
  static std::string hash_of(const std::string& path) {
    MappedFile file(path);
    return content_hash({file.data(), file.size()});
  }

  [[noreturn]] void refuse(const std::string& reason) const {
    fail(Fault::usage,
         "{}: the unfinished run there cannot be continued: {}.\n"
         "Start over with --no-resume, or choose another --out.",
         paths_.progress, reason);
  }

  // The step of progress.json that the array's header confirms.
  void restore() {
    nlohmann::json json =
        parse_json(read_text_file(paths_.progress, std::size_t{1} << 20), paths_.progress);
    try {
      check(json.at("format") == 1, "{}: format {} is not known to this version", paths_.progress,
            json.at("format").dump());
      EmbeddingManifest old = manifest_from_json(json.at("run").dump(), paths_.progress);
      std::string differs = differences(old, wanted_);
      if (!differs.empty()) refuse("it was made with " + differs);
      if (old.kind != wanted_.kind || old.prompt != wanted_.prompt ||
          old.device != wanted_.device || old.max_length != wanted_.max_length)
        refuse(fmt::format("it was made with --kind {}, prompt '{}', max length {}, device {}",
                           old.kind, old.prompt, old.max_length, old.device));
      if (old.source_hash != wanted_.source_hash) refuse("the texts have changed since");
      if (json.at("chunk") != chunk_)
        refuse(fmt::format("--chunk was {}", json.at("chunk").dump()));
      if (rows_->rows() == 0) return;
      for (const auto& entry : json.at("steps"))
        if (Step s = step_from(entry); s.count == rows_->rows()) {
          step_ = s;
          return;
        }
    } catch (const nlohmann::json::exception& e) {
      fail(Fault::bad_data, "{}: not a state of this program: {}.\nStart over with --no-resume.",
           paths_.progress, e.what());
    }
    refuse(fmt::format("it says nothing about {} rows", rows_->rows()));
  }

  // The bytes on disk are those that were written: the chain of hashes, and the length of the ids.
  void verify() const {
    MappedFile array(paths_.array_partial), ids(paths_.ids_partial);
    std::size_t row = static_cast<std::size_t>(wanted_.dim) * sizeof(float);
    std::size_t bytes = static_cast<std::size_t>(step_.count) * row,
                piece = static_cast<std::size_t>(chunk_) * row;
    // The writer has checked the header: 8 bytes of magic, u16 length, that many bytes, then the
    // rows.
    std::size_t begin = 10 + std::size_t{load_little<std::uint16_t>(array.data() + 8)};
    bool whole =
        array.size() >= begin + bytes && ids.size() >= static_cast<std::size_t>(step_.ids_bytes);
    std::string hash;
    for (std::size_t at = 0; whole && at < bytes; at += piece)
      hash = chained(hash, array.data() + begin + at, std::min(piece, bytes - at));
    if (!whole || hash != step_.hash) refuse("its files are damaged");
  }

  Paths paths_;
  EmbeddingManifest wanted_;
  Index chunk_;
  std::optional<NpyWriter> rows_;
  Descriptor ids_{-1};
  Step step_;
};

void print_json(const EmbeddingManifest& manifest, double seconds, Index embedded, Index tokens) {
  Json json = Json::parse(moe::to_json(manifest));
  json["seconds"] = seconds;
  json["embedded"] = embedded;
  json["tokens"] = tokens;
  fmt::print("{}\n", json.dump());
}

// True when OUT already holds what was asked for. A finished folder of anything else is not
// overwritten unasked.
bool already_there(const EmbedCommand& command, const EmbeddingManifest& wanted) {
  Paths paths(command.out);
  if (command.no_resume || file_exists(paths.progress) || !file_exists(paths.manifest))
    return false;
  EmbeddingManifest old =
      manifest_from_json(read_text_file(paths.manifest, std::size_t{1} << 20), paths.manifest);
  bool same = differences(old, wanted).empty() && old.kind == wanted.kind &&
              old.prompt == wanted.prompt && old.max_length == wanted.max_length &&
              old.source_hash == wanted.source_hash && !wanted.source_hash.empty();
  if (!same)
    fail(Fault::usage,
         "{}: holds finished embeddings of other texts, another model or other settings.\n"
         "Replace them with --no-resume, or choose another --out.",
         command.out);
  EmbeddingFolder whole(command.out);  // throws when files are missing or cut
  if (command.common.json) print_json(whole.manifest(), 0, 0, 0);
  return true;
}

struct Chunk {
  std::string ids;
  std::vector<std::vector<std::int32_t>> tokens;
  Index token_count = 0;
};

// Texts are tokenised in small groups and dropped, so a chunk holds token ids only, max_length
// each.
Chunk read_chunk(TextSource& source, const TextEncoder& encoder, const EmbedCommand& command,
                 const std::string& prompt) {
  constexpr std::size_t group_texts = 1024, group_bytes = std::size_t{64} << 20;
  Chunk chunk;
  std::vector<std::string> group;
  std::size_t bytes = 0;
  auto flush = [&] {
    for (auto& tokens : tokenize_all(encoder, group)) {
      chunk.token_count += static_cast<Index>(tokens.size());
      chunk.tokens.push_back(std::move(tokens));
    }
    group.clear();
    bytes = 0;
  };
  std::string id, text;
  while (static_cast<Index>(chunk.tokens.size() + group.size()) < command.chunk &&
         source.next(id, text)) {
    chunk.ids += id + "\n";
    bytes += text.size();
    group.push_back(prompt + text);
    if (group.size() == group_texts || bytes >= group_bytes) flush();
  }
  flush();
  return chunk;
}

// Damaged weights show here, not hours later in a search.
void refuse_nan(const std::vector<float>& rows, const Chunk& chunk, std::size_t dim) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!std::isfinite(rows[i])) {
      std::size_t line = 0;
      for (std::size_t text = 0; text < i / dim; ++text) line = chunk.ids.find('\n', line) + 1;
      fail(Fault::bad_data,
           "the vector of text '{}' is not finite: the model's weights hold NaN or infinity, or "
           "overflow.\n"
           "Check the model with `moe-run inspect FOLDER --tensors --hash`.",
           chunk.ids.substr(line, chunk.ids.find('\n', line) - line));
    }
}

}  // namespace

int run_embed(const EmbedCommand& command) {
  check(command.chunk > 0 && command.batch_tokens > 0,
        "--chunk and --batch-tokens must be positive");
  check(command.kind == "document" || command.kind == "query",
        "--kind is document or query, not '{}'", command.kind);
  bool query = command.kind == "query";
  std::optional<TextSource> source;
  source.emplace(command.input, query, Position{});  // first: a missing input shows at once
  auto encoder =
      TextEncoder::load(command.model.model, encoder_options(command.model, command.common));
  EmbeddingManifest wanted =
      manifest_of(*encoder, command.model.model, command.kind, command.common.seed);
  Index total = 0;
  source->identify(wanted, total);
  notice(fmt::format("{}: {} vectors of {}, pooling {} ({}), {}max length {} ({})", source->name(),
                     command.kind, wanted.dim, wanted.pooling, encoder->config().pooling_source,
                     wanted.normalize ? "unit length, " : "", wanted.max_length,
                     encoder->config().max_length_source));
  if (already_there(command, wanted)) {
    notice(
        fmt::format("{}: already complete, nothing to do (--no-resume embeds again)", command.out));
    return 0;
  }
  Output output(command, wanted);
  Index before = output.step().count, tokens_before = output.step().tokens;
  if (before > 0) {
    notice(fmt::format("continuing after {} texts", before));
    source.emplace(command.input, query, output.step().position);
  }
  Progress progress("embed", total, "texts");
  progress.update(before);
  EmbedOptions options;
  options.batch_tokens = command.batch_tokens;
  try {
    while (true) {
      throw_if_stopped();
      Chunk chunk = read_chunk(*source, *encoder, command, wanted.prompt);
      if (chunk.tokens.empty()) break;
      Index done = output.step().count;
      options.seed =
          command.common.seed + static_cast<std::uint64_t>(done);  // random routing: new draws
      options.progress = [&](Index n) { progress.update(done + n); };
      std::vector<float> rows = embed_tokens(*encoder, chunk.tokens, options);
      refuse_nan(rows, chunk, static_cast<std::size_t>(wanted.dim));
      output.append(rows, chunk.ids, chunk.token_count, source->position());
    }
  } catch (const Interrupted&) {
    progress.finish();
    if (!wanted.source_hash.empty())
      notice(fmt::format("stopped; {} texts are safe in {}: run the same command again to continue",
                         output.step().count, command.out));
    throw;
  }
  double seconds = progress.seconds();
  EmbeddingManifest manifest = output.finish();
  double texts = static_cast<double>(manifest.count - before);
  Index tokens = output.step().tokens - tokens_before;
  progress.finish(fmt::format("{} texts in {}: {:.1f} texts/s, {:.0f} tokens/s; {}", manifest.count,
                              human_seconds(seconds), texts / std::max(seconds, 1e-9),
                              static_cast<double>(tokens) / std::max(seconds, 1e-9), command.out));
  if (command.common.json) print_json(manifest, seconds, manifest.count - before, tokens);
  return 0;
}

}  // namespace moe
