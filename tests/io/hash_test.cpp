// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/io/hash.hpp>

using ttt::io::Hash64;

namespace {

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  Hash64 hash;
  hash.update(bytes);
  return hash.value();
}

std::vector<std::byte> noise(std::size_t size) {
  std::mt19937 random(static_cast<unsigned>(size) + 1);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

}  // namespace

TEST_CASE("hash: files keep the values, so they never change") {
  CHECK(Hash64().value() == 0x719bfb573d2bfa60);
  std::vector<std::byte> bytes(100);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  CHECK(hash_of(std::span(bytes).first(1)) == 0xc9f78bbdd899f40f);
  CHECK(hash_of(std::span(bytes).first(32)) == 0xb8636f2b000dde70);
  CHECK(hash_of(bytes) == 0xa463a8b61e736c5d);
  Hash64 text;
  text.update("ttt");
  CHECK(text.value() == 0xcdf9c2a1752d4f1c);
}

TEST_CASE("hash: the cuts between calls make no difference") {
  std::mt19937 random(5);
  for (std::size_t size = 0; size < 300; ++size) {
    const std::vector<std::byte> bytes = noise(size);
    const std::uint64_t whole = hash_of(bytes);
    for (std::size_t cut = 0; cut <= size; ++cut) {
      Hash64 hash;
      hash.update(std::span(bytes).first(cut));
      hash.update(std::span(bytes).subspan(cut));
      CHECK(hash.value() == whole);
    }
    Hash64 pieces;
    for (std::span<const std::byte> rest = bytes; !rest.empty();) {
      const std::size_t length = std::min<std::size_t>(rest.size(), random() % 70);
      pieces.update(rest.first(length));
      (void)pieces.value();  // looking does not disturb
      rest = rest.subspan(length);
    }
    CHECK(pieces.value() == whole);
  }
}

TEST_CASE("hash: strings are framed by their length") {
  const auto of = [](std::initializer_list<std::string> texts) {
    Hash64 hash;
    for (const std::string& text : texts) hash.update(text);
    return hash.value();
  };
  std::set<std::uint64_t> all = {of({}),          of({""}),        of({"", ""}),
                                 of({"abc"}),     of({"ab", "c"}), of({"a", "bc"}),
                                 of({"abc", ""}), of({"", "abc"})};
  CHECK(all.size() == 8);
}

TEST_CASE("hash: zeros of every length differ") {
  const std::vector<std::byte> zeros(2000);
  std::set<std::uint64_t> all;
  for (std::size_t size = 0; size <= zeros.size(); ++size)
    all.insert(hash_of(std::span(zeros).first(size)));
  CHECK(all.size() == zeros.size() + 1);
}

TEST_CASE("hash: every bit of the input reaches every bit of the value") {
  for (const std::size_t size : {3u, 8u, 31u, 32u, 33u, 100u}) {
    std::vector<std::vector<int>> flips(64, std::vector<int>(size * 8));
    constexpr int rounds = 400;
    std::mt19937 random(3);
    for (int round = 0; round < rounds; ++round) {
      std::vector<std::byte> bytes(size);
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
      const std::uint64_t before = hash_of(bytes);
      for (std::size_t bit = 0; bit < size * 8; ++bit) {
        const auto flip = static_cast<std::byte>(1u << (bit % 8));
        bytes[bit / 8] ^= flip;
        const std::uint64_t changed = before ^ hash_of(bytes);
        bytes[bit / 8] ^= flip;
        for (std::size_t out = 0; out < 64; ++out) flips[out][bit] += (changed >> out) % 2 != 0;
      }
    }
    // A fair coin leaves this band, seven standard deviations wide, once in 10^11.
    int outside = 0;
    for (const auto& row : flips)
      outside += static_cast<int>(std::count_if(row.begin(), row.end(), [](int n) {
        return n < rounds / 2 - 70 || n > rounds / 2 + 70;
      }));
    CHECK(outside == 0);
  }
}

TEST_CASE("hash: two changes do not cancel") {
  // Pairs of flipped bits, in one lane or in two: the fault of lanes that only rotate and multiply.
  std::vector<std::byte> bytes = noise(128);
  std::vector<std::uint64_t> all;
  for (std::size_t a = 0; a < bytes.size() * 8; ++a)
    for (std::size_t b = a + 1; b < bytes.size() * 8; b += 1 + a % 3) {
      const auto flip = [&](std::size_t bit) {
        bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
      };
      flip(a);
      flip(b);
      all.push_back(hash_of(bytes));
      flip(a);
      flip(b);
    }
  std::sort(all.begin(), all.end());
  CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
}

TEST_CASE("hash: moved or repeated blocks are seen") {
  const std::vector<std::byte> bytes = noise(256);
  std::set<std::uint64_t> all = {hash_of(bytes)};
  for (std::size_t i = 0; i < 32; ++i)
    for (std::size_t j = i + 1; j < 32; ++j) {
      std::vector<std::byte> swapped = bytes;
      std::swap_ranges(swapped.begin() + static_cast<std::ptrdiff_t>(i * 8),
                       swapped.begin() + static_cast<std::ptrdiff_t>(i * 8 + 8),
                       swapped.begin() + static_cast<std::ptrdiff_t>(j * 8));
      all.insert(hash_of(swapped));
    }
  CHECK(all.size() == 1 + 32 * 31 / 2);
}
