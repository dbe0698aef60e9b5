// SPDX-License-Identifier: MIT
// Documents read together: each comes to what it comes to in a session of its own.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <io/temporary.hpp>
#include <limits>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <support/finding.hpp>
#include <support/in_place.hpp>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/inner/batch.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

constexpr Index C = 8;
const InnerLoop<Sgd> learner{.chunk = C};

using TinyWeights = Weights<TinyReader, Cpu>;
using Texts = std::vector<std::vector<Token>>;

const TinyWeights& weights() {
  static const TinyWeights all = tiny_weights(Cpu(1));
  return all;
}

Texts texts(const std::vector<Index>& sizes, std::uint64_t seed = 1) {
  Random random{seed};
  Texts all;
  for (const Index size : sizes) all.push_back(tokens(random, size, 61));
  return all;
}

std::span<const Token> part(const std::vector<Token>& tokens, Index first, Index count) {
  return std::span(tokens).subspan(static_cast<std::size_t>(first),
                                   static_cast<std::size_t>(count));
}

/// Scores of pieces and logits; what is learned has the same bits.
template <class S>
constexpr double tolerance = std::is_same_v<S, double> ? 1e-12 : 2e-5;

/// A session that goes on from document i, which does not change.
template <class W, class L>
Session<W, L> session_of(const Batch<W, L>& batch, Index i, const SessionOptions& options) {
  Session<W, L> session(batch.weights(), batch.learner(), options);
  session.adopt(batch.state(i));
  return session;
}

/// A batch, and for each of its documents a session that is told the same.
template <class W, class L>
struct Pair {
  using Scalar = typename W::Scalar;
  static constexpr double bound = tolerance<Scalar>;

  SessionOptions options;
  Batch<W, L> together;
  std::vector<Session<W, L>> alone;

  Pair(const W& weights, const L& how, Index sequences, SessionOptions options_ = {})
      : options(options_), together(weights, how, sequences, options_) {
    for (Index i = 0; i < sequences; ++i) {
      alone.emplace_back(weights, how, options_);
      ++options_.seed;
    }
  }

  void read(const Texts& all, const BatchReadOptions& how = {}) {
    const auto got = together.read(all, how);
    REQUIRE(got.size() == all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      CAPTURE(i);
      ReadOptions<Scalar> own;
      if (!how.loss_masks.empty()) own.loss_mask = how.loss_masks[i];
      const auto want = alone[i].read(all[i], own);
      CHECK(furthest(got[i].nll, want.nll) <= bound);
      CHECK(got[i].tokens == want.tokens);
      CHECK(got[i].scored == want.scored);
      CHECK(got[i].total_nll == doctest::Approx(want.total_nll).epsilon(1e-6));
      CHECK(got[i].inner_steps == want.inner_steps);
      CHECK(got[i].skipped_steps == want.skipped_steps);
    }
    check_states();
  }

  /// To the bit.
  void check_states() const {
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(i);
      const auto moved = session_of(together, static_cast<Index>(i), options);
      CHECK(same_state(moved, alone[i]));
      CHECK(moved.state().learned_size == alone[i].state().learned_size);
    }
  }

  void check_logits() {
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(i);
      if (alone[i].counters().tokens == 0) continue;
      CHECK(furthest(together.logits(static_cast<Index>(i)), alone[i].logits()) <= bound);
    }
  }
};

/// Equal lengths, then whatever comes: nothing, parts of chunks, several of them, past the window.
template <class W, class L>
void check_reading(const W& weights, const L& how) {
  Pair<W, L> pair(weights, how, 4, {.max_tokens = 1000});
  const Index c = how.chunk;
  pair.read(texts({0, 1, 0, 3}, 1));
  pair.check_logits();
  pair.read(texts({2 * c + 1, 2 * c + 1, 2 * c + 1, 2 * c + 1}, 2));
  pair.check_logits();
  pair.read(texts({0, 5, c, 3 * c + 2}, 3));
  pair.read(texts({1, 1, 1, 1}, 4));
  pair.check_logits();
  pair.read(texts({3, 0, 4 * c, 1}, 5));
  pair.read(texts({c, 2 * c, 0, c - 1}, 6));
  pair.check_logits();
}

/// Machines on which what is learned has the same bits; scores in pieces agree to rounding.
#define MACHINES \
  eigen::Backend<float>, eigen::Backend<double>, reference::Backend<double>, Finding<Cpu>

}  // namespace

