// SPDX-License-Identifier: MIT
// Continuing a document: what is made is read, and learned from when a chunk fills.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using doctest::Contains;

constexpr Index C = 8;
const InnerLoop<Sgd> learner{.chunk = C};
using TinyWeights = Weights<TinyReader, Cpu>;
using TinySession = Session<TinyWeights>;

const TinyWeights& weights() {
  static const TinyWeights all = tiny_weights(Cpu(1));
  return all;
}

/// A session that has read `size` tokens.
TinySession reader(Index size, SessionOptions options = {.seed = 1}) {
  Random random{11};
  TinySession session(weights(), learner, options);
  session.read(tokens(random, size, 61));
  return session;
}

/// Says the tokens it was given, in turn, whatever the logits; keeps what it saw.
struct Script {
  std::vector<Token> lines;
  std::vector<std::vector<float>>* seen = nullptr;
  Index* next;

  Token operator()(std::span<float> logits, Random&) const {
    if (seen != nullptr) seen->emplace_back(logits.begin(), logits.end());
    return lines.at(static_cast<std::size_t>((*next)++));
  }
};

}  // namespace

TEST_CASE("generate: the state is that of a session that read the same tokens") {
  for (const Index prompt : {Index{1}, Index{3}, C, C + 1, 2 * C + 5}) {
    for (const Index count : {Index{1}, Index{4}, C, 3 * C + 2}) {
      CAPTURE(prompt);
      CAPTURE(count);
      auto writing = reader(prompt);
      const auto made = writing.generate(count);
      CHECK(std::ssize(made) == count);
      CHECK(writing.counters().tokens == prompt + count);
      CHECK(writing.counters().inner_steps == (prompt + count - 1) / C);  // it learns as it writes

      auto reading = reader(prompt);
      reading.read(made);
      CHECK(reading.counters() == writing.counters());
      CHECK(reading.state().pending == writing.state().pending);
      CHECK(same_bits(learned(reading), learned(writing)));
      CHECK(same_bits(window(reading), window(writing)));
      Random random{2};
      const auto rest = tokens(random, 2 * C, 61);
      CHECK(furthest(reading.read(rest).nll, writing.read(rest).nll) <= 1e-5);
      CHECK(same_bits(learned(reading), learned(writing)));
    }
  }
}

TEST_CASE("generate: frozen, it learns nothing") {
  auto session = reader(C + 2);
  session.freeze();
  (void)session.generate(4 * C);
  CHECK(session.counters().inner_steps == 1);
}

TEST_CASE("generate: the sampler is shown logits()") {
  auto session = reader(C - 1);
  std::vector<std::vector<float>> seen;
  Index next = 0;
  const Script script{{5, 6, 7, 8}, &seen, &next};
  auto other = session.fork();
  CHECK(session.generate(4, script) == script.lines);
  for (std::size_t i = 0; i < 4; ++i) {
    const auto logits = other.logits();
    CHECK(same_bits(std::span<const float>(seen[i]), logits));
    other.read(std::span(script.lines).subspan(i, 1));
  }
  CHECK(same_state(session, other));
}

TEST_CASE("generate: greedy takes the likeliest and needs no randomness") {
  auto session = reader(C);
  auto other = session.fork();
  const auto random = session.state().random;
  const auto made = session.generate(2 * C, Greedy{});
  CHECK(session.state().random == random);
  for (const Token token : made) {
    const auto logits = other.logits();
    CHECK(std::max_element(logits.begin(), logits.end()) - logits.begin() == token);
    other.read(std::span(&token, 1));
  }
}

TEST_CASE("generate: the same seed, the same tokens") {
  const TopP sampler{.p = 0.9f, .temperature = 1.5f};
  const auto want = reader(C).generate(30, sampler);
  CHECK(reader(C).generate(30, sampler) == want);
  CHECK(reader(C, {.seed = 2}).generate(30, sampler) != want);
  CHECK(reader(C, {.seed = 2}).generate(30, sampler, {.seed = 1}) == want);

  // The session's numbers go on from call to call, wherever the calls are cut.
  auto cut = reader(C);
  auto made = cut.generate(7, sampler);
  for (const Token t : cut.generate(23, sampler)) made.push_back(t);
  CHECK(made == want);
  auto restarted = reader(C);
  (void)restarted.generate(7, sampler);
  const auto with_seed = restarted.fork().generate(7, sampler, {.seed = 5});
  CHECK(restarted.generate(7, sampler, {.seed = 5}) == with_seed);
}

