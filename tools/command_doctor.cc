// moe-run doctor: what this machine and this build offer, and settings that are known to hurt.
#include "ops/ops.h"
#include "runtime/file.h"
#include "runtime/parallel.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/version.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sched.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <gnu/libc-version.h>
#include <sstream>

namespace moe {

namespace {

using Json = nlohmann::ordered_json;

double seconds_of(const std::function<void()>& work) {
  auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best of a few: the machine's ability, not its neighbours.
double best_seconds(int times, const std::function<void()>& work) {
  work();
  double best = seconds_of(work);
  for (int i = 1; i < times; ++i) best = std::min(best, seconds_of(work));
  return best;
}

// ---- the machine

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// The value behind "key   : value" in /proc/cpuinfo or /proc/meminfo.
std::string proc_value(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key))
      if (std::size_t colon = line.find(':'); colon != std::string::npos) {
        std::size_t from = line.find_first_not_of(" \t", colon + 1);
        return from == std::string::npos ? "" : line.substr(from);
      }
  return "";
}

double proc_kilobytes(const std::string& key) {
  return std::atof(proc_value("/proc/meminfo", key).c_str());
}

int allowed_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : -1;
}

// CPUs' worth of time the container grants, 0: no limit. cgroup v2, then v1.
double quota_cores() {
  std::istringstream v2(first_line("/sys/fs/cgroup/cpu.max"));
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0)
    return std::atof(quota.c_str()) / period;
  double v1 = std::atof(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").c_str());
  double v1_period = std::atof(first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str());
  return v1 > 0 && v1_period > 0 ? v1 / v1_period : 0;
}

double memory_limit_bytes() {
  std::string text = first_line("/sys/fs/cgroup/memory.max");
  if (text.empty()) text = first_line("/sys/fs/cgroup/memory/memory.limit_in_bytes");
  double limit = text == "max" ? 0 : std::atof(text.c_str());
  return limit < 1e15 ? limit : 0;  // v1 writes a huge number for "none"
}

std::string cpu_flags() {
  static constexpr const char* wanted[] = {
      "avx2",     "fma",      "avx512f",  "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni",
      "amx_tile", "amx_bf16", "amx_int8", "asimd",    "sve",         "bf16",        "i8mm"};
  std::string all = proc_value("/proc/cpuinfo", "flags"), found;
  if (all.empty()) all = proc_value("/proc/cpuinfo", "Features");
  std::istringstream words(all);
  std::vector<std::string> have;
  for (std::string word; words >> word;) have.push_back(word);
  for (const char* flag : wanted)
    if (std::find(have.begin(), have.end(), flag) != have.end())
      found += (found.empty() ? "" : " ") + std::string(flag);
  return found.empty() ? "none of those looked for" : found;
}

// ---- measured

// Reading and writing a buffer far above the caches, all threads: bytes moved, both ways counted.
double copy_gigabytes_per_second() {
  constexpr std::size_t bytes = std::size_t{256} << 20;
  std::vector<char> from(bytes, 1), to(bytes, 2);
  double s = best_seconds(5, [&] {
    parallel_for(static_cast<Index>(bytes), 1 << 20, [&](Index begin, Index end) {
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
    });
  });
  return 2 * static_cast<double>(bytes) / s * 1e-9;
}

// y = x W^T, 512 x 1024 x 1024 in f32: multiply-adds counted as two.
double gemm_gigaflops(Device device) {
  Tensor x = random_normal({512, 1024}, DType::f32, device, Draw{.seed = 1}.dice(1));
  Tensor w = random_normal({1024, 1024}, DType::f32, device, Draw{.seed = 2}.dice(2));
  double s = best_seconds(5, [&] {
    linear(x, w, {});
    backend(device).synchronise();
  });
  return 2.0 * 512 * 1024 * 1024 / s * 1e-9;
}

// ---- known traps

