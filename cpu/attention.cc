// Attention over ragged segments, f32: forward and backward, blockwise; nothing of size queries x
// keys is kept.
//   out = dropout(softmax(scale q k^T)) v per segment pair and head, causal or not.
// A work item takes at most 32 queries of one head through all keys of its segment, 64 at a time:
//   scores = k q^T       keys by queries, q transposed, scaled and packed once per item
//   online softmax       running peak and sum per query, earlier output shrunk when the peak rises
//   o += scores^T v      v read in place, or from a padded copy where a head is not whole vectors
// so scores, q and o live in L1 and k, v stream from L2. Key blocks count from the segment's first
// key and every sum runs in order of its index: batch, threads and neighbours cannot change a bit.
//   Milakov, Gimelshein 2018 (online softmax); Dao 2022 (FlashAttention; backward: appendix B).
#include "cpu/attention_work.h"
#include "cpu/cpu.h"
#include "runtime/kernels.h"
#include "runtime/parallel.h"

#include <algorithm>

// clang-format off
#include "cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "cpu/attention-inl.h"
#include "cpu/attention_softmax-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::cpu::HWY_NAMESPACE {
namespace {

constexpr double log2_e = 1.44269504088896340736;

float* floats(Scratch use, Index count) {
  return static_cast<float*>(scratch(use, static_cast<std::size_t>(count) * sizeof(float)));
}

float keep_factor(const AttentionShape& shape) {
  return static_cast<float>(1 / (1 - shape.dropout));
}
// Scores are in base 2: an exponential is an instruction or two shorter.
float score_factor(const AttentionShape& shape) {
  return static_cast<float>(shape.scale * log2_e);
}
// The last key that the first query of the block starting at segment row `row` may see.
Index last_visible(const AttentionCall& call, const AttentionItem& item, Index row) {
  return call.shape.causal ? item.keys - item.queries + row : item.keys - 1;
}

// ---- forward

struct ForwardSpace {
  float* query;                // (head_dim, query_block) transposed, scaled
  float* scores;               // (key_block, query_block)
  float *peak, *sum, *shrink;  // (query_block)
  float* out;                  // (query_block, width)
  float* value;                // (keys, width) of the current head, where v needs padding
};

void forward_item(const AttentionCall& call, const AttentionItem& item, const ForwardSpace& space,
                  Padded value) {
  const AttentionShape& shape = call.shape;
  Index head_dim = shape.head_dim, width = vectors_of(head_dim) * lanes,
        column = item.head * head_dim;
  Index vectors = vectors_of(item.rows), first_row = item.query - item.first_query;
  Index last = last_visible(call, item, first_row);
  Index visible = std::min(item.keys, shape.causal ? last + item.rows : item.keys);

  transpose(F(), call.q[item.query] + column, call.q.ld, item.rows, head_dim, score_factor(shape),
            space.query);
  std::fill_n(space.peak, query_block, -infinity);
  std::fill_n(space.sum, query_block, 0.0f);
  const DropRule rule(shape.dice.at_head(item.head), shape.dropout);

  for (Index key = 0; key < visible; key += key_block) {
    Index keys = std::min(key_block, visible - key);
    product<false>(call.k[item.first_key + key] + column, call.k.ld, space.query, query_block, keys,
                   head_dim, vectors, false, space.scores, query_block);
    if (shape.causal) hide_future(space.scores, keys, vectors, last - key);
    online_softmax(space.scores, keys, vectors, space.peak, space.sum, space.shrink);
    if (key > 0) shrink_rows(space.out, width, item.rows, space.shrink);
    if (rule.threshold > 0) drop(rule, item.query, key, keys, vectors, space.scores);
    product<true>(space.scores, query_block, value.data + key * value.ld, value.ld, item.rows, keys,
                  width / lanes, key > 0, space.out, width);
  }
  finish_softmax(vectors, keep_factor(shape), space.sum, space.peak, space.shrink);
  for (Index r = 0; r < item.rows; ++r) {
    store_row(visible > 0 ? space.out + r * width : nullptr, space.shrink[r], head_dim,
              call.out[item.query + r] + column);
    if (call.lse != nullptr) call.lse[(item.query + r) * shape.heads + item.head] = space.peak[r];
  }
}

HWY_NOINLINE void forward_part(const AttentionCall& call, Index part, Index parts) {
  Index head_dim = call.shape.head_dim, width = vectors_of(head_dim) * lanes, most_keys = 0;
  for (Index s = 0; s < call.keys.count; ++s)
    most_keys = std::max<Index>(most_keys, call.keys.end[s] - call.keys.begin[s]);
  ForwardSpace space{};
  space.query = floats(Scratch::pack_a, head_dim * query_block);
  space.scores = floats(Scratch::tile, (key_block + 3) * query_block);
  space.peak = space.scores + key_block * query_block;
  space.sum = space.peak + query_block;
  space.shrink = space.sum + query_block;
  space.out = floats(Scratch::rows, query_block * width);
  space.value = floats(Scratch::keys, head_dim % lanes == 0 ? 0 : most_keys * width);

  AttentionWalk walk(call, query_block, part, parts);
  AttentionItem item;
  Padded value{};
  Index packed_key = -1, packed_head = -1;
  while (walk.next(item)) {
    if (item.keys > 0 && (item.first_key != packed_key || item.head != packed_head)) {
      value = padded(call.v[item.first_key] + item.head * head_dim, call.v.ld, item.keys, head_dim,
                     space.value);
      packed_key = item.first_key;
      packed_head = item.head;
    }
    forward_item(call, item, space, value);
  }
}

// ---- backward

struct BackwardSpace {
  float *query, *dout;  // (head_dim, query_block) transposed; q scaled, dout times the keep factor
  float *query_rows, *dout_rows, *key_rows;  // padded copies, where a head is not whole vectors
  float *scores, *dscores;                   // (key_block, query_block)
  float *lse, *delta;                        // (query_block)
  float* dq;                                 // (query_block, width)
  float *dk, *dv;                            // (keys, width) sums of the current item
  Ahead ahead;
};

// Log-sum-exp in base 2 and delta_i = dout_i . out_i of a block of queries; zero in lanes past it.
void row_statistics(const AttentionCall& call, const AttentionItem& item, Index row, Index rows,
                    const BackwardSpace& space) {
  Index head_dim = call.shape.head_dim, column = item.head * head_dim;
  std::fill_n(space.lse, query_block, 0.0f);
  std::fill_n(space.delta, query_block, 0.0f);
  for (Index r = 0; r < rows; ++r) {
    Index query = item.first_query + row + r;
    float lse = call.lse_saved[query * call.shape.heads + item.head];
    // It sees no key: scores of -inf minus 0 give probabilities of 0, minus -inf they would give
    // NaN.
    space.lse[r] = lse == -infinity ? 0 : static_cast<float>(lse * log2_e);
    space.delta[r] = dot(call.dout[query] + column, call.out_saved[query] + column, head_dim);
  }
}

void backward_block(const AttentionCall& call, const AttentionItem& item, Index row,
                    Padded key_rows, BackwardSpace& space) {
  const AttentionShape& shape = call.shape;
  Index head_dim = shape.head_dim, width = vectors_of(head_dim) * lanes,
        column = item.head * head_dim;
  Index rows = std::min(query_block, item.queries - row), vectors = vectors_of(rows);
  Index query = item.first_query + row, last = last_visible(call, item, row);
  Index visible = std::min(item.keys, shape.causal ? last + rows : item.keys);
  if (visible <= 0) return;
  const bool add = row > 0 || shape.causal;
  const bool scores_too = call.dq || call.dk;  // dv alone needs no gradient of the scores
  const DropRule rule(shape.dice.at_head(item.head), shape.dropout);

  row_statistics(call, item, row, rows, space);
  const float* q = call.q[query] + column;
  const float* dout = call.dout[query] + column;
  transpose(F(), q, call.q.ld, rows, head_dim, score_factor(shape), space.query);
  Padded query_rows = padded(q, call.q.ld, rows, head_dim, space.query_rows);
  Padded dout_rows = padded(dout, call.dout.ld, rows, head_dim, space.dout_rows);
  if (scores_too)
    transpose(F(), dout, call.dout.ld, rows, head_dim, keep_factor(shape), space.dout);

  for (Index key = 0; key < visible; key += key_block) {
    Index keys = std::min(key_block, visible - key), key_row = item.first_key + key;
    product<false>(call.k[key_row] + column, call.k.ld, space.query, query_block, keys, head_dim,
                   vectors, false, space.scores, query_block, &space.ahead, head_dim);
    if (shape.causal) hide_future(space.scores, keys, vectors, last - key);
    if (scores_too)
      product<false>(call.v[key_row] + column, call.v.ld, space.dout, query_block, keys, head_dim,
                     vectors, false, space.dscores, query_block, &space.ahead, head_dim);
    softmax_gradient(rule, query, key, keys, vectors, space.lse, space.delta, space.scores,
                     scores_too ? space.dscores : nullptr);
    if (call.dv)
      product<false>(space.scores, query_block, dout_rows.data, dout_rows.ld, keys, rows,
                     width / lanes, add, space.dv + key * width, width, &space.ahead, head_dim);
    if (call.dk)
      product<false>(space.dscores, query_block, query_rows.data, query_rows.ld, keys, rows,
                     width / lanes, add, space.dk + key * width, width, &space.ahead, head_dim);
    if (call.dq)
      product<true>(space.dscores, query_block, key_rows.data + key * key_rows.ld, key_rows.ld,
                    rows, keys, width / lanes, key > 0, space.dq, width, &space.ahead, head_dim);
  }
  if (call.dq)
    add_rows(space.dq, width, static_cast<float>(shape.scale), rows, head_dim,
             call.dq[query] + column, call.dq.ld);
}

void backward_item(const AttentionCall& call, const AttentionItem& item, BackwardSpace& space) {
  if (item.keys == 0 || item.queries == 0) return;
  Index head_dim = call.shape.head_dim, width = vectors_of(head_dim) * lanes,
        column = item.head * head_dim;
  // Without causality the first block of queries meets every key and starts the sums.
  if (call.shape.causal) {
    std::fill_n(space.dk, item.keys * width, 0.0f);
    std::fill_n(space.dv, item.keys * width, 0.0f);
  }
  Padded key_rows =
      padded(call.k[item.first_key] + column, call.k.ld, item.keys, head_dim, space.key_rows);
  for (Index row = 0; row < item.queries; row += query_block)
    backward_block(call, item, row, key_rows, space);
  if (call.dk)
    add_rows(space.dk, width, static_cast<float>(call.shape.scale), item.keys, head_dim,
             call.dk[item.first_key] + column, call.dk.ld);
  if (call.dv)
    add_rows(space.dv, width, keep_factor(call.shape), item.keys, head_dim,
             call.dv[item.first_key] + column, call.dv.ld);
}

HWY_NOINLINE void backward_part(const AttentionCall& call, Index part, Index parts) {
  Index head_dim = call.shape.head_dim, width = vectors_of(head_dim) * lanes, most_keys = 0;
  for (Index s = 0; s < call.keys.count; ++s)
    most_keys = std::max<Index>(most_keys, call.keys.end[s] - call.keys.begin[s]);
  BackwardSpace space{};
  space.query = floats(Scratch::pack_a, 2 * head_dim * query_block + 2 * query_block * width);
  space.dout = space.query + head_dim * query_block;
  space.query_rows = space.dout + head_dim * query_block;
  space.dout_rows = space.query_rows + query_block * width;
  space.key_rows = floats(Scratch::keys, head_dim % lanes == 0 ? 0 : most_keys * width);
  space.scores = floats(Scratch::tile, (2 * key_block + 2) * query_block);
  space.dscores = space.scores + key_block * query_block;
  space.lse = space.dscores + key_block * query_block;
  space.delta = space.lse + query_block;
  space.dq = floats(Scratch::rows, query_block * width);
  space.dk = floats(Scratch::pack_b, 2 * most_keys * width);
  space.dv = space.dk + most_keys * width;

  AttentionWalk walk(call, whole_segment, part, parts);
  AttentionItem item, upcoming;
  for (bool more = walk.next(item); more; item = upcoming) {
    more = walk.next(upcoming);
    space.ahead.clear();
    if (more) {
      Index column = upcoming.head * head_dim;
      for (Rows<const float> rows : {call.q, call.dout, call.out_saved, Rows<const float>(call.dq)})
        space.ahead.add(rows, upcoming.query, upcoming.rows, column);
      for (Rows<const float> rows :
           {call.k, call.v, Rows<const float>(call.dk), Rows<const float>(call.dv)})
        space.ahead.add(rows, upcoming.first_key, upcoming.keys, column);
    }
    backward_item(call, item, space);
  }
}

}  // namespace
}  // namespace moe::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::cpu {
namespace {

HWY_EXPORT(forward_part);
HWY_EXPORT(backward_part);

// Every thread takes a run of items of equal cost; too little work is not worth waking the team.
template <class Kernel>
void run(const AttentionCall& call, Index block, Kernel kernel) {
  constexpr Index worth_a_thread = 1 << 18;  // multiply-adds
  Index cost = AttentionWalk::total_cost(call, block);
  Index parts = std::clamp<Index>(cost / worth_a_thread, 1, threads());
  parallel_for(parts, 1, [&](Index begin, Index end) {
    for (Index part = begin; part < end; ++part) kernel(call, part, parts);
  });
}

void attention(Rows<const float> q, Rows<const float> k, Rows<const float> v, Ragged queries,
               Ragged keys, const AttentionShape& shape, Rows<float> out, float* lse) {
  AttentionCall call{.q = q,
                     .k = k,
                     .v = v,
                     .out = out,
                     .lse = lse,
                     .queries = queries,
                     .keys = keys,
                     .shape = shape};
  run(call, query_block, HWY_DYNAMIC_DISPATCH(forward_part));
}

void attention_backward(Rows<const float> q, Rows<const float> k, Rows<const float> v,
                        Rows<const float> out, const float* lse, Rows<const float> dout,
                        Ragged queries, Ragged keys, const AttentionShape& shape, Rows<float> dq,
                        Rows<float> dk, Rows<float> dv) {
  AttentionCall call{.q = q,
                     .k = k,
                     .v = v,
                     .dout = dout,
                     .out_saved = out,
                     .lse_saved = lse,
                     .dq = dq,
                     .dk = dk,
                     .dv = dv,
                     .queries = queries,
                     .keys = keys,
                     .shape = shape};
  run(call, whole_segment, HWY_DYNAMIC_DISPATCH(backward_part));
}

}  // namespace

void fill_attention(Kernels<float>& table) {
  table.attention = attention;
  table.attention_backward = attention_backward;
}

}  // namespace moe::cpu
#endif
