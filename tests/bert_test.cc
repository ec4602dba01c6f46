// BERT against the public implementation: hidden states, pooled vectors, every gradient, ten
// training steps. The golden folder is made by tests/golden/make_bert.py; MOE_BERT_PARITY names a
// larger one (see tests/golden/README.md).
#include "models/bert.h"

#include "models/text_encoder.h"
#include "runtime/optimizer.h"
#include "runtime/parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

namespace moe {
namespace {

const std::string tiny = std::string(MOE_SOURCE_DIR) + "/tests/golden/bert_tiny";

std::vector<double> values(const TensorFile& file, const std::string& name) {
  const TensorEntry& entry = file.tensors.at(name);
  return to_host<double>(to_tensor(name, entry, DType::f64, Device::reference));
}

std::vector<std::int32_t> whole(const TensorFile& file, const std::string& name) {
  const TensorEntry& entry = file.tensors.at(name);
  auto wide = to_host<std::int64_t>(to_tensor(name, entry, DType::i64, Device::reference));
  return {wide.begin(), wide.end()};
}

std::vector<double> host(const Tensor& x) {
  if (x.dtype() == DType::f64) return to_host<double>(x);
  auto narrow = to_host<float>(x);
  return {narrow.begin(), narrow.end()};
}

Tensor device_tensor(const std::vector<double>& v, const Shape& shape, DType dtype, Device device) {
  if (dtype == DType::f64) return from_host(v, shape, device);
  return from_host(std::vector<float>(v.begin(), v.end()), shape, device);
}

// |a - b| over the largest |b|.
double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double peak = 0, gap = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    peak = std::max(peak, std::abs(b[i]));
    gap = std::max(gap, std::abs(a[i] - b[i]));
  }
  return gap / std::max(peak, 1e-30);
}

struct Golden {
  EncoderConfig config;
  TensorFile weights, expected;
  std::vector<std::int32_t> ids, types, lengths;

  explicit Golden(const std::string& folder)
      : config(read_encoder_config(folder)),
        weights(normalise_bert_names(read_model_weights(folder), "bert.")),
        expected(read_safetensors(folder + "/expected.safetensors")),
        ids(whole(expected, "ids")),
        types(whole(expected, "types")),
        lengths(whole(expected, "lengths")) {}

  TokenBatch batch(const std::vector<std::int32_t>& tokens, Device device) const {
    std::vector<std::vector<std::int32_t>> texts, kinds;
    std::size_t at = 0;
    for (std::int32_t n : lengths) {
      texts.emplace_back(tokens.begin() + static_cast<std::ptrdiff_t>(at),
                         tokens.begin() + static_cast<std::ptrdiff_t>(at) + n);
      kinds.emplace_back(types.begin() + static_cast<std::ptrdiff_t>(at),
                         types.begin() + static_cast<std::ptrdiff_t>(at) + n);
      at += static_cast<std::size_t>(n);
    }
    return make_batch(texts, device, kinds);
  }
};

struct Tolerances {
  double forward, gradient, loss;
};

void check_encoder(const std::string& folder, Device device, DType dtype, Tolerances t) {
  Golden golden(folder);
  Parameters parameters({.dtype = dtype,
                         .device = device,
                         .seed = 1,
                         .source = &golden.weights,
                         .may_be_missing = {}});
  Bert bert(parameters.root() / "bert", golden.config.bert);
  parameters.finish({"cls.*"});

  TokenBatch batch = golden.batch(golden.ids, device);
  Pass pass;
  pass.rows = batch.segments;
  Tape tape;
  Tensor hidden = bert(batch, pass);
  Tensor pooled = bert.pool(hidden, batch.segments);
  EXPECT_LE(relative_error(host(hidden), values(golden.expected, "hidden")), t.forward);
  EXPECT_LE(relative_error(host(pooled), values(golden.expected, "pooled")), t.forward);

  // L = sum(hidden c) + sum(pooled d): start both cotangents through one scalar-free tape by an
  // inner product.
  Tensor c = device_tensor(values(golden.expected, "cotangent"), hidden.shape(), dtype, device);
  Tensor d =
      device_tensor(values(golden.expected, "pooled_cotangent"), pooled.shape(), dtype, device);
  with_type(pooled,
            [&]<class T>(const Kernels<T>& k) { k.accumulate(d.view<T>(), 1, grad<T>(pooled)); });
  tape.backward(hidden, c);

  double worst = 0;
  std::string worst_name;
  for (const auto& entry : parameters.entries()) {
    std::string name = "grad." + entry.name.substr(5);
    ASSERT_TRUE(golden.expected.tensors.contains(name)) << name;
    std::vector<double> want = values(golden.expected, name);
    Tensor g = entry.tensor.grad();
    ASSERT_TRUE(bool(g)) << name << " was never touched";
    // A key bias shifts all scores of a query alike, so its gradient is exactly zero and only
    // round-off is left, on both sides: it is measured against the query bias of its layer.
    if (std::size_t at = name.find(".key.bias"); at != std::string::npos) {
      double scale = 0, ours = 0;
      for (double v : values(golden.expected, name.substr(0, at) + ".query.bias"))
        scale = std::max(scale, std::abs(v));
      for (double v : host(g)) ours = std::max(ours, std::abs(v));
      EXPECT_LE(ours, t.gradient * scale) << entry.name;
      continue;
    }
    double error = relative_error(host(g), want);
    if (error > worst) {
      worst = error;
      worst_name = entry.name;
    }
    EXPECT_LE(error, t.gradient) << entry.name;
  }
  std::printf("%s, %s: worst gradient error %.2e (%s)\n", name_of(device), name_of(dtype), worst,
              worst_name.c_str());
}

