// Tensor, views and their gradients, host copies, the caching allocator.
#include "ops/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>

namespace moe {

namespace {

constexpr Device device = Device::reference;

Tensor counting(const Shape& shape) {
  std::vector<double> values(static_cast<std::size_t>(shape.size()));
  std::iota(values.begin(), values.end(), 0.0);
  return from_host(values, shape, device);
}
using Values = std::vector<double>;
Values values_of(const Tensor& x) {
  return to_host<double>(x);
}

TEST(Shape, CountsRowsAndColumns) {
  Shape shape{2, 3, 4};
  EXPECT_EQ(shape.rows(), 2);
  EXPECT_EQ(shape.cols(), 12);
  EXPECT_EQ(shape.size(), 24);
  EXPECT_EQ(Shape{}.size(), 0);
  EXPECT_EQ(Shape{5}.cols(), 1);
  EXPECT_EQ((Shape{0, 3}.size()), 0);
  EXPECT_EQ(fmt::format("{}", shape), "(2,3,4)");
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
}

TEST(Shape, RefusesNonsense) {
  EXPECT_THROW((Shape{1, 2, 3, 4, 5}), Error);
  EXPECT_THROW((Shape{2, -1}), Error);
  EXPECT_THROW((Shape{Index{1} << 40, Index{1} << 40}), Error);
}

TEST(Tensor, AbsentTensor) {
  Tensor none;
  EXPECT_FALSE(none);
  EXPECT_EQ(none.size(), 0);
  EXPECT_FALSE(none.needs_grad());
  EXPECT_THROW(none.data<float>(), Error);
  EXPECT_THROW(none.mut<float>(), Error);
}

TEST(Tensor, ReadsOnlyItsOwnType) {
  Tensor x = counting({2, 2});
  EXPECT_THROW(x.data<float>(), Error);
  EXPECT_THROW(x.mut<std::int32_t>(), Error);
  EXPECT_THROW(to_host<float>(x), Error);
  try {
    x.data<float>();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("f64"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("f32"), std::string::npos);
  }
}

TEST(Tensor, HostCopies) {
  EXPECT_EQ(values_of(counting({2, 3})), (Values{0, 1, 2, 3, 4, 5}));
  EXPECT_THROW(from_host(Values{1, 2}, {3}, device), Error);
  EXPECT_EQ(to_host<std::int32_t>(from_host(std::vector<std::int32_t>{3, -1}, {2}, device)),
            (std::vector<std::int32_t>{3, -1}));
  EXPECT_EQ(to_host<std::uint8_t>(from_host(std::vector<std::uint8_t>{3, 255}, {2}, device)),
            (std::vector<std::uint8_t>{3, 255}));
  EXPECT_EQ(values_of(zeros({2, 2}, DType::f64, device)), Values(4, 0.0));
  EXPECT_EQ(to_host<float>(full({2}, DType::f32, device, 1.5)), std::vector<float>(2, 1.5f));
  EXPECT_THROW(full({2}, DType::i32, device, 1), Error);
  EXPECT_EQ(item(full({1}, DType::f32, device, 2)), 2);
  EXPECT_THROW(item(counting({2})), Error);
}

TEST(Tensor, SlicesAreViews) {
  Tensor x = counting({4, 5});
  Tensor rows = x.slice_rows(1, 3), cols = rows.slice_cols(2, 4);
  EXPECT_EQ(rows.shape(), (Shape{2, 5}));
  EXPECT_EQ(values_of(rows), (Values{5, 6, 7, 8, 9, 10, 11, 12, 13, 14}));
  EXPECT_EQ(values_of(cols), (Values{7, 8, 12, 13}));
  EXPECT_EQ(cols.ld(), 5);
  EXPECT_FALSE(cols.contiguous());
  EXPECT_TRUE(rows.contiguous());
  EXPECT_TRUE(cols.slice_rows(1, 2).contiguous());
  EXPECT_EQ(cols.storage(), x.storage());
  cols.mut<double>()[0] = 100;
  EXPECT_EQ(values_of(x)[7], 100);
  // Dimensions past the first survive a slice of rows.
  EXPECT_EQ(counting({3, 2, 2}).slice_rows(1, 3).shape(), (Shape{2, 2, 2}));
  EXPECT_EQ(x.slice_rows(2, 2).size(), 0);
  EXPECT_EQ(values_of(counting({3}).slice_rows(1, 2)), Values{1});
}

TEST(Tensor, SlicesStayInside) {
  Tensor x = counting({4, 5});
  EXPECT_THROW(x.slice_rows(3, 2), Error);
  EXPECT_THROW(x.slice_rows(0, 5), Error);
  EXPECT_THROW(x.slice_rows(-1, 2), Error);
  EXPECT_THROW(x.slice_cols(0, 6), Error);
  EXPECT_THROW(x.slice_cols(3, 1), Error);
}

TEST(Tensor, Reshape) {
  Tensor x = counting({4, 6});
  EXPECT_EQ(values_of(x.reshape({8, 3})), values_of(x));
  EXPECT_EQ(x.reshape({2, 3, 4}).cols(), 12);
  EXPECT_THROW(x.reshape({5, 5}), Error);
  // A strided view keeps its first dimension or nothing.
  Tensor part = x.slice_cols(1, 5);
  EXPECT_EQ(values_of(part.reshape({4, 2, 2})), values_of(part));
  EXPECT_THROW(part.reshape({8, 2}), Error);
  // One row is contiguous whatever its stride was.
  EXPECT_EQ(values_of(part.slice_rows(2, 3).reshape({4})), (Values{13, 14, 15, 16}));
}

TEST(Tensor, DetachSharesDataOnly) {
  Tensor x = counting({2, 3});
  x.require_grad();
  Tensor y = x.detach();
  EXPECT_FALSE(y.needs_grad());
  EXPECT_TRUE(x.needs_grad());
  x.mut<double>()[0] = 42;
  EXPECT_EQ(values_of(y)[0], 42);
}

// sum over views of the same storage; the gradient of each view lands in its part.
TEST(ViewGradients, SlicesAddIntoTheirPart) {
  Tensor x = counting({3, 4});
  x.require_grad();
  Tape tape;
  Tensor top = x.slice_rows(0, 2), left = x.slice_cols(0, 2), corner = top.slice_cols(1, 3);
  Tensor y = add(matmul_nt(scale(top, 2), full({1, 4}, DType::f64, device, 1)),
                 matmul_nt(corner, full({1, 2}, DType::f64, device, 10)));  // (2,1)
  Tensor z = matmul_nt(left, full({1, 2}, DType::f64, device, 100));        // (3,1)
  tape.backward(add(matmul_nt(full({1, 2}, DType::f64, device, 1), y.reshape({1, 2})),
                    matmul_nt(full({1, 3}, DType::f64, device, 1), z.reshape({1, 3}))));
  EXPECT_EQ(values_of(x.grad()), (Values{102, 112, 12, 2,  //
                                         102, 112, 12, 2,  //
                                         100, 100, 0, 0}));
  EXPECT_EQ(values_of(x.slice_cols(1, 3).grad()), (Values{112, 12, 112, 12, 100, 0}));
}

TEST(ViewGradients, OverlappingRowsAdd) {
  Tensor x = counting({4, 1});
  x.require_grad();
  Tape tape;
  tape.backward(add(x.slice_rows(0, 3), x.slice_rows(1, 4)), full({3, 1}, DType::f64, device, 1));
  EXPECT_EQ(values_of(x.grad()), (Values{1, 2, 2, 1}));
}

TEST(ViewGradients, UntouchedMeansAbsent) {
  Tensor x = counting({2, 2});
  EXPECT_FALSE(x.grad());
  x.require_grad();
  EXPECT_FALSE(x.grad());
  grad<double>(x);  // touching fills with zeros
  EXPECT_EQ(values_of(x.grad()), Values(4, 0.0));
  x.mut<double>();
  x.storage()->gradient->clear();
  EXPECT_FALSE(x.grad());
}

TEST(ViewGradients, OnlyTheFirstWriterOfAWholeStorageOverwrites) {
  Tensor x = counting({2, 2});
  x.require_grad();
  EXPECT_EQ(grad_target<double>(x.slice_rows(0, 1)).beta, 1);
  x.storage()->gradient->clear();
  EXPECT_EQ(grad_target<double>(x).beta, 0);
  EXPECT_EQ(grad_target<double>(x).beta, 1);
  EXPECT_EQ(grad_target<double>(Tensor()).rows.data, nullptr);
  EXPECT_THROW(grad<float>(x), Error);
}

TEST(PackedForms, WritingDropsThem) {
  Tensor x = full({3, 40}, DType::f32, Device::cpu, 1),
         w = full({20, 40}, DType::f32, Device::cpu, 1);
  EXPECT_EQ(to_host<float>(linear(x, w, {}))[0], 40);
  linear(x, w, {});
  EXPECT_LE(w.storage()->packed.size(), 1u);  // made once
  w.mut<float>()[0] = 2;
  EXPECT_TRUE(w.storage()->packed.empty());
  EXPECT_EQ(to_host<float>(linear(x, w, {}))[0], 41);
}

TEST(ReadOnlyBuffer, IsCopiedAtTheFirstWrite) {
  auto file = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3, 4});
  auto buffer = std::make_shared<Buffer>(file->data(), 16, file);
  Tensor x({2, 2}, std::make_shared<Storage>(Storage{DType::f32, Device::cpu, buffer, nullptr, {}}),
           0, 2);
  Tensor view = x.slice_rows(1, 2);
  EXPECT_EQ(static_cast<const void*>(x.data<float>()), file->data());
  view.mut<float>()[0] = 9;
  EXPECT_EQ((*file)[2], 3);
  EXPECT_EQ(to_host<float>(x), (std::vector<float>{1, 2, 9, 4}));
}

