// Threads: one fixed team, outputs partitioned, results independent of the count.
// The only place in the project with an OpenMP pragma; the ThreadSanitizer build (MOE_STD_THREAD)
// runs the same loop on std::thread, since that tool does not understand libgomp.
#pragma once

#include "runtime/shape.h"

#include <algorithm>

#if defined(MOE_STD_THREAD)
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace moe {

namespace detail {
inline int& thread_setting() {
  static int count = 0;  // 0: not set, take all
  return count;
}
inline int& thread_here() {
  static thread_local int index = 0;
  return index;
}
}  // namespace detail

inline void set_threads(int count) {
  detail::thread_setting() = std::max(1, count);
}

inline int threads() {
  if (detail::thread_setting() > 0) return detail::thread_setting();
#if defined(MOE_STD_THREAD)
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#else
  return omp_get_max_threads();
#endif
}

// Number of the calling thread in its team, 0 outside of parallel_for: picks a scratch arena.
inline int thread_index() {
  return detail::thread_here();
}

// body(begin, end) over a partition of [0, n) into at most threads() ranges of whole `grain`s.
// `body` must not throw. Nested calls run in the caller.
template <class Body>
void parallel_for(Index n, Index grain, const Body& body) {
  if (n <= 0) return;
  grain = std::max<Index>(grain, 1);
  Index grains = (n + grain - 1) / grain;
  int team = static_cast<int>(std::min<Index>(threads(), grains));
  auto range = [&](int t) {
    Index begin = grains * t / team * grain, end = std::min(n, grains * (t + 1) / team * grain);
    if (begin < end) body(begin, end);
  };
#if defined(MOE_STD_THREAD)
  static thread_local bool inside = false;
  if (team == 1 || inside) return body(Index{0}, n);
  std::vector<std::thread> crew;
  for (int t = 0; t < team; ++t)
    crew.emplace_back([&, t] {
      inside = true;
      detail::thread_here() = t;
      range(t);
    });
  for (auto& member : crew) member.join();
#else
  if (team == 1 || omp_in_parallel()) return body(Index{0}, n);
#pragma omp parallel num_threads(team)
  {
    detail::thread_here() = omp_get_thread_num();
    // The runtime may grant fewer threads than asked for: stride over the parts.
    for (int t = omp_get_thread_num(); t < team; t += omp_get_num_threads()) range(t);
    detail::thread_here() = 0;
  }
#endif
}

}  // namespace moe
