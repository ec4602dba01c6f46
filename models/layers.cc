#include "models/layers.h"

#include <cmath>

namespace moe {

Init uniform_fan_in(Index fan_in) {
  return Init::uniform(1 / std::sqrt(static_cast<double>(fan_in)));
}

TokenBatch make_batch(std::span<const std::vector<std::int32_t>> texts, Device device,
                      std::span<const std::vector<std::int32_t>> types) {
  check(types.empty() || types.size() == texts.size(), "make_batch: {} texts, {} type lists",
        texts.size(), types.size());
  std::vector<std::int32_t> lengths, ids, kinds, positions;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::size_t n = texts[i].size();
    check(types.empty() || types[i].size() == n, "make_batch: text {} has {} ids, {} types", i, n,
          types.empty() ? 0 : types[i].size());
    lengths.push_back(static_cast<std::int32_t>(n));
    ids.insert(ids.end(), texts[i].begin(), texts[i].end());
    if (types.empty())
      kinds.insert(kinds.end(), n, 0);
    else
      kinds.insert(kinds.end(), types[i].begin(), types[i].end());
    for (std::size_t p = 0; p < n; ++p) positions.push_back(static_cast<std::int32_t>(p));
  }
  Index rows = static_cast<Index>(ids.size());
  return {from_host(ids, {rows}, device), from_host(kinds, {rows}, device),
          from_host(positions, {rows}, device), pack_segments(lengths, device)};
}

}  // namespace moe
