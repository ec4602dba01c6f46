// Normalisation over the columns of each row.
#include "ops/check.h"
#include "ops/ops.h"

namespace moe {

// y = (x - mean) inv w + b; gradients at the kernel's contract
Tensor layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps) {
  check(x && w && b, "layer_norm: input, weight or bias is absent");
  check(w.size() == x.cols() && b.size() == x.cols(),
        "layer_norm: weight {} and bias {} do not fit {}", w.shape(), b.shape(), x.shape());
  check_arrays("layer_norm", x, {w, b});
  Tensor y = empty_like(x);
  bool train = recording({x, w, b});
  Tensor mean = train ? empty({x.rows()}, stat_of(x.dtype()), x.device()) : Tensor();
  Tensor inv = train ? empty_like(mean) : Tensor();
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    k.layer_norm(x.view<T>(), w.data<S>(), b.data<S>(), eps, y.mut_view<T>(),
                 train ? mean.mut<S>() : nullptr, train ? inv.mut<S>() : nullptr);
    record({x, w, b}, y, [&] {
      return [x, w, b, mean, inv, &k](const Tensor& dy) {
        k.layer_norm_backward(x.view<T>(), w.data<S>(), mean.data<S>(), inv.data<S>(), dy.view<T>(),
                              grad<T>(x), grad<S>(w).data, grad<S>(b).data);
      };
    });
  });
  return y;
}

// y = x / max(|x|, eps)    dx += (dy - y (y . dy)) / |x|, or dy / eps below the floor
Tensor l2_normalize(const Tensor& x, double eps) {
  check(bool(x), "l2_normalize: the input is absent");
  check(eps > 0, "l2_normalize: eps must be positive");
  Tensor y = empty_like(x);
  bool train = recording({x});
  Tensor norm = train ? empty({x.rows()}, stat_of(x.dtype()), x.device()) : Tensor();
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    k.l2_normalize(x.view<T>(), eps, y.mut_view<T>(), train ? norm.mut<S>() : nullptr);
    record({x}, y, [&] {
      // y's data without its gradient, which the tape holds already.
      return [x, y = y.detach(), norm, eps, &k](const Tensor& dy) {
        k.l2_normalize_backward(y.view<T>(), norm.data<S>(), eps, dy.view<T>(), grad<T>(x));
      };
    });
  });
  return y;
}

}  // namespace moe
