#include "runtime/backend.h"

namespace moe {

const Backend& backend(Device device) {
  const Backend* found = nullptr;
  switch (device) {
    case Device::cpu:
      return cpu_backend();
    case Device::reference:
      return reference_backend();
    case Device::cuda:
      found = cuda_backend();
      break;
    case Device::simt:
      found = simt_backend();
      break;
  }
  if (found == nullptr)
    fail(Fault::unavailable,
         "device '{}' is not available: this program was built without it, or no such device "
         "answers.\n"
         "Use --device cpu, or see `moe-run doctor`.",
         name_of(device));
  return *found;
}

Device parse_device(std::string_view name) {
  if (name == "auto") return cuda_backend() ? Device::cuda : Device::cpu;
  for (Device device : {Device::cpu, Device::reference, Device::cuda, Device::simt})
    if (name == name_of(device)) return device;
  fail(Fault::usage, "unknown device '{}': use auto, cpu, cuda, reference or simt", name);
}

}  // namespace moe