static_assert(std::is_nothrow_move_constructible_v<Batch<TinyWeights>>);
static_assert(!std::is_copy_constructible_v<Batch<TinyWeights>>);

TEST_CASE_TEMPLATE("batch: scores are those of sessions alone, and states to the bit", B,
                   MACHINES) {
  const auto all = tiny_weights(B());
  SUBCASE("learning") {
    check_reading(all, learner);
  }
  SUBCASE("with momentum, clipped") {
    check_reading(all, InnerLoop<Momentum>{.chunk = C, .clip = 0.1f});
  }
  SUBCASE("nothing learns") {
    check_reading(all, NoLearning{.chunk = C});
  }
}

TEST_CASE("batch: variants of the model") {
  Config config = tiny_config();
  SUBCASE("full attention, grouped queries, a head of its own, ordinary MLPs learn") {
    using Model = LanguageModel<Stack<1, Block<FullAttention<>, SwiGLU, PreNorm>>,
                                Stack<2, Block<FullAttention<>, SwiGLU, PreNorm>>, SeparateHead>;
    config.heads = 4;
    config.key_heads = 2;
    config.window = 0;
    check_reading(tiny_weights<Model>(Cpu(1), config),
                  InnerLoop<Sgd>{.chunk = C, .what = Learns::SuffixMlps});
  }
  SUBCASE("a window shorter than the chunk") {
    config.window = 3;
    check_reading(tiny_weights(Cpu(1), config), learner);
  }
  SUBCASE("learning in place") {
    const InPlaceLoop how{.chunk = C, .rate = 0.5f};
    check_reading(in_place_weights(Cpu(1)), how);
    check_reading(in_place_weights<InPlaceFromEmbeddings>(Cpu(1)), how);
  }
}

TEST_CASE("batch: the demo model, on several threads, past its window") {
  Pair pair(load_demo(Cpu(3)), InnerLoop<Sgd>{.chunk = 64}, 3);
  pair.read(texts({400, 300, 130}, 7));
  pair.check_logits();
  pair.read(texts({1, 60, 200}, 8));
  pair.check_logits();
}

TEST_CASE("batch: frozen, masked, and a chunk of one document without any target") {
  Pair pair(weights(), learner, 3);
  const Texts all = texts({2 * C + 1, 2 * C + 3, 3 * C}, 9);
  std::vector<std::vector<std::uint8_t>> masks;
  for (const auto& text : all) masks.emplace_back(text.size(), std::uint8_t{1});
  for (const std::size_t i : {3u, 4u, 12u}) masks[0][i] = 0;
  std::fill_n(masks[1].begin() + C + 1, C, std::uint8_t{0});
  std::fill(masks[2].begin(), masks[2].end(), std::uint8_t{0});
  const std::vector<std::span<const std::uint8_t>> own(masks.begin(), masks.end());
  pair.read(all, {.loss_masks = own});
  CHECK(pair.together.counters(0).inner_steps == 2);
  CHECK(pair.together.counters(1).inner_steps == 1);
  CHECK(pair.together.counters(2).inner_steps == 0);
  CHECK(pair.together.state(2).learned_size == 0);  // though others have weights of their own

  pair.together.freeze();
  for (auto& session : pair.alone) session.freeze();
  CHECK(pair.together.frozen());
  pair.read(texts({2 * C, 3, C}, 10));
  pair.together.learn();
  for (auto& session : pair.alone) session.learn();
  pair.read(texts({2 * C, 3 * C, C}, 11));
}

TEST_CASE_TEMPLATE("batch: what it generates is what sessions generate", B, MACHINES) {
  const SessionOptions options{.seed = 5};
  Pair pair(tiny_weights(B()), learner, 3, options);
  pair.read(texts({1, C, 2 * C + 5}, 12));
  const auto check = [&](Index count, const auto& sampler, float penalty = 1.0f) {
    const auto got = pair.together.generate(count, sampler, {.repetition_penalty = penalty});
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i] == pair.alone[i].generate(count, sampler, {.repetition_penalty = penalty}));
    }
    pair.check_states();
    pair.check_logits();
  };
  check(2 * C + 3, Greedy{});
  check(0, Greedy{});
  check(C + 1, Temperature{});
  check(5, TopK{.k = 7}, 1.3f);
  check(5, Greedy{}, 1.3f);
  pair.read(texts({3, 0, C}, 13));
  check(9, TopP{.p = 0.9f});
}

