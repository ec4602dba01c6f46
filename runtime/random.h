// Counter-based randomness: a number is a pure function of (seed, stream, row, column, step, side),
// so it does not depend on construction order, thread count, batch split or recomputation.
//
// Philox 4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC
// 2011.
//   key     = two words of hash(seed, stream)
//   counter = {column / 4, row, step, side}; the block's four words serve columns 4c .. 4c+3
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace moe {

using PhiloxBlock = std::array<std::uint32_t, 4>;

constexpr std::uint32_t philox_multiplier_0 = 0xD2511F53u, philox_multiplier_1 = 0xCD9E8D57u;
constexpr std::uint32_t philox_weyl_0 = 0x9E3779B9u, philox_weyl_1 = 0xBB67AE85u;

constexpr PhiloxBlock philox(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    std::uint64_t p0 = std::uint64_t{philox_multiplier_0} * counter[0];
    std::uint64_t p1 = std::uint64_t{philox_multiplier_1} * counter[2];
    counter = {
        static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += philox_weyl_0;
    key1 += philox_weyl_1;
  }
  return counter;
}

// SplitMix64's finaliser (Steele, Lea, Flood 2014): mixes seed and stream into one key.
constexpr std::uint64_t mix64(std::uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// FNV-1a: a stream is named ("init:encoder.layer.0...", "dropout:..."), never numbered by call
// order.
constexpr std::uint64_t stream_hash(std::string_view name) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

// One stream at one step, as kernels see it. `row0` is the number of the first local row in the
// whole step, so masks agree under accumulation, recompute and ranks.
struct Dice {
  std::uint32_t key0 = 0, key1 = 0, step = 0, side = 0;
  std::int64_t row0 = 0;

  constexpr PhiloxBlock block(std::int64_t row, std::int64_t column_block) const {
    return philox({static_cast<std::uint32_t>(column_block), static_cast<std::uint32_t>(row0 + row),
                   step, side},
                  key0, key1);
  }
  // The same stream for one attention head.
  constexpr Dice at_head(std::int64_t head) const {
    Dice dice = *this;
    dice.key0 ^= static_cast<std::uint32_t>(mix64(static_cast<std::uint64_t>(head)));
    return dice;
  }
  constexpr std::uint32_t word(std::int64_t row, std::int64_t column) const {
    return block(row, column / 4)[static_cast<std::size_t>(column % 4)];
  }
};

// What a forward pass draws with. `train`, not the tape, turns dropout and noise on.
struct Draw {
  std::uint64_t seed = 0;
  std::uint32_t step = 0, side = 0;  // side 0 query, 1 document
  std::int64_t row0 = 0;
  bool train = false;

  constexpr Dice dice(std::uint64_t stream) const {
    std::uint64_t key = mix64(seed ^ mix64(stream));
    return {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32), step, side,
            row0};
  }
};

// [0, 1) with 24 bits: the same value in float and double.
constexpr double unit_real(std::uint32_t word) {
  return (word >> 8) * 0x1p-24;
}

// Box-Muller on one block's word pair; `even` picks the cosine branch. Computed in double so that
// every backend rounds the same real number.
inline double normal_real(std::uint32_t a, std::uint32_t b, bool even) {
  double radius = std::sqrt(-2.0 * std::log(((a >> 8) + 0.5) * 0x1p-24));
  double angle = 6.283185307179586477 * ((b >> 8) * 0x1p-24);
  return radius * (even ? std::cos(angle) : std::sin(angle));
}

// A keep decision: dropped when word < rate * 2^32. One integer rule for every backend.
constexpr std::uint32_t drop_threshold(double rate) {
  return rate <= 0 ? 0u : static_cast<std::uint32_t>(rate * 4294967296.0);
}

// The i-th element of a pseudo-random permutation of 0..n-1, without state or storage: a 4-round
// Feistel network on the smallest even-bit domain >= n, walking cycles until the value falls inside
// (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
inline std::int64_t permuted(std::int64_t i, std::int64_t n, std::uint64_t key) {
  if (n <= 1) return 0;
  int half = (static_cast<int>(std::bit_width(static_cast<std::uint64_t>(n - 1))) + 1) / 2;
  std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  std::uint64_t x = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = x >> half, right = x & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      std::uint64_t next = left ^ (mix64(key ^ mix64(right + (round << 56))) & mask);
      left = right;
      right = next;
    }
    x = (left << half) | right;
  } while (x >= static_cast<std::uint64_t>(n));
  return static_cast<std::int64_t>(x);
}

}  // namespace moe
