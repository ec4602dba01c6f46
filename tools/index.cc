// Blocks of documents meet blocks of queries in one product; each query keeps a bounded heap whose
// root is the worst hit kept, so most scores cost one comparison.
#include "tools/index.h"

#include "ops/ops.h"
#include "runtime/parallel.h"
#include "tools/signals.h"

#include <algorithm>
#include <numeric>

namespace moe {

namespace {

struct Better {
  std::span<const std::int32_t> ranks;
  bool operator()(const Hit& a, const Hit& b) const {
    if (a.score != b.score) return a.score > b.score;
    return ranks[static_cast<std::size_t>(a.row)] > ranks[static_cast<std::size_t>(b.row)];
  }
};

constexpr Index query_block = 256;

}  // namespace

std::vector<std::int32_t> tie_ranks(std::span<const std::string> ids) {
  std::vector<std::int32_t> order(ids.size()), ranks(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return ids[static_cast<std::size_t>(a)] < ids[static_cast<std::size_t>(b)];
  });
  for (std::size_t i = 0; i < order.size(); ++i)
    ranks[static_cast<std::size_t>(order[i])] = static_cast<std::int32_t>(i);
  return ranks;
}

std::vector<std::vector<Hit>> search(const Tensor& queries, Index documents,
                                     std::span<const std::int32_t> ranks,
                                     const SearchOptions& options,
                                     const std::function<Tensor(Index, Index)>& block) {
  check(options.k >= 1, "search: k must be at least 1, not {}", options.k);
  check(static_cast<Index>(ranks.size()) == documents, "search: {} tie ranks for {} documents",
        ranks.size(), documents);
  Index n = queries.rows();
  std::size_t k = static_cast<std::size_t>(std::min(options.k, documents));
  std::vector<std::vector<Hit>> kept(static_cast<std::size_t>(n));
  Better better{ranks};
  for (Index begin = 0; begin < documents && k > 0; begin += options.block) {
    throw_if_stopped();
    Index end = std::min(documents, begin + options.block);
    Tensor rows = block(begin, end);
    check(rows.cols() == queries.cols(), "search: documents have {} dimensions, queries {}",
          rows.cols(), queries.cols());
    for (Index q0 = 0; q0 < n; q0 += query_block) {
      Index q1 = std::min(n, q0 + query_block);
      std::vector<float> scores = to_host<float>(matmul_nt(queries.slice_rows(q0, q1), rows));
      Index width = end - begin;
      parallel_for(q1 - q0, 4, [&](Index from, Index to) {
        for (Index q = from; q < to; ++q) {
          auto& heap = kept[static_cast<std::size_t>(q0 + q)];
          const float* row = scores.data() + q * width;
          for (Index d = 0; d < width; ++d) {
            Hit hit{begin + d, row[d]};
            if (heap.size() < k) {
              heap.push_back(hit);
              std::push_heap(heap.begin(), heap.end(), better);
            } else if (row[d] >= heap.front().score && better(hit, heap.front())) {
              std::pop_heap(heap.begin(), heap.end(), better);
              heap.back() = hit;
              std::push_heap(heap.begin(), heap.end(), better);
            }
          }
        }
      });
    }
  }
  for (auto& heap : kept) std::sort_heap(heap.begin(), heap.end(), better);
  return kept;
}

Run to_run(const std::vector<std::vector<Hit>>& hits, std::span<const std::string> query_ids,
           std::span<const std::string> document_ids) {
  Run run;
  for (std::size_t q = 0; q < hits.size(); ++q) {
    auto& ranking = run[query_ids[q]];
    for (const Hit& hit : hits[q])
      ranking.push_back({document_ids[static_cast<std::size_t>(hit.row)], hit.score});
  }
  return run;
}

}  // namespace moe
