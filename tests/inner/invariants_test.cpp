// SPDX-License-Identifier: MIT
// What must always hold: the promises of docs/architecture.md, one test or more for each.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <support/finding.hpp>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using Tokens = std::span<const Token>;

constexpr Index C = 8;  // of most tests
const InnerLoop<Sgd> learner{.chunk = C};

Tokens part(const std::vector<Token>& tokens, Index first, Index count) {
  return Tokens(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

/// What a session holds after a completed chunk.
template <class S>
struct Boundary {
  std::vector<S> learned, window;
};
template <class Session>
Boundary<typename Session::Scalar> boundary(const Session& session) {
  const auto w = learned(session);
  return {{w.begin(), w.end()}, window(session)};
}

/// Reads in whole chunks, at once, and in random pieces with and without looking at the logits.
template <class Model, class B>
void check_pieces(const B& backend, const Config& config, const auto& how, std::uint64_t seed) {
  using S = typename B::Scalar;
  CAPTURE(seed);
  Random random{seed};
  const Index chunk = how.chunk, n = 9 * chunk + chunk / 2 + 1;
  const auto text = tokens(random, n, config.vocabulary);
  const auto weights = tiny_weights<Model>(backend, config, seed);
  const SessionOptions options{.max_tokens = n};

  // Whole chunks: what everything else is held against.
  Session chunks(weights, how, options);
  std::vector<S> scores;
  std::vector<Boundary<S>> boundaries{boundary(chunks)};
  for (Index at = 0; at < n;) {
    const auto report = chunks.read(part(text, at, std::min(at == 0 ? chunk + 1 : chunk, n - at)));
    scores.insert(scores.end(), report.nll.begin(), report.nll.end());
    at += report.tokens;
    boundaries.push_back(boundary(chunks));
  }

  Session once(weights, how, options);
  CHECK(same_bits(once.read(text).nll, scores));
  CHECK(same_state(once, chunks));

  for (const Index longest : {Index{1}, std::max<Index>(1, chunk - 1), chunk, 3 * chunk}) {
    for (const bool look : {false, true}) {
      CAPTURE(longest);
      CAPTURE(look);
      Session pieces(weights, how, options);
      std::vector<S> got;
      Index seen = 0;  // boundary
      while (std::ssize(got) < n) {
        const Index size =
            1 + static_cast<Index>(random.bits() % static_cast<std::uint64_t>(longest));
        const auto report =
            pieces.read(part(text, std::ssize(got), std::min(size, n - std::ssize(got))));
        got.insert(got.end(), report.nll.begin(), report.nll.end());
        if (look && random.bits() % 2 == 0) (void)pieces.logits();
        if (pieces.state().boundary() == seen) continue;
        seen = pieces.state().boundary();
        const auto& want = boundaries[static_cast<std::size_t>(seen / chunk)];
        const auto have = boundary(pieces);
        CHECK(same_bits(have.learned, want.learned));
        CHECK(same_bits(have.window, want.window));
      }
      CHECK(furthest(got, scores) <= 1e-5);
      CHECK(same_state(pieces, chunks));
    }
  }
}

using FullBlock = Block<FullAttention<>, SwiGLU>;
using FullReader =
    LanguageModel<Stack<1, FullBlock>, Stack<2, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;

using HalfSplit = SlidingWindowAttention<dynamic, NoQkNorm, HalfSplitRope>;
using LlamaBlock = Block<HalfSplit, SwiGLU, PreNorm>;
using LlamaReader = LanguageModel<Stack<1, LlamaBlock>, Stack<2, LlamaBlock>, SeparateHead>;

/// A backend that counts what it hands out.
class Counting : public reference::Backend<double> {
 public:
  template <class T>
  HostBuffer<T> allocate(Index size) const {
    *bytes += size * static_cast<Index>(sizeof(T));
    return HostBuffer<T>(size);
  }
  std::shared_ptr<Index> bytes = std::make_shared<Index>(0);
};

}  // namespace

TEST_CASE("invariant 1: pieces of any size leave the same bits at every boundary") {
  const Cpu cpu(2);
  for (const Index window : {1, 5, 8, 12, 40}) {
    CAPTURE(window);
    Config config = tiny_config();
    config.window = window;
    check_pieces<TinyReader>(cpu, config, learner, 3);
  }
  check_pieces<TinyReader>(cpu, tiny_config(), InnerLoop<Sgd>{.chunk = 1}, 4);
  check_pieces<TinyReader>(cpu, tiny_config(), InnerLoop<Momentum>{.chunk = 7}, 5);
  check_pieces<TinyReader>(cpu, tiny_config(), NoLearning{.chunk = 8}, 6);
}

TEST_CASE("invariant 1: ... on the reference, with full attention, without post-norms") {
  check_pieces<TinyReader>(reference::Backend<double>(), tiny_config(), learner, 7);
  check_pieces<FullReader>(Cpu(1), tiny_config(), learner, 8);
  Config grouped = tiny_config();
  grouped.heads = 4;
  grouped.key_heads = 2;
  check_pieces<LlamaReader>(
      Cpu(1), grouped,
      InnerLoop<Sgd>{.chunk = 8, .optimizer = {.rate = 0.1f}, .what = Learns::SuffixMlps}, 9);
}

TEST_CASE_TEMPLATE("invariant 1: logits() is what read({t}) would report", S, float, double) {
  Random random{1};
  const auto text = tokens(random, 3 * C + 2, 61);
  Session session(tiny_weights(eigen::Backend<S>(1)), learner);
  session.read(part(text, 0, 1));
  for (Index i = 1; i < std::ssize(text); ++i) {
    CAPTURE(i);
    auto other = session.fork();  // has never looked
    const auto logits = session.logits();
    const std::vector<S> copy(logits.begin(), logits.end());
    CHECK(same_bits(session.logits(), std::span<const S>(copy)));  // looking changes nothing
    const auto read = session.read(part(text, i, 1)).nll.at(0);
    CHECK(std::abs(nll_of(copy, text[static_cast<std::size_t>(i)]) - static_cast<double>(read)) <=
          1e-5);
    CHECK(std::abs(other.read(part(text, i, 1)).nll.at(0) - read) <= S(1e-5));
    CHECK(same_state(session, other));
  }
}

TEST_CASE("invariant 2: with rate 0, or before the first chunk ends, it is a plain transformer") {
  Random random{2};
  const auto text = tokens(random, 100, 61);
  const auto weights = tiny_weights(Cpu(2));
  Session plain(weights, NoLearning{.chunk = C});
  const auto want = plain.read(text);
  CHECK(want.inner_steps == 0);

  Session still(weights, InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 0}});
  const auto unmoved = still.read(text);
  CHECK(unmoved.inner_steps == 99 / C);
  CHECK(furthest(unmoved.nll, want.nll) <= 1e-6);

  Session held(weights, InnerLoop<Sgd>{.chunk = C, .rate_multiplier = 0});
  CHECK(furthest(held.read(text).nll, want.nll) <= 1e-6);

  Session frozen(weights, learner);
  frozen.freeze();
  CHECK(same_bits(frozen.read(text).nll, want.nll));

  for (const Index chunk : {100, 1000}) {  // 99 targets
    Session waiting(weights, InnerLoop<Sgd>{.chunk = chunk});
    const auto report = waiting.read(text);
    CHECK(report.inner_steps == 0);
    CHECK(learned(waiting).empty());
    CHECK(furthest(report.nll, want.nll) <= 1e-5);
  }
  Session learning(weights, InnerLoop<Sgd>{.chunk = 99});
  CHECK(learning.read(text).inner_steps == 1);

  for (const Index chunk : {1, 5, 64}) {
    Session other(weights, NoLearning{.chunk = chunk});
    CHECK(furthest(other.read(text).nll, want.nll) <= 1e-5);
  }
}

