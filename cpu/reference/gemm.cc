// Matrix products over ragged groups: the definition.
//   forward       y[t,n]   = act(sum_k x[t,k] W_g[n,k] + bias_g[n]) + residual[t,n]
//   input grad    dx[t,k]  = beta dx[t,k] + sum_n dy[t,n] W_g[n,k]
//   weight grad   dW_g[n,k] = beta dW_g[n,k] + sum_{t in g} dy[t,n] x[t,k]
//   bias grad     db_g[n] += sum_{t in g} dy[t,n]
// W is a bank (G * out, in): block g holds rows g * out .. (g + 1) * out - 1. A dense product has
// one group.
#include "cpu/cpu.h"
#include "cpu/reference/functions.h"

namespace moe::reference {

namespace {

// x (T,in)   W (G*out,in)   bias (G*out)   residual, preactivation, y (T,out)
template <class T>
void gemm(Rows<const T> x, Weight<T> w, Ragged groups, Epilogue<T> epilogue, Rows<T> y) {
  for (Index g = 0; g < groups.count; ++g) {
    Range range = group_rows(groups, g, x.rows);
    for (Index t = range.begin; t < range.end; ++t)
      for (Index n = 0; n < y.cols; ++n) {
        Index row = g * y.cols + n;
        double sum = epilogue.bias ? epilogue.bias[row] : 0;
        for (Index k = 0; k < x.cols; ++k) sum += double{x[t][k]} * w.rows[row][k];
        if (epilogue.preactivation) epilogue.preactivation[t][n] = static_cast<T>(sum);
        double result = activation(epilogue.activation, sum);
        y[t][n] = static_cast<T>(result + (epilogue.residual ? epilogue.residual[t][n] : 0));
      }
  }
}

// `beta` times the old value; 0 does not read it, as it may be new memory.
template <class T>
double kept(double beta, T old) {
  return beta == 0 ? 0 : beta * old;
}

// dy (T,out)   W (G*out,in)   dx (T,in)
template <class T>
void gemm_input_grad(Rows<const T> dy, Weight<T> w, Ragged groups, double beta, Rows<T> dx) {
  if (!dx) return;
  for (Index g = 0; g < groups.count; ++g) {
    Range range = group_rows(groups, g, dy.rows);
    for (Index t = range.begin; t < range.end; ++t)
      for (Index k = 0; k < dx.cols; ++k) {
        double sum = kept(beta, dx[t][k]);
        for (Index n = 0; n < dy.cols; ++n) sum += double{dy[t][n]} * w.rows[g * dy.cols + n][k];
        dx[t][k] = static_cast<T>(sum);
      }
  }
}

// dy (T,out)   x (T,in)   dW (G*out,in): every block is written, that of an empty group too
template <class T>
void gemm_weight_grad(Rows<const T> dy, Rows<const T> x, Ragged groups, double beta,
                      Rows<Stat<T>> dw) {
  if (!dw) return;
  for (Index g = 0; g < groups.count; ++g) {
    Range range = group_rows(groups, g, dy.rows);
    for (Index n = 0; n < dy.cols; ++n)
      for (Index k = 0; k < x.cols; ++k) {
        Stat<T>& out = dw[g * dy.cols + n][k];
        double sum = kept(beta, out);
        for (Index t = range.begin; t < range.end; ++t) sum += double{dy[t][n]} * x[t][k];
        out = static_cast<Stat<T>>(sum);
      }
  }
}

// dy (T,out)   db (G,out)
template <class T>
void grouped_sum_rows(Rows<const T> dy, Ragged groups, Stat<T>* db) {
  if (db == nullptr) return;
  for (Index g = 0; g < groups.count; ++g) {
    Range range = group_rows(groups, g, dy.rows);
    for (Index n = 0; n < dy.cols; ++n) {
      double sum = db[g * dy.cols + n];
      for (Index t = range.begin; t < range.end; ++t) sum += dy[t][n];
      db[g * dy.cols + n] = static_cast<Stat<T>>(sum);
    }
  }
}

// Weights are read where they lie: no packed form.
template <class T>
Index packed_bytes(Rows<const T>, Index, Packing) {
  return 0;
}
template <class T>
void pack_weight(Rows<const T>, Index, Packing, void*) {}

}  // namespace

template <class T>
void fill_gemm(Kernels<T>& table) {
  table.gemm = gemm<T>;
  table.gemm_input_grad = gemm_input_grad<T>;
  table.gemm_weight_grad = gemm_weight_grad<T>;
  table.grouped_sum_rows = grouped_sum_rows<T>;
  table.packed_bytes = packed_bytes<T>;
  table.pack_weight = pack_weight<T>;
}

template void fill_gemm(Kernels<float>&);
template void fill_gemm(Kernels<double>&);

}  // namespace moe::reference
