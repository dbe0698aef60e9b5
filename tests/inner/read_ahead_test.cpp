// SPDX-License-Identifier: MIT
// The lower half run over several chunks at once: the same reading, to rounding.
#include <algorithm>
#include <cmath>
#include <span>
#include <stop_token>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <support/streams.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using Tokens = std::span<const Token>;

constexpr Index C = 8;
const InnerLoop<Sgd> learner{.chunk = C};

Tokens part(const std::vector<Token>& tokens, Index first, Index count) {
  return Tokens(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

using FullBlock = Block<FullAttention<>, SwiGLU>;
using FullReader =
    LanguageModel<Stack<1, FullBlock>, Stack<2, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;
using PlainReader = LanguageModel<Stack<3, TinyBlock>, Stack<0, TinyBlock>>;

/// So that the host may look at its memory.
void finish(const auto& machine) {
  if constexpr (requires { machine.synchronize(); }) machine.synchronize();
}

/// Two sessions that have read the same text hold the same things.
template <class A, class B>
void check_same(const A& a, const B& b, double most) {
  finish(a.weights().backend());
  finish(b.weights().backend());
  CHECK(a.counters().tokens == b.counters().tokens);
  CHECK(a.counters().inner_steps == b.counters().inner_steps);
  CHECK(a.state().pending == b.state().pending);
  CHECK(a.state().marks == b.state().marks);
  CHECK(furthest(learned(a), learned(b)) <= most);
  CHECK(furthest(window(a), window(b)) <= most);
}

/// Pieces of up to `ahead + 2` chunks, read with and without looking ahead.
template <class Model, class B>
void check(const B& backend, const Config& config, const auto& how, double most) {
  Random random{11};
  const Index chunk = how.chunk, n = 23 * chunk + 3;
  const auto text = tokens(random, n, config.vocabulary);
  const auto weights = tiny_weights<Model>(backend, config);
  for (const Index ahead : {2, 3, 8}) {
    CAPTURE(ahead);
    Session one(weights, how, {.max_tokens = n});
    Session many(weights, how, {.max_tokens = n, .read_ahead = ahead});
    for (Index at = 0; at < n;) {
      CAPTURE(at);
      const auto longest = static_cast<std::uint64_t>((ahead + 2) * chunk);
      const Index size = std::min(n - at, 1 + static_cast<Index>(random.bits() % longest));
      const bool frozen = random.bits() % 4 == 0;
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(size));
      for (auto& m : mask) m = random.bits() % 8 != 0;
      const auto read = [&](auto& session) {
        frozen ? session.freeze() : session.learn();
        return session.read(part(text, at, size), {.loss_mask = mask});
      };
      const auto want = read(one), got = read(many);
      CHECK(furthest(got.nll, want.nll) <= most);
      CHECK(got.scored == want.scored);
      check_same(many, one, most);
      if (random.bits() % 2 == 0) CHECK(furthest(many.logits(), one.logits()) <= most);
      at += size;
    }
  }
}

}  // namespace

TEST_CASE("read_ahead changes nothing but rounding") {
  // In float at a rate that does not make more of it.
  const InnerLoop<Sgd> calm{.chunk = C, .optimizer = {.rate = 0.1f}};
  for (const Index window : {1, 5, 12, 40}) {
    CAPTURE(window);
    Config config = tiny_config();
    config.window = window;
    check<TinyReader>(Cpu(2), config, calm, 1e-4);
    check<TinyReader>(reference::Backend<double>(), config, learner, 1e-10);
    check<TinyReader>(Early(), config, learner, 1e-10);
    check<TinyReader>(Late(), config, learner, 1e-10);
  }
  check<FullReader>(Late(), tiny_config(), learner, 1e-10);
  check<PlainReader>(Early(), tiny_config(), NoLearning{.chunk = 8}, 1e-10);
  check<TinyReader>(Cpu(1), tiny_config(),
                    InnerLoop<Momentum>{.chunk = 5, .optimizer = {.rate = 0.1f}}, 1e-4);
  check<TinyReader>(Cpu(1), tiny_config(), NoLearning{.chunk = 8}, 1e-4);
  check<FullReader>(Cpu(1), tiny_config(), calm, 1e-4);
  check<PlainReader>(Cpu(1), tiny_config(), NoLearning{.chunk = 8}, 1e-4);
}

