// Counter-based randomness: known answers, moments, permutations, independence of how a batch is
// cut.
#include "runtime/random.h"

#include "tests/op_inputs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace moe {

namespace {

// kat_vectors of the Random123 distribution, philox4x32 with 10 rounds.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0, 0),
            (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t full = 0xffffffff;
  EXPECT_EQ(philox({full, full, full, full}, full, full),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Dice, WordsAreTheBlocksInOrder) {
  Dice dice{3, 4, 5, 1, 100};
  for (Index column = 0; column < 9; ++column)
    EXPECT_EQ(dice.word(7, column), philox({static_cast<std::uint32_t>(column / 4), 107, 5, 1}, 3,
                                           4)[static_cast<std::size_t>(column % 4)]);
}

TEST(Dice, RowsCountFromTheWholeStep) {
  Draw whole{.seed = 1}, later{.seed = 1};
  later.row0 = 10;
  EXPECT_EQ(whole.dice(7).word(13, 2), later.dice(7).word(3, 2));
}

TEST(Dice, EverythingNamedChangesTheNumber) {
  Draw draw{.seed = 1, .step = 2, .side = 0};
  Draw seed = draw, step = draw, side = draw;
  seed.seed = 9;
  step.step = 3;
  side.side = 1;
  std::uint64_t stream = stream_hash("dropout:a");
  std::set<std::uint32_t> words{draw.dice(stream).word(0, 0),
                                draw.dice(stream).word(1, 0),
                                draw.dice(stream).word(0, 1),
                                draw.dice(stream).word(0, 4),
                                seed.dice(stream).word(0, 0),
                                step.dice(stream).word(0, 0),
                                side.dice(stream).word(0, 0),
                                draw.dice(stream_hash("dropout:b")).word(0, 0),
                                draw.dice(stream).at_head(1).word(0, 0),
                                draw.dice(stream).at_head(2).word(0, 0)};
  EXPECT_EQ(words.size(), 10u);
}

TEST(Dice, StreamNamesAreStable) {
  // Initial weights of a published seed depend on these: FNV-1a of the name.
  EXPECT_EQ(stream_hash(""), 0xcbf29ce484222325u);
  EXPECT_EQ(stream_hash("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(stream_hash("foobar"), 0x85944171f73967e8u);
}

TEST(UnitReal, StaysBelowOne) {
  EXPECT_EQ(unit_real(0), 0);
  EXPECT_LT(unit_real(0xffffffff), 1);
  EXPECT_EQ(static_cast<double>(static_cast<float>(unit_real(0xffffffff))), unit_real(0xffffffff));
}

TEST(NormalReal, IsFiniteAtTheEnds) {
  for (std::uint32_t a : {0u, 0xffffffffu})
    for (std::uint32_t b : {0u, 0x80000000u, 0xffffffffu})
      for (bool even : {false, true}) EXPECT_TRUE(std::isfinite(normal_real(a, b, even)));
}

class RandomKernels : public ::testing::TestWithParam<Device> {};

TEST_P(RandomKernels, UniformMoments) {
  Tensor x = random_uniform({1000, 200}, DType::f32, GetParam(), Draw{.seed = 3}.dice(1));
  double sum = 0, squares = 0, low = 1, high = 0;
  auto values = testing::elements(x);
  for (double v : values) {
    sum += v;
    squares += v * v;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  double n = static_cast<double>(values.size()), mean = sum / n;
  EXPECT_GE(low, 0);
  EXPECT_LT(high, 1);
  // Five standard errors: sqrt(1/12 / n) and the like.
  EXPECT_NEAR(mean, 0.5, 5 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(squares / n - mean * mean, 1.0 / 12, 5 * std::sqrt(1.0 / 180 / n));
}

TEST_P(RandomKernels, NormalMoments) {
  Tensor x = random_normal({1000, 201}, DType::f32, GetParam(), Draw{.seed = 3}.dice(1));
  double moments[5] = {};
  auto values = testing::elements(x);
  double n = static_cast<double>(values.size()), tail = 0;
  for (double v : values) {
    for (int p = 1; p <= 4; ++p) moments[p] += std::pow(v, p) / n;
    tail += std::abs(v) > 1.959964 ? 1 / n : 0;
  }
  EXPECT_NEAR(moments[1], 0, 5 / std::sqrt(n));
  EXPECT_NEAR(moments[2], 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(moments[3], 0, 5 * std::sqrt(15 / n));
  EXPECT_NEAR(moments[4], 3, 5 * std::sqrt(96 / n));
  EXPECT_NEAR(tail, 0.05, 5 * std::sqrt(0.05 * 0.95 / n));
  // The two branches of a pair are independent.
  double product = 0;
  for (std::size_t i = 0; i + 1 < 200; i += 2) product += values[i] * values[i + 1];
  EXPECT_NEAR(product / 100, 0, 0.5);
}

TEST_P(RandomKernels, DropoutKeepsTheRateAndTheMean) {
  Tensor x = full({500, 300}, DType::f32, GetParam(), 1);
  Draw draw{.seed = 3, .train = true};
  for (double rate : {0.1, 0.5, 0.9}) {
    double kept = 0;
    for (double v : testing::elements(dropout(x, draw, 1, rate))) {
      EXPECT_TRUE(v == 0 || std::abs(v - 1 / (1 - rate)) < 1e-5);
      kept += v != 0 ? 1.0 / 150000 : 0;
    }
    EXPECT_NEAR(kept, 1 - rate, 5 * std::sqrt(rate * (1 - rate) / 150000));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, RandomKernels, ::testing::Values(Device::reference, Device::cpu),
                         [](const auto& one) { return std::string(name_of(one.param)); });

TEST(Permuted, IsAPermutation) {
  for (std::int64_t n : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000, 4097})
    for (std::uint64_t key : {0u, 1u, 12345u}) {
      std::vector<bool> seen(static_cast<std::size_t>(n), false);
      for (std::int64_t i = 0; i < n; ++i) {
        std::int64_t to = permuted(i, n, key);
        ASSERT_GE(to, 0);
        ASSERT_LT(to, n);
        ASSERT_FALSE(seen[static_cast<std::size_t>(to)]) << n << " " << key << " " << i;
        seen[static_cast<std::size_t>(to)] = true;
      }
    }
}

TEST(Permuted, DependsOnTheKeyAndMixes) {
  constexpr std::int64_t n = 10000;
  std::int64_t same = 0, fixed = 0;
  double distance = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    same += permuted(i, n, 1) == permuted(i, n, 2) ? 1 : 0;
    fixed += permuted(i, n, 1) == i ? 1 : 0;
    distance += std::abs(static_cast<double>(permuted(i, n, 1) - permuted((i + 1) % n, n, 1))) / n;
  }
  EXPECT_LT(same, 20);
  EXPECT_LT(fixed, 20);
  EXPECT_NEAR(distance, n / 3.0,
              n / 30.0);  // neighbours end up a third of the range apart, on average
}

TEST(Permuted, LargeRanges) {
  std::int64_t n = (std::int64_t{1} << 40) + 12345;
  for (std::int64_t i : {std::int64_t{0}, std::int64_t{1}, n / 2, n - 1}) {
    EXPECT_GE(permuted(i, n, 7), 0);
    EXPECT_LT(permuted(i, n, 7), n);
  }
}

}  // namespace

}  // namespace moe
