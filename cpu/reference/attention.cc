// Attention inside pairs of segments: the definition, with the matrix of probabilities written out.
//   s = scale q k^T   p = softmax(s)   out = (p m) v          per segment pair and head
//   q, out (Tq, H*K)   k, v (Tk, H*K)   lse (Tq, H) = log sum exp s
//   m = dropout factor: 0, or 1 / (1 - rate)
// Causal: the last query sees the last key, so query i of n sees keys 0 .. i + keys - n.
#include "cpu/cpu.h"
#include "cpu/reference/functions.h"

#include <limits>
#include <vector>

namespace moe::reference {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// One head of one segment pair. i counts its queries, j its keys, c the columns of its head.
template <class T>
struct Head {
  const AttentionShape& shape;
  Range queries, keys;
  Index head;

  Index query_count() const { return queries.end - queries.begin; }
  Index key_count() const { return keys.end - keys.begin; }
  bool sees(Index i, Index j) const {
    return !shape.causal || j <= i + key_count() - query_count();
  }
  // Row i of q-like and row j of k-like rows, at this head's columns.
  template <class U>
  U* query(Rows<U> q, Index i) const {
    return q[queries.begin + i] + head * shape.head_dim;
  }
  template <class U>
  U* key(Rows<U> k, Index j) const {
    return k[keys.begin + j] + head * shape.head_dim;
  }
  double dot(const T* a, const T* b) const {
    double sum = 0;
    for (Index c = 0; c < shape.head_dim; ++c) sum += double{a[c]} * b[c];
    return sum;
  }
  double score(Rows<const T> q, Rows<const T> k, Index i, Index j) const {
    return sees(i, j) ? shape.scale * dot(query(q, i), key(k, j)) : -infinity;
  }
  double keep_factor(Index i, Index j) const {
    if (shape.dropout == 0) return 1;
    std::uint32_t word = shape.dice.at_head(head).word(queries.begin + i, j);
    return word < drop_threshold(shape.dropout) ? 0 : 1 / (1 - shape.dropout);
  }
};

template <class T, class F>
void for_each_head(Ragged queries, Ragged keys, const AttentionShape& shape, F f) {
  for (Index g = 0; g < queries.count; ++g)
    for (Index h = 0; h < shape.heads; ++h)
      f(Head<T>{shape, {queries.begin[g], queries.end[g]}, {keys.begin[g], keys.end[g]}, h});
}

template <class T>
void attention(Rows<const T> q, Rows<const T> k, Rows<const T> v, Ragged queries, Ragged keys,
               const AttentionShape& shape, Rows<T> out, Stat<T>* lse) {
  for_each_head<T>(queries, keys, shape, [&](const Head<T>& head) {
    std::vector<double> p(static_cast<std::size_t>(head.key_count()));
    for (Index i = 0; i < head.query_count(); ++i) {
      double peak = -infinity, sum = 0;
      for (Index j = 0; j < head.key_count(); ++j) {
        p[j] = head.score(q, k, i, j);
        peak = std::max(peak, p[j]);
      }
      for (Index j = 0; j < head.key_count(); ++j) {
        p[j] = head.sees(i, j) ? std::exp(p[j] - peak) : 0;
        sum += p[j];
        p[j] *= head.keep_factor(i, j);
      }
      // A query that sees no key gets zeros, and a log-sum-exp of minus infinity.
      for (Index c = 0; c < shape.head_dim; ++c) {
        double o = 0;
        for (Index j = 0; j < head.key_count(); ++j)
          if (head.sees(i, j)) o += p[j] / sum * head.key(v, j)[c];
        head.query(out, i)[c] = static_cast<T>(o);
      }
      if (lse)
        lse[(head.queries.begin + i) * shape.heads + head.head] =
            static_cast<Stat<T>>(peak + std::log(sum));
    }
  });
}

// p = exp(s - lse)   delta = sum_c dout out   ds = p (m (dout v^T) - delta)
// dv += (p m)^T dout   dq += scale ds k   dk += scale ds^T q
template <class T>
void attention_backward(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out,
                        const Stat<T>* lse, Rows<const T> dout, Ragged queries, Ragged keys,
                        const AttentionShape& shape, Rows<T> dq, Rows<T> dk, Rows<T> dv) {
  for_each_head<T>(queries, keys, shape, [&](const Head<T>& head) {
    const Index query_count = head.query_count(), key_count = head.key_count();
    std::vector<double> pm(static_cast<std::size_t>(query_count * key_count)), ds = pm;
    for (Index i = 0; i < query_count; ++i) {
      double delta = head.dot(head.query(dout, i), head.query(out, i));
      double log_sum = lse[(head.queries.begin + i) * shape.heads + head.head];
      for (Index j = 0; j < key_count; ++j) {
        if (!head.sees(i, j)) continue;
        double p = std::exp(head.score(q, k, i, j) - log_sum), m = head.keep_factor(i, j);
        pm[i * key_count + j] = p * m;
        ds[i * key_count + j] = p * (m * head.dot(head.query(dout, i), head.key(v, j)) - delta);
      }
    }
    for (Index c = 0; c < shape.head_dim; ++c) {
      for (Index i = 0; dq && i < query_count; ++i) {
        double sum = 0;
        for (Index j = 0; j < key_count; ++j) sum += ds[i * key_count + j] * head.key(k, j)[c];
        T& to = head.query(dq, i)[c];
        to = static_cast<T>(to + shape.scale * sum);
      }
      for (Index j = 0; dk && j < key_count; ++j) {
        double sum = 0;
        for (Index i = 0; i < query_count; ++i) sum += ds[i * key_count + j] * head.query(q, i)[c];
        T& to = head.key(dk, j)[c];
        to = static_cast<T>(to + shape.scale * sum);
      }
      for (Index j = 0; dv && j < key_count; ++j) {
        double sum = 0;
        for (Index i = 0; i < query_count; ++i)
          sum += pm[i * key_count + j] * head.query(dout, i)[c];
        T& to = head.key(dv, j)[c];
        to = static_cast<T>(to + sum);
      }
    }
  });
}

}  // namespace

template <class T>
void fill_attention(Kernels<T>& table) {
  table.attention = attention<T>;
  table.attention_backward = attention_backward<T>;
}

template void fill_attention(Kernels<float>&);
template void fill_attention(Kernels<double>&);

}  // namespace moe::reference