std::vector<std::string> traps(int cores) {
  std::vector<std::string> found;
  double quota = quota_cores();
  if (quota > 0 && quota < cores - 0.01)
    found.push_back(fmt::format(
        "the container grants {:.1f} CPUs of time but shows {} cores: pass --threads {}", quota,
        cores, std::max(1, static_cast<int>(quota))));
  if (cores > 0 && threads() > cores)
    found.push_back(
        fmt::format("{} threads on {} cores: they will wait for each other; lower --threads or "
                    "OMP_NUM_THREADS",
                    threads(), cores));
  if (cores > 0 && threads() < cores)
    found.push_back(
        fmt::format("only {} of {} cores are used (--threads, MOE_THREADS or OMP_NUM_THREADS)",
                    threads(), cores));
  struct Variable {
    const char *name, *effect;
  };
  constexpr Variable variables[] = {
      {"OMP_NUM_THREADS", "sets the threads when --threads is 0"},
      {"OMP_PROC_BIND", "pins threads; two programs pinned alike share the same cores"},
      {"OMP_PLACES", "pins threads; two programs pinned alike share the same cores"},
      {"GOMP_CPU_AFFINITY", "pins threads; two programs pinned alike share the same cores"},
      {"OMP_WAIT_POLICY", "active: idle threads burn a core"},
      {"OMP_DYNAMIC", "the runtime may grant fewer threads"},
      {"OMP_THREAD_LIMIT", "an upper bound on threads"},
      {"MOE_CPU", "forces a lower instruction set: for tests, not for speed"},
  };
  for (const Variable& v : variables)
    if (const char* value = std::getenv(v.name))
      found.push_back(fmt::format("{}={} is set: {}", v.name, value, v.effect));
#ifndef NDEBUG
  found.emplace_back("this is a debug build: slow, and new memory is filled with NaN");
#endif
  return found;
}

std::string compiler() {
#if defined(__clang__)
  return fmt::format("clang {}", __clang_version__);
#else
  return fmt::format("g++ {}", __VERSION__);
#endif
}

std::string libraries() {
  return fmt::format("fmt {}.{}.{}, nlohmann-json {}.{}.{}, zlib {}, glibc {}", FMT_VERSION / 10000,
                     FMT_VERSION / 100 % 100, FMT_VERSION % 100, NLOHMANN_JSON_VERSION_MAJOR,
                     NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH, zlibVersion(),
                     gnu_get_libc_version());
}

}  // namespace

int run_doctor(const DoctorCommand& command) {
  Json report;
  std::vector<std::pair<std::string, std::string>> lines;
  auto put = [&](const char* key, const std::string& text, Json value) {
    report[key] = std::move(value);
    lines.emplace_back(key, text);
  };
  auto words = [&](const char* key, const std::string& text) { put(key, text, text); };

  words("version", std::string("moe-run ") + MOE_VERSION);
  words("compiler", compiler());
  words("libraries", libraries());
  std::string model = proc_value("/proc/cpuinfo", "model name");
  words("cpu", model.empty() ? "unknown" : model);
  words("flags", cpu_flags());
  const Backend& cpu = cpu_backend();
  words("level", cpu.level);
  int cores = allowed_cores();
  put("cores",
      fmt::format("{} allowed to this process, {} online", cores, sysconf(_SC_NPROCESSORS_ONLN)),
      cores);
  put("threads", std::to_string(threads()), threads());
  double total = proc_kilobytes("MemTotal") * 1024,
         available = proc_kilobytes("MemAvailable") * 1024;
  double limit = memory_limit_bytes();
  put("memory",
      fmt::format("{} in all, {} available{}", human_bytes(total), human_bytes(available),
                  limit > 0 ? ", the container may use " + human_bytes(limit) : ""),
      {{"total", total},
       {"available", available},
       {"limit", limit > 0 ? Json(limit) : Json(nullptr)}});
  std::error_code error;
  auto space = std::filesystem::space(".", error);
  double free = error ? -1 : static_cast<double>(space.available);
  put("disk", error ? "unknown" : human_bytes(free) + " free in .",
      error ? Json(nullptr) : Json(free));
  const Backend* cuda = cuda_backend();
  words("cuda", cuda != nullptr ? cuda->level : "none: built without CUDA, or no device answers");
  if (const Backend* simt = simt_backend()) words("simt", simt->level);
  words("device", std::string(name_of(parse_device(command.common.device))) + " (--device " +
                      command.common.device + ")");

  double copy = copy_gigabytes_per_second(), all = gemm_gigaflops(Device::cpu);
  int team = threads();
  set_threads(1);
  double one = gemm_gigaflops(Device::cpu);
  set_threads(team);
  put("copy", fmt::format("{:.1f} GB/s, read and written, {} threads", copy, team), copy);
  put("gemm", fmt::format("{:.1f} GFLOP/s f32 with {} threads, {:.1f} with one", all, team, one),
      {{"threads", all}, {"one", one}});

  std::vector<std::string> found = traps(cores);
  report["traps"] = found;
  if (command.common.json) {
    fmt::print("{}\n", report.dump(-1, ' ', false, Json::error_handler_t::replace));
    return 0;
  }
  for (const auto& [key, text] : lines) fmt::print("{:<11}{}\n", key, text);
  if (found.empty()) fmt::print("{:<11}none found\n", "traps");
  for (const std::string& trap : found) fmt::print("{:<11}{}\n", "note", trap);
  return 0;
}

}  // namespace moe
