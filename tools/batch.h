// Batches without state: the plan of an epoch is a function of (lengths, limits, seed, epoch), so
// resuming needs only the step number.
#pragma once

#include "runtime/shape.h"

#include <cstdint>
#include <span>
#include <vector>

namespace moe {

struct BatchLimits {
  Index rows = 64;   // items per batch
  Index tokens = 0;  // token budget per batch, 0: none; a single longer item still gets a batch
  Index window =
      8;  // batches whose items are sorted by length before they are cut; 1: pure shuffle
  bool drop_last = false;  // leave out a last batch of a single item (it has no negatives)
};

// Shuffled epoch: permutation by (seed, epoch), windows sorted by length and cut by the limits,
// batch order shuffled.
std::vector<std::vector<Index>> plan_epoch(std::span<const std::int32_t> lengths,
                                           const BatchLimits& limits, std::uint64_t seed,
                                           Index epoch);

// Every item once, longest first, cut by the limits: for embedding.
std::vector<std::vector<Index>> plan_by_length(std::span<const std::int32_t> lengths,
                                               const BatchLimits& limits);

}  // namespace moe
