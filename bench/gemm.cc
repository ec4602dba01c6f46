// Our fp32 products beside OpenBLAS and oneDNN, in one process and in alternation.
//
// A case is one linear layer (in = K, out = N) met by M rows:
//   NT  forward          y  (M,N) = x (M,K) W^T      ours with packed weights and, beside, with
//   plain ones NN  input gradient   dx (M,K) = dy (M,N) W       ours packed and plain TN  weight
//   gradient  dW (N,K) = dy^T (N,M) x     both operands are activations: nothing to prepack
// Every contender's result is checked against sums in double before it is timed. Rounds run every
// contender once (A B C A B C ...); a figure is the median over rounds, a ratio the median of the
// rounds' ratios, so that a neighbour's burst hits both sides. One thread is timed by its own CPU
// time, which a neighbour on the core cannot inflate, several by the wall clock. Threads are bound;
// the program starts itself again to have it so.
#include "runtime/backend.h"
#include "runtime/parallel.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#if defined(MOE_HAVE_OPENBLAS)
#include <cblas.h>
#endif
#if defined(MOE_HAVE_DNNL)
#include <dnnl.hpp>
#endif
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using moe::Index, moe::Kernels, moe::Rows;
using Call = std::function<void()>;

enum class Form { nt, nn, tn };
constexpr const char* form_names[] = {"NT", "NN", "TN"};

struct Case {
  Index m, n, k;
  Form form;
  double flops() const { return 2.0 * static_cast<double>(m * n) * static_cast<double>(k); }
};

// C (rows, cols) = sum over `depth`.
struct Size {
  Index rows, cols, depth;
};
Size size_of(const Case& c) {
  switch (c.form) {
    case Form::nt:
      return {c.m, c.n, c.k};
    case Form::nn:
      return {c.m, c.k, c.n};
    case Form::tn:
      return {c.n, c.k, c.m};
  }
  return {};
}

class Floats {  // 64-byte aligned, random in [-0.5, 0.5): zeros would flatter
 public:
  Floats(Index count, std::uint64_t seed)
      : data_(static_cast<float*>(std::aligned_alloc(
                  64, (static_cast<std::size_t>(count) * sizeof(float) + 127) / 64 * 64)),
              std::free) {
    for (Index i = 0; i < count; ++i)
      data_.get()[i] =
          static_cast<float>(moe::unit_real(moe::philox({static_cast<std::uint32_t>(i), 0, 0, 0},
                                                        static_cast<std::uint32_t>(seed), 1)[0]) -
                             0.5);
  }
  float* get() const { return data_.get(); }

 private:
  std::unique_ptr<float, void (*)(void*)> data_;
};

struct Contender {
  std::string name;
  Call call;
  const float* result;
};

double seconds_wall() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double seconds_thread() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The largest difference from sums in double, over a sample of elements, relative to sqrt(depth).
double error_of(const Case& c, const float* a, const float* b, const float* result) {
  Size size = size_of(c);
  double worst = 0;
  for (std::uint32_t s = 0; s < 200; ++s) {
    moe::PhiloxBlock dice = moe::philox({s, 0, 0, 0}, 7, 7);
    Index i = s == 0 ? size.rows - 1 : dice[0] % size.rows;
    Index j = s == 0 ? size.cols - 1 : dice[1] % size.cols;
    double sum = 0;
    for (Index t = 0; t < size.depth; ++t) {
      double x = c.form == Form::tn ? a[t * size.rows + i] : a[i * size.depth + t];
      double y = c.form == Form::nt ? b[j * size.depth + t] : b[t * size.cols + j];
      sum += x * y;
    }
    worst = std::max(worst, std::abs(sum - static_cast<double>(result[i * size.cols + j])));
  }
  return worst / std::sqrt(static_cast<double>(size.depth));
}

// ---- contenders
// --------------------------------------------------------------------------------------