TEST_CASE("generate: a stop token is consumed and not returned") {
  auto session = reader(3);
  Index next = 0;
  const std::vector<Token> stops{60, 9};
  std::vector<Token> told;
  const auto made =
      session.generate(10, Script{{1, 2, 3, 9, 4}, nullptr, &next},
                       {.stop_tokens = stops, .on_token = [&](Token t) { told.push_back(t); }});
  CHECK(made == std::vector<Token>{1, 2, 3});
  CHECK(told == made);
  CHECK(session.counters().tokens == 3 + 4);
  CHECK(session.state().pending.back() == 9);
}

TEST_CASE("generate: on_token hears every token in order, when it has been consumed") {
  auto session = reader(3);
  std::vector<Token> told;
  Index at = 3;
  const auto hear = [&](Token t) {
    told.push_back(t);
    CHECK(session.counters().tokens == ++at);
  };
  CHECK(session.generate(2 * C, {}, {.on_token = hear}) == told);
  CHECK(std::ssize(told) == 2 * C);

  // What it throws comes through; what was made stays.
  Index calls = 0;
  const auto enough = [&](Token) {
    if (++calls == 3) throw std::runtime_error("enough");
  };
  CHECK_THROWS_WITH_AS(session.generate(10, {}, {.on_token = enough}), "enough",
                       std::runtime_error);
  CHECK(session.counters().tokens == 3 + 2 * C + 3);
  CHECK(session.generate(1).size() == 1);
}

TEST_CASE("generate: a stop request ends it") {
  auto session = reader(3);
  std::stop_source stop;
  Index calls = 0;
  const auto made = session.generate(100, {},
                                     {.on_token =
                                          [&](Token) {
                                            if (++calls == 5) stop.request_stop();
                                          },
                                      .stop = stop.get_token()});
  CHECK(made.size() == 5);
  CHECK(session.counters().tokens == 8);
  CHECK(session.generate(3, {}, {.stop = stop.get_token()}).empty());
}

TEST_CASE("generate: the repetition penalty weighs on what this call has made") {
  auto session = reader(C + 2);
  auto plain = session.fork();
  std::vector<std::vector<float>> seen, want;
  Index next = 0, next_plain = 0;
  const std::vector<Token> lines{5, 5, 7, 9};
  CHECK(session.generate(4, Script{lines, &seen, &next}, {.repetition_penalty = 2}) == lines);
  (void)plain.generate(4, Script{lines, &want, &next_plain});
  const std::vector<std::vector<Token>> made{{}, {5}, {5}, {5, 7}};
  for (std::size_t i = 0; i < 4; ++i) {
    CAPTURE(i);
    for (std::size_t t = 0; t < 61; ++t) {
      const bool repeated = std::find(made[i].begin(), made[i].end(), t) != made[i].end();
      const float logit = want[i][t];
      CHECK(seen[i][t] == (!repeated ? logit : logit > 0 ? logit / 2 : logit * 2));
    }
  }
  // An overwhelming one: greedy never says a thing twice.
  auto varied = reader(5).generate(20, Greedy{}, {.repetition_penalty = 1e6f});
  std::sort(varied.begin(), varied.end());
  CHECK(std::adjacent_find(varied.begin(), varied.end()) == varied.end());
}

TEST_CASE("generate: what is refused changes nothing") {
  auto session = reader(5);
  const auto before = session.fork();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float penalty : {0.0f, -1.0f, nan}) {
    CHECK_THROWS_WITH_AS((void)session.generate(1, {}, {.repetition_penalty = penalty}),
                         Contains("repetition_penalty must be positive"), Error);
  }
  CHECK_THROWS_WITH_AS((void)session.generate(-1), Contains("count must not be negative"), Error);
  CHECK_THROWS_WITH_AS((void)session.generate(3, Temperature{.temperature = 0}),
                       Contains("temperature must be positive"), Error);
  Index next = 0;
  CHECK_THROWS_WITH_AS((void)session.generate(1, Script{{61}, nullptr, &next}),
                       Contains("outside the vocabulary"), Error);
  CHECK(session.generate(0).empty());
  CHECK(same_state(session, before));
}

TEST_CASE("generate: in double, and from bytes the demo model speaks English") {
  const auto wide = tiny_weights(eigen::Backend<double>(1));
  Session session(wide, learner);
  session.read(std::vector<Token>{1, 2, 3});
  CHECK(session.generate(2 * C).size() == 2 * C);
  CHECK(session.counters().inner_steps == 2);

  Session demo(load_demo(Cpu(1)), InnerLoop<Sgd>{.chunk = 64});
  demo.read("It was the best of times, it was the worst of times, it was the age of ");
  const auto made = demo.generate(100, Greedy{});
  const auto letters = std::count_if(made.begin(), made.end(),
                                     [](Token t) { return t == ' ' || (t >= 'a' && t <= 'z'); });
  CHECK(letters >= 80);
}