// ---- the allocator

TEST(Allocator, SteadyStateAsksTheSystemNothing) {
  trim_memory(device);
  auto step = [] {
    Tensor a = zeros({50, 70}, DType::f32, device), b = zeros({333}, DType::f64, device);
    return add(a, a);
  };
  step();
  auto before = memory_statistics(device);
  for (int i = 0; i < 10; ++i) step();
  auto after = memory_statistics(device);
  EXPECT_EQ(before.system_calls, after.system_calls);
  EXPECT_EQ(before.held, after.held);
  EXPECT_EQ(before.in_use, after.in_use);
}

TEST(Allocator, CountsUseAndPeak) {
  auto before = memory_statistics(device);
  reset_peak_memory(device);
  {
    Tensor x = empty({1000}, DType::f64, device);
    auto now = memory_statistics(device);
    EXPECT_GE(now.in_use - before.in_use, 8000u);
    EXPECT_LE(now.in_use - before.in_use, 10000u);  // classes waste a fifth at most
    EXPECT_GE(now.held, now.in_use);
  }
  auto after = memory_statistics(device);
  EXPECT_EQ(after.in_use, before.in_use);
  EXPECT_GE(after.peak_in_use, before.in_use + 8000);
  trim_memory(device);
  EXPECT_EQ(memory_statistics(device).held, memory_statistics(device).in_use);
}

