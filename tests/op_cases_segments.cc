// Cases of ops/segment.cc and ops/attention.cc: ragged batches.
#include "tests/op_cases.h"

#include <numeric>

namespace moe::testing {

namespace {

Sizes texts(std::vector<std::int32_t> lengths, Index cols,
            std::vector<std::int32_t> key_lengths = {}) {
  Index rows = std::accumulate(lengths.begin(), lengths.end(), Index{0});
  return {.rows = rows,
          .cols = cols,
          .lengths = std::move(lengths),
          .key_lengths = std::move(key_lengths)};
}

OpCase pooling(const std::string& name, std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = {texts({1}, 1), texts({2, 3, 1}, 3)},
           .sweep = {texts({}, 5), texts({0}, 3), texts({1, 0, 2, 0}, 17), texts({5, 3}, 15),
                     texts({1, 1, 1}, 33), texts({16, 17, 15}, 16), texts({2, 40}, 65)},
           .large = {texts({100, 0, 1, 57, 31, 130}, 260)},
           .call = std::move(call)};
  c.text_wise = true;
  c.floor = 32;
  return c;
}

Tensor rows_of(Inputs& in) {
  return in.x("x", {in.rows(), in.cols()});
}

struct Flags {
  bool causal = false, cross = false;
  double dropout = 0;
};

AttentionOptions plain(const Inputs& in) {
  AttentionOptions options;
  options.heads = in.out();
  options.scale = 0.7;
  return options;
}

// Heads of `cols` columns each: `out` says how many.
Tensor attend(Inputs& in, Flags flags) {
  const Sizes& s = in.sizes();
  Index size = in.out() * in.cols();
  const auto& key_lengths = flags.cross ? s.key_lengths : s.lengths;
  Index key_rows = std::accumulate(key_lengths.begin(), key_lengths.end(), Index{0});
  Tensor q = in.x("q", {in.rows(), size}), k = in.keys("k", {key_rows, size}),
         v = in.keys("v", {key_rows, size});
  Segments queries = in.segments(s.lengths), keys = in.segments(key_lengths);
  return attention(q, k, v, queries, keys,
                   {.heads = in.out(),
                    .scale = 1.5,
                    .causal = flags.causal,
                    .dropout = flags.dropout,
                    .draw = in.dice(),
                    .stream = stream_hash("dropout:attention")});
}

// Text by text and head by head: softmax(scale q k^T) v. Products with a weight of 0 or 1 put a
// head's columns in place (a selection matrix) and a text's rows (a lookup from a table that ends
// with a row of zeros).
Tensor attend_by_parts(Inputs& in, Flags flags) {
  const Sizes& s = in.sizes();
  const auto& key_lengths = flags.cross ? s.key_lengths : s.lengths;
  Index heads = in.out(), size = heads * in.cols(), key_rows = 0;
  for (auto n : key_lengths) key_rows += n;
  Tensor q = in.x("q", {in.rows(), size}), k = in.keys("k", {key_rows, size}),
         v = in.keys("v", {key_rows, size}), sum = zeros(q.shape(), q.dtype(), q.device());
  auto dense = [&](std::vector<double> values, const Shape& shape) {
    return tensor_of(values, shape, q.dtype(), q.device());
  };
  Index begin = 0, key_begin = 0;
  for (std::size_t text = 0; text < s.lengths.size(); ++text) {
    Index end = begin + s.lengths[text], key_end = key_begin + key_lengths[text];
    for (Index h = 0; h < heads; ++h) {
      Index left = h * in.cols(), right = left + in.cols();
      Tensor one_q = q.slice_rows(begin, end).slice_cols(left, right);
      Tensor one_k = k.slice_rows(key_begin, key_end).slice_cols(left, right);
      Tensor one_v = v.slice_rows(key_begin, key_end).slice_cols(left, right);
      Index queries = end - begin, keys = key_end - key_begin;
      std::vector<double> hidden(static_cast<std::size_t>(queries * keys), 0.0);
      for (Index i = 0; i < queries; ++i)
        for (Index j = 0; flags.causal && j < keys; ++j)
          if (j > i + keys - queries) hidden[static_cast<std::size_t>(i * keys + j)] = -1e30;
      Tensor score = add(scale(matmul_nt(one_q, one_k), 1.5), dense(hidden, {queries, keys}));
      // v^T as v's product with a unit matrix on the left: (K,keys).
      std::vector<double> unit(static_cast<std::size_t>(in.cols() * in.cols()), 0.0);
      for (Index i = 0; i < in.cols(); ++i) unit[static_cast<std::size_t>(i * in.cols() + i)] = 1;
      Tensor turned = matmul_nt(dense(unit, {in.cols(), in.cols()}), one_v);
      Tensor y = matmul_nt(softmax(score), turned);
      std::vector<double> columns(static_cast<std::size_t>(size * in.cols()), 0.0);
      for (Index i = 0; i < in.cols(); ++i)
        columns[static_cast<std::size_t>((left + i) * in.cols() + i)] = 1;
      std::vector<double> rows(static_cast<std::size_t>(in.rows() * queries), 0.0);
      for (Index i = 0; i < queries; ++i)
        rows[static_cast<std::size_t>((begin + i) * queries + i)] = 1;
      Tensor wide_turned = matmul_nt(dense(columns, {size, in.cols()}), y);       // (size, queries)
      Tensor placed = matmul_nt(dense(rows, {in.rows(), queries}), wide_turned);  // (rows, size)
      sum = add(sum, placed);
    }
    begin = end;
    key_begin = key_end;
  }
  return sum;
}

OpCase self(const std::string& name, Flags flags) {
  OpCase c{.name = name,
           .small = {texts({1}, 1), texts({2, 3}, 2), texts({3}, 4)},
           .sweep = {},
           .large = {},
           .call = [flags](Inputs& in) { return attend(in, flags); }};
  for (Index cols : {1, 3, 8, 15, 16, 17, 26, 32, 33, 64})
    c.sweep.push_back(texts({4, 1, 7}, cols));
  c.sweep.push_back(texts({0, 5, 0}, 8));
  c.sweep.push_back(texts({}, 8));
  // Lengths around the key blocks of an online softmax.
  c.sweep.push_back(texts({15, 16, 17, 31, 32, 33, 63, 64, 65}, 12));
  c.sweep.push_back(texts({127, 129, 130}, 16));
  for (auto& sizes : c.sweep) sizes.out = 2;
  for (auto& sizes : c.small) sizes.out = 2;
  c.large = {texts({130, 1, 64, 257}, 32)};
  c.large[0].out = 3;
  c.text_wise = true;
  c.scatters = true;
  c.floor = 64;
  if (flags.dropout == 0)
    c.composition = [flags](Inputs& in) { return attend_by_parts(in, flags); };
  return c;
}

OpCase cross(const std::string& name, Flags flags) {
  OpCase c = self(name, flags);
  c.small = {texts({2, 1}, 2, {3, 4}), texts({3}, 3, {3})};
  c.sweep = {texts({1, 1, 1}, 16, {5, 33, 70}), texts({4, 2}, 17, {4, 30}),
             texts({3, 0, 2}, 9, {3, 5, 2})};
  c.large = {texts({7, 64}, 32, {130, 257})};
  for (auto* sizes : {&c.small, &c.sweep, &c.large})
    for (auto& one : *sizes) one.out = 2;
  return c;
}

}  // namespace