Call our_call(const Case& c, const Kernels<float>& k, float* a, float* b, float* result,
              const void* packed) {
  Size s = size_of(c);
  moe::Ragged all{nullptr, nullptr, 1, s.rows};
  Rows<float> y{result, s.rows, s.cols, s.cols};
  if (c.form == Form::tn) {
    Rows<const float> dy{a, c.m, c.n, c.n}, x{b, c.m, c.k, c.k};
    return [=, &k] { k.gemm_weight_grad(dy, x, all, 0.0, y); };
  }
  Rows<const float> x{a, s.rows, s.depth, s.depth};
  moe::Weight<float> w{{b, c.n, c.k, c.k}, packed};
  if (c.form == Form::nn) return [=, &k] { k.gemm_input_grad(x, w, all, 0.0, y); };
  return [=, &k] { k.gemm(x, w, all, {}, y); };
}

#if defined(MOE_HAVE_OPENBLAS)
Call openblas_call(const Case& c, const float* a, const float* b, float* result) {
  Size s = size_of(c);
  auto transpose_a = c.form == Form::tn ? CblasTrans : CblasNoTrans;
  auto transpose_b = c.form == Form::nt ? CblasTrans : CblasNoTrans;
  auto rows = static_cast<blasint>(s.rows), cols = static_cast<blasint>(s.cols),
       depth = static_cast<blasint>(s.depth);
  blasint lda = c.form == Form::tn ? rows : depth, ldb = c.form == Form::nt ? depth : cols;
  return [=] {
    cblas_sgemm(CblasRowMajor, transpose_a, transpose_b, rows, cols, depth, 1.0f, a, lda, b, ldb,
                0.0f, result, cols);
  };
}
#endif

#if defined(MOE_HAVE_DNNL)
// any: the weights in the layout oneDNN likes best, reordered before the timing.
Call dnnl_call(const Case& c, float* a, float* b, float* result, bool any) {
  using namespace dnnl;
  using tag = memory::format_tag;
  static engine cpu(engine::kind::cpu, 0);
  static stream queue(cpu);
  Size s = size_of(c);
  auto f32 = memory::data_type::f32;
  memory::desc src({s.rows, s.depth}, f32, c.form == Form::tn ? tag::ba : tag::ab);
  memory::desc plain({s.depth, s.cols}, f32, c.form == Form::nt ? tag::ba : tag::ab);
  memory::desc weights = any ? memory::desc({s.depth, s.cols}, f32, tag::any) : plain;
  memory::desc dst({s.rows, s.cols}, f32, tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  matmul::primitive_desc description(cpu, src, weights, dst);
#else
  matmul::primitive_desc description(matmul::desc(src, weights, dst), cpu);
#endif
  matmul product(description);
  memory from(src, cpu, a), given(plain, cpu, b), to(dst, cpu, result), used = given;
  if (description.weights_desc() != plain) {
    used = memory(description.weights_desc(), cpu);
    reorder(given, used).execute(queue, given, used);
    queue.wait();
  }
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, used}, {DNNL_ARG_DST, to}};
  return [=] {
    product.execute(queue, arguments);
    queue.wait();
  };
}
#endif

nlohmann::ordered_json peers() {
  nlohmann::ordered_json found;
#if defined(MOE_HAVE_OPENBLAS)
  found["openblas"] = std::string(openblas_get_config()) + " core " + openblas_get_corename();
#else
  found["openblas"] = "absent";
#endif
#if defined(MOE_HAVE_DNNL)
  const dnnl_version_t* v = dnnl_version();
  found["dnnl"] =
      std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
#else
  found["dnnl"] = "absent";
#endif
  return found;
}

// ---- timing
// ------------------------------------------------------------------------------------------

struct Times {
  std::vector<double> wall, thread;  // seconds a call, one entry a round
  const std::vector<double>& judged() const { return moe::threads() == 1 ? thread : wall; }
};

