// SPDX-License-Identifier: MIT
// A document of a million tokens: memory and time per token stay what they were.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <span>
#include <string>
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
  REQUIRE(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
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
  TEST_CASE("a million tokens: memory does not grow, and the last cost what the first did") {
    constexpr std::size_t piece = 4096, all = 1'000'000, settled = 20'000;
    const std::string text = books();
    const Cpu cpu(1);
    const auto weights = test::load_demo(cpu);
    const InnerLoop<Sgd> learner{.chunk = 64};
    using Reader = Session<Weights<test::DemoReader, Cpu>>;
    Reader session(weights, learner), young(weights, learner);

    std::vector<float> nll(piece);
    std::string buffer;
    const auto read = [&](Reader& reader, std::size_t at) {
      buffer.clear();
      while (buffer.size() < piece) {
        const std::size_t from = (at + buffer.size()) % text.size();
        buffer.append(text, from, piece - buffer.size());
      }
      const double before = seconds();
      reader.read(buffer, {.nll = nll});
      return (seconds() - before) / static_cast<double>(piece);
    };

    // Now and then a young session, two pieces old, reads the same, so that what the machine does
    // meanwhile, its clock say, changes both.
    read(session, 0);
    read(session, piece);
    const auto childhood = session.snapshot();
    double before = 0;
    std::vector<double> early, late;
    std::size_t at = 2 * piece;
    for (std::size_t i = 0; at < all; ++i, at += piece) {
      if (before == 0 && at >= settled) before = resident();
      const double took = read(session, at);
      if (i % 8 != 0) continue;
      young.restore(childhood);
      const double young_took = read(young, at);
      if (at < all / 3) early.push_back(took / young_took);
      if (at > all / 3 * 2) late.push_back(took / young_took);
    }
    const double grown = resident() - before;
    CHECK(session.counters().tokens >= static_cast<Index>(all));
    CHECK(session.counters().inner_steps == (session.counters().tokens - 1) / 64);
    CHECK(session.counters().skipped_steps == 0);
    CHECK(session.state_bytes() == young.state_bytes());
    CHECK(grown < 2e6);
    CHECK(std::abs(median(late) / median(early) - 1) < 0.05);
    CHECK(std::abs(median(late) - 1) < 0.05);
  }
}
