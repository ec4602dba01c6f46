// Texts to embed, one after the other: a corpus or queries file that is streamed, lines on standard
// input, or the queries of a folder that has no file of them alone (cranfield, SQuAD, ...). Reading
// can go on from a position, except on standard input, which cannot be read twice.
#pragma once

#include "runtime/bytes.h"
#include "runtime/file.h"
#include "tools/dataset.h"
#include "tools/embedding_folder.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

namespace moe {

inline std::span<const std::byte> as_bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class TextSource {
 public:
  using Position = LineReader::Position;

  TextSource(const std::string& input, bool queries, Position start) {
    if (input == "-") {
      lines_.emplace("-");
      name_ = "standard input";
    } else if (queries && directory_exists(input)) {
      if (auto file = find_plain_or_gzip(input, "queries.jsonl")) {
        open(CorpusReader(*file, start));
      } else {
        collection_ = load_collection(input, {.documents = false});
        next_query_ = static_cast<std::size_t>(start.offset);
        name_ = input;
      }
    } else {
      open(CorpusReader(input, start));
    }
  }

  bool next(std::string& id, std::string& text) {
    if (reader_) {
      Document document;
      if (!reader_->next(document)) return false;
      id = std::move(document.id);
      document.id.clear();
      text = document.full();
      return true;
    }
    if (lines_) {
      if (!lines_->next()) return false;
      id = std::to_string(lines_->number());
      text = lines_->line();
      return true;
    }
    if (next_query_ >= collection_->queries.size()) return false;
    const Query& query = collection_->queries[next_query_++];
    id = query.id;
    text = query.text;
    return true;
  }

  // Where next() will go on. Not used for standard input, which cannot be read twice.
  Position position() const {
    if (reader_) return reader_->position();
    return {static_cast<std::int64_t>(next_query_), static_cast<std::int64_t>(next_query_)};
  }

  const std::string& name() const { return name_; }

  // Size and hash of what is read, and its number of texts where that is cheap to know (else 0).
  void identify(EmbeddingManifest& manifest, Index& total) const {
    manifest.source = name_;
    if (reader_) {
      MappedFile file(name_);
      manifest.source_bytes = static_cast<std::int64_t>(file.size());
      manifest.source_hash = content_hash({file.data(), file.size()});
      std::filesystem::path path(name_);
      if (path.extension() == ".jsonl" || path.extension() == ".tsv") {
        std::string_view text = as_text(file.data(), file.size());
        total = static_cast<Index>(std::count(text.begin(), text.end(), '\n')) +
                (text.empty() || text.back() == '\n' ? 0 : 1);
      }
    } else if (collection_) {
      std::string all;
      for (const Query& query : collection_->queries) all += query.id + "\t" + query.text + "\n";
      manifest.source_bytes = static_cast<std::int64_t>(all.size());
      manifest.source_hash = content_hash(as_bytes_of(all));
      total = static_cast<Index>(collection_->queries.size());
    }
  }

 private:
  void open(CorpusReader reader) {
    reader_.emplace(std::move(reader));
    name_ = reader_->name();
  }

  std::optional<CorpusReader> reader_;
  std::optional<LineReader> lines_;
  std::optional<Collection> collection_;
  std::size_t next_query_ = 0;
  std::string name_;
};

}  // namespace moe
