// Device memory. A Buffer owns one block; blocks come from a caching allocator per device and go
// back to its free lists, so an eager program reaches a steady state after one step. Reuse needs no
// events: a backend has exactly one in-order stream.
#pragma once

#include "runtime/backend.h"

#include <memory>

namespace moe {

struct MemoryStatistics {
  std::size_t in_use = 0;        // bytes in live buffers (size classes, not requests)
  std::size_t peak_in_use = 0;   // its maximum since start or reset_peak_memory
  std::size_t held = 0;          // bytes taken from the system: in use + cached
  std::size_t system_calls = 0;  // blocks ever asked from the system
};

class Buffer {
 public:
  Buffer(Device device, std::size_t bytes);  // uninitialised; poisoned when memory_poison is on
  // Foreign read-only memory (a mapped file), kept alive by `owner`.
  Buffer(const void* data, std::size_t bytes, std::shared_ptr<const void> owner);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  bool read_only() const { return owner_ != nullptr; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_ = Device::cpu;
  std::shared_ptr<const void> owner_;
};

MemoryStatistics memory_statistics(Device device);
void reset_peak_memory(Device device);
// Gives cached, unused blocks back to the system.
void trim_memory(Device device);
// New buffers are filled with 0xFF bytes (NaN in every float type): a kernel that forgets an
// element fails loudly. On in debug builds and in the tests.
void memory_poison(bool on);

}  // namespace moe