TEST_CASE("invariant 3: scores never depend on tokens after them") {
  Random random{3};
  const auto text = tokens(random, 6 * C + 3, 61);
  const auto weights = tiny_weights(Cpu(2));
  Session session(weights, learner);
  const auto want = session.read(text).nll;
  for (const std::size_t changed : {1u, 7u, 8u, 9u, 16u, 30u, 45u}) {
    CAPTURE(changed);
    auto other = text;
    other[changed] = (other[changed] + 1) % 61;
    Session again(weights, learner);
    const auto got = again.read(other).nll;
    CHECK(same_bits(std::span(got).first(changed), std::span(want).first(changed)));
    CHECK(got[changed] != want[changed]);
    CHECK(furthest(std::span(got).subspan(changed + 1), std::span(want).subspan(changed + 1)) >
          1e-3);
  }
}

TEST_CASE("invariant 3: ... nor on an update that used them") {
  Random random{4};
  const auto text = tokens(random, 6 * C + 1, 61);
  const auto weights = tiny_weights(Cpu(1));
  Session session(weights, learner);
  session.read(part(text, 0, 1));
  for (Index chunk = 0; chunk < 6; ++chunk) {
    CAPTURE(chunk);
    // The same place, another rate: what the chunk teaches shows behind it only.
    Session bold(weights, InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 3}});
    bold.restore(session.snapshot());
    const auto next = part(text, chunk * C + 1, C);
    CHECK(same_bits(bold.read(next).nll, session.read(next).nll));
    CHECK(bold.counters().inner_steps == chunk + 1);
    CHECK_FALSE(same_bits(learned(bold), learned(session)));
  }
}

