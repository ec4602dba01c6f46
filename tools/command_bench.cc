// moe-run bench: our own speed on this machine: products, attention, whole forward passes, training
// steps, search. Random data and weights; medians. Comparisons with other libraries live in bench/.
#include "runtime/optimizer.h"
#include "runtime/parallel.h"
#include "tools/commands.h"
#include "tools/index.h"
#include "tools/json_lines.h"
#include "tools/progress.h"
#include "tools/signals.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <numeric>

namespace moe {

namespace {

struct Batch {
  Index texts = 0, tokens = 0;
  std::string name() const { return fmt::format("{}x{}", texts, tokens); }
};

// Numbers with one separator between them: "6,384,12,1536".
std::vector<Index> numbers(const std::string& text, char separator, const char* option) {
  std::vector<Index> list;
  const char *at = text.data(), *end = at + text.size();
  while (true) {
    Index value = 0;
    auto [next, error] = std::from_chars(at, end, value);
    check(error == std::errc() && value > 0 && value <= 100'000'000 &&
              (next == end || *next == separator),
          "{} '{}': expected positive numbers with '{}' between them", option, text, separator);
    list.push_back(value);
    if (next == end) return list;
    at = next + 1;
  }
}

std::vector<Batch> parse_batches(const std::string& text) {
  std::vector<Batch> list;
  for (std::size_t begin = 0; begin <= text.size();) {
    std::size_t end = std::min(text.find(',', begin), text.size());
    auto sizes = numbers(text.substr(begin, end - begin), 'x', "--batches");
    check(sizes.size() == 2, "--batches '{}': expected texts x tokens, as in 32x128", text);
    list.push_back({sizes[0], sizes[1]});
    begin = end + 1;
  }
  return list;
}

struct Rate {
  double per_second;
  const char *json, *unit;
  double divisor = 1;
};

class Bench {
 public:
  explicit Bench(const BenchCommand& command)
      : command_(command), device_(parse_device(command.common.device)) {
    auto shape = numbers(command.shape, ',', "--shape");
    check(shape.size() == 4 && shape[1] % shape[2] == 0,
          "--shape '{}': expected layers,hidden,heads,ffn, hidden a multiple of heads",
          command.shape);
    bert_.layers = shape[0];
    bert_.hidden = shape[1];
    bert_.heads = shape[2];
    bert_.feed_forward = shape[3];
    bert_.pooler = false;
    batches_ = parse_batches(command.batches);
    for (const Batch& b : batches_)
      check(b.tokens >= 2 && b.texts * b.tokens <= (Index{1} << 24),
            "--batches: {} is out of range", b.name());
  }

  void run() {
    notice(fmt::format("device {} ({}), {} threads, shape {}, median of {}", name_of(device_),
                       backend(device_).level, threads(), command_.shape, command_.repetitions));
    auto wants = [&](const char* what) { return command_.what == "all" || command_.what == what; };
    if (wants("gemm")) gemm();
    if (wants("attention")) attention_speed();
    if (wants("forward")) forward();
    if (wants("train")) train();
    if (wants("search")) search_speed();
  }