TEST_CASE_TEMPLATE("read_ahead: a piece that stops early leaves the state of where it stopped",
                   Machine, reference::Backend<double>, Late, Early) {
  Random random{12};
  const auto text = tokens(random, 9 * C + 1, 61), other = tokens(random, 5 * C, 61);
  const auto weights = tiny_weights(Machine());
  for (const bool throws : {false, true}) {
    CAPTURE(throws);
    Session many(weights, learner, {.read_ahead = 6});
    Session one(weights, learner);
    std::stop_source stop;
    Index chunks = 0;
    const auto tick = [&](Index, Index) {
      if (++chunks < 3) return;
      if (throws) throw Error("enough");
      stop.request_stop();
    };
    if (throws) {
      CHECK_THROWS_AS(many.read(text, {.progress = tick}), ReadError);
    } else {
      CHECK(many.read(text, {.progress = tick, .stop = stop.get_token()}).tokens == 3 * C + 1);
    }
    one.read(part(text, 0, 3 * C + 1));
    check_same(many, one, 1e-10);

    // Nothing computed ahead is left, and nothing of it is used.
    const auto fork = many.fork();
    check_same(many, fork, 0);
    const Index slots = many.state().cache_size / (2 * 3 * 2 * 8);
    for (Index p = 3 * C; p < 6 * C; ++p) {
      CHECK(many.state().cache.data()[p % slots * 8] == 0.0);
    }
    CHECK(furthest(many.logits(), one.logits()) <= 1e-10);
    CHECK(furthest(many.read(other).nll, one.read(other).nll) <= 1e-10);
    check_same(many, one, 1e-10);
  }
}

TEST_CASE_TEMPLATE("read_ahead: chunks before one that is not finite stay read", Machine, Cpu, Late,
                   Early) {
  using Untied = LanguageModel<Stack<1, TinyBlock>, Stack<2, TinyLearning>, SeparateHead>;
  const auto weights = tiny_weights<Untied>(Machine());
  finish(weights.backend());
  change(weights, [](const ParameterName& name, auto values) {
    if (name.role == Role::Embedding) values[60 * 16] = std::nanf("");
  });
  Random random{13};
  auto text = tokens(random, 8 * C + 1, 60);
  for (const Index at : {C + 1, 2 * C + 4, 5 * C}) {
    CAPTURE(at);
    auto bad = text;
    bad[static_cast<std::size_t>(at)] = 60;
    Session many(weights, learner, {.read_ahead = 8}), one(weights, learner);
    const auto consumed = [&](auto& session) {
      try {
        session.read(bad);
      } catch (const ReadError& error) {
        return error.consumed;
      }
      FAIL("nothing was thrown");
      return Index{0};
    };
    CHECK(consumed(many) == consumed(one));
    check_same(many, one, 1e-4);
    const auto all =
        std::span(many.state().cache.data(), static_cast<std::size_t>(many.state().cache_size));
    CHECK(std::ranges::all_of(all, [](auto x) { return std::isfinite(x); }));
  }
}

TEST_CASE("read_ahead: generation, snapshots and what it costs") {
  const auto weights = tiny_weights(Cpu(1));
  Random random{14};
  const auto text = tokens(random, 7 * C, 61);
  Session many(weights, learner, {.read_ahead = 4}), one(weights, learner);
  many.read(text);
  one.read(text);
  const auto snapshot = many.snapshot();
  const auto made = many.generate(3 * C, Greedy());
  CHECK(made == one.generate(3 * C, Greedy()));
  check_same(many, one, 1e-4);
  many.restore(snapshot);
  CHECK(made == many.generate(3 * C, Greedy()));
  CHECK_THROWS_AS(one.restore(snapshot), Error);  // another window's size

  using Reader = Session<Weights<TinyReader, Cpu>>;
  CHECK(Reader::required_bytes(weights, learner, {.read_ahead = 4}) >
        Reader::required_bytes(weights, learner));
}

TEST_CASE_TEMPLATE("read_ahead: a callback may do anything with the session", Machine,
                   reference::Backend<double>, Late, Early) {
  const auto weights = tiny_weights(Machine());
  using Reader = Session<Weights<TinyReader, Machine>>;
  Random random{15};
  const auto text = tokens(random, 13 * C + 2, 61), before = tokens(random, 9 * C, 61);
  const auto other = tokens(random, C + 3, 61);
  enum class Act { Logits, Generate, Snapshot, Fork, Restore, Reset, Read };
  for (const Act act : {Act::Logits, Act::Generate, Act::Snapshot, Act::Fork, Act::Restore,
                        Act::Reset, Act::Read}) {
    for (const bool stops : {false, true}) {
      CAPTURE(static_cast<int>(act));
      CAPTURE(stops);
      Reader many(weights, learner, {.read_ahead = 5}), one(weights, learner);
      const auto run = [&](Reader& session) {
        std::vector<double> after;
        session.read(before);
        const auto early = session.snapshot();
        std::vector<Reader> kept;
        std::stop_source stop;
        Index calls = 0;
        const auto tick = [&](Index, Index) {
          if (++calls != 3) return;
          if (act == Act::Logits) (void)session.logits();
          if (act == Act::Generate) (void)session.generate(3, Greedy{});
          if (act == Act::Snapshot || act == Act::Fork) kept.push_back(session.fork());
          if (act == Act::Snapshot) kept.back().restore(session.snapshot());
          if (act == Act::Restore) session.restore(early);
          if (act == Act::Reset) session.reset();
          if (act == Act::Read) session.read(other);
          if (stops) stop.request_stop();
        };
        session.read(text, {.progress = tick, .stop = stop.get_token()});
        for (Reader& copy : kept) {
          const auto nll = copy.read(other).nll;
          after.insert(after.end(), nll.begin(), nll.end());
        }
        const auto nll = session.read(other).nll;
        after.insert(after.end(), nll.begin(), nll.end());
        return after;
      };
      const auto want = run(one), got = run(many);
      CHECK(furthest(got, want) <= 1e-10);
      check_same(many, one, 1e-10);
    }
  }
}

