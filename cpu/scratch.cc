// Per-thread scratch arenas: grown on demand, freed at thread exit.
#include "cpu/cpu.h"

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace moe::cpu {

namespace {
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
struct Arena {
  std::unique_ptr<void, Free> memory;
  std::size_t bytes = 0;
};
}  // namespace

void* scratch(Scratch use, std::size_t bytes) {
  static thread_local std::array<Arena, static_cast<std::size_t>(Scratch::count)> arenas;
  Arena& arena = arenas[static_cast<std::size_t>(use)];
  if (arena.bytes < bytes) {
    std::size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    arena.memory.reset();  // give back first: the old contents are not promised
    arena.bytes = 0;
    arena.memory.reset(std::aligned_alloc(4096, size));
    if (!arena.memory) throw std::bad_alloc();
    arena.bytes = size;
  }
  return arena.memory.get();
}

}  // namespace moe::cpu