 private:
  // Median seconds of one call. Short work is repeated inside a measurement until that lasts 10 ms.
  template <class Work>
  double median(const Work& work) const {
    using Clock = std::chrono::steady_clock;
    auto timed = [&](Index times) {
      auto start = Clock::now();
      for (Index i = 0; i < times; ++i) work();
      backend(device_).synchronise();
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    timed(1);  // packs weights, grows scratch
    Index times = std::max<Index>(1, static_cast<Index>(0.01 / std::max(timed(1), 1e-7)));
    std::vector<double> seconds;
    for (int i = 0; i < command_.repetitions; ++i) {
      throw_if_stopped();
      seconds.push_back(timed(times) / static_cast<double>(times));
    }
    std::sort(seconds.begin(), seconds.end());
    std::size_t half = seconds.size() / 2;
    return seconds.size() % 2 ? seconds[half] : (seconds[half - 1] + seconds[half]) / 2;
  }

  void row(const char* what, const std::string& name, double seconds,
           const std::vector<Rate>& rates) const {
    if (command_.common.json) {
      fmt::print(
          "{{\"bench\":\"{}\",\"name\":{},\"device\":\"{}\",\"level\":\"{}\",\"threads\":{},"
          "\"shape\":{},"
          "\"repetitions\":{},\"milliseconds\":{:.6g}",
          what, json_quote(name), name_of(device_), backend(device_).level, threads(),
          json_quote(command_.shape), command_.repetitions, seconds * 1e3);
      for (const Rate& r : rates) fmt::print(",\"{}\":{:.6g}", r.json, r.per_second / r.divisor);
      fmt::print("}}\n");
    } else {
      fmt::print("{:<10} {:<34} {:>10.3f} ms", what, name, seconds * 1e3);
      for (const Rate& r : rates) fmt::print("  {:>10.1f} {}", r.per_second / r.divisor, r.unit);
      fmt::print("\n");
    }
    std::fflush(stdout);
  }

  Tensor noise(const Shape& shape, std::uint64_t stream) const {
    return random_normal(shape, DType::f32, device_,
                         Draw{.seed = command_.common.seed}.dice(stream));
  }

  std::vector<std::vector<std::int32_t>> random_texts(const Batch& batch,
                                                      std::uint64_t stream) const {
    std::vector<std::vector<std::int32_t>> texts(static_cast<std::size_t>(batch.texts));
    std::uint64_t state = mix64(command_.common.seed + stream);
    for (auto& text : texts)
      for (Index i = 0; i < batch.tokens; ++i) {
        state = mix64(state);
        text.push_back(
            static_cast<std::int32_t>(state % static_cast<std::uint64_t>(bert_.vocabulary)));
      }
    return texts;
  }

  Tensor vectors_from(std::vector<std::int32_t> lengths) const {
    return from_host(lengths, {static_cast<Index>(lengths.size())}, device_);
  }

  // The four products of a layer.
  void gemm() const {
    Index h = bert_.hidden, f = bert_.feed_forward;
    struct Product {
      const char* name;
      Index in, out;
    };
    for (const Batch& batch : batches_)
      for (const Product& p :
           {Product{"query key value", h, 3 * h}, Product{"attention out", h, h},
            Product{"feed-forward up", h, f}, Product{"feed-forward down", f, h}}) {
        Index rows = batch.texts * batch.tokens;
        Tensor x = noise({rows, p.in}, 1), w = noise({p.out, p.in}, 2), b = noise({p.out}, 3);
        double s = median([&] { linear(x, w, b); });
        double flops =
            2 * static_cast<double>(rows) * static_cast<double>(p.in) * static_cast<double>(p.out);
        row("gemm", fmt::format("{} {}x{}x{}", p.name, rows, p.out, p.in), s,
            {{flops / s, "gflops", "GFLOP/s", 1e9}});
      }
  }

  void attention_speed() const {
    Index h = bert_.hidden;
    AttentionOptions options;
    options.heads = bert_.heads;
    options.scale = 1 / std::sqrt(static_cast<double>(h / bert_.heads));
    for (const Batch& batch : batches_) {
      Tensor qkv = noise({batch.texts * batch.tokens, 3 * h}, 4);
      std::vector<std::int32_t> lengths(static_cast<std::size_t>(batch.texts),
                                        static_cast<std::int32_t>(batch.tokens));
      Segments segments = pack_segments(lengths, device_);
      double s = median([&] {
        attention(qkv.slice_cols(0, h), qkv.slice_cols(h, 2 * h), qkv.slice_cols(2 * h, 3 * h),
                  segments, segments, options);
      });
      double flops = 4 * static_cast<double>(batch.texts) * static_cast<double>(batch.tokens) *
                     static_cast<double>(batch.tokens) * static_cast<double>(h);
      row("attention", fmt::format("{} heads {}", batch.name(), bert_.heads), s,
          {{flops / s, "gflops", "GFLOP/s", 1e9}});
    }
  }

  std::unique_ptr<TextEncoder> encoder(Index longest) const {
    EncoderConfig config;
    config.bert = bert_;
    config.bert.positions = std::max<Index>(512, longest);
    config.pooling = Pooling::mean;
    config.pooling_source = "bench";
    config.max_length = config.bert.positions;
    config.modules.push_back({});
    TextEncoder::Options options;
    options.device = device_;
    options.seed = command_.common.seed;
    return TextEncoder::create(
        std::move(config), make_wordpiece({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}), options);
  }

  // Multiply-adds of the layers' products and attention, counted as two.
  double forward_flops(const Batch& batch) const {
    auto h = static_cast<double>(bert_.hidden), f = static_cast<double>(bert_.feed_forward);
    double tokens = static_cast<double>(batch.texts) * static_cast<double>(batch.tokens);
    return static_cast<double>(bert_.layers) * tokens *
           (2 * (4 * h * h + 2 * h * f) + 4 * static_cast<double>(batch.tokens) * h);
  }

  void forward() const {
    Index longest = 2;
    for (const Batch& b : batches_) longest = std::max(longest, b.tokens);
    auto model = encoder(longest);
    for (const Batch& batch : batches_) {
      auto texts = random_texts(batch, 5);
      double s = median([&] { (*model)(make_batch(texts, device_), {}); });
      double count = static_cast<double>(batch.texts);
      row("forward", batch.name(), s,
          {{count / s, "sentences_per_second", "sentences/s"},
           {count * static_cast<double>(batch.tokens) / s, "tokens_per_second", "tokens/s"},
           {forward_flops(batch) / s, "gflops", "GFLOP/s", 1e9}});
    }
  }

  // Forward, backward and AdamW of a contrastive step: 32 queries and 32 documents of 64 tokens.
  void train() const {
    Batch batch{32, 64};
    auto model = encoder(batch.tokens);
    AdamW optimizer(model->parameters(), {{}}, {.clip_norm = 1});
    auto queries = random_texts(batch, 6), documents = random_texts(batch, 7);
    std::uint32_t step = 0;
    reset_peak_memory(device_);
    double s = median([&] {
      Pass pass;
      pass.draw = {
          .seed = command_.common.seed, .step = step++, .side = 0, .row0 = 0, .train = true};
      Tape tape;
      Tensor q = (*model)(make_batch(queries, device_), pass);
      pass.draw.side = 1;
      Tensor d = (*model)(make_batch(documents, device_), pass);
      tape.backward(contrastive(q, d, {}, {.temperature = 0.05, .factor = 1.0 / 32}));
      optimizer.step(1e-5);
    });
    double memory = static_cast<double>(memory_statistics(device_).peak_in_use);
    row("train", "step of 32 pairs x 64 tokens", s,
        {{32 / s, "pairs_per_second", "pairs/s"},
         {2 * 32 * 64 / s, "tokens_per_second", "tokens/s"},
         {memory, "peak_mib", "MiB peak", 1 << 20}});
  }

  void search_speed() const {
    constexpr Index documents = 100'000;
    Index size = bert_.hidden;
    Tensor corpus = noise({documents, size}, 8);
    std::vector<std::int32_t> ranks(static_cast<std::size_t>(documents));
    std::iota(ranks.begin(), ranks.end(), 0);
    for (Index count : {Index{1}, Index{64}, Index{512}}) {
      Tensor queries = noise({count, size}, 9);
      double s = median([&] {
        search(queries, documents, ranks, {.k = 100, .block = 4096},
               [&](Index begin, Index end) { return corpus.slice_rows(begin, end); });
      });
      auto n = static_cast<double>(count);
      row("search", fmt::format("{} queries, 100000 x {}, top 100", count, size), s,
          {{n / s, "queries_per_second", "queries/s"},
           {2 * n * static_cast<double>(documents) * static_cast<double>(size) / s, "gflops",
            "GFLOP/s", 1e9}});
    }
  }

  const BenchCommand& command_;
  Device device_;
  BertConfig bert_;
  std::vector<Batch> batches_;
};

}  // namespace

int run_bench(const BenchCommand& command) {
  Bench(command).run();
  return 0;
}

}  // namespace moe
