// A backend: memory, workspace and the tables it implements. The four accessors below are the link
// seam: other folders define them, so `ops` never learns which backends exist, and a build without
// CUDA differs by one file.
#pragma once

#include "runtime/kernels.h"

#include <string_view>

namespace moe {

enum class Device : std::uint8_t { cpu, reference, cuda, simt };

constexpr const char* name_of(Device device) {
  switch (device) {
    case Device::cpu:
      return "cpu";
    case Device::reference:
      return "reference";
    case Device::cuda:
      return "cuda";
    case Device::simt:
      return "simt";
  }
  return "?";
}

struct Backend {
  const char* name;
  const char* level;  // instruction set chosen, for people: "avx512", "naive"
  const Kernels<float>* f32;
  const Kernels<bf16>* bf;
  const Kernels<double>* f64;
  void* (*allocate)(std::size_t bytes);  // null when out of memory; 64-byte aligned
  void (*release)(void* memory, std::size_t bytes);
  void (*upload)(void* to, const void* host, std::size_t bytes);
  void (*download)(void* host, const void* from, std::size_t bytes);
  void (*zero)(void* memory, std::size_t bytes);
  void (*synchronise)();
  bool host_memory;  // the host may read and write this memory directly

  // The table for T, or an error that names dtype and device.
  template <class T>
  const Kernels<T>& kernels() const {
    const Kernels<T>* table;
    if constexpr (std::is_same_v<T, float>)
      table = f32;
    else if constexpr (std::is_same_v<T, bf16>)
      table = bf;
    else
      table = f64;
    if (table == nullptr)
      fail(Fault::unavailable, "device '{}' has no {} kernels (f64 runs on --device reference)",
           name, dtype_of<T>);
    return *table;
  }
};

// The link seam.
const Backend& reference_backend();  // cpu/reference/backend.cc: naive, readable, also double
const Backend& cpu_backend();        // cpu/backend.cc: Highway and threads
const Backend* cuda_backend();       // cuda/backend.cu, or cuda/absent.cc: null
const Backend* simt_backend();       // the CUDA kernels as host code, or null

// The backend of a device; throws when it is absent.
const Backend& backend(Device device);

// "auto" picks cuda when a device answers, else cpu.
Device parse_device(std::string_view name);

}  // namespace moe

template <>
struct fmt::formatter<moe::Device> : fmt::formatter<const char*> {
  auto format(moe::Device device, fmt::format_context& context) const {
    return fmt::formatter<const char*>::format(moe::name_of(device), context);
  }
};