TEST_CASE("invariant 4: sessions and forks do not meet") {
  Random random{5};
  const auto a = tokens(random, 5 * C, 61), b = tokens(random, 5 * C, 61);
  const auto weights = tiny_weights(Cpu(2));
  const auto alone = [&](const std::vector<Token>& text) {
    Session session(weights, learner);
    return session.read(text).nll;
  };
  const auto want_a = alone(a), want_b = alone(b);

  Session first(weights, learner), second(weights, learner);
  std::vector<float> got_a, got_b;
  for (Index at = 0; at < 5 * C; at += C) {
    const auto x = first.read(part(a, at, C)), y = second.read(part(b, at, C));
    got_a.insert(got_a.end(), x.nll.begin(), x.nll.end());
    got_b.insert(got_b.end(), y.nll.begin(), y.nll.end());
  }
  CHECK(furthest(got_a, want_a) <= 1e-5);
  CHECK(furthest(got_b, want_b) <= 1e-5);

  // A fork goes its own way, in the middle of a chunk too, and outlives what it came from.
  for (const Index at : {1, 5, 8, 9, 21}) {
    CAPTURE(at);
    auto origin = std::make_unique<Session<Weights<TinyReader, Cpu>>>(weights, learner);
    Session undisturbed(weights, learner);
    origin->read(part(a, 0, at));
    undisturbed.read(part(a, 0, at));
    auto fork = origin->fork();
    auto second_fork = fork.fork();
    CHECK(same_state(fork, *origin));
    fork.read(b);
    CHECK(same_state(*origin, undisturbed));
    origin->read(part(a, at, 5 * C - at));
    undisturbed.read(part(a, at, 5 * C - at));
    CHECK(same_state(*origin, undisturbed));
    origin.reset();
    second_fork.read(part(a, at, 5 * C - at));
    CHECK(same_state(second_fork, undisturbed));
  }
}

TEST_CASE("invariant 4: four threads share weights and a backend") {
  const auto weights = tiny_weights(Cpu(2));
  const auto read = [&](std::uint64_t seed) {
    Random random{seed};
    Session session(weights, learner, {.seed = seed});
    auto nll = session.read(tokens(random, 20 * C, 61)).nll;
    for (const Token t : session.generate(C)) nll.push_back(static_cast<float>(t));
    auto fork = session.fork();
    nll.push_back(fork.read(tokens(random, 2 * C, 61)).nll.back());
    return nll;
  };
  std::vector<std::vector<float>> want, got(4);
  for (std::uint64_t i = 0; i < 4; ++i) want.push_back(read(i));
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      ++ready;
      while (ready < 4) std::this_thread::yield();
      for (int round = 0; round < 5; ++round) got[i] = read(i);
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < 4; ++i) CHECK(same_bits(got[i], want[i]));
}

TEST_CASE("invariant 4: a callback that throws leaves a chunk boundary, and reading goes on") {
  Random random{6};
  const auto text = tokens(random, 6 * C + 5, 61);
  const auto weights = tiny_weights(Cpu(1));
  Session want(weights, learner);
  const auto scores = want.read(text).nll;
  for (const Index stop_at : {1, 2, 3, 5}) {
    CAPTURE(stop_at);
    Session session(weights, learner);
    std::vector<float> nll(text.size(), -1);
    Index calls = 0, consumed = -1, done_last = 0;
    const auto progress = [&](Index done, Index total) {
      CHECK(total == std::ssize(text));
      CHECK(done > done_last);
      done_last = done;
      if (++calls == stop_at) throw std::runtime_error("enough");
    };
    try {
      session.read(text, {.nll = nll, .progress = progress});
      FAIL_CHECK("nothing was thrown");
    } catch (const ReadError& error) {
      consumed = error.consumed;
      CHECK(std::string(error.what()).find("enough") != std::string::npos);
      CHECK(std::string(error.what()).find(std::to_string(consumed) + " tokens") !=
            std::string::npos);
      CHECK_THROWS_WITH_AS(std::rethrow_if_nested(error), "enough", std::runtime_error);
    }
    CHECK(consumed == done_last);
    CHECK(session.counters().tokens == consumed);
    CHECK(session.state().pending.size() == 1);  // a boundary: the last target is the next input
    const auto rest = session.read(part(text, consumed, std::ssize(text) - consumed)).nll;
    nll.resize(static_cast<std::size_t>(consumed));
    nll.insert(nll.end(), rest.begin(), rest.end());
    CHECK(same_bits(nll, scores));
    CHECK(same_state(session, want));
  }
}

