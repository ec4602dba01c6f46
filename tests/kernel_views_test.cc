// Kernels that overwrite write their rows and nothing else: y inside a larger buffer, ld > cols, on
// both tables.
#include "ops/ops.h"
#include "tests/levels.h"
#include "tests/op_inputs.h"

#include <gtest/gtest.h>

#include <functional>

namespace moe::testing {

namespace {

constexpr float sentinel = 123456.0f;

// (rows, cols) with a row above, two below, three columns left and five right, all sentinel.
struct Padded {
  Index rows, cols, ld;
  std::vector<float> memory;
  Padded(Index r, Index c)
      : rows(r),
        cols(c),
        ld(c + 8),
        memory(static_cast<std::size_t>((r + 3) * (c + 8)), sentinel) {}
  Rows<float> view() { return {memory.data() + ld + 3, rows, cols, ld}; }
};

using Run = std::function<void(const Kernels<float>&, Rows<float> y)>;

void check_output(const std::string& name, Index rows, Index cols, const Run& run) {
  for (Device device : {Device::reference, Device::cpu}) {
    const auto& k = backend(device).kernels<float>();
    std::vector<float> dense(static_cast<std::size_t>(rows * cols), sentinel);
    run(k, {dense.data(), rows, cols, cols});
    Padded padded(rows, cols);
    run(k, padded.view());
    Rows<float> inside = padded.view();
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c)
        ASSERT_EQ(inside[r][c], dense[static_cast<std::size_t>(r * cols + c)])
            << name << " on " << name_of(device) << " at " << r << "," << c << " of " << cols;
    Index offset = inside.data - padded.memory.data();
    for (std::size_t i = 0; i < padded.memory.size(); ++i) {
      Index from = static_cast<Index>(i) - offset;
      bool in = from >= 0 && from / padded.ld < rows && from % padded.ld < cols;
      ASSERT_TRUE(in || padded.memory[i] == sentinel)
          << name << " on " << name_of(device) << " wrote outside, at " << from << " of ld "
          << padded.ld;
    }
  }
}

std::vector<float> floats(const std::string& name, const Shape& shape) {
  auto values = numbers(name, shape, Values::uniform, 0);
  return {values.begin(), values.end()};
}

class KernelViews : public ::testing::TestWithParam<Index> {};

TEST_P(KernelViews, OutputsStayInside) {
  Index cols = GetParam(), rows = 5;
  auto a = floats("a", {rows, cols}), b = floats("b", {rows, cols}), s = floats("s", {cols});
  Rows<const float> x{a.data(), rows, cols, cols}, other{b.data(), rows, cols, cols};
  Dice dice{1, 2, 3, 0, 7};
  std::vector<std::int32_t> ids{4, 0, 2, 2, 1}, begin{0, 2, 2}, end{2, 2, 5}, slot{0, 3, -1, 4, 2},
      source{3, 3, 0, 1, 4};
  std::int32_t count = 5;
  std::vector<std::int32_t> arg(static_cast<std::size_t>(3 * cols));
  Ragged groups{begin.data(), end.data(), 3, 5};
  on_every_level([&](const std::string& level) {
    SCOPED_TRACE(level);
    check_output("copy", rows, cols, [&](auto& k, auto y) { k.copy(x, y); });
    check_output("add", rows, cols, [&](auto& k, auto y) { k.add(x, other, y); });
    check_output("scale", rows, cols, [&](auto& k, auto y) { k.scale(x, 3, y); });
    check_output("scale_by", rows, cols, [&](auto& k, auto y) { k.scale_by(x, s.data(), y); });
    check_output("mul", rows, cols, [&](auto& k, auto y) { k.mul(x, other, y); });
    check_output("accumulate", rows, cols, [&](auto& k, auto y) { k.accumulate(x, 2, y); });
    check_output("activate", rows, cols,
                 [&](auto& k, auto y) { k.activate(Activation::gelu, x, y); });
    check_output("activate_backward", rows, cols,
                 [&](auto& k, auto y) { k.activate_backward(Activation::gelu, x, other, 0, y); });
    check_output("dropout", rows, cols, [&](auto& k, auto y) { k.dropout(x, dice, 0.3, y); });
    check_output("random_uniform", rows, cols, [&](auto& k, auto y) { k.random_uniform(dice, y); });
    check_output("random_normal", rows, cols, [&](auto& k, auto y) { k.random_normal(dice, y); });
    check_output("layer_norm", rows, cols, [&](auto& k, auto y) {
      k.layer_norm(x, s.data(), s.data(), 1e-5, y, nullptr, nullptr);
    });
    check_output("l2_normalize", rows, cols,
                 [&](auto& k, auto y) { k.l2_normalize(x, 1e-6, y, nullptr); });
    check_output("softmax", rows, cols, [&](auto& k, auto y) { k.softmax(x, y); });
    check_output("log_softmax", rows, cols, [&](auto& k, auto y) { k.log_softmax(x, y); });
    check_output("lookup", rows, cols, [&](auto& k, auto y) { k.lookup(x, ids.data(), 5, y); });
    check_output("segment_mean", 3, cols, [&](auto& k, auto y) { k.segment_mean(x, groups, y); });
    check_output("segment_max", 3, cols,
                 [&](auto& k, auto y) { k.segment_max(x, groups, y, arg.data()); });
    check_output("gather_rows", rows, cols,
                 [&](auto& k, auto y) { k.gather_rows(x, source.data(), &count, y); });
    check_output("combine_rows", rows, cols,
                 [&](auto& k, auto y) { k.combine_rows(x, slot.data(), 1, {}, 0, y); });
    AttentionShape shape{1, cols, 1, false, 0, {}};
    check_output("attention", rows, cols, [&](auto& k, auto y) {
      k.attention(x, x, other, groups, groups, shape, y, nullptr);
    });
  });
}

// y = x W^T of (5, 11) by (cols, 11), and both gradients with beta 0.
TEST_P(KernelViews, ProductsStayInside) {
  Index out = GetParam(), rows = 5, in = 11;
  auto a = floats("a", {rows, in}), w = floats("w", {out, in}), d = floats("d", {rows, out}),
       b = floats("b", {out});
  Rows<const float> x{a.data(), rows, in, in}, dy{d.data(), rows, out, out};
  Weight<float> weight{{w.data(), out, in, in}, nullptr};
  on_every_level([&](const std::string& level) {
    SCOPED_TRACE(level);
    check_output("gemm", rows, out, [&](auto& k, auto y) {
      k.gemm(x, weight, all_rows(rows), {b.data(), Activation::gelu, dy, {}}, y);
    });
    check_output("gemm preactivation", rows, out, [&](auto& k, auto z) {
      std::vector<float> y(static_cast<std::size_t>(rows * out));
      k.gemm(x, weight, all_rows(rows), {b.data(), Activation::gelu, {}, z},
             {y.data(), rows, out, out});
    });
    check_output("gemm_input_grad", rows, in,
                 [&](auto& k, auto dx) { k.gemm_input_grad(dy, weight, all_rows(rows), 0, dx); });
    check_output("gemm_weight_grad", out, in,
                 [&](auto& k, auto dw) { k.gemm_weight_grad(dy, x, all_rows(rows), 0, dw); });
  });
}

// A packed weight gives the same bits as the plain one, for dense and grouped products.
TEST_P(KernelViews, PackedWeightsGiveTheSameBits) {
  Index out = GetParam(), in = 19, rows = 23, experts = 3;
  std::vector<std::int32_t> begin{0, 9, 9}, end{9, 9, 21};
  Ragged groups{begin.data(), end.data(), experts, 12};
  auto a = floats("a", {rows, in}), w = floats("w", {experts * out, in}),
       d = floats("d", {rows, out});
  Rows<const float> x{a.data(), rows, in, in}, dy{d.data(), rows, out, out};
  Rows<const float> weight{w.data(), experts * out, in, in};
  const auto& k = backend(Device::cpu).kernels<float>();
  on_every_level([&](const std::string& level) {
    SCOPED_TRACE(level);
    for (Packing packing : {Packing::forward, Packing::input_grad}) {
      std::vector<std::vector<float>> results;
      Buffer packed(Device::cpu,
                    static_cast<std::size_t>(k.packed_bytes(weight, experts, packing)));
      k.pack_weight(weight, experts, packing, packed.data());
      Index cols = packing == Packing::forward ? out : in;
      for (const void* form :
           {static_cast<const void*>(nullptr), static_cast<const void*>(packed.data())}) {
        std::vector<float> y(static_cast<std::size_t>(rows * cols), 0.0f);
        Rows<float> to{y.data(), rows, cols, cols};
        if (packing == Packing::forward)
          k.gemm(x, {weight, form}, groups, {}, to);
        else
          k.gemm_input_grad(dy, {weight, form}, groups, 1, to);
        results.push_back(y);
      }
      EXPECT_EQ(results[0], results[1]);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Widths, KernelViews,
                         ::testing::Values<Index>(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65));

}  // namespace

}  // namespace moe::testing