TEST_CASE("batch: a stop token ends one document, a request all, and seeds begin anew") {
  Batch batch(weights(), learner, 3);
  const Texts start = texts({3, 3, 3}, 14);
  batch.read(start);
  const auto all = batch.generate(2 * C, Temperature{}, {.seed = 7});
  const Token stop = all[1][4];
  batch.reset();
  batch.read(start);
  std::vector<std::vector<Token>> seen(3);
  const auto got =
      batch.generate(2 * C, Temperature{},
                     {.stop_tokens = {&stop, 1}, .seed = 7, .on_token = [&](Index i, Token token) {
                        seen[static_cast<std::size_t>(i)].push_back(token);
                      }});
  for (std::size_t i = 0; i < 3; ++i) {
    const auto end = std::find(all[i].begin(), all[i].end(), stop);
    CHECK(got[i] == std::vector<Token>(all[i].begin(), end));
    CHECK(seen[i] == got[i]);
    const Index consumed = std::ssize(got[i]) + (end == all[i].end() ? 0 : 1);
    CHECK(batch.counters(static_cast<Index>(i)).tokens == 3 + consumed);
  }
  CHECK(std::ssize(got[1]) < 2 * C);

  std::stop_source source;
  const auto one = batch.generate(
      5, Greedy{},
      {.on_token = [&](Index, Token) { source.request_stop(); }, .stop = source.get_token()});
  for (const auto& tokens : one) CHECK(tokens.size() == 1);
  CHECK(batch.read(texts({9, 9, 9}), {.stop = source.get_token()})[0].tokens == 0);
}

TEST_CASE("batch: decoding by hand") {
  Batch batch(weights(), learner, 2);
  const Texts start = texts({4, 2 * C + 3}, 15);
  batch.read(start);
  const auto want = batch.generate(C + 2, Greedy{});
  Batch again(weights(), learner, 2);
  again.read(start);
  for (std::size_t n = 0; n < want[0].size(); ++n) {
    const auto tokens = again.likeliest();
    CHECK(tokens == std::vector<Token>{want[0][n], want[1][n]});
    again.step(tokens);
  }
  for (const Index i : {0, 1}) {
    CHECK(same_state(session_of(again, i, {}), session_of(batch, i, {})));
    CHECK(same_bits(again.logits(i), batch.logits(i)));
  }
  // Scores of single tokens are those of what logits said.
  const auto before = std::vector<float>(again.logits(1).begin(), again.logits(1).end());
  const auto report = again.read(Texts{{}, {5}});
  CHECK(report[0].nll.empty());
  CHECK(report[1].nll.at(0) == doctest::Approx(nll_of(before, 5)).epsilon(1e-5));
}

TEST_CASE("batch: documents move between batches, sessions and files") {
  const TemporaryFolder folder;
  const Texts start = texts({2 * C + 3, 5, 3 * C, C + 1}, 16), more = texts({3 * C, C, 2, C}, 17);
  Pair pair(weights(), learner, 4, {.seed = 3});
  pair.read(start);
  // Into a session, a file, and from there into another batch, at another place.
  Batch other(weights(), learner, 3);
  for (const Index i : {0, 2}) {
    Session session = session_of(pair.together, i, {});
    session.save(folder.path("state"));
    Session loaded(weights(), learner);
    loaded.load(folder.path("state"));
    other.adopt(2 - i, loaded.state());
  }
  other.adopt(1, pair.together.state(1));
  const auto got = other.read(Texts{more[2], more[1], more[0]});
  const auto want = pair.together.read(more);
  for (const std::size_t i : {0u, 1u, 2u}) {
    CHECK(furthest(got[2 - i].nll, want[i].nll) <= 5e-6);
    CHECK(same_state(session_of(other, static_cast<Index>(2 - i), {}),
                     session_of(pair.together, static_cast<Index>(i), {})));
  }
  // A document that begins anew, beside others that go on, knows nothing of the one before.
  pair.together.reset(2);
  pair.alone[2].reset();
  for (const std::size_t i : {0u, 1u, 3u}) pair.alone[i].read(more[i]);
  CHECK(pair.together.counters(2) == Counters{});
  pair.read(texts({C, C, 2 * C + 1, 0}, 18));

  // Another model's state is refused.
  const auto before = session_of(other, 0, {});
  Session smaller(weights(), InnerLoop<Sgd>{.chunk = 4});
  CHECK(contains(thrown<Error>([&] { other.adopt(0, smaller.state()); }),
                 "batch: the state was made by a different model or learner"));
  CHECK(same_state(session_of(other, 0, {}), before));
}

