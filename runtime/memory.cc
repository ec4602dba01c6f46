#include "runtime/memory.h"

#include <bit>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace moe {

namespace {

#ifdef NDEBUG
bool poison = false;
#else
bool poison = true;
#endif

// Four classes per power of two: at most a fifth of a block is slack. Everything is a multiple of
// 64 bytes.
std::size_t size_class(std::size_t bytes) {
  if (bytes <= 256) return (bytes + 63) / 64 * 64 + (bytes == 0 ? 64 : 0);
  std::size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

class CachingAllocator {
 public:
  explicit CachingAllocator(Device device) : backend_(backend(device)) {}

  void* take(std::size_t size) {
    std::lock_guard lock(mutex_);
    void* block = nullptr;
    if (auto& list = free_[size]; !list.empty()) {
      block = list.back();
      list.pop_back();
    } else {
      block = backend_.allocate(size);
      if (block == nullptr) {  // cached blocks of other sizes may be in the way
        trim_locked();
        block = backend_.allocate(size);
      }
      if (block == nullptr)
        fail(Fault::failure,
             "out of memory on device '{}': {} more bytes asked, {} in use.\n"
             "Use a smaller batch (--batch-tokens) or a shorter --max-length.",
             backend_.name, size, statistics_.in_use);
      statistics_.held += size;
      ++statistics_.system_calls;
    }
    statistics_.in_use += size;
    statistics_.peak_in_use = std::max(statistics_.peak_in_use, statistics_.in_use);
    return block;
  }

  void give(void* block, std::size_t size) {
    std::lock_guard lock(mutex_);
    free_[size].push_back(block);
    statistics_.in_use -= size;
  }

  void trim() {
    std::lock_guard lock(mutex_);
    trim_locked();
  }
  MemoryStatistics statistics() {
    std::lock_guard lock(mutex_);
    return statistics_;
  }
  void reset_peak() {
    std::lock_guard lock(mutex_);
    statistics_.peak_in_use = statistics_.in_use;
  }

 private:
  void trim_locked() {
    for (auto& [size, list] : free_) {
      for (void* block : list) backend_.release(block, size);
      statistics_.held -= size * list.size();
      list.clear();
    }
  }

  const Backend& backend_;
  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;
  MemoryStatistics statistics_;
};

// Never destroyed: tensors in static storage may outlive any order of destruction we could choose.
CachingAllocator& allocator(Device device) {
  static CachingAllocator* all[4] = {};
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  auto& one = all[static_cast<int>(device)];
  if (one == nullptr) one = std::make_unique<CachingAllocator>(device).release();
  return *one;
}

}  // namespace

Buffer::Buffer(Device device, std::size_t bytes)
    : data_(allocator(device).take(size_class(bytes))), bytes_(bytes), device_(device) {
  if (poison && backend(device).host_memory) std::memset(data_, 0xFF, bytes);
}

Buffer::Buffer(const void* data, std::size_t bytes, std::shared_ptr<const void> owner)
    : data_(const_cast<void*>(data)), bytes_(bytes), owner_(std::move(owner)) {}

Buffer::~Buffer() {
  if (!owner_) allocator(device_).give(data_, size_class(bytes_));
}

MemoryStatistics memory_statistics(Device device) {
  return allocator(device).statistics();
}
void reset_peak_memory(Device device) {
  allocator(device).reset_peak();
}
void trim_memory(Device device) {
  allocator(device).trim();
}
void memory_poison(bool on) {
  poison = on;
}

}  // namespace moe