void check_training(const std::string& folder, Device device, DType dtype, Tolerances t,
                    double rate) {
  Golden golden(folder);
  golden.config.bert.pooler = false;
  Parameters parameters({.dtype = dtype,
                         .device = device,
                         .seed = 1,
                         .source = &golden.weights,
                         .may_be_missing = {}});
  Bert bert(parameters.root() / "bert", golden.config.bert);
  BertMlmHead head(parameters.root(), golden.config.bert);
  parameters.tie("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight");
  parameters.finish({"bert.pooler.*", "cls.predictions.decoder.bias"});
  AdamW optimizer(parameters, {{"*", 1, 0.01}}, {});

  auto inputs = whole(golden.expected, "mlm_inputs"), masked = whole(golden.expected, "mlm_masked");
  auto losses = values(golden.expected, "mlm_losses");
  std::vector<std::int32_t> rows, targets;
  for (std::size_t i = 0; i < masked.size(); ++i)
    if (masked[i]) {
      rows.push_back(static_cast<std::int32_t>(i));
      targets.push_back(golden.ids[i]);
    }
  Index count = static_cast<Index>(rows.size());
  TokenBatch batch = golden.batch(inputs, device);
  Pass pass;
  pass.rows = batch.segments;
  Tensor row_ids = from_host(rows, {count}, device),
         target_ids = from_host(targets, {count}, device);
  for (std::size_t step = 0; step < losses.size(); ++step) {
    Tape tape;
    Tensor logits = head(lookup(bert(batch, pass), row_ids), bert.word);
    Tensor loss = cross_entropy(logits, target_ids, 1 / static_cast<double>(count));
    EXPECT_NEAR(item(loss), losses[step], t.loss * std::abs(losses[step])) << "step " << step;
    tape.backward(loss);
    ASSERT_TRUE(optimizer.step(rate).finite);
  }
}

TEST(Bert, TinyMatchesTheReferenceInDouble) {
  check_encoder(tiny, Device::reference, DType::f64, {1e-12, 1e-10, 1e-11});
}
TEST(Bert, TinyMatchesOnTheCpu) {
  check_encoder(tiny, Device::cpu, DType::f32, {1e-5, 1e-4, 1e-5});
}
TEST(Bert, TenTrainingStepsInDouble) {
  check_training(tiny, Device::reference, DType::f64, {0, 0, 1e-9}, 1e-3);
}
TEST(Bert, TenTrainingStepsOnTheCpu) {
  check_training(tiny, Device::cpu, DType::f32, {0, 0, 1e-4}, 1e-3);
}

// A folder made by make_bert.py at full size: forward and every gradient within 1e-4, ten equal
// losses.
TEST(Bert, FullSizeParity) {
  const char* folder = std::getenv("MOE_BERT_PARITY");
  if (folder == nullptr)
    GTEST_SKIP() << "MOE_BERT_PARITY names no folder made by tests/golden/make_bert.py";
  check_encoder(folder, Device::cpu, DType::f32, {1e-4, 1e-4, 1e-4});
  check_training(folder, Device::cpu, DType::f32, {0, 0, 1e-4}, 1e-5);
}

TEST(Bert, ATextDoesNotDependOnItsBatchOrThreads) {
  Golden golden(tiny);
  Parameters parameters({.dtype = DType::f32,
                         .device = Device::cpu,
                         .seed = 1,
                         .source = &golden.weights,
                         .may_be_missing = {}});
  Bert bert(parameters.root() / "bert", golden.config.bert);
  parameters.finish({"cls.*"});
  TokenBatch all = golden.batch(golden.ids, Device::cpu);
  Pass pass;
  pass.rows = all.segments;
  std::vector<float> together = to_host<float>(bert(all, pass));
  Index start = 0;
  for (std::int32_t n : golden.lengths) {
    std::vector<std::vector<std::int32_t>> one{
        {golden.ids.begin() + start, golden.ids.begin() + start + n}};
    std::vector<std::vector<std::int32_t>> kind{
        {golden.types.begin() + start, golden.types.begin() + start + n}};
    TokenBatch alone = make_batch(one, Device::cpu, kind);
    for (int team : {1, 2, 3}) {
      set_threads(team);
      pass.rows = alone.segments;
      std::vector<float> row = to_host<float>(bert(alone, pass));
      std::vector<float> same(together.begin() + start * golden.config.bert.hidden,
                              together.begin() + (start + n) * golden.config.bert.hidden);
      EXPECT_EQ(row, same) << team << " threads, text of " << n;
    }
    start += n;
  }
}

}  // namespace
}  // namespace moe
