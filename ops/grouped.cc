// Grouped products: one bank of weights, rows already in expert order.
#include "ops/check.h"
#include "ops/ops.h"
#include "ops/packed.h"

namespace moe {

// y[t] = f(W_g x[t] + b_g) for t in group g; gradients as in linear, per group. Rows outside every
// group are zero.
Tensor grouped_linear(const Tensor& x, const Tensor& w, const Tensor& b, const Segments& groups,
                      Activation f) {
  check(x && w, "grouped_linear: input or bank is absent");
  check(w.shape().rank() == 3 && w.shape()[2] == x.cols(),
        "grouped_linear: bank {} does not fit input {}", w.shape(), x.shape());
  Index experts = w.shape()[0], out = w.shape()[1], in = w.shape()[2];
  check(groups.count == experts, "grouped_linear: {} groups for a bank of {} experts", groups.count,
        experts);
  check(!b || b.size() == experts * out, "grouped_linear: bias {} does not fit bank {}",
        b ? b.shape() : Shape{}, w.shape());
  check_arrays("grouped_linear", x, {w, b});
  check_segments("grouped_linear", x, groups);
  // Zeros, not empty: rows of a choice nobody took are in no group, and 0 * NaN must not reach a
  // gradient.
  Tensor y = zeros({x.rows(), out}, x.dtype(), x.device());
  bool train = recording({x, w, b});
  Tensor z = train && f != Activation::none ? zeros(y.shape(), y.dtype(), y.device()) : Tensor();
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    Epilogue<T> epilogue{b ? b.data<Stat<T>>() : nullptr, f, {}, z ? z.mut_view<T>() : Rows<T>{}};
    Weight<T> weight = packed_weight<T>(w, experts * out, in, experts, Packing::forward, k);
    k.gemm(x.view<T>(), weight, groups.ragged(), epilogue, y.mut_view<T>());
    record({x, w, b}, y, [&] {
      return [x, w, b, z, f, groups, experts, out, in, &k](const Tensor& dy) {
        Rows<const T> dz = dy.view<T>();
        Tensor own;
        if (z) {
          own = empty_like(dy);
          k.activate_backward(f, z.view<T>(), dz, 0, own.mut_view<T>());
          dz = own.view<T>();
        }
        if (b.needs_grad()) k.grouped_sum_rows(dz, groups.ragged(), grad<Stat<T>>(b).data);
        if (w.needs_grad()) {
          auto [dw, beta] = grad_target<Stat<T>>(w);
          k.gemm_weight_grad(dz, x.view<T>(), groups.ragged(), beta,
                             {dw.data, experts * out, in, in});
        }
        if (x.needs_grad())
          k.gemm_input_grad(dz,
                            packed_weight<T>(w, experts * out, in, experts, Packing::input_grad, k),
                            groups.ragged(), 1, grad<T>(x));
      };
    });
  });
  return y;
}

}  // namespace moe