TEST_CASE_TEMPLATE("read_ahead: a failure beside leaves the last boundary", Machine, Late, Early) {
  const Machine machine;
  const auto weights = tiny_weights(machine);
  Random random{16};
  const auto text = tokens(random, 13 * C + 2, 61);
  for (const Index after : {0, 1, 20, 33, 60, 90, 150}) {
    CAPTURE(after);
    Session many(weights, learner, {.read_ahead = 5}), one(weights, learner);
    machine.fail_after(after);
    Index consumed = 0;
    try {
      many.read(text);
      FAIL("nothing was thrown");
    } catch (const ReadError& error) {
      consumed = error.consumed;
    } catch (const Error&) {
    }
    machine.fail_after(-1);
    CHECK(consumed == many.counters().tokens);
    if (consumed > 0) one.read(part(text, 0, consumed));
    check_same(many, one, 1e-10);
    const auto rest = part(text, consumed, std::ssize(text) - consumed);
    CHECK(furthest(many.read(rest).nll, one.read(rest).nll) <= 1e-10);
    check_same(many, one, 1e-10);
  }
}

TEST_CASE_TEMPLATE("read_ahead: a step that could not be recorded is taken anew, once", Machine,
                   Late, Early) {
  const auto check = [](const auto& how, const auto& prepare) {
    const Machine machine, calm;
    const auto weights = tiny_weights(machine), same = tiny_weights(calm);
    Random random{18};
    const auto text = tokens(random, 13 * C + 2, 61);
    for (const Index ahead : {1, 5}) {
      for (const Index after : {0, 1, 5, 12, 20, 33, 60, 90, 150}) {
        CAPTURE(ahead);
        CAPTURE(after);
        Session many(weights, how, {.read_ahead = ahead}), one(same, how, {.read_ahead = ahead});
        prepare(many);
        prepare(one);
        const Index failed = machine.failed();
        machine.fail_recording_after(after);
        const auto got = many.read(text).nll;
        machine.fail_recording_after(-1);
        CHECK(machine.failed() == failed + 1);
        CHECK(furthest(got, one.read(text).nll) <= 1e-10);
        check_same(many, one, 1e-10);
      }
    }
    CHECK(calm.recorded() > 0);
    CHECK(calm.failed() == 0);
  };
  check(learner, [](auto&) {});
  check(learner, [](auto& session) { session.freeze(); });
  check(NoLearning{.chunk = C}, [](auto&) {});
}

TEST_CASE("read_ahead: what goes on beside is counted") {
  const Late machine;
  const auto weights = tiny_weights(machine);
  Random random{17};
  const auto text = tokens(random, 40 * C, 61);
  using Reader = Session<Weights<TinyReader, Late>>;
  for (const Index ahead : {1, 2, 5, 8, 9}) {
    CAPTURE(ahead);
    const SessionOptions options{.read_ahead = ahead};
    const Index before = machine.bytes();
    const Index required = Reader::required_bytes(weights, learner, options);
    CHECK(machine.bytes() == before);
    Reader session(weights, learner, options);
    session.read(part(text, 0, C + 1));
    CHECK(machine.bytes() == before + required);
    session.read(text);
    CHECK(machine.bytes() == before + required);
  }
}

TEST_CASE("read_ahead: no more than a text can have") {
  using Reader = Session<Weights<FullReader, Cpu>>;
  const auto weights = tiny_weights<FullReader>(Cpu(1));
  CHECK(Reader::required_bytes(weights, learner, {.max_tokens = 4 * C, .read_ahead = 1000}) ==
        Reader::required_bytes(weights, learner, {.max_tokens = 4 * C, .read_ahead = 3}));
}

TEST_CASE("read_ahead: what it cannot be") {
  const auto weights = tiny_weights(Cpu(1));
  using Reader = Session<Weights<TinyReader, Cpu>>;
  for (const Index ahead : {Index{-1}, Index{0}, Index{1025}}) {
    CHECK_THROWS_WITH_AS((Reader(weights, learner, {.read_ahead = ahead})),
                         doctest::Contains("read_ahead"), Error);
  }
}
