// How attention work is cut into items and shared out between threads.
//
// An item is (segment, head, block of query rows): forward cuts queries into blocks, so that one
// long text feeds every thread; backward takes a whole segment at a time, so that dk and dv have
// one owner. Items are numbered segment by segment, head by head; a part is a run of items of about
// equal cost. Nothing here touches the numbers: the cut decides who computes a row, never how.
#pragma once

#include "runtime/kernels.h"

#include <algorithm>

namespace moe::cpu {

constexpr Index query_block = 32;                // query rows of a forward item
constexpr Index whole_segment = Index{1} << 32;  // a block no segment reaches

// One call's arguments, as the per-target kernels see them.
struct AttentionCall {
  Rows<const float> q{}, k{}, v{}, dout{};
  Rows<const float> out_saved{};  // backward: what forward wrote
  const float* lse_saved = nullptr;
  Rows<float> out{}, dq{}, dk{}, dv{};
  float* lse = nullptr;
  Ragged queries{}, keys{};
  AttentionShape shape{};
};

struct AttentionItem {
  Index query = 0, rows = 0;           // the block: first row in q, number of rows
  Index first_query = 0, queries = 0;  // the segment: first row in q, number of rows
  Index first_key = 0, keys = 0;       // its first row in k and v, number of rows
  Index head = 0;
};

// The items of one part of `parts`, in order.
class AttentionWalk {
 public:
  // block: query rows an item takes at most.
  AttentionWalk(const AttentionCall& call, Index block, Index part, Index parts)
      : call_(call), block_(block) {
    Index total = total_cost(call, block);
    lower_ = total * part / parts;
    upper_ = total * (part + 1) / parts;
  }

  // Multiply-adds of one product, roughly; eight rows and keys stand for setting a block up.
  static Index total_cost(const AttentionCall& call, Index block) {
    Index total = 0;
    for (Index s = 0; s < call.queries.count; ++s)
      total += segment_cost(call, s, block) * call.shape.heads;
    return total;
  }

  bool next(AttentionItem& item) {
    for (; segment_ < call_.queries.count; ++segment_) {
      Index queries = call_.queries.end[segment_] - call_.queries.begin[segment_];
      if (head_ == 0 && row_ == 0) {
        cost_ = segment_cost(call_, segment_, block_);
        if (seen_ + cost_ * call_.shape.heads <= lower_) {  // all of it belongs to earlier parts
          seen_ += cost_ * call_.shape.heads;
          continue;
        }
      }
      for (; head_ < call_.shape.heads; ++head_) {
        for (; row_ < queries; row_ += block_) {
          if (seen_ >= upper_) return false;
          Index rows = std::min(block_, queries - row_), at = seen_;
          seen_ += item_cost(call_, segment_, row_, rows);
          if (at < lower_) continue;
          Index first_query = call_.queries.begin[segment_], first_key = call_.keys.begin[segment_];
          item = {.query = first_query + row_,
                  .rows = rows,
                  .first_query = first_query,
                  .queries = queries,
                  .first_key = first_key,
                  .keys = call_.keys.end[segment_] - first_key,
                  .head = head_};
          row_ += block_;
          return true;
        }
        row_ = 0;
      }
      head_ = 0;
    }
    return false;
  }

 private:
  static Index item_cost(const AttentionCall& call, Index segment, Index row, Index rows) {
    Index queries = call.queries.end[segment] - call.queries.begin[segment];
    Index keys = call.keys.end[segment] - call.keys.begin[segment];
    // Causal: the block sees keys up to its last row's, one half of them on average over a segment.
    if (call.shape.causal) keys = std::max<Index>(0, keys - queries + row + (rows + 1) / 2);
    return (rows + 8) * (keys + 8) * call.shape.head_dim;
  }
  static Index segment_cost(const AttentionCall& call, Index segment, Index block) {
    Index queries = call.queries.end[segment] - call.queries.begin[segment], cost = 0;
    for (Index row = 0; row < queries; row += block)
      cost += item_cost(call, segment, row, std::min(block, queries - row));
    return cost;
  }

  const AttentionCall& call_;
  Index block_, lower_ = 0, upper_ = 0;
  Index segment_ = 0, head_ = 0, row_ = 0;
  Index seen_ = 0, cost_ = 0;  // cost of the items before this one; of the segment, for one head
};

}  // namespace moe::cpu
