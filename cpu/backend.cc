// The CPU table is the reference table with fast families laid over it: a new op works here the day
// its naive kernel lands, and speed is a separate change with a parity test waiting.
#include "runtime/backend.h"

#include "cpu/cpu.h"

namespace moe {

const Backend& cpu_backend() {
  static const Kernels<float> table = [] {
    cpu::level_name();  // fixes the instruction set before any kernel runs
    Kernels<float> t = *reference_backend().f32;
    cpu::fill_pointwise(t);
    cpu::fill_gemm(t);
    cpu::fill_norm(t);
    cpu::fill_softmax(t);
    cpu::fill_embedding(t);
    cpu::fill_attention(t);
    cpu::fill_segment(t);
    cpu::fill_routing(t);
    cpu::fill_loss(t);
    cpu::fill_optimizer(t);
    return t;
  }();
  static const Backend backend = [] {
    Backend b = reference_backend();  // same memory: the host's
    b.name = "cpu";
    b.level = cpu::level_name();
    b.f32 = &table;
    b.f64 = nullptr;
    return b;
  }();
  return backend;
}

}  // namespace moe