TEST_CASE("batch: a sampler's bad token costs no document its random numbers") {
  struct Wild {
    int* calls;
    Token operator()(std::span<float>, Random& random) const {
      static_cast<void>(random.uniform());
      return ++*calls == 1 ? 1 : 61;
    }
  };
  Batch batch(weights(), learner, 2, {.seed = 3});
  batch.read(texts({5, 5}, 30));
  const auto first = batch.state(0), second = batch.state(1);
  int calls = 0;
  CHECK(contains(thrown<Error>([&] { batch.generate(1, Wild{&calls}); }),
                 "read: token 61 at index 0 of document 1 is outside the vocabulary of 61"));
  CHECK(calls == 2);
  CHECK(batch.state(0).random == first.random);
  CHECK(batch.state(1).random == second.random);
  CHECK(batch.counters(0).tokens == 5);
}

TEST_CASE("batch: what is refused changes nothing") {
  using Full = LanguageModel<Stack<1, Block<FullAttention<>, SwiGLU>>,
                             Stack<2, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;
  Config config = tiny_config();
  config.window = 0;
  const auto full = tiny_weights<Full>(Cpu(1), config);
  Pair pair(full, learner, 2, {.max_tokens = 2 * C});
  const auto refused = [&](const std::string& why, const auto& f) {
    CAPTURE(why);
    CHECK(contains(thrown<Error>(f), "ttt: " + why));
    pair.check_states();
  };
  auto& batch = pair.together;
  refused("likeliest: document 0 has read nothing yet", [&] { batch.likeliest(); });
  refused("generate: document 0 has read nothing yet", [&] { batch.generate(3, Greedy{}); });
  pair.read(texts({C + 2, 0}, 19));
  refused("logits: document 1 has read nothing yet", [&] { batch.logits(1); });
  refused("read: 3 texts for a batch of 2 documents", [&] { batch.read(texts({1, 1, 1})); });
  refused("read: token 61 at index 1 of document 1 is outside the vocabulary of 61", [&] {
    batch.read(Texts{{1}, {2, 61}});
  });
  refused("read: token -1 at index 0 of document 0 is outside", [&] {
    batch.step(std::vector<Token>{-1, 1});
  });
  refused("read: 7 more tokens of document 0 would exceed max_tokens = 16", [&] {
    batch.read(texts({7, 1}));
  });
  const std::vector<std::uint8_t> mask{1, 1};
  const std::vector<std::span<const std::uint8_t>> masks{mask, mask};
  refused("read: 1 loss masks for a batch of 2", [&] {
    batch.read(texts({2, 2}), {.loss_masks = std::span(masks).first(1)});
  });
  refused("read: the loss mask of document 1 has 2 entries for 3 tokens", [&] {
    batch.read(texts({2, 3}), {.loss_masks = masks});
  });
  refused("batch: there is no document 2 of 2", [&] { batch.logits(2); });
  refused("batch: there is no document -1 of 2", [&] { (void)batch.state(-1); });
  for (const Index wrong : {Index{0}, Index{-1}, Index{5000}, Index{1} << 62}) {
    CHECK(contains(thrown<Error>([&] { Batch(weights(), learner, wrong); }),
                   "batch: " + std::to_string(wrong) + " documents, expected from 1 to 4096"));
  }
  // Sizes that only together fit no memory.
  CHECK(contains(thrown<Error>([&] {
                   Batch<Weights<Full, Cpu>>::required_bytes(full, learner, 4096,
                                                             {.max_tokens = Index{1} << 38});
                 }),
                 "out of memory"));

  pair.read(texts({0, 2 * C}, 20));
  // A generation ends each document where it is full.
  const auto made = batch.generate(20, Greedy{});
  CHECK(std::ssize(made[0]) == 2 * C - (C + 2));
  CHECK(made[1].empty());
  CHECK(batch.counters(0).tokens == 2 * C);
}

