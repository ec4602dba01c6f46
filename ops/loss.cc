// Losses: each a scalar (1) of Stat type. A loss is a sum times a factor from outside (1 / count of
// the whole step), so splitting a batch changes roundings only.
#include "ops/check.h"
#include "ops/ops.h"

namespace moe {

namespace {
Tensor scalar_like(const Tensor& x) {
  return empty({1}, stat_of(x.dtype()), x.device());
}
}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& target, double factor,
                     const Tensor& blocked) {
  check(logits && target && target.size() == logits.rows(), "cross_entropy: {} targets for {} rows",
        target ? target.size() : 0, logits ? logits.rows() : 0);
  check(!blocked || blocked.shape() == logits.shape(), "cross_entropy: mask {} does not fit {}",
        blocked ? blocked.shape() : Shape{}, logits.shape());
  check_arrays("cross_entropy", logits, {target, blocked});
  check_range("cross_entropy", target, -1, logits.cols());
  Tensor loss = scalar_like(logits);
  Tensor lse = empty({logits.rows()}, stat_of(logits.dtype()), logits.device());
  with_type(logits, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    auto mask = [](const Tensor& b) { return b ? b.data<std::uint8_t>() : nullptr; };
    k.cross_entropy(logits.view<T>(), target.data<std::int32_t>(), mask(blocked), factor,
                    loss.mut<S>(), lse.mut<S>());
    record({logits}, loss, [&] {
      return [logits, target, blocked, factor, lse, mask, &k](const Tensor& dloss) {
        k.cross_entropy_backward(logits.view<T>(), target.data<std::int32_t>(), mask(blocked),
                                 factor, lse.data<S>(), dloss.data<S>(), grad<T>(logits));
      };
    });
  });
  return loss;
}

Tensor contrastive(const Tensor& q, const Tensor& d, const Tensor& blocked,
                   const ContrastiveOptions& options) {
  check(q && d && q.rows() <= d.rows(), "contrastive: {} queries need as many documents, got {}",
        q ? q.rows() : 0, d ? d.rows() : 0);
  check(options.temperature > 0, "contrastive: the temperature must be positive, not {}",
        options.temperature);
  check(!options.symmetric || q.rows() == d.rows(),
        "contrastive: the symmetric loss needs one document per query, got {} and {}", q.rows(),
        d.rows());
  std::vector<std::int32_t> diagonal(static_cast<std::size_t>(q.rows()));
  for (std::size_t i = 0; i < diagonal.size(); ++i) diagonal[i] = static_cast<std::int32_t>(i);
  Tensor target = from_host(diagonal, {q.rows()}, q.device());
  Tensor logits = scale(matmul_nt(q, d), 1 / options.temperature);
  if (!options.symmetric) return cross_entropy(logits, target, options.factor, blocked);
  Tensor transposed;
  if (blocked) {
    auto forward = to_host<std::uint8_t>(blocked);
    auto back = forward;
    std::size_t n = diagonal.size();
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) back[j * n + i] = forward[i * n + j];
    transposed = from_host(back, blocked.shape(), q.device());
  }
  Tensor reverse = scale(matmul_nt(d, q), 1 / options.temperature);
  return add(cross_entropy(logits, target, options.factor / 2, blocked),
             cross_entropy(reverse, target, options.factor / 2, transposed));
}

Tensor balance_loss(const Tensor& prob, const Tensor& expert) {
  check(prob && expert && prob.rows() == expert.rows(), "balance_loss: {} rows, {} choices",
        prob ? prob.rows() : 0, expert ? expert.rows() : 0);
  check_arrays("balance_loss", prob, {expert});
  check_range("balance_loss", expert, -1, prob.cols());
  Index k = expert.cols();
  Tensor loss = scalar_like(prob);
  with_type(prob, [&]<class T>(const Kernels<T>& kernels) {
    using S = Stat<T>;
    kernels.balance_loss(prob.view<T>(), expert.data<std::int32_t>(), k, loss.mut<S>());
    record({prob}, loss, [&] {
      return [prob, expert, k, &kernels](const Tensor& dloss) {
        kernels.balance_loss_backward(prob.view<T>(), expert.data<std::int32_t>(), k,
                                      dloss.data<S>(), grad<T>(prob));
      };
    });
  });
  return loss;
}

Tensor z_loss(const Tensor& logits) {
  check(bool(logits), "z_loss: the logits are absent");
  Tensor loss = scalar_like(logits);
  with_type(logits, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    k.z_loss(logits.view<T>(), loss.mut<S>());
    record({logits}, loss, [&] {
      return [logits, &k](const Tensor& dloss) {
        k.z_loss_backward(logits.view<T>(), dloss.data<S>(), grad<T>(logits));
      };
    });
  });
  return loss;
}

Tensor importance_loss(const Tensor& value) {
  check(bool(value), "importance_loss: the values are absent");
  Tensor loss = scalar_like(value);
  with_type(value, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    k.importance_loss(value.view<T>(), loss.mut<S>());
    record({value}, loss, [&] {
      return [value, &k](const Tensor& dloss) {
        k.importance_loss_backward(value.view<T>(), dloss.data<S>(), grad<T>(value));
      };
    });
  });
  return loss;
}

}  // namespace moe