TEST_CASE_TEMPLATE("invariant 5: a gradient that is not finite is skipped and counted", B,
                   eigen::Backend<float>, eigen::Backend<double>, reference::Backend<double>,
                   Finding<eigen::Backend<float>>) {
  using S = typename B::Scalar;
  using Mlps = Block<SlidingWindowAttention<>, DualMLP<SwiGLU, SwiGLU>, PreNorm>;
  using Model = LanguageModel<Stack<1, Mlps>, Stack<2, Mlps>>;
  const auto weights = tiny_weights<Model>(B());
  // hidden = silu(x·w1) ∘ (x·w3) is enormous, times w2 = 0: the loss is fine, d loss / d w2 is not.
  change(weights, [](const ParameterName& name, std::span<S> values) {
    if (name.role != Role::DynamicMlp || name.suffix_block != 1) return;
    for (S& v : values)
      v *=
          name.tensor == "w2" ? S(0) : static_cast<S>(std::pow(std::numeric_limits<S>::max(), 0.4));
  });
  Random random{7};
  const auto text = tokens(random, 3 * C + 1, 61);
  for (const float clip : {1.0f, 0.0f}) {
    Session session(weights, InnerLoop<Sgd>{.chunk = C, .clip = clip});
    const auto report = session.read(text);
    CHECK(report.inner_steps == 0);
    CHECK(report.skipped_steps == 3);
    CHECK(report.scored == 3 * C);
    CHECK(std::isfinite(report.total_nll));
    CHECK(session.counters().skipped_steps == 3);
    CHECK(session.counters().clipped_steps == 0);
    CHECK_FALSE(std::isfinite(session.counters().gradient_norm));

    Session plain(weights, NoLearning{.chunk = C});
    CHECK(furthest(plain.read(text).nll, report.nll) <= 1e-5);  // nothing has reached the weights
    for (const S w : learned(session)) CHECK(std::isfinite(w));
  }
}

TEST_CASE_TEMPLATE("invariant 5: a score that is not finite is an error, and nothing has changed",
                   Machine, Cpu, Finding<Cpu>) {
  // One poisoned token: its embedding is not a number.
  using Untied = LanguageModel<Stack<1, TinyBlock>, Stack<2, TinyLearning>, SeparateHead>;
  const auto weights = tiny_weights<Untied>(Machine(1));
  change(weights, [](const ParameterName& name, std::span<float> values) {
    if (name.role == Role::Embedding) values[60 * 16] = std::nanf("");
  });
  Random random{8};
  auto text = tokens(random, 4 * C, 60);  // never 60
  const std::vector<Token> poison{3, 60, 4, 5};
  for (const Index at : {Index{1}, Index{2}, Index{5}, C + 1, 2 * C - 2, 2 * C + 3}) {
    CAPTURE(at);
    Session session(weights, learner);
    session.read(part(text, 0, at));
    const auto before = session.fork();
    CHECK_THROWS_AS(session.read(poison), NonFiniteError);
    CHECK(same_state(session, before));
    CHECK(session.state_bytes() == before.state_bytes());
    Session undisturbed(weights, learner);
    undisturbed.read(part(text, 0, at));
    const auto want = undisturbed.read(part(text, at, 4 * C - at));
    const auto got = session.read(part(text, at, 4 * C - at));
    CHECK(furthest(got.nll, want.nll) <= 1e-5);
    CHECK(same_state(session, undisturbed));
  }

  SUBCASE("from the first token") {
    Session session(weights, learner);
    CHECK_THROWS_AS(session.read(poison), NonFiniteError);
    CHECK(session.counters().tokens == 0);
    CHECK(session.state().pending.empty());
  }
  SUBCASE("in the first chunk to be learned from: no memory is taken for weights either") {
    Session session(weights, learner);
    session.read(part(text, 0, 3));
    const Index bytes = session.state_bytes();
    auto bad = text;
    bad[2] = 60;
    CHECK_THROWS_AS(session.read(part(bad, 0, C)), NonFiniteError);
    CHECK(session.state_bytes() == bytes);
  }
  SUBCASE("behind chunks that are sound: they stay read") {
    text[2 * C + 4] = 60;
    Session session(weights, learner);
    try {
      session.read(text);
      FAIL_CHECK("nothing was thrown");
    } catch (const ReadError& error) {
      CHECK(error.consumed == 2 * C + 1);
      CHECK_THROWS_AS(std::rethrow_if_nested(error), NonFiniteError);
    }
    CHECK(session.counters().tokens == 2 * C + 1);
    CHECK(session.counters().inner_steps == 2);
  }
  SUBCASE("logits") {
    Session session(weights, learner);
    session.read(std::vector<Token>{60});
    const auto before = session.fork();
    CHECK_THROWS_AS((void)session.logits(), NonFiniteError);
    CHECK_THROWS_AS((void)session.logits(), NonFiniteError);
    CHECK_THROWS_AS((void)session.generate(1), NonFiniteError);
    CHECK(same_state(session, before));
  }
}

