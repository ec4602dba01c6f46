#include "tests/levels.h"

#include "cpu/targets.h"
#include "runtime/backend.h"

#include <hwy/highway.h>

namespace moe::testing {

std::vector<Level> cpu_levels() {
  cpu_backend();  // makes its choice now, not in the middle of ours
  std::vector<Level> levels;
  // Ascending bits are descending levels.
  for (std::int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    std::int64_t one = left & -left;
    levels.push_back({hwy::TargetName(one), one});
  }
  return levels;
}

void on_every_level(const std::function<void(const std::string& level)>& f) {
  for (const Level& level : cpu_levels()) {
    // Kernels fetch their function by the chosen target at every call.
    hwy::GetChosenTarget().Update(level.targets);
    f(level.name);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace moe::testing
