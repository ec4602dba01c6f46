#include "tools/batch.h"

#include "runtime/random.h"

#include <algorithm>
#include <numeric>

namespace moe {

namespace {

std::vector<std::vector<Index>> cut(std::span<const Index> order,
                                    std::span<const std::int32_t> lengths,
                                    const BatchLimits& limits) {
  std::vector<std::vector<Index>> batches;
  Index tokens = 0;
  for (Index item : order) {
    Index length = lengths[static_cast<std::size_t>(item)];
    bool full = batches.empty() || static_cast<Index>(batches.back().size()) >= limits.rows ||
                (limits.tokens > 0 && tokens + length > limits.tokens);
    if (full) {
      batches.emplace_back();
      tokens = 0;
    }
    batches.back().push_back(item);
    tokens += length;
  }
  return batches;
}

}  // namespace

std::vector<std::vector<Index>> plan_epoch(std::span<const std::int32_t> lengths,
                                           const BatchLimits& limits, std::uint64_t seed,
                                           Index epoch) {
  Index n = static_cast<Index>(lengths.size());
  std::uint64_t key = mix64(seed ^ mix64(stream_hash("epoch") + static_cast<std::uint64_t>(epoch)));
  std::vector<Index> order(lengths.size());
  for (Index i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = permuted(i, n, key);
  std::size_t window = static_cast<std::size_t>(std::max<Index>(limits.window, 1) * limits.rows);
  std::vector<std::vector<Index>> batches;
  for (std::size_t begin = 0; begin < order.size(); begin += window) {
    std::span<Index> part(order.data() + begin, std::min(window, order.size() - begin));
    if (limits.window > 1)
      std::stable_sort(part.begin(), part.end(), [&](Index a, Index b) {
        return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
      });
    for (auto& batch : cut(part, lengths, limits)) batches.push_back(std::move(batch));
  }
  std::vector<std::vector<Index>> shuffled(batches.size());
  for (std::size_t i = 0; i < batches.size(); ++i)
    shuffled[static_cast<std::size_t>(
        permuted(static_cast<Index>(i), static_cast<Index>(batches.size()), mix64(key)))] =
        std::move(batches[i]);
  if (limits.drop_last)
    std::erase_if(shuffled, [](const std::vector<Index>& batch) { return batch.size() < 2; });
  return shuffled;
}

std::vector<std::vector<Index>> plan_by_length(std::span<const std::int32_t> lengths,
                                               const BatchLimits& limits) {
  std::vector<Index> order(lengths.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
  });
  return cut(order, lengths, limits);
}

}  // namespace moe