std::vector<Times> measure(const std::vector<Contender>& contenders, double seconds, int rounds) {
  std::vector<Times> times(contenders.size());
  std::vector<int> repeats;
  for (const Contender& contender : contenders) {
    contender.call();
    double start = seconds_wall();
    contender.call();
    double once = std::max(1e-7, seconds_wall() - start);
    repeats.push_back(std::max(1, static_cast<int>(seconds / once)));
  }
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      double wall = seconds_wall(), thread = seconds_thread();
      for (int r = 0; r < repeats[i]; ++r) contenders[i].call();
      times[i].wall.push_back((seconds_wall() - wall) / repeats[i]);
      times[i].thread.push_back((seconds_thread() - thread) / repeats[i]);
    }
  }
  return times;
}

double ratio(const std::vector<double>& ours, const std::vector<double>& peer) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ours.size(); ++i) ratios.push_back(peer[i] / ours[i]);
  return median(ratios);
}

nlohmann::ordered_json run_case(const Case& c, const moe::Backend& backend, double seconds,
                                int rounds) {
  const Kernels<float>& k = *backend.f32;
  Size s = size_of(c);
  Floats a(s.rows * s.depth, 1), b(s.depth * s.cols, 2), packed_result(s.rows * s.cols, 3),
      result(s.rows * s.cols, 4);
  std::vector<Contender> contenders;
  Rows<const float> w{b.get(), c.n, c.k, c.k};
  auto packing = c.form == Form::nt ? moe::Packing::forward : moe::Packing::input_grad;
  Index bytes = c.form == Form::tn ? 0 : k.packed_bytes(w, 1, packing);
  Floats packed(bytes / 4 + 1, 5);
  if (bytes > 0) {
    k.pack_weight(w, 1, packing, packed.get());
    contenders.push_back({"ours",
                          our_call(c, k, a.get(), b.get(), packed_result.get(), packed.get()),
                          packed_result.get()});
  }
  contenders.push_back({bytes > 0 ? "ours_plain" : "ours",
                        our_call(c, k, a.get(), b.get(), result.get(), nullptr), result.get()});
#if defined(MOE_HAVE_OPENBLAS)
  Floats openblas_result(s.rows * s.cols, 6);
  contenders.push_back({"openblas", openblas_call(c, a.get(), b.get(), openblas_result.get()),
                        openblas_result.get()});
#endif
#if defined(MOE_HAVE_DNNL)
  Floats dnnl_result(s.rows * s.cols, 7);
  contenders.push_back(
      {"dnnl", dnnl_call(c, a.get(), b.get(), dnnl_result.get(), false), dnnl_result.get()});
  if (c.form != Form::tn)
    contenders.push_back({"dnnl_packed", dnnl_call(c, a.get(), b.get(), dnnl_result.get(), true),
                          dnnl_result.get()});
#endif
  for (const Contender& contender : contenders) {
    contender.call();
    double error = error_of(c, a.get(), b.get(), contender.result);
    if (!(error < 2e-6))
      moe::fail(moe::Fault::failure, "bench gemm: {} is wrong on {} m={} n={} k={}: error {:.3g}",
                contender.name, form_names[static_cast<int>(c.form)], c.m, c.n, c.k, error);
  }
  std::vector<Times> times = measure(contenders, seconds, rounds);
  nlohmann::ordered_json line = {{"bench", "gemm"}, {"form", form_names[static_cast<int>(c.form)]},
                                 {"m", c.m},        {"n", c.n},
                                 {"k", c.k},        {"threads", moe::threads()}};
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    double wall = median(times[i].wall), taken = median(times[i].judged());
    line[contenders[i].name] = std::round(c.flops() / taken / 1e7) / 100;  // GFLOP/s
    // Share of the calling thread's time that it had a core: with several threads, a row below 0.9
    // proves nothing.
    line[contenders[i].name + "_cpu_share"] =
        std::round(median(times[i].thread) / wall * 100) / 100;
    if (i > 0)
      line["over_" + contenders[i].name] =
          std::round(ratio(times[0].judged(), times[i].judged()) * 1000) / 1000;
  }
  return line;
}

