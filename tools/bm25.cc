// An inverted index searched term at a time: scores of all documents in one array, then the best k.
#include "tools/bm25.h"

#include "runtime/error.h"
#include "runtime/parallel.h"

#include <algorithm>
#include <cmath>

namespace moe {
namespace {

// Calls body(term) for each run of [a-z0-9] of the lower-cased text.
template <class Body>
void for_each_term(std::string_view text, std::string& term, const Body& body) {
  term.clear();
  for (char c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
      term.push_back(c);
    } else if (!term.empty()) {
      body(term);
      term.clear();
    }
  }
  if (!term.empty()) body(term);
}

}  // namespace

Bm25::Bm25(const std::vector<Document>& documents, const Bm25Options& options)
    : documents_(documents), options_(options) {
  check(options.k1 >= 0 && options.b >= 0 && options.b <= 1,
        "bm25: k1 {} must be >= 0, b {} in 0..1", options.k1, options.b);
  double total = 0;
  std::string term;
  for (std::size_t row = 0; row < documents.size(); ++row) {
    double length = 0;
    for_each_term(documents[row].full(), term, [&](const std::string& t) {
      auto [entry, fresh] = terms_.emplace(t, static_cast<std::uint32_t>(postings_.size()));
      if (fresh) postings_.emplace_back();
      auto& list = postings_[entry->second];
      if (list.empty() || list.back().row != row)
        list.push_back({static_cast<std::uint32_t>(row), 0.0f});
      list.back().frequency += 1.0f;
      length += 1;
    });
    saturation_.push_back(length);
    total += length;
  }
  double mean = total > 0 ? total / static_cast<double>(documents.size()) : 1;
  for (double& length : saturation_)
    length = options.k1 * (1 - options.b + options.b * length / mean);
}

std::vector<Bm25::Hit> Bm25::search(std::string_view query, Index k) const {
  std::vector<double> scores(documents_.size(), 0.0);
  double count = static_cast<double>(documents_.size());
  std::string term;
  for_each_term(query, term, [&](const std::string& t) {
    auto entry = terms_.find(t);
    if (entry == terms_.end()) return;
    const auto& list = postings_[entry->second];
    double holding = static_cast<double>(list.size());
    double idf = std::log1p((count - holding + 0.5) / (holding + 0.5));
    for (const Posting& posting : list) {
      double frequency = posting.frequency;
      scores[posting.row] += idf * frequency / (frequency + saturation_[posting.row]);
    }
  });
  std::vector<Hit> hits;
  for (std::size_t row = 0; row < scores.size(); ++row)
    if (scores[row] > 0) hits.push_back({static_cast<Index>(row), scores[row]});
  std::size_t kept = std::min(hits.size(), static_cast<std::size_t>(std::max<Index>(k, 0)));
  std::partial_sort(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(kept), hits.end(),
                    [&](const Hit& a, const Hit& b) {
                      return ranks_before(a.score, documents_[static_cast<std::size_t>(a.row)].id,
                                          b.score, documents_[static_cast<std::size_t>(b.row)].id);
                    });
  hits.resize(kept);
  return hits;
}

Run bm25_run(const Collection& collection, std::string_view split, Index k,
             const Bm25Options& options) {
  check(k > 0, "bm25: the number of documents to return must be above 0, not {}", k);
  check(!collection.documents.empty(), "bm25: {} was loaded without documents", collection.name);
  std::vector<Index> rows = collection.query_rows(split);
  Bm25 index(collection.documents, options);
  std::vector<std::vector<Bm25::Hit>> found(rows.size());
  parallel_for(static_cast<Index>(rows.size()), 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      auto query = static_cast<std::size_t>(rows[static_cast<std::size_t>(i)]);
      found[static_cast<std::size_t>(i)] = index.search(collection.queries[query].text, k);
    }
  });
  Run run;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto& ranking = run[collection.queries[static_cast<std::size_t>(rows[i])].id];
    for (const Bm25::Hit& hit : found[i])
      ranking.push_back({collection.documents[static_cast<std::size_t>(hit.row)].id, hit.score});
  }
  return run;
}

}  // namespace moe
