// Table lookup: the definition.   table, dtable (V,D)   ids (n), all within the table   y, dy (n,D)
#include "cpu/cpu.h"

#include <cassert>

namespace moe::reference {

namespace {

// y[i,:] = table[ids[i],:]
template <class T>
void lookup(Rows<const T> table, const std::int32_t* ids, Index n, Rows<T> y) {
  for (Index i = 0; i < n; ++i) {
    assert(0 <= ids[i] && ids[i] < table.rows);
    for (Index d = 0; d < table.cols; ++d) y[i][d] = table[ids[i]][d];
  }
}

// dtable[ids[i],:] += dy[i,:]    in order of i: an id that comes twice adds its rows in that order
template <class T>
void lookup_backward(Rows<const T> dy, const std::int32_t* ids, Index n, Rows<Stat<T>> dtable) {
  if (!dtable) return;
  for (Index i = 0; i < n; ++i)
    for (Index d = 0; d < dy.cols; ++d) dtable[ids[i]][d] += dy[i][d];
}

}  // namespace

template <class T>
void fill_embedding(Kernels<T>& table) {
  table.lookup = lookup<T>;
  table.lookup_backward = lookup_backward<T>;
}

template void fill_embedding(Kernels<float>&);
template void fill_embedding(Kernels<double>&);

}  // namespace moe::reference