// libgomp reads its environment before main: bind the threads by starting again.
void bind_threads(int threads, char** arguments) {
  if (std::getenv("OMP_PROC_BIND") != nullptr) return;
  setenv("OMP_PROC_BIND", "close", 1);
  setenv("OMP_PLACES", "cores", 1);
  if (threads > 0) setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), 1);
  execv("/proc/self/exe", arguments);  // returns only on failure: then go on unbound
}

std::string column(const nlohmann::ordered_json& line, const std::string& key) {
  return line.contains(key) ? fmt::format("{:>8.2f}", line[key].get<double>())
                            : fmt::format("{:>8}", "-");
}

int run(int count, char** arguments) {
  CLI::App app{"fp32 products beside OpenBLAS and oneDNN"};
  int threads = 0, rounds = 9;
  double seconds = 0.02;
  std::string json;
  std::vector<Index> only_m;
  std::vector<std::string> only_form;
  app.add_option("--threads", threads, "threads for everybody (default: all)");
  app.add_option("--json", json, "append one JSON line a case to this file");
  app.add_option("--rounds", rounds, "rounds, of which the median counts")->capture_default_str();
  app.add_option("--seconds", seconds, "time of one contender in one round")->capture_default_str();
  app.add_option("--m", only_m, "only these row counts")->delimiter(',');
  app.add_option("--form", only_form, "only these forms: NT, NN, TN")->delimiter(',');
  CLI11_PARSE(app, count, arguments);
  bind_threads(threads, arguments);
  if (threads > 0) moe::set_threads(threads);
#if defined(MOE_HAVE_OPENBLAS)
  openblas_set_num_threads(moe::threads());
#endif
  const moe::Backend& backend = moe::cpu_backend();
  nlohmann::ordered_json versions = peers();
  std::cout << fmt::format("cpu level {}, {} threads, peers {}\n", backend.level, moe::threads(),
                           versions.dump());
  std::cout << fmt::format(
      "{:>4} {:>5} {:>5} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}\n", "", "m", "n",
      "k", "ours", "plain", "openblas", "dnnl", "dnnl pk", "/openblas", "/dnnl", "/dnnl pk");
  std::ofstream file;
  if (!json.empty()) file.open(json, std::ios::app);
  const Index layers[][2] = {{768, 768},  {3072, 768}, {768, 3072}, {384, 384},
                             {1536, 384}, {512, 512},  {128, 128},  {512, 128}};  // out, in
  for (Form form : {Form::nt, Form::nn, Form::tn}) {
    if (!only_form.empty() && std::find(only_form.begin(), only_form.end(),
                                        form_names[static_cast<int>(form)]) == only_form.end())
      continue;
    for (auto [n, k] : layers) {
      for (Index m : {1, 16, 128, 512, 4096}) {
        if (!only_m.empty() && std::find(only_m.begin(), only_m.end(), m) == only_m.end()) continue;
        nlohmann::ordered_json line = run_case({m, n, k, form}, backend, seconds, rounds);
        line["level"] = backend.level;
        line["peers"] = versions;
        if (file.is_open()) file << line.dump() << std::endl;
        std::cout << fmt::format("{:>4} {:>5} {:>5} {:>5} {} {} {} {} {}   {}  {} {}",
                                 form_names[static_cast<int>(form)], m, n, k, column(line, "ours"),
                                 column(line, "ours_plain"), column(line, "openblas"),
                                 column(line, "dnnl"), column(line, "dnnl_packed"),
                                 column(line, "over_openblas"), column(line, "over_dnnl"),
                                 column(line, "over_dnnl_packed"))
                  << std::endl;
      }
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
