// The whole CUDA side of a build without CUDA.
#include "runtime/backend.h"

const moe::Backend* moe::cuda_backend() {
  return nullptr;
}
const moe::Backend* moe::simt_backend() {
  return nullptr;
}