TEST(Allocator, BlocksAreAlignedAndDistinct) {
  std::vector<Tensor> all;
  for (Index n : {0, 1, 15, 16, 17, 63, 64, 65, 100, 257, 1000, 4097})
    all.push_back(empty({n}, DType::f32, device));
  for (std::size_t i = 0; i < all.size(); ++i) {
    auto address = reinterpret_cast<std::uintptr_t>(all[i].data<float>());
    EXPECT_EQ(address % 64, 0u);
    std::memset(all[i].mut<float>(), static_cast<int>(i),
                static_cast<std::size_t>(all[i].size()) * 4);
  }
  for (std::size_t i = 0; i < all.size(); ++i)
    for (float value : to_host<float>(all[i])) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, &value, 4);
      EXPECT_EQ(bits, i * 0x01010101u);
    }
}

TEST(Allocator, PoisonMakesForgottenElementsLoud) {
  memory_poison(true);
  { Tensor reused = zeros({8}, DType::f32, device); }
  for (float value : to_host<float>(empty({8}, DType::f32, device))) EXPECT_TRUE(std::isnan(value));
  for (double value : values_of(empty({8}, DType::f64, device))) EXPECT_TRUE(std::isnan(value));
}

TEST(Allocator, TensorsMayOutliveEverything) {
  // In static storage: destroyed after main. The allocator must still be there.
  static Tensor last = zeros({3}, DType::f32, device);
  EXPECT_EQ(last.size(), 3);
}

