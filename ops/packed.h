// Packed forms of weights: made at first use, kept with the storage, dropped when the weight is
// written.
#pragma once

#include "runtime/tensor.h"

namespace moe {

// w (groups * out, in), or any shape that reads so. For weights only: an activation (matmul_nt) is
// multiplied once, so the kernel packs it on the fly into scratch.
template <class T>
Weight<T> packed_weight(const Tensor& w, Index out_rows, Index in, Index groups, Packing packing,
                        const Kernels<T>& k) {
  Rows<const T> rows{w.data<T>(), out_rows, in, w.contiguous() ? in : w.ld()};
  Index bytes = k.packed_bytes(rows, groups, packing);
  if (bytes == 0) return {rows, nullptr};
  auto& forms = w.storage()->packed;
  for (const PackedForm& f : forms)
    if (f.offset == w.offset() && f.rows == out_rows && f.cols == in && f.groups == groups &&
        f.packing == packing)
      return {rows, f.buffer->data()};
  auto buffer = std::make_shared<Buffer>(w.device(), static_cast<std::size_t>(bytes));
  k.pack_weight(rows, groups, packing, buffer->data());
  forms.push_back({w.offset(), out_rows, in, groups, packing, buffer});
  return {rows, buffer->data()};
}

}  // namespace moe
