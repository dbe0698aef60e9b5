// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include <doctest/doctest.h>

#include <ttt/core/random.hpp>

namespace {

using ttt::Random;

// Recorded from a program that is not this library's, from the definition in the header: a stream
// is part of what a seed means, so these must never change.
TEST_CASE("Random: known streams") {
  constexpr std::uint64_t seeds[] = {0, 1, 0xdeadbeef};
  constexpr std::uint64_t expected[][4] = {
      {0x07fdd88ab03a824d, 0xef750fda15543af0, 0x0b4a5f67209deee7, 0x5f6b3e5e04644dcd},
      {0x75a9777b1626ba41, 0x8cbeaad9cab1ee53, 0x59840c4ef28be4fb, 0x6f131c1162da3d70},
      {0x86ef6ef63bf1ed48, 0x22f72ff7e84c6c4a, 0xad16a201435ddea8, 0x4d2ec79efe3145fa}};
  for (int s = 0; s < 3; ++s) {
    Random random{seeds[s]};
    for (std::uint64_t n = 0; n < 4; ++n) {
      CHECK(Random::at(seeds[s], n) == expected[s][n]);
      CHECK(random.bits() == expected[s][n]);
    }
  }
  static_assert(Random::at(7, std::numeric_limits<std::uint64_t>::max()) == 0x7cf47c60d33e5c0d);

  Random random{42};
  CHECK(random.uniform() == 0.5566396591618847);
  CHECK(random.uniform() == 0.29083866884225984);
  CHECK(random.uniform() == 0.19295507052324856);
  // The logarithm and the cosine are the C library's, whose last digit may differ.
  CHECK(random.normal() == doctest::Approx(-1.3666259012791395).epsilon(1e-14));
  CHECK(random.normal() == doctest::Approx(-0.1822996532744467).epsilon(1e-14));
  CHECK(random.normal() == doctest::Approx(-1.537159770306119).epsilon(1e-14));
  CHECK(random.counter == 9);
}

TEST_CASE("Random: a copy goes its own way from the same place") {
  Random random{3};
  random.normal();
  Random copy = random;
  CHECK(copy == random);
  const double next = random.uniform();
  CHECK(copy != random);
  CHECK(copy.uniform() == next);
  CHECK(copy == random);
  Random restored{random.seed, random.counter};
  CHECK(restored.bits() == random.bits());
  CHECK(Random{3}.bits() != Random{4}.bits());
}

// Bounds are five standard deviations of the statistic.

TEST_CASE("Random: moments of the uniform distribution") {
  constexpr int count = 200'000;
  for (std::uint64_t seed : {0u, 1u, 12345u}) {
    Random random{seed};
    double sum = 0, squares = 0, lagged = 0, previous = 0.5;
    int buckets[16] = {};
    for (int i = 0; i < count; ++i) {
      const double u = random.uniform();
      REQUIRE(u >= 0);
      REQUIRE(u < 1);
      sum += u;
      squares += u * u;
      lagged += (u - 0.5) * (previous - 0.5);
      previous = u;
      ++buckets[static_cast<int>(16 * u)];
    }
    CHECK(std::abs(sum / count - 1.0 / 2) < 5 * std::sqrt(1.0 / 12 / count));
    CHECK(std::abs(squares / count - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / count));
    CHECK(std::abs(lagged / count) < 5.0 / 12 / std::sqrt(count));
    for (int bucket : buckets) {
      CHECK(std::abs(bucket - count / 16.0) < 5 * std::sqrt(count / 16.0));
    }
  }
}

TEST_CASE("Random: moments of the normal distribution") {
  constexpr int count = 200'000;
  Random random{9};
  double moments[5] = {};
  int beyond_two = 0;
  for (int i = 0; i < count; ++i) {
    const double z = random.normal();
    REQUIRE(std::isfinite(z));
    double power = 1;
    for (double& m : moments) {
      m += power / count;
      power *= z;
    }
    beyond_two += std::abs(z) > 2;
  }
  CHECK(std::abs(moments[1]) < 5 * std::sqrt(1.0 / count));
  CHECK(std::abs(moments[2] - 1) < 5 * std::sqrt(2.0 / count));
  CHECK(std::abs(moments[3]) < 5 * std::sqrt(15.0 / count));
  CHECK(std::abs(moments[4] - 3) < 5 * std::sqrt(96.0 / count));
  CHECK(std::abs(beyond_two / static_cast<double>(count) - 0.0455) < 5 * std::sqrt(0.0455 / count));
}

TEST_CASE("Random: neighbouring seeds and counters have nothing in common") {
  double flipped = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    flipped += __builtin_popcountll(Random::at(i, 5) ^ Random::at(i + 1, 5));
    flipped += __builtin_popcountll(Random::at(5, i) ^ Random::at(5, i + 1));
  }
  CHECK(std::abs(flipped / 2000 - 32) < 5 * 4 / std::sqrt(2000.0));
}

}  // namespace
