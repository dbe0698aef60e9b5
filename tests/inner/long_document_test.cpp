// SPDX-License-Identifier: MIT
// A document of a million tokens: memory and time per token stay what they were.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <time.h>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/ttt.hpp>

namespace {

using namespace ttt;

/// Bytes of this process that are in memory.
double resident() {
  std::ifstream in("/proc/self/statm");
  double all = 0, here = 0;
  in >> all >> here;
  REQUIRE(in.good());
  return here * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

/// What this thread has computed so far, in seconds: other programs do not count.
double seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.at(values.size() / 2);
}

std::string books() {
  const auto file =
      io::SafeTensors::open(std::string(TTT_TEST_DATA) + "/books-byte-nll.safetensors");
  std::string text;
  for (const auto t : file->as<std::int32_t>(file->at("tokens")))
    text.push_back(static_cast<char>(t));
  return text;
}

}  // namespace

TEST_SUITE("slow") {
  // TTT_SHORT in the environment makes it 120,000: CI has two cores.
  TEST_CASE("a million tokens: memory does not grow, and the last cost what the first did") {
    constexpr std::size_t piece = 4096, settled = 20'000;
    const std::size_t all = std::getenv("TTT_SHORT") != nullptr ? 120'000 : 1'000'000;
    const std::string text = books();
    const Cpu cpu(1);
    const auto weights = test::load_demo(cpu);
    const InnerLoop<Sgd> learner{.chunk = 64};
    using Reader = Session<Weights<test::DemoReader, Cpu>>;
    Reader session(weights, learner), young(weights, learner);

    std::vector<float> nll(piece);
    std::string buffer;
    const auto fill = [&](std::size_t at) {
      buffer.clear();
      while (buffer.size() < piece) {
        const std::size_t from = (at + buffer.size()) % text.size();
        buffer.append(text, from, piece - buffer.size());
      }
    };
    const auto timed = [&](Reader& reader, std::string_view chunk) {
      const double start = seconds();
      reader.read(chunk, {.nll = nll});
      return seconds() - start;
    };

    // Now and then a young session reads the same piece, chunk by chunk in turn with the old one
    // and first every other time, so that what happens to the machine meanwhile happens to both.
    double before = 0;
    std::vector<double> early, late, between;
    std::size_t at = 0;
    for (std::size_t i = 0; at < all; ++i, at += piece) {
      if (before == 0 && at >= settled) before = resident();
      fill(at);
      if (i % 4 != 1) {
        session.read(buffer, {.nll = nll});
        continue;
      }
      std::vector<double>& ratios = at < all / 3 ? early : at > all / 3 * 2 ? late : between;
      for (std::size_t from = 0; from < piece; from += 64) {
        const std::string_view chunk = std::string_view(buffer).substr(from, 64);
        const bool first = from % 128 == 0;
        const double younger = first ? timed(young, chunk) : 0;
        const double older = timed(session, chunk);
        ratios.push_back(older / (first ? younger : timed(young, chunk)));
      }
    }
    const double grown = resident() - before;
    CHECK(session.counters().tokens >= static_cast<Index>(all));
    CHECK(session.counters().inner_steps == (session.counters().tokens - 1) / 64);
    CHECK(session.counters().skipped_steps == 0);
    CHECK(session.state_bytes() == young.state_bytes());
    CHECK(grown < 2e6);
    INFO("an old session's time over a young one's: ", median(early), ", ", median(between), ", ",
         median(late));
    CHECK(std::abs(median(late) / median(early) - 1) < 0.05);
    CHECK(std::abs(median(late) - 1) < 0.05);
  }
}