TEST_CASE("invariant 6: memory is known beforehand and does not grow") {
  const Counting backend;
  const auto weights = tiny_weights(backend);
  Random random{9};
  const auto text = tokens(random, 40 * C, 61);
  const auto check = [&](const auto& how, const SessionOptions& options = {}) {
    *backend.bytes = 0;
    using How = std::decay_t<decltype(how)>;
    using Reader = Session<Weights<TinyReader, Counting>, How>;
    const Index required = Reader::required_bytes(weights, how, options);
    CHECK(*backend.bytes == 0);
    Reader session(weights, how, options);
    session.read(part(text, 0, C + 1));
    CHECK(*backend.bytes == required);
    const Index state = session.state_bytes();
    for (Index at = C + 1; at + C <= std::ssize(text); at += C) {
      session.read(part(text, at, C));
      CHECK(session.state_bytes() == state);
    }
    (void)session.generate(3 * C);
    CHECK(*backend.bytes == required);
  };
  check(learner);
  check(InnerLoop<Momentum>{.chunk = C});
  check(NoLearning{.chunk = C});
  check(learner, {.read_ahead = 5});
}

TEST_CASE("invariant 6: scores are as exact far into a document as at its beginning") {
  // The window forgets, so the same tokens behind the same tokens score the same at any position.
  Random random{10};
  const auto text = tokens(random, 10 * C + 1, 61);
  const auto weights = tiny_weights(Cpu(1));
  Session near(weights, NoLearning{.chunk = C}), far(weights, NoLearning{.chunk = C});
  near.read(text);
  auto state = near.state().clone(weights.backend());
  state.counters.tokens += 500'000'000 * C;
  far.adopt(std::move(state));
  const auto more = tokens(random, 20 * C, 61);
  const Index settled = 5 * C;  // three blocks see 3 * 11 tokens back
  const auto a = near.read(more).nll, b = far.read(more).nll;
  CHECK(furthest(std::span(a).subspan(settled), std::span(b).subspan(settled)) <= 1e-5);
}

TEST_CASE("invariant 7: the same bits for any number of threads") {
  const auto run = [&](int threads) {
    const Cpu cpu(threads);
    std::vector<std::vector<float>> out;
    const auto keep = [&](const auto& session) {
      out.emplace_back(learned(session).begin(), learned(session).end());
      out.push_back(window(session));
    };
    {
      Random random{11};
      Session session(load_demo(cpu), InnerLoop<Sgd>{.chunk = 64}, {.seed = 5});
      out.push_back(session.read(tokens(random, 300, 256)).nll);
      keep(session);
      std::vector<float> made;
      for (const Token t : session.generate(40)) made.push_back(static_cast<float>(t));
      out.push_back(made);
      keep(session);
    }
    {
      Random random{12};
      Session session(tiny_weights(cpu), InnerLoop<Momentum>{.chunk = C});
      out.push_back(session.read(tokens(random, 10 * C, 61)).nll);
      keep(session);
    }
    return out;
  };
  const auto want = run(1);
  for (const int threads : {2, 3}) {
    CAPTURE(threads);
    const auto got = run(threads);
    for (std::size_t i = 0; i < want.size(); ++i) {
      CAPTURE(i);
      CHECK(same_bits(got[i], want[i]));
    }
  }
}
