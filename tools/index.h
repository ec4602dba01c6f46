// Exact search: dot product of every query with every document, blocked, keeping the k best. The
// rank order is trec_eval's (score descending, then document id descending byte by byte), so a run
// needs no later sorting.
#pragma once

#include "runtime/tensor.h"
#include "tools/qrels.h"

#include <functional>
#include <span>
#include <string>
#include <vector>

namespace moe {

struct Hit {
  Index row;
  float score;
};

struct SearchOptions {
  Index k = 100;
  Index block = 4096;  // documents per block; results do not depend on it
};

// rank[row] orders equal scores: higher rank first. Document ids sorted ascending give it.
std::vector<std::int32_t> tie_ranks(std::span<const std::string> ids);

// Documents come block by block: block(begin, end) returns rows begin..end-1 as a (n,D) f32 tensor
// on the device of `queries`. Result: one list per query, best first.
std::vector<std::vector<Hit>> search(const Tensor& queries, Index documents,
                                     std::span<const std::int32_t> ranks,
                                     const SearchOptions& options,
                                     const std::function<Tensor(Index, Index)>& block);

Run to_run(const std::vector<std::vector<Hit>>& hits, std::span<const std::string> query_ids,
           std::span<const std::string> document_ids);

}  // namespace moe
