// The reference backend: the kernels of this folder on the host's memory, in f32 and f64. It is the
// definition that every fast kernel is checked against, and the only one gradients are checked on
// (in f64).
#include "runtime/backend.h"

#include "cpu/cpu.h"

#include <cstdlib>
#include <cstring>

namespace moe {

namespace {

template <class T>
const Kernels<T>* reference_table() {
  static const Kernels<T> table = [] {
    Kernels<T> t{};
    reference::fill_pointwise(t);
    reference::fill_gemm(t);
    reference::fill_norm(t);
    reference::fill_softmax(t);
    reference::fill_embedding(t);
    reference::fill_attention(t);
    reference::fill_segment(t);
    reference::fill_routing(t);
    reference::fill_loss(t);
    reference::fill_optimizer(t);
    return t;
  }();
  return &table;
}

constexpr std::size_t alignment = 64;  // a cache line, and the widest vector

// aligned_alloc wants whole alignments.
void* allocate(std::size_t bytes) {
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void release(void* memory, std::size_t) {
  std::free(memory);
}

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void zero(void* memory, std::size_t bytes) {
  if (bytes > 0) std::memset(memory, 0, bytes);
}

void synchronise() {}  // kernels have returned when they return

}  // namespace

const Backend& reference_backend() {
  static const Backend backend{.name = "reference",
                               .level = "naive",
                               .f32 = reference_table<float>(),
                               .bf = nullptr,
                               .f64 = reference_table<double>(),
                               .allocate = allocate,
                               .release = release,
                               .upload = copy_bytes,
                               .download = copy_bytes,
                               .zero = zero,
                               .synchronise = synchronise,
                               .host_memory = true};
  return backend;
}

}  // namespace moe