TEST(Backends, UnknownAndAbsentDevices) {
  EXPECT_EQ(parse_device("reference"), Device::reference);
  EXPECT_EQ(parse_device("cpu"), Device::cpu);
  EXPECT_THROW(parse_device("tpu"), Error);
  if (cuda_backend() == nullptr) {
    EXPECT_EQ(parse_device("auto"), Device::cpu);
    try {
      zeros({1}, DType::f32, Device::cuda);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::unavailable);
    }
  }
}

TEST(Segments, PackAndCount) {
  Segments s = pack_segments(std::vector<std::int32_t>{2, 0, 5}, device);
  EXPECT_EQ(s.count, 3);
  EXPECT_EQ(s.rows, 7);
  EXPECT_EQ(s.longest, 5);
  EXPECT_EQ(to_host<std::int32_t>(s.begin), (std::vector<std::int32_t>{0, 2, 2}));
  EXPECT_EQ(to_host<std::int32_t>(s.end), (std::vector<std::int32_t>{2, 2, 7}));
  Segments none = pack_segments(std::vector<std::int32_t>{}, device);
  EXPECT_EQ(none.count, 0);
  EXPECT_EQ(none.rows, 0);
}

TEST(BFloat, RoundsToNearestEven) {
  auto round = [](float x) { return static_cast<float>(bf16(x)); };
  EXPECT_EQ(round(1.0f), 1.0f);
  EXPECT_EQ(round(1.0f + 0x1p-8f), 1.0f);                // a tie goes to even
  EXPECT_EQ(round(1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);  // and up where that is even
  EXPECT_EQ(round(1.0f + 0x1.1p-8f), 1.0f + 0x1p-7f);
  EXPECT_EQ(round(3.4028235e38f), INFINITY);
  EXPECT_EQ(round(-INFINITY), -INFINITY);
  EXPECT_TRUE(std::isnan(round(NAN)));
  // A NaN whose payload sits in the lower half stays a NaN.
  EXPECT_TRUE(std::isnan(round(std::bit_cast<float>(0x7f800001u))));
}

TEST(Half, EveryClass) {
  EXPECT_EQ(half_to_float(0x3c00), 1.0f);
  EXPECT_EQ(half_to_float(0xc000), -2.0f);
  EXPECT_EQ(half_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(half_to_float(0x0001), 0x1p-24f);
  EXPECT_EQ(half_to_float(0x03ff), 1023 * 0x1p-24f);
  EXPECT_EQ(half_to_float(0x0400), 0x1p-14f);
  EXPECT_EQ(half_to_float(0x7c00), INFINITY);
  EXPECT_EQ(half_to_float(0xfc00), -INFINITY);
  EXPECT_TRUE(std::isnan(half_to_float(0x7e00)));
  EXPECT_TRUE(std::signbit(half_to_float(0x8000)));
}

}  // namespace

}  // namespace moe
