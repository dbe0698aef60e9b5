// SPDX-License-Identifier: MIT
/// \file
/// A fast 64-bit hash of bytes, to tell one model's weights from another's.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// A streaming 64-bit hash. It finds mix-ups and damage; it is NOT cryptographic: whoever wants two
/// inputs with one hash can make them.
///
/// The input is read as 8-byte words dealt to four independent lanes, so that a CPU works on all
/// four at once. Each word goes through lane = fold((lane ^ word) * odd) + word, where fold adds
/// the upper to the lower half of the 128-bit product by xor: every bit of the word reaches every
/// bit of the lane. The length closes the input. Files keep the values, so they never change.
class Hash64 {
  static_assert(std::endian::native == std::endian::little,
                "ttt: Hash64 reads words in the order of a little-endian CPU");

 public:
  /// Adds bytes. How the input is cut into calls makes no difference.
  void update(std::span<const std::byte> bytes) {
    length_ += bytes.size();
    if (buffered_ != 0) {
      const std::size_t taken = std::min(bytes.size(), block - buffered_);
      append(bytes.first(taken));
      bytes = bytes.subspan(taken);
      if (buffered_ < block) return;
      absorb(lanes_, buffer_);
      buffered_ = 0;
    }
    Lanes lanes = lanes_;  // in registers while the loop runs
    for (; bytes.size() >= block; bytes = bytes.subspan(block)) absorb(lanes, bytes);
    lanes_ = lanes;
    append(bytes);
  }

  /// Adds a string after its length, so that "ab", "c" and "a", "bc" differ.
  void update(std::string_view text) {
    const std::uint64_t length = text.size();
    update(std::as_bytes(std::span(&length, 1)));
    update(std::as_bytes(std::span(text)));
  }

  /// The hash of everything added so far; more may follow.
  std::uint64_t value() const {
    Lanes lanes = lanes_;
    std::array<std::byte, block> last{};
    std::copy_n(buffer_.begin(), buffered_, last.begin());
    absorb(lanes, last);
    std::uint64_t hash = length_;
    for (std::size_t i = 0; i < lanes.size(); ++i) hash = fold(hash ^ lanes[i], odd[i]) + lanes[i];
    return fold(hash ^ odd[0], odd[1]);
  }

 private:
  using Lanes = std::array<std::uint64_t, 4>;
  static constexpr std::size_t block = sizeof(Lanes);

  // Odd numbers with about as many ones as zeros: the fractions of the square roots of 2, 3, 5, 7.
  static constexpr Lanes odd = {0x6a09e667f3bcc909, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                0xa54ff53a5f1d36f1};

  static std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }

  static void absorb(Lanes& lanes, std::span<const std::byte> bytes) {
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + i * sizeof word, sizeof word);
      lanes[i] = fold(lanes[i] ^ word, odd[i]) + word;
    }
  }

  void append(std::span<const std::byte> bytes) {
    std::copy(bytes.begin(), bytes.end(), buffer_.begin() + static_cast<std::ptrdiff_t>(buffered_));
    buffered_ += bytes.size();
  }

  Lanes lanes_ = {odd[1], odd[2], odd[3], odd[0]};
  std::uint64_t length_ = 0;
  std::array<std::byte, block> buffer_{};
  std::size_t buffered_ = 0;  // bytes of the buffer in use, always less than a block between calls
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
