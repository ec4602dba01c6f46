// BM25, the lexical baseline (Robertson and Zaragoza, 2009, with Lucene's idf, which is never
// negative), N documents, df of them with the term, tf times in document d:
//   score(q, d) = sum over the terms t of q, repeated ones counted again, of
//                 idf(t) tf / (tf + k1 (1 - b + b length(d) / mean length))
//   idf(t)      = ln(1 + (N - df + .5) / (df + .5))
// Terms are the runs of [a-z0-9] in the lower-cased text (ASCII); no stemming, no stop words.
#pragma once

#include "tools/dataset.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moe {

struct Bm25Options {
  double k1 = 0.9, b = 0.4;
};

class Bm25 {
 public:
  // `documents` must outlive the index, which keeps a reference to their ids.
  explicit Bm25(const std::vector<Document>& documents, const Bm25Options& options = {});

  struct Hit {
    Index row = 0;
    double score = 0;
  };
  // The k best documents that share a term with the query, in trec_eval's order (score, then id,
  // descending).
  std::vector<Hit> search(std::string_view query, Index k) const;

 private:
  struct Posting {
    std::uint32_t row;
    float frequency;
  };

  const std::vector<Document>& documents_;
  Bm25Options options_;
  std::unordered_map<std::string, std::uint32_t> terms_;
  std::vector<std::vector<Posting>> postings_;  // by term, rows ascending
  std::vector<double> saturation_;              // by row: k1 (1 - b + b length / mean length)
};

// The queries of one split; documents and queries must be loaded. Does not depend on the number of
// threads.
Run bm25_run(const Collection& collection, std::string_view split, Index k,
             const Bm25Options& options = {});

}  // namespace moe
