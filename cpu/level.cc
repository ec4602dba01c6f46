// Which instruction set the kernels use: the best this CPU has, or a lower one by
// MOE_CPU=baseline|avx2|avx512. Fixed once, before any kernel runs, so threads never race to detect
// it.
#include "cpu/cpu.h"
#include "cpu/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <cstdlib>
#include <string_view>

namespace moe::cpu {

namespace {

// The highest of ours among `targets`, by name.
const char* name_of_best(std::int64_t targets) {
  if (targets & HWY_AVX3) return "avx512";
  if (targets & HWY_AVX2) return "avx2";
  return "baseline";
}

const char* choose() {
  std::int64_t have = hwy::SupportedTargets();
  const char* wanted = std::getenv("MOE_CPU");
  if (wanted != nullptr && *wanted != '\0') {
    std::string_view level = wanted;
    std::int64_t higher = level == "baseline" ? HWY_AVX2 | HWY_AVX3
                          : level == "avx2"   ? HWY_AVX3
                                              : 0;
    check(level == "baseline" || level == "avx2" || level == "avx512",
          "MOE_CPU is '{}': use baseline, avx2 or avx512", wanted);
    have &= ~higher;
    if (level != name_of_best(have))
      fail(Fault::unavailable, "MOE_CPU asks for {}, this CPU has {}", wanted, name_of_best(have));
    hwy::SetSupportedTargetsForTest(have);
  }
  hwy::GetChosenTarget().Update(have);
  return name_of_best(have);
}

}  // namespace

const char* level_name() {
  static const char* name = choose();
  return name;
}

}  // namespace moe::cpu