namespace {

using Untied = LanguageModel<Stack<1, TinyBlock>, Stack<2, TinyLearning>, SeparateHead>;

/// What follows token 60 has no score, and nothing else is amiss.
template <class Machine = Cpu>
Weights<Untied, Machine> broken_weights() {
  const auto broken = tiny_weights<Untied>(Machine(1));
  change(broken, [](const ParameterName& name, std::span<float> values) {
    if (name.role != Role::Embedding) return;
    for (float& value : values.last(16)) value = std::numeric_limits<float>::quiet_NaN();
  });
  return broken;
}

}  // namespace

TEST_CASE_TEMPLATE("batch: a score that is not finite fails the round for all of them", Machine,
                   Cpu, Finding<Cpu>) {
  Pair pair(broken_weights<Machine>(), learner, 3);
  Texts start = texts({2 * C + 3, 3, C + 1}, 21), more = texts({3 * C, C, 2 * C + 1}, 22);
  for (auto* all : {&start, &more}) {
    for (auto& text : *all) std::ranges::replace(text, Token{60}, Token{1});
  }
  pair.read(start);
  auto& batch = pair.together;
  SUBCASE("in the first round") {
    Texts bad = more;
    bad[1][2] = 60;
    const std::string why = thrown<NonFiniteError>([&] { batch.read(bad); });
    CHECK(contains(why, "of document 1 is not a finite number"));
    pair.check_states();
  }
  SUBCASE("in a later one") {
    Texts bad = more;
    bad[0][2 * C + 1] = 60;  // of the third chunk of this text
    try {
      batch.read(bad);
      FAIL_CHECK("nothing was thrown");
    } catch (const ReadError& error) {
      CHECK_THROWS_AS(std::rethrow_if_nested(error), NonFiniteError);
      Index consumed = 0;
      for (std::size_t i = 0; i < 3; ++i) {
        const Index before = pair.alone[i].counters().tokens;
        const Index now = batch.counters(static_cast<Index>(i)).tokens;
        consumed += now - before;
        pair.alone[i].read(part(more[i], 0, now - before));
        more[i].erase(more[i].begin(), more[i].begin() + (now - before));
      }
      CHECK(error.consumed == consumed);
      CHECK(consumed > 0);
    }
    pair.check_states();
  }
  SUBCASE("in what is left of the texts") {
    const Texts bad{{1, 2, 3}, {4, 60, 5}, {}};
    CHECK_THROWS_AS(batch.read(bad), NonFiniteError);
    pair.check_states();
  }
  SUBCASE("a logit") {
    batch.read(Texts{{1}, {60}, {}});
    pair.alone[0].read(part({1}, 0, 1));
    pair.alone[1].read(part({60}, 0, 1));
    CHECK_THROWS_AS(batch.likeliest(), NonFiniteError);
    CHECK_THROWS_AS(batch.logits(0), NonFiniteError);
    CHECK_THROWS_AS(batch.generate(1, Greedy{}), NonFiniteError);
    pair.check_states();
    batch.reset(1);
    pair.alone[1].reset();
  }
  // They are as they were, and so they go on.
  pair.read(more);
  pair.check_logits();
}

namespace {

/// Counts the bytes it hands out.
struct Counting : Cpu {
  using Cpu::Cpu;
  std::shared_ptr<Index> bytes = std::make_shared<Index>(0);
  template <class T>
  auto allocate(Index n) const {
    *bytes += n * static_cast<Index>(sizeof(T));
    return Cpu::allocate<T>(n);
  }
};

}  // namespace

TEST_CASE("batch: memory is known beforehand and does not grow") {
  const Counting backend(1);
  const auto all = tiny_weights(backend);
  const auto check = [&](const auto& how) {
    *backend.bytes = 0;
    using Together = Batch<Weights<TinyReader, Counting>, std::decay_t<decltype(how)>>;
    const Index required = Together::required_bytes(all, how, 5);
    CHECK(*backend.bytes == 0);
    Together batch(all, how, 5);
    batch.read(texts({C + 1, 4 * C + 3, 2, 0, 1}, 23));
    CHECK(*backend.bytes == required);
    batch.read(texts({C - 1, 1, C, 3 * C + 1, 4}, 24));
    batch.generate(3 * C);
    batch.reset();
    batch.read(texts({C - 1, 1, C, 3 * C + 1, 4}, 24));
    CHECK(*backend.bytes == required);
  };
  check(learner);
  check(InnerLoop<Momentum>{.chunk = C});
  check(NoLearning{.chunk = C});
}
