// SPDX-License-Identifier: MIT
// The demo model on two books it has not seen, token by token against the authors' program.
#include <cmath>
#include <io/temporary.hpp>
#include <numbers>
#include <span>
#include <string>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/ttt.hpp>

namespace {

using namespace ttt;

/// Bytes of each book that the unit test reads; a sanitizer takes thirty times as long.
constexpr std::size_t some = ttt_test::sanitized ? 512 : 4096;

struct Book {
  std::string text;
  std::vector<float> nll;  // of every token but the first
};

std::vector<Book> books(const std::string& recorded) {
  const auto file =
      io::SafeTensors::open(std::string(TTT_TEST_DATA) + "/books-byte-nll.safetensors");
  const auto& tokens = file->at("tokens");
  const auto& nll = file->at(recorded);
  const std::span all = file->as<std::int32_t>(tokens);
  const std::span scores = file->as<float>(nll);
  std::vector<Book> out(static_cast<std::size_t>(tokens.shape[0]));
  const auto length = static_cast<std::size_t>(nll.shape[1]);
  for (std::size_t b = 0; b < out.size(); ++b) {
    for (const Token t : all.subspan(b * (length + 1), length + 1)) {
      out[b].text.push_back(static_cast<char>(t));
    }
    out[b].nll.assign(scores.begin() + static_cast<std::ptrdiff_t>(b * length),
                      scores.begin() + static_cast<std::ptrdiff_t>((b + 1) * length));
  }
  return out;
}

/// Reads the first `targets` + 1 bytes of both books, and gives the bits per byte of all.
double check_books(std::size_t targets, bool learning) {
  const auto weights = test::load_demo(Cpu());
  double bits = 0;
  const auto all = books(learning ? "nll.learning" : "nll.frozen");
  REQUIRE(all.size() == 2);
  for (const Book& book : all) {
    Session session(weights, InnerLoop<Sgd>{.chunk = 64});
    if (!learning) session.freeze();
    const auto report = session.read(std::string_view(book.text).substr(0, targets + 1));
    CHECK(session.counters().inner_steps == (learning ? static_cast<Index>(targets / 64) : 0));
    double error = 0, first_chunk = 0;
    for (std::size_t i = 0; i < targets; ++i) {
      const double distance = std::abs(static_cast<double>(report.nll[i + 1] - book.nll[i]));
      error += distance / static_cast<double>(targets);
      if (i < 64) first_chunk = std::max(first_chunk, distance);
    }
    CHECK(first_chunk <= 1e-4);
    CHECK(error <= 2e-4);
    bits += report.bits_per_token() / 2;
  }
  return bits;
}

double recorded_bits(std::size_t targets, const char* recorded) {
  double sum = 0;
  for (const Book& book : books(recorded)) {
    for (std::size_t i = 0; i < targets; ++i) sum += static_cast<double>(book.nll[i]);
  }
  return sum / static_cast<double>(2 * targets) / std::numbers::ln2;
}

}  // namespace

TEST_CASE("real text: the beginning of two books, learning") {
  CHECK(check_books(some, true) ==
        doctest::Approx(recorded_bits(some, "nll.learning")).epsilon(1e-4));
}

TEST_CASE("real text: the beginning of two books, frozen") {
  CHECK(check_books(some, false) ==
        doctest::Approx(recorded_bits(some, "nll.frozen")).epsilon(1e-4));
}

TEST_SUITE("slow") {
  TEST_CASE("real text: 16,384 bytes of two books, learning and frozen") {
    const double learning = check_books(16384, true), frozen = check_books(16384, false);
    CHECK(std::abs(learning - 1.4508) <= 0.0005);
    CHECK(std::abs(frozen - 1.5081) <= 0.0005);
  }
}
