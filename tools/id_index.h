// Id -> row for vectors of records with a member `id`. The ids stay where they are, in the records;
// the index holds only row numbers (open addressing, at most half full), 8-16 bytes a record
// instead of a second copy of every string: MS MARCO has 8.8 million.
#pragma once

#include "runtime/error.h"
#include "runtime/shape.h"

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace moe {

class IdIndex {
 public:
  // The row holding `id`, -1 when there is none.
  template <class Record>
  Index find(const std::vector<Record>& rows, std::string_view id) const {
    return slots_.empty() ? -1 : Index{slots_[slot_of(rows, id)]} - 1;
  }

  // Enters the last row. Returns -1, or the earlier row with the same id (then nothing is entered).
  template <class Record>
  Index insert_last(const std::vector<Record>& rows) {
    if (2 * rows.size() > slots_.size()) grow(rows);
    std::uint32_t& slot = slots_[slot_of(rows, rows.back().id)];
    if (slot != 0) return Index{slot} - 1;
    slot = static_cast<std::uint32_t>(rows.size());
    return -1;
  }

 private:
  template <class Record>
  std::size_t slot_of(const std::vector<Record>& rows, std::string_view id) const {
    std::size_t mask = slots_.size() - 1, i = std::hash<std::string_view>{}(id)&mask;
    while (slots_[i] != 0 && rows[slots_[i] - 1].id != id) i = (i + 1) & mask;
    return i;
  }
  template <class Record>
  void grow(const std::vector<Record>& rows) {
    check(rows.size() < (std::size_t{1} << 31),
          "more than 2^31 documents do not fit one collection");
    slots_.assign(slots_.empty() ? 1024 : 2 * slots_.size(), 0);
    for (std::size_t row = 0; row + 1 < rows.size(); ++row)
      slots_[slot_of(rows, rows[row].id)] = static_cast<std::uint32_t>(row + 1);
  }

  std::vector<std::uint32_t> slots_;  // row + 1, 0 = free
};

}  // namespace moe
