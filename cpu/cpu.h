// The CPU families. Each file fills its slots of a table; cpu_backend() starts from the reference
// table and lets every fast family override what it implements.
#pragma once

#include "runtime/kernels.h"

namespace moe::reference {
template <class T>
void fill_pointwise(Kernels<T>& table);
template <class T>
void fill_gemm(Kernels<T>& table);
template <class T>
void fill_norm(Kernels<T>& table);
template <class T>
void fill_softmax(Kernels<T>& table);
template <class T>
void fill_embedding(Kernels<T>& table);
template <class T>
void fill_attention(Kernels<T>& table);
template <class T>
void fill_segment(Kernels<T>& table);
template <class T>
void fill_routing(Kernels<T>& table);
template <class T>
void fill_loss(Kernels<T>& table);
template <class T>
void fill_optimizer(Kernels<T>& table);
}  // namespace moe::reference

namespace moe::cpu {
void fill_pointwise(Kernels<float>& table);
void fill_gemm(Kernels<float>& table);
void fill_norm(Kernels<float>& table);
void fill_softmax(Kernels<float>& table);
void fill_embedding(Kernels<float>& table);
void fill_attention(Kernels<float>& table);
void fill_segment(Kernels<float>& table);
void fill_routing(Kernels<float>& table);
void fill_loss(Kernels<float>& table);
void fill_optimizer(Kernels<float>& table);

// Scratch of the calling thread, kept and only growing; 64-byte aligned, contents undefined.
// Each `use` is its own buffer, so kernels that call one another do not collide.
enum class Scratch { pack_a, pack_b, tile, rows, keys, count };
void* scratch(Scratch use, std::size_t bytes);

// The level cpu_backend() chose: "avx512", "avx2" or "baseline" (MOE_CPU forces a lower one).
const char* level_name();
}  // namespace moe::cpu
