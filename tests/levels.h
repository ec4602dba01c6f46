// The instruction-set levels the CPU kernels were built for and this machine can run, to test each
// in turn.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moe::testing {

struct Level {
  std::string name;
  std::int64_t targets = 0;
};
std::vector<Level> cpu_levels();

// Runs f once for every level with the dispatch forced to it; the start's choice holds again
// afterwards.
void on_every_level(const std::function<void(const std::string& level)>& f);

}  // namespace moe::testing