std::vector<OpCase> segment_cases() {
  std::vector<OpCase> list;
  list.push_back(pooling("segment_mean", [](Inputs& in) {
    return segment_mean(rows_of(in), in.segments(in.sizes().lengths));
  }));
  list.push_back(pooling("segment_max", [](Inputs& in) {
    return segment_max(rows_of(in), in.segments(in.sizes().lengths));
  }));
  OpCase first = pooling("segment_first", [](Inputs& in) {
    return segment_first(rows_of(in), in.segments(in.sizes().lengths));
  });
  first.sweep = {texts({}, 5), texts({1}, 3), texts({3, 1, 2}, 17),
                 texts({16, 17, 15}, 16)};  // none empty
  first.large = {texts({100, 1, 57, 31, 130}, 260)};
  list.push_back(first);

  list.push_back(self("attention", {}));
  list.push_back(self("attention/causal", {.causal = true}));
  list.push_back(self("attention/dropout", {.dropout = 0.25}));
  list.push_back(self("attention/causal_dropout", {.causal = true, .dropout = 0.25}));
  list.push_back(cross("attention/cross", {.cross = true}));
  list.push_back(cross("attention/cross_causal", {.causal = true, .cross = true}));
  // q, k and v are one tensor: three gradients meet in one place.
  OpCase same = self("attention/itself", {});
  same.call = [](Inputs& in) {
    Tensor x = in.x("x", {in.rows(), in.out() * in.cols()});
    Segments rows = in.segments(in.sizes().lengths);
    return attention(x, x, x, rows, rows, plain(in));
  };
  same.composition = {};
  list.push_back(same);
  // As a model calls it: q, k and v are column slices of one fused product.
  OpCase fused = self("attention/fused", {});
  fused.call = [](Inputs& in) {
    Index size = in.out() * in.cols();
    Tensor x = in.x("qkv", {in.rows(), 3 * size});
    Segments rows = in.segments(in.sizes().lengths);
    return attention(x.slice_cols(0, size), x.slice_cols(size, 2 * size),
                     x.slice_cols(2 * size, 3 * size), rows, rows, plain(in));
  };
  fused.composition = {};
  list.push_back(fused);
  return list;
}

}  // namespace moe::testing
