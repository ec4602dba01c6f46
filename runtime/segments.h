// The one ragged type: rows begin[i] .. end[i]-1 belong to group i. A batch of texts and a set of
// experts are the same thing, so no padding and no attention mask exists in the library.
#pragma once

#include "runtime/tensor.h"

#include <algorithm>
#include <cstdint>

namespace moe {

struct Segments {
  Tensor begin,
      end;  // (N) int32 on the device; packed segments: two views of one (N+1) tensor of offsets
  Index count = 0;
  Index rows = 0;     // upper bound of the rows covered, known to the host
  Index longest = 0;  // upper bound of a group's length

  Ragged ragged() const {
    return {begin ? begin.data<std::int32_t>() : nullptr, end ? end.data<std::int32_t>() : nullptr,
            count, longest};
  }
};

// Groups of these lengths, packed one after the other.
inline Segments pack_segments(std::span<const std::int32_t> lengths, Device device) {
  std::vector<std::int32_t> offsets(lengths.size() + 1, 0);
  Index longest = 0, total = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    check(lengths[i] >= 0, "segment {} has the length {}", i, lengths[i]);
    total += lengths[i];
    check(total <= INT32_MAX, "a batch holds at most 2^31 - 1 rows");
    longest = std::max<Index>(longest, lengths[i]);
    offsets[i + 1] = static_cast<std::int32_t>(total);
  }
  Index n = static_cast<Index>(lengths.size());
  Tensor all = from_host(offsets, {n + 1}, device);
  return {all.slice_rows(0, n), all.slice_rows(1, n + 1), n, total, longest};
}

// All rows as one group: what makes a dense product a grouped one.
inline Ragged all_rows(Index rows) {
  return {nullptr, nullptr, 1, rows};
}

}  // namespace moe
