// Softmax over the columns of each row. Backward reads the output, not the input.
#include "ops/gradient.h"
#include "ops/ops.h"

namespace moe {

// dx += y (dy - sum y dy)
Tensor softmax(const Tensor& x) {
  check(bool(x), "softmax: the input is absent");
  Tensor y = empty_like(x);
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.softmax(x.view<T>(), y.mut_view<T>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), y = y.detach(), &k](const Tensor& dy) {
        k.softmax_backward(y.view<T>(), dy.view<T>(), dx.rows<T>());
      };
    });
  });
  return y;
}

// dx += dy - exp(y) sum dy
Tensor log_softmax(const Tensor& x) {
  check(bool(x), "log_softmax: the input is absent");
  Tensor y = empty_like(x);
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.log_softmax(x.view<T>(), y.mut_view<T>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), y = y.detach(), &k](const Tensor& dy) {
        k.log_softmax_backward(y.view<T>(), dy.view<T>(), dx.rows<T>());
      };
    });
  });
  return y;
}

}  // namespace moe
