// Parameters: names and scopes, initialisation by name, binding from a file, stacked and tied
// storages, freezing.
#include "runtime/parameters.h"

#include "ops/ops.h"
#include "tests/memory_file.h"

#include <gtest/gtest.h>

#include <cmath>

namespace moe {

namespace {

using testing::entry_of;
using testing::memory_file;
using Floats = std::vector<float>;

Floats values_of(const Tensor& x) {
  return to_host<float>(x);
}
Floats some(std::size_t n, float first = 1) {
  Floats values;
  for (std::size_t i = 0; i < n; ++i) values.push_back(first + static_cast<float>(i));
  return values;
}

TEST(Matches, Patterns) {
  EXPECT_TRUE(matches("*", "anything"));
  EXPECT_TRUE(matches("*", ""));
  EXPECT_TRUE(matches("a.b", "a.b"));
  EXPECT_FALSE(matches("a.b", "a.b.c"));
  EXPECT_TRUE(matches("a.*", "a.b.c"));
  EXPECT_TRUE(matches("*.bias", "layer.0.bias"));
  EXPECT_FALSE(matches("*.bias", "layer.0.bias2"));
  EXPECT_TRUE(matches("*bias*", "layer.bias.0"));
  EXPECT_TRUE(matches("a*b*c", "axxbyybc"));
  EXPECT_FALSE(matches("a*b*c", "axxbyyb"));
  EXPECT_FALSE(matches("", "a"));
  EXPECT_TRUE(matches("", ""));
  EXPECT_TRUE(matches("**x", "x"));
}

TEST(Parameters, ScopesMakeNames) {
  Parameters p;
  Scope layer = p.root() / "encoder" / "layer" / 3;
  Tensor w = layer.matrix("weight", {2, 3}, Init::ones());
  Tensor b = (layer / "norm").vector("bias", 4, Init::zeros());
  EXPECT_EQ(p.entries()[0].name, "encoder.layer.3.weight");
  EXPECT_EQ(p.entries()[1].name, "encoder.layer.3.norm.bias");
  EXPECT_EQ(p.find("encoder.layer.3.weight").storage(), w.storage());
  EXPECT_FALSE(p.find("weight"));
  EXPECT_EQ(p.count(), 10);
  EXPECT_TRUE(w.needs_grad());
  EXPECT_EQ(values_of(w), Floats(6, 1.0f));
  EXPECT_EQ(values_of(b), Floats(4, 0.0f));
  EXPECT_THROW(layer.matrix("weight", {2, 3}, Init::ones()), Error);
}

TEST(Parameters, InitialisationDependsOnNameAndSeedAlone) {
  auto draw = [](std::uint64_t seed, bool other_first, DType dtype) {
    Parameters p({.dtype = dtype,
                  .device = Device::reference,
                  .seed = seed,
                  .source = nullptr,
                  .may_be_missing = {}});
    if (other_first) p.root().matrix("other", {5, 5}, Init::normal(1));
    return p.root().matrix("w", {4, 6}, Init::normal(0.5));
  };
  Floats plain = values_of(draw(1, false, DType::f32));
  EXPECT_EQ(plain, values_of(draw(1, true, DType::f32)));
  EXPECT_NE(plain, values_of(draw(2, false, DType::f32)));
  auto wide = to_host<double>(draw(1, false, DType::f64));
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(plain[i], static_cast<float>(wide[i]));
}

TEST(Parameters, InitialisersHaveTheirMoments) {
  Parameters p;
  auto uniform = values_of(p.root().matrix("u", {300, 100}, Init::uniform(0.25)));
  auto normal = values_of(p.root().matrix("n", {300, 101}, Init::normal(0.02)));
  double u2 = 0, n1 = 0, n2 = 0, size = 30000;
  for (float v : uniform) {
    EXPECT_LE(std::abs(v), 0.25f);
    u2 += static_cast<double>(v) * v / size;
  }
  for (float v : normal) {
    n1 += v / 30300.0;
    n2 += static_cast<double>(v) * v / 30300.0;
  }
  EXPECT_NEAR(u2, 0.25 * 0.25 / 3, 0.0005);
  EXPECT_NEAR(n1, 0, 0.0006);
  EXPECT_NEAR(std::sqrt(n2), 0.02, 0.0005);
  EXPECT_EQ(values_of(p.root().vector("c", 2, Init::constant(3))), Floats(2, 3.0f));
}

TEST(Parameters, StackIsOneStorageWithSeveralNames) {
  Parameters p;
  Scope s = p.root() / "attention";
  Tensor all = s.stack({"query.weight", "key.weight", "value.weight"}, {2, 3}, Init::normal(1));
  Tensor biases = s.stack_vectors({"query.bias", "key.bias", "value.bias"}, 2, Init::ones());
  EXPECT_EQ(all.shape(), (Shape{6, 3}));
  EXPECT_EQ(biases.shape(), (Shape{6}));
  EXPECT_EQ(p.count(), 24);
  EXPECT_EQ(p.entries().size(), 6u);
  Tensor key = p.find("attention.key.weight");
  EXPECT_EQ(key.storage(), all.storage());
  EXPECT_EQ(values_of(key), values_of(all.slice_rows(2, 4)));
  // Each part is drawn under its own name: as it would be alone.
  Parameters alone;
  EXPECT_EQ(values_of(key),
            values_of((alone.root() / "attention").matrix("key.weight", {2, 3}, Init::normal(1))));
  // A gradient of the whole is the gradient of the parts.
  Tape tape;
  Tensor y = linear(full({1, 3}, DType::f32, Device::cpu, 1), all, biases);
  tape.backward(y, full({1, 6}, DType::f32, Device::cpu, 2));
  EXPECT_EQ(values_of(key.grad()), Floats(6, 2.0f));
}

TEST(Parameters, StackedVectorsMatchTheirMatrices) {
  Parameters p;
  Tensor biases = p.root().stack_vectors({"a", "b", "c"}, 5, Init::zeros());
  EXPECT_EQ(biases.size(), 15);
  EXPECT_EQ(p.find("b").offset(), 5);
}

// ---- binding

struct Net {
  Tensor w, b, qk;
  explicit Net(Parameters& p)
      : w(p.root().matrix("w", {2, 3}, Init::normal(1))),
        b(p.root().vector("b", 3, Init::zeros())),
        qk(p.root().stack({"q", "k"}, {1, 2}, Init::zeros())) {}
};

TensorFile net_file() {
  TensorFile file;
  file.source = "model.safetensors";
  file.tensors["w"] = entry_of(some(6), {2, 3}, file.source);
  file.tensors["b"] = entry_of(some(3, 10), {3}, file.source);
  file.tensors["q"] = entry_of(some(2, 20), {1, 2}, file.source);
  file.tensors["k"] = entry_of(some(2, 30), {2}, file.source);  // a dimension of one may be dropped
  return file;
}

Parameters::Options from(const TensorFile& file, DType dtype = DType::f32) {
  Parameters::Options options;
  options.dtype = dtype;
  options.source = &file;
  return options;
}

TEST(Binding, TakesEveryTensor) {
  TensorFile file = net_file();
  Parameters p(from(file));
  Net net(p);
  p.finish();
  EXPECT_EQ(values_of(net.w), some(6));
  EXPECT_EQ(values_of(net.b), some(3, 10));
  EXPECT_EQ(values_of(net.qk), (Floats{20, 21, 30, 31}));
  EXPECT_TRUE(net.w.needs_grad());
  EXPECT_EQ(net.w.shape(), (Shape{2, 3}));
}

TEST(Binding, ConvertsTypes) {
  TensorFile file = net_file();
  file.tensors["w"] = entry_of(std::vector<double>{1, 2, 3, 4, 5, 6.5}, {2, 3}, file.source);
  Parameters p(from(file));
  Net net(p);
  p.finish();
  EXPECT_EQ(values_of(net.w), (Floats{1, 2, 3, 4, 5, 6.5}));
}

TEST(Binding, TrainingDoesNotWriteIntoTheFile) {
  TensorFile file = net_file();
  Parameters p(from(file));
  Net net(p);
  p.finish();
  net.w.mut<float>()[0] = 99;
  float first = 0;
  std::memcpy(&first, file.tensors["w"].data, sizeof(first));
  EXPECT_EQ(first, 1.0f);
  EXPECT_EQ(values_of(net.w)[0], 99.0f);
}

TEST(Binding, OneErrorListsEverything) {
  TensorFile file = net_file();
  file.tensors.erase("w");
  file.tensors["b"] = entry_of(some(4), {4}, file.source);
  file.tensors["q"] =
      entry_of(some(2), {2, 1}, file.source);  // as many elements, and still (1,2) once ones go
  file.tensors["stranger"] = entry_of(some(1), {1}, file.source);
  Parameters p(from(file));
  Net net(p);
  try {
    p.finish();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::bad_data);
    std::string text = error.what();
    for (const char* part : {"model.safetensors", "missing (1): w", "wrong shape (1): b", "(4)",
                             "(3)", "unexpected (1): stranger"})
      EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
  }
}

TEST(Binding, MatricesMayNotBeTransposed) {
  TensorFile file = net_file();
  file.tensors["w"] = entry_of(some(6), {3, 2}, file.source);
  Parameters p(from(file));
  Net net(p);
  EXPECT_THROW(p.finish(), Error);
}

TEST(Binding, IgnoredAndOptionalNames) {
  TensorFile file = net_file();
  file.tensors.erase("b");
  file.tensors["pooler.dense.weight"] = entry_of(some(1), {1}, file.source);
  auto options = from(file);
  options.may_be_missing = {"b"};
  Parameters p(options);
  Net net(p);
  p.finish({"pooler.*"});
  EXPECT_EQ(values_of(net.b), Floats(3, 0.0f));  // initialised
}

TEST(Binding, LoadValuesCopiesByName) {
  TensorFile file = net_file();
  Parameters p;
  Net net(p);
  p.load_values(file, "?w");  // no wildcard of this kind: nothing matches, nothing is asked for
  p.load_values(file, "w");
  EXPECT_EQ(values_of(net.w), some(6));
  EXPECT_EQ(values_of(net.b), Floats(3, 0.0f));
  p.load_values(file);
  EXPECT_EQ(values_of(net.qk), (Floats{20, 21, 30, 31}));
  file.tensors.erase("k");
  EXPECT_THROW(p.load_values(file), Error);
  TensorFile wrong = net_file();
  wrong.tensors["b"] = entry_of(some(4), {4}, "x");
  EXPECT_THROW(p.load_values(wrong), Error);
}

TEST(Binding, SaveAndBindGiveTheSame) {
  Parameters p;
  Net net(p);
  TensorFile file = memory_file(p.named_tensors());
  EXPECT_EQ(file.tensors.size(), 4u);
  Parameters again(from(file));
  Net copy(again);
  again.finish();
  EXPECT_EQ(values_of(copy.w), values_of(net.w));
  EXPECT_EQ(values_of(copy.qk), values_of(net.qk));
  EXPECT_EQ(p.named_tensors("q*").size(), 1u);
}

// ---- freezing, tying, clearing

TEST(Parameters, FreezeByPattern) {
  Parameters p;
  Tensor a = (p.root() / "encoder").matrix("w", {2, 2}, Init::ones());
  Tensor b = (p.root() / "head").matrix("w", {2, 2}, Init::ones());
  p.freeze("encoder.*");
  EXPECT_FALSE(a.needs_grad());
  EXPECT_TRUE(b.needs_grad());
  p.unfreeze("*");
  EXPECT_TRUE(a.needs_grad());
}

// Query, key and value share one gradient: freezing one alone cannot be done, and is refused.
TEST(Parameters, PartsOfAStackFreezeTogether) {
  Parameters p;
  Tensor all = p.root().stack({"query", "key"}, {2, 2}, Init::ones());
  EXPECT_THROW(p.freeze("query"), Error);
  EXPECT_TRUE(all.needs_grad());
  p.freeze("*");
  EXPECT_FALSE(all.needs_grad());
}

TEST(Parameters, ClearingMarksGradientsUntouched) {
  Parameters p;
  Tensor w = p.root().matrix("w", {1, 2}, Init::ones());
  {
    Tape tape;
    tape.backward(matmul_nt(full({1, 2}, DType::f32, Device::cpu, 1), w));
  }
  EXPECT_TRUE(w.grad());
  p.clear_gradients();
  EXPECT_FALSE(w.grad());
}

TEST(Parameters, TiedNamesAreOneParameter) {
  Parameters p;
  Tensor w = p.root().matrix("shared", {2, 2}, Init::normal(1));
  p.tie("lm_head", "shared");
  EXPECT_EQ(p.count(), 4);
  EXPECT_EQ(p.named_tensors().size(), 1u);
  EXPECT_THROW(p.tie("x", "nothing"), Error);
}

TEST(Parameters, TiedCopiesMustAgree) {
  TensorFile file;
  file.source = "file";
  file.tensors["shared"] = entry_of(some(4), {2, 2}, "file");
  auto bind = [&] {
    Parameters p(from(file));
    p.root().matrix("shared", {2, 2}, Init::zeros());
    p.tie("lm_head", "shared");
    p.finish();
  };
  bind();  // the alias may be absent
  file.tensors["lm_head"] = entry_of(some(4), {2, 2}, "file");
  bind();
  file.tensors["lm_head"] = entry_of(some(4, 2), {2, 2}, "file");
  EXPECT_THROW(bind(), Error);
}

}  // namespace

}  // namespace moe
