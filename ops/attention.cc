// Scaled dot-product attention over ragged segments. Keeps only the log-sum-exp per query and head;
// backward recomputes the scores.
#include "ops/check.h"
#include "ops/ops.h"

namespace moe {

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Segments& queries,
                 const Segments& keys, const AttentionOptions& options) {
  check(q && k && v, "attention: q, k or v is absent");
  check(q.cols() == k.cols() && k.shape() == v.shape(), "attention: q {}, k {} and v {} do not fit",
        q.shape(), k.shape(), v.shape());
  check(options.heads > 0 && q.cols() % options.heads == 0,
        "attention: {} columns do not split into {} heads", q.cols(), options.heads);
  check(queries.count == keys.count, "attention: {} query segments, {} key segments", queries.count,
        keys.count);
  check_device("attention", q, {k, v});
  check_segments("attention", q, queries);
  check_segments("attention", k, keys);
  AttentionShape shape{options.heads,
                       q.cols() / options.heads,
                       options.scale,
                       options.causal,
                       options.draw.train ? options.dropout : 0,
                       options.draw.dice(options.stream)};
  Tensor out = empty({q.rows(), q.cols()}, q.dtype(), q.device());
  Tensor lse = recording({q, k, v})
                   ? empty({q.rows(), options.heads}, stat_of(q.dtype()), q.device())
                   : Tensor();
  with_type(q, [&]<class T>(const Kernels<T>& kernels) {
    using S = Stat<T>;
    kernels.attention(q.view<T>(), k.view<T>(), v.view<T>(), queries.ragged(), keys.ragged(), shape,
                      out.mut_view<T>(), lse ? lse.mut<S>() : nullptr);
    record({q, k, v}, out, [&] {
      return
          [q, k, v, out = out.detach(), lse, queries, keys, shape, &kernels](const Tensor& dout) {
            kernels.attention_backward(q.view<T>(), k.view<T>(), v.view<T>(), out.view<T>(),
                                       lse.data<S>(), dout.view<T>(), queries.ragged(),
                                       keys.ragged(), shape, grad<T>(q), grad<T>(k), grad<T>(v));
          };
    });
  });
  return out;
}

}  // namespace moe
