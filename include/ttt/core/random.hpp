// SPDX-License-Identifier: MIT
/// \file
/// Random numbers by counting: the n-th number of a seed is a pure function of both.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// A counter-based generator: number `n` of seed `s` is a bijective mix of (s, n), so a stream can
/// be copied, saved as two integers, split over threads, and is the same on every machine.
///
/// The mix is two rounds of SplitMix64's finaliser (Steele, Lea, Flood 2014), keyed by the seed.
/// Not for cryptography.
struct Random {
  std::uint64_t seed = 0;
  std::uint64_t counter = 0;

  /// 64 random bits.
  constexpr std::uint64_t bits() { return at(seed, counter++); }

  /// Uniform in [0, 1), 53 bits fine.
  constexpr double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  /// Standard normal (Box and Muller; uses two numbers, keeps one).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

  /// The n-th number of a seed.
  static constexpr std::uint64_t at(std::uint64_t seed, std::uint64_t n) {
    return mix(mix(n + 0x9e3779b97f4a7c15u) ^ mix(seed ^ 0xd1b54a32d192ed03u));
  }

  friend constexpr bool operator==(const Random&, const Random&) = default;

 private:
  static constexpr std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
};

}  // namespace ttt::inline TTT_ABI
