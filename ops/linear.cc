// Dense products. One call of the grouped kernel with one group.
#include "ops/check.h"
#include "ops/ops.h"
#include "ops/packed.h"

namespace moe {

// z = x W^T + b   y = f(z) + r
// dr += dy   dz = f'(z) dy   dx += dz W   dW += dz^T x   db += sum_t dz
Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b, const LinearOptions& options) {
  check(x && w, "linear: input or weight is absent");
  check(w.shape().rank() == 2 && w.cols() == x.cols(), "linear: weight {} does not fit input {}",
        w.shape(), x.shape());
  check(!b || b.size() == w.rows(), "linear: bias {} does not fit weight {}",
        b ? b.shape() : Shape{}, w.shape());
  const Tensor& r = options.residual;
  Index out = w.rows(), n = x.rows();
  check(!r || (r.rows() == n && r.cols() == out),
        "linear: residual {} does not fit the output ({},{})", r ? r.shape() : Shape{}, n, out);
  check_device("linear", x, {w, r});
  check_arrays("linear", x, {b});
  Activation f = options.activation;
  Tensor y = empty({n, out}, x.dtype(), x.device());
  bool train = recording({x, w, b, r});
  Tensor z = train && f != Activation::none ? empty_like(y) : Tensor();
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    Epilogue<T> epilogue{b ? b.data<Stat<T>>() : nullptr, f, r ? r.view<T>() : Rows<const T>{},
                         z ? z.mut_view<T>() : Rows<T>{}};
    Weight<T> weight = packed_weight<T>(w, out, w.cols(), 1, Packing::forward, k);
    k.gemm(x.view<T>(), weight, all_rows(n), epilogue, y.mut_view<T>());
    record({x, w, b, r}, y, [&] {
      return [x, w, b, r, z, f, &k](const Tensor& dy) {
        Rows<const T> dz = dy.view<T>();
        Tensor own;  // f'(z) dy, where there is an activation
        if (z) {
          own = empty_like(dy);
          k.activate_backward(f, z.view<T>(), dz, 0, own.mut_view<T>());
          dz = own.view<T>();
        }
        if (r.needs_grad()) k.accumulate(dy.view<T>(), 1, grad<T>(r));
        if (b.needs_grad()) k.sum_rows(dz, grad<Stat<T>>(b).data);
        if (w.needs_grad()) {
          auto [dw, beta] = grad_target<Stat<T>>(w);
          k.gemm_weight_grad(dz, x.view<T>(), all_rows(dz.rows), beta, dw);
        }
        if (x.needs_grad()) {
          auto [dx, beta] = grad_target<T>(x);
          k.gemm_input_grad(dz, packed_weight<T>(w, w.rows(), w.cols(), 1, Packing::input_grad, k),
                            all_rows(dz.rows), beta, dx);
        }
      };
    });
  });
  return y;
}

// y = a b^T    da += dy b    db += dy^T a
Tensor matmul_nt(const Tensor& a, const Tensor& b) {
  check(a && b && a.cols() == b.cols(), "matmul_nt: {} and {} do not share their columns",
        a ? a.shape() : Shape{}, b ? b.shape() : Shape{});
  check_device("matmul_nt", a, {b});
  Tensor y = empty({a.rows(), b.rows()}, a.dtype(), a.device());
  with_type(a, [&]<class T>(const Kernels<T>& k) {
    k.gemm(a.view<T>(), {b.view<T>(), nullptr}, all_rows(a.rows()), {}, y.mut_view<T>());
    record({a, b}, y, [&] {
      return [a, b, &k](const Tensor& dy) {
        if (a.needs_grad())
          k.gemm_input_grad(dy.view<T>(), {b.view<T>(), nullptr}, all_rows(a.rows()), 1,
                            grad<T>(a));
        if (b.needs_grad())
          k.gemm_weight_grad(dy.view<T>(), a.view<T>(), all_rows(a.rows()), 1, grad<T>(b));
      };
    });
  });
  return y;
}

}  // namespace moe
