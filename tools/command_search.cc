// moe-run search: exact top-k over a folder of embeddings. Queries come embedded, as texts to
// embed, or from the command line; results go out as a TREC run, as JSON lines, or in words.
#include "runtime/file.h"
#include "tools/commands.h"
#include "tools/dataset.h"
#include "tools/embedding.h"
#include "tools/embedding_folder.h"
#include "tools/index.h"
#include "tools/progress.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <unordered_map>

namespace moe {

namespace {

struct Queries {
  std::vector<std::string> ids, texts;  // texts stay empty with ready embeddings
  Tensor vectors;                       // (n,D)
};

Queries read_queries(const SearchCommand& command) {
  Queries q;
  if (!command.text.empty()) {
    q.texts = command.text;
    for (std::size_t i = 0; i < q.texts.size(); ++i) q.ids.push_back(std::to_string(i + 1));
  } else if (directory_exists(command.queries)) {
    LoadOptions load;
    load.documents = false;
    if (!command.split.empty()) load.splits = {command.split};
    Collection collection = load_collection(command.queries, load);
    for (const auto& warning : collection.warnings) notice("warning: " + warning);
    if (command.split.empty()) {
      for (Query& query : collection.queries) {
        q.ids.push_back(std::move(query.id));
        q.texts.push_back(std::move(query.text));
      }
    } else {
      for (Index row : collection.query_rows(command.split)) {
        const Query& query = collection.queries[static_cast<std::size_t>(row)];
        q.ids.push_back(query.id);
        q.texts.push_back(query.text);
      }
    }
  } else {
    check(command.split.empty(),
          "--split needs --queries to be a folder with judgements, not a file");
    CorpusReader reader(command.queries);
    for (Document record; reader.next(record);) {
      q.ids.push_back(record.id);
      q.texts.push_back(record.full());
    }
  }
  return q;
}

void warn_if_different(const EmbeddingManifest& index, const EmbeddingManifest& queries,
                       const std::string& what) {
  std::string differs = differences(index, queries);
  if (!differs.empty())
    notice(fmt::format("warning: the index was made with {} ({}). Scores mean little.", differs,
                       what));
}

Queries embed_queries(const SearchCommand& command, const EmbeddingFolder& index) {
  if (!command.query_embeddings.empty()) {
    EmbeddingFolder folder(command.query_embeddings);
    warn_if_different(index.manifest(), folder.manifest(), command.query_embeddings);
    if (folder.manifest().kind != "query")
      notice(fmt::format(
          "warning: {} was made with --kind {}: its texts have not been given the query prompt",
          command.query_embeddings, folder.manifest().kind));
    Queries q;
    q.ids = folder.ids();
    q.vectors = folder.block(0, folder.rows(), parse_device(command.common.device));
    return q;
  }
  Queries q = read_queries(command);
  auto encoder =
      TextEncoder::load(command.model.model, encoder_options(command.model, command.common));
  EmbeddingManifest mine = manifest_of(*encoder, command.model.model, "query", command.common.seed);
  warn_if_different(index.manifest(), mine, command.model.model);
  std::vector<std::string> texts;
  for (const std::string& text : q.texts) texts.push_back(mine.prompt + text);
  Progress progress("embed", static_cast<Index>(texts.size()), "queries");
  EmbedOptions options;
  options.seed = command.common.seed;
  options.progress = [&](Index n) { progress.update(n); };
  std::vector<float> vectors = embed_texts(*encoder, texts, options);
  progress.finish();
  q.vectors =
      from_host(vectors, {static_cast<Index>(texts.size()), encoder->size()}, encoder->device());
  return q;
}

using Hits = std::vector<std::vector<Hit>>;

// Title and text of the documents that were found, by one pass over the corpus.
std::unordered_map<std::string, Document> found_documents(const std::string& data, const Hits& hits,
                                                          const std::vector<std::string>& ids) {
  std::unordered_map<std::string, Document> found;
  for (const auto& ranking : hits)
    for (const Hit& hit : ranking) found[ids[static_cast<std::size_t>(hit.row)]];
  CorpusReader reader(data);
  std::size_t missing = found.size();
  for (Document document; missing > 0 && reader.next(document);)
    if (auto at = found.find(document.id); at != found.end() && at->second.id.empty()) {
      at->second = document;
      --missing;
    }
  if (missing > 0)
    notice(fmt::format(
        "warning: {} of {} results are not in {}: is it the collection that was embedded?", missing,
        found.size(), data));
  return found;
}

// The first words, at most `width` bytes, cut at a blank where there is one; line breaks and
// control bytes become blanks, so that a text cannot write to the terminal.
std::string first_words(const std::string& text, std::size_t width) {
  std::string line;
  for (char c : text) {
    bool blank = static_cast<unsigned char>(c) <= 0x20 || c == 0x7f;
    if (!blank)
      line += c;
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
    if (line.size() > width) break;
  }
  if (line.size() <= width) return line;
  std::size_t end = line.rfind(' ', width);
  if (end == std::string::npos || end < width / 2)
    for (end = width; end > 0 && (static_cast<unsigned char>(line[end]) & 0xC0u) == 0x80u;) --end;
  return line.substr(0, end) + "...";
}

void print_words(const SearchCommand& command, const Queries& queries, const Hits& hits,
                 const std::vector<std::string>& ids) {
  std::unordered_map<std::string, Document> documents;
  if (!command.data.empty()) documents = found_documents(command.data, hits, ids);
  bool json = command.common.json;
  for (std::size_t q = 0; q < hits.size(); ++q) {
    if (!json && hits.size() > 1) fmt::print("{}{}\n", q > 0 ? "\n" : "", queries.texts[q]);
    for (std::size_t rank = 0; rank < hits[q].size(); ++rank) {
      const Hit& hit = hits[q][rank];
      const std::string& id = ids[static_cast<std::size_t>(hit.row)];
      auto at = documents.find(id);
      Document document = at == documents.end() ? Document{} : at->second;
      if (json) {
        fmt::print("{{\"query\":{},\"rank\":{},\"id\":{},\"score\":{:.9g}",
                   json_quote(queries.texts[q]), rank + 1, json_quote(id), hit.score);
        if (at != documents.end())
          fmt::print(",\"title\":{},\"text\":{}", json_quote(document.title),
                     json_quote(document.text));
        fmt::print("}}\n");
        continue;
      }
      fmt::print("{:>4}  {:>8.4f}  {}", rank + 1, hit.score, id);
      if (!document.title.empty()) fmt::print("  {}", first_words(document.title, 100));
      fmt::print("\n");
      if (!document.text.empty())
        fmt::print("                {}\n", first_words(document.text, 100));
    }
  }
}

void print_json_run(const Queries& queries, const Hits& hits, const std::vector<std::string>& ids) {
  for (std::size_t q = 0; q < hits.size(); ++q)
    for (std::size_t rank = 0; rank < hits[q].size(); ++rank)
      fmt::print("{{\"query\":{},\"rank\":{},\"id\":{},\"score\":{:.9g}}}\n",
                 json_quote(queries.ids[q]), rank + 1,
                 json_quote(ids[static_cast<std::size_t>(hits[q][rank].row)]), hits[q][rank].score);
}

// A document twice in a ranking would be counted twice.
void refuse_duplicates(const std::vector<std::string>& ids, std::span<const std::int32_t> ranks,
                       const std::string& folder) {
  std::vector<std::size_t> order(ids.size());
  for (std::size_t row = 0; row < ids.size(); ++row)
    order[static_cast<std::size_t>(ranks[row])] = row;
  for (std::size_t i = 1; i < order.size(); ++i)
    if (ids[order[i]] == ids[order[i - 1]])
      fail(Fault::bad_data,
           "{}/ids.txt: lines {} and {} hold the same id '{}'.\nGive every text its own id and "
           "embed again.",
           folder, std::min(order[i], order[i - 1]) + 1, std::max(order[i], order[i - 1]) + 1,
           ids[order[i]]);
}

// NaN has no place in an order; it comes from damaged weights or files, never from a text.
void refuse_nan(const Hits& hits, const std::string& folder) {
  for (const auto& ranking : hits)
    for (const Hit& hit : ranking)
      if (std::isnan(hit.score))
        fail(Fault::bad_data,
             "a score is not a number: {} or the query vectors hold NaN or infinity.\nEmbed again.",
             folder);
}

}  // namespace

int run_search(const SearchCommand& command) {
  int sources =
      !command.queries.empty() + !command.query_embeddings.empty() + !command.text.empty();
  check(sources == 1,
        "search needs one of: --queries FOLDER|FILE, --query-embeddings FOLDER, --text TEXT");
  check(!command.query_embeddings.empty() || !command.model.model.empty(),
        "search needs --model FOLDER to embed the queries (or --query-embeddings FOLDER)");
  check(command.k > 0 && command.block > 0, "-k and --block must be positive");
  check(command.data.empty() || !command.text.empty(), "--data shows texts beside --text queries");
  EmbeddingFolder index(command.index);
  if (index.manifest().kind == "query")
    notice(fmt::format("warning: {} holds queries (--kind query)", command.index));
  std::vector<std::int32_t> ranks = tie_ranks(index.ids());
  refuse_duplicates(index.ids(), ranks, command.index);
  Queries queries = embed_queries(command, index);
  if (queries.vectors.cols() != index.cols())
    fail(Fault::bad_data,
         "the index {} holds vectors of {}, the queries have {}: they are of different models",
         command.index, index.cols(), queries.vectors.cols());

  auto start = std::chrono::steady_clock::now();
  Progress progress("search", index.rows(), "documents");
  Device device = queries.vectors.device();
  Hits hits = search(queries.vectors, index.rows(), ranks, {.k = command.k, .block = command.block},
                     [&](Index begin, Index end) {
                       progress.update(begin);
                       return index.block(begin, end, device);
                     });
  refuse_nan(hits, command.index);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  progress.finish(fmt::format("{} queries against {} documents in {}", queries.ids.size(),
                              index.rows(), human_seconds(seconds)));
  if (!command.text.empty() && command.out == "-") {
    print_words(command, queries, hits, index.ids());
  } else if (command.common.json && command.out == "-") {
    print_json_run(queries, hits, index.ids());
  } else {
    std::fflush(stdout);
    write_trec_run(command.out, to_run(hits, queries.ids, index.ids()), command.tag);
    if (command.common.json)
      fmt::print("{{\"run\":{},\"queries\":{},\"documents\":{},\"seconds\":{:.6f}}}\n",
                 json_quote(command.out), queries.ids.size(), index.rows(), seconds);
  }
  return 0;
}

}  // namespace moe
