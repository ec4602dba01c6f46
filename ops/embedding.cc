// Table lookup. The gradient is added in order of the ids, partitioned by table rows: no atomics,
// same bits.
#include "ops/check.h"
#include "ops/gradient.h"
#include "ops/ops.h"

namespace moe {

Tensor lookup(const Tensor& table, const Tensor& ids) {
  check(table && ids, "lookup: table or ids are absent");
  check_arrays("lookup", table, {ids});
  check_range("lookup", ids, 0, table.rows());
  Index n = ids.size();
  Tensor y = empty({n, table.cols()}, table.dtype(), table.device());
  with_type(table, [&]<class T>(const Kernels<T>& k) {
    k.lookup(table.view<T>(), ids.data<std::int32_t>(), n, y.mut_view<T>());
    record({table}, y, [&] {
      return [dtable = gradient_of(table), ids, n, &k](const Tensor& dy) {
        k.lookup_backward(dy.view<T>(), ids.data<std::int32_t>(), n, dtable.rows<Stat<T>>());
      };
    });
  });
  return y;
}

}  // namespace moe
