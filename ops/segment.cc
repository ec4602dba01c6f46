// Pooling over segments.
#include "ops/check.h"
#include "ops/gradient.h"
#include "ops/ops.h"

namespace moe {

// dx[t] += dy[g] / length_g
Tensor segment_mean(const Tensor& x, const Segments& segments) {
  check(bool(x), "segment_mean: the input is absent");
  check_segments("segment_mean", x, segments);
  Tensor y = empty({segments.count, x.cols()}, x.dtype(), x.device());
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.segment_mean(x.view<T>(), segments.ragged(), y.mut_view<T>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), segments, &k](const Tensor& dy) {
        k.segment_mean_backward(dy.view<T>(), segments.ragged(), dx.rows<T>());
      };
    });
  });
  return y;
}

// dx[arg[g,d],d] += dy[g,d]
Tensor segment_max(const Tensor& x, const Segments& segments) {
  check(bool(x), "segment_max: the input is absent");
  check_segments("segment_max", x, segments);
  Tensor y = empty({segments.count, x.cols()}, x.dtype(), x.device());
  Tensor arg = empty({segments.count, x.cols()}, DType::i32, x.device());
  with_type(x, [&]<class T>(const Kernels<T>& k) {
    k.segment_max(x.view<T>(), segments.ragged(), y.mut_view<T>(), arg.mut<std::int32_t>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), arg, &k](const Tensor& dy) {
        k.segment_max_backward(dy.view<T>(), arg.data<std::int32_t>(), dx.rows<T>());
      };
    });
  });
  return y;
}

// The first row of a segment is a lookup at its begin.
Tensor segment_first(const Tensor& x, const Segments& segments) {
  return lookup(x, segments.begin);
}

}  // namespace moe
