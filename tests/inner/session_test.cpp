// SPDX-License-Identifier: MIT
// Reading: freezing, masks, states put aside, and what is refused.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
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

std::vector<Token> text(Index size, std::uint64_t seed = 1) {
  Random random{seed};
  return tokens(random, size, 61);
}

std::span<const Token> part(const std::vector<Token>& tokens, Index first, Index count) {
  return std::span(tokens).subspan(static_cast<std::size_t>(first),
                                   static_cast<std::size_t>(count));
}

/// What was learned, as a value.
std::vector<float> copy_of_learned(const TinySession& session) {
  const auto all = learned(session);
  return {all.begin(), all.end()};
}

using FullReader = LanguageModel<Stack<1, Block<FullAttention<>, SwiGLU>>,
                                 Stack<2, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;

}  // namespace

static_assert(std::is_nothrow_move_constructible_v<TinySession>);
static_assert(!std::is_copy_constructible_v<TinySession>, "a copy is a fork: say so");

TEST_CASE("session: floor((n - 1) / chunk) steps after n tokens") {
  const auto all = text(5 * C);
  TinySession session(weights(), learner);
  for (Index n = 1; n <= std::ssize(all); ++n) {
    const auto report = session.read(part(all, n - 1, 1));
    CHECK(session.counters().tokens == n);
    CHECK(session.counters().inner_steps == (n - 1) / C);
    CHECK(report.tokens == 1);
    CHECK(report.scored == (n == 1 ? 0 : 1));
    CHECK(report.inner_steps == (n > 1 && (n - 1) % C == 0 ? 1 : 0));
    CHECK(std::isnan(report.nll.at(0)) == (n == 1));
  }
  CHECK(session.counters().gradient_norm > 0);
  const auto report = session.read(std::span<const Token>{});
  CHECK(report.nll.empty());
  CHECK(report.tokens == 0);
  CHECK(report.mean_nll() == 0);
}

TEST_CASE("session: frozen, it scores; a chunk that holds a frozen token never learns") {
  const auto all = text(4 * C + 1);
  // Frozen from the first token: the model's own weights throughout.
  TinySession plain(weights(), learner), frozen(weights(), learner);
  frozen.freeze();
  CHECK(frozen.frozen());
  frozen.read(all);
  CHECK(frozen.counters().inner_steps == 0);
  CHECK(learned(frozen).empty());

  // One target frozen, at any place of the second chunk: that chunk is not learned from.
  plain.read(part(all, 0, C + 1));
  const auto w1 = copy_of_learned(plain);
  for (Index at = C + 1; at <= 2 * C; ++at) {
    CAPTURE(at);
    TinySession session(weights(), learner);
    session.read(part(all, 0, at));
    session.freeze();
    session.read(part(all, at, 1));
    session.learn();
    CHECK_FALSE(session.frozen());
    session.read(part(all, at + 1, 2 * C - at));
    CHECK(session.counters().inner_steps == 1);
    CHECK(copy_of_learned(session) == w1);  // what was learned stays
    session.read(part(all, 2 * C + 1, C));  // and the next chunk teaches again
    CHECK(session.counters().inner_steps == 2);
    CHECK_FALSE(copy_of_learned(session) == w1);
  }

  // The token before a chunk is its first input, not one of its targets.
  TinySession input(weights(), learner);
  input.freeze();
  input.read(part(all, 0, 1));
  input.learn();
  input.read(part(all, 1, C));
  CHECK(input.counters().inner_steps == 1);
}

TEST_CASE("session: masked targets count towards the chunk and are scored, not learned from") {
  const auto all = text(3 * C + 1);
  std::vector<std::uint8_t> mask(all.size(), 1);

  TinySession whole(weights(), learner);
  whole.read(all);
  TinySession ones(weights(), learner);
  ones.read(all, {.loss_mask = mask});
  CHECK(same_state(whole, ones));

  SUBCASE("some") {
    for (const std::size_t i : {3u, 4u, 12u}) mask[i] = 0;
    TinySession session(weights(), learner);
    const auto report = session.read(all, {.loss_mask = mask});
    CHECK(report.scored == 3 * C - 3);
    CHECK(report.inner_steps == 3);
    double total = 0;
    for (std::size_t i = 1; i < all.size(); ++i) {
      CHECK(std::isfinite(report.nll[i]));
      if (mask[i] != 0) total += static_cast<double>(report.nll[i]);
    }
    CHECK(report.total_nll == doctest::Approx(total).epsilon(1e-12));
    CHECK_FALSE(same_bits(learned(session), learned(whole)));

    // The same in pieces, the mask cut likewise.
    TinySession pieces(weights(), learner);
    for (std::size_t at = 0; at < all.size(); at += 5) {
      const std::size_t count = std::min<std::size_t>(5, all.size() - at);
      pieces.read(std::span(all).subspan(at, count),
                  {.loss_mask = std::span(mask).subspan(at, count)});
    }
    CHECK(same_state(pieces, session));
  }
  SUBCASE("the first token's mask means nothing: it is no target") {
    mask[0] = 0;
    TinySession session(weights(), learner);
    session.read(all, {.loss_mask = mask});
    CHECK(same_bits(learned(session), learned(whole)));
  }
  SUBCASE("all of a chunk: it makes no step") {
    for (std::size_t i = C + 1; i <= 2 * C; ++i) mask[i] = 0;
    TinySession session(weights(), learner);
    const auto report = session.read(all, {.loss_mask = mask});
    CHECK(report.inner_steps == 2);
    CHECK(report.skipped_steps == 0);
    CHECK(report.scored == 2 * C);
  }
  SUBCASE("everything") {
    mask.assign(all.size(), 0);
    TinySession session(weights(), learner);
    const auto report = session.read(all, {.loss_mask = mask});
    CHECK(report.inner_steps == 0);
    CHECK(report.scored == 0);
    CHECK(report.bits_per_token() == 0);
    CHECK(learned(session).empty());
  }
  SUBCASE("a masked token") {
    InnerLoop<Sgd> masking = learner;
    masking.masked_target = all[5];
    for (std::size_t i = 0; i < all.size(); ++i) mask[i] = all[i] != all[5];
    TinySession by_token(weights(), masking), by_mask(weights(), learner);
    const auto a = by_token.read(all), b = by_mask.read(all, {.loss_mask = mask});
    CHECK(a.scored == b.scored);
    CHECK(same_state(by_token, by_mask));
  }
}

TEST_CASE("session: a state put aside and taken up again, at any place") {
  const auto all = text(4 * C), other = text(3 * C, 2);
  for (const Index at : {Index{0}, Index{1}, Index{3}, C, C + 1, 2 * C + 5}) {
    CAPTURE(at);
    for (const bool generated : {false, true}) {
      CAPTURE(generated);
      TinySession session(weights(), learner, {.seed = 3}), want(weights(), learner, {.seed = 3});
      session.read(part(all, 0, at));
      want.read(part(all, 0, at));
      if (generated && at > 0) CHECK(session.generate(5) == want.generate(5));
      const auto snapshot = session.snapshot();
      auto fork = session.fork();
      session.read(other);
      (void)session.generate(3);
      session.restore(snapshot);
      CHECK(same_state(session, want));
      CHECK(same_state(fork, want));
      CHECK(session.state_bytes() == want.state_bytes());

      const auto rest = part(all, at, std::ssize(all) - at);
      const auto nll = want.read(rest).nll;
      CHECK(same_bits(session.read(rest).nll, nll));
      CHECK(same_bits(fork.read(rest).nll, nll));
      const auto made = want.generate(12);
      CHECK(session.generate(12) == made);
      CHECK(fork.generate(12) == made);
      CHECK(same_state(session, want));
      CHECK(same_state(fork, want));

      session.restore(snapshot);  // good for more than one use
      CHECK(same_bits(session.read(rest).nll, nll));
    }
  }
}

TEST_CASE("session: reset forgets the document") {
  TinySession session(weights(), learner, {.seed = 9}), fresh(weights(), learner, {.seed = 9});
  session.read(text(3 * C + 4, 2));
  (void)session.generate(10);
  session.reset();
  CHECK(same_state(session, fresh));
  CHECK(learned(session).empty());
  CHECK(session.state_bytes() == fresh.state_bytes());
  const auto all = text(3 * C);
  CHECK(same_bits(session.read(all).nll, fresh.read(all).nll));
  CHECK(session.generate(5) == fresh.generate(5));
  CHECK(same_state(session, fresh));
}

TEST_CASE("session: it can be moved, and a fork is frozen if its origin is") {
  const auto all = text(3 * C);
  TinySession want(weights(), learner);
  want.read(all);
  auto origin = std::make_unique<TinySession>(weights(), learner);
  origin->read(part(all, 0, C + 3));
  TinySession moved = std::move(*origin);
  origin.reset();
  moved.read(part(all, C + 3, 2 * C - 3));
  CHECK(same_state(moved, want));

  moved.freeze();
  CHECK(moved.fork().frozen());
}

TEST_CASE("session: what is refused changes nothing") {
  const auto all = text(C + 3);
  TinySession session(weights(), learner);
  session.read(all);
  const auto before = session.fork();
  using Options = ReadOptions<float>;
  const auto refuse = [&](std::vector<Token> tokens, const Options& options, const char* why) {
    CAPTURE(why);
    CHECK_THROWS_WITH_AS(session.read(tokens, options), Contains(why), Error);
    CHECK(same_state(session, before));
    CHECK(session.state().evaluated == before.state().evaluated);
  };
  refuse({1, 61}, {}, "read: token 61 at index 1 is outside the vocabulary of 61");
  refuse({1, 2, -1}, {}, "read: token -1 at index 2 is outside the vocabulary of 61");
  refuse({std::numeric_limits<Token>::max()}, {}, "is outside the vocabulary");
  refuse({std::numeric_limits<Token>::min()}, {}, "is outside the vocabulary");
  const std::vector<std::uint8_t> mask(3, 1);
  refuse({1, 2}, {.loss_mask = mask}, "read: the loss mask has 3 entries for 2 tokens");
  refuse({1, 2, 3, 4}, {.loss_mask = mask}, "read: the loss mask has 3 entries for 4 tokens");
  std::vector<float> nll(3);
  refuse({1, 2, 3, 4}, {.nll = nll}, "read: the nll buffer has room for 3 scores of 4");
  // A token far behind chunks that could have been read.
  auto bad = text(4 * C);
  bad.back() = 61;
  refuse(bad, {}, "read: token 61 at index 31");

  CHECK_THROWS_WITH_AS(session.read(std::string_view("abc")),
                       Contains("a vocabulary of 61 tokens, not of the 256 bytes: tokenize"),
                       Error);
  const std::vector<std::uint8_t> bytes{1, 2};
  CHECK_THROWS_WITH_AS(session.read(std::span<const std::uint8_t>(bytes)), Contains("256 bytes"),
                       Error);
  CHECK(same_state(session, before));
}

TEST_CASE("session: an empty document has no logits and no continuation") {
  TinySession session(weights(), learner);
  CHECK_THROWS_WITH_AS((void)session.logits(), Contains("logits: read at least one token first"),
                       Error);
  CHECK_THROWS_WITH_AS((void)session.generate(1), Contains("generate: read at least one"), Error);
  session.read(text(1));
  CHECK(session.logits().size() == 61);
  session.reset();
  CHECK_THROWS_AS((void)session.logits(), Error);
}

TEST_CASE("session: scores go into the caller's buffer") {
  const auto all = text(3 * C);
  TinySession a(weights(), learner), b(weights(), learner);
  std::vector<float> nll(all.size() + 2, -7);
  const auto report = a.read(all, {.nll = nll});
  CHECK(report.nll.empty());
  CHECK(report.scored == 3 * C - 1);
  const auto want = b.read(all);
  CHECK(same_bits(std::span<const float>(nll).first(all.size()), std::span<const float>(want.nll)));
  CHECK(nll[all.size()] == -7);  // a larger buffer keeps its end
  CHECK(report.total_nll == want.total_nll);
}

TEST_CASE("session: progress is told after every chunk, and a stop is heard before every one") {
  const auto all = text(4 * C + 3);
  TinySession session(weights(), learner);
  std::vector<Index> calls;
  std::stop_source stop;
  const auto progress = [&](Index done, Index total) {
    CHECK(total == std::ssize(all));
    CHECK(session.counters().tokens == done);
    calls.push_back(done);
    if (done == 2 * C + 1) stop.request_stop();
  };
  const auto report = session.read(all, {.progress = progress, .stop = stop.get_token()});
  CHECK(calls == std::vector<Index>{C + 1, 2 * C + 1});
  CHECK(report.tokens == 2 * C + 1);
  CHECK(std::ssize(report.nll) == report.tokens);
  CHECK(report.inner_steps == 2);
  TinySession want(weights(), learner);
  want.read(part(all, 0, 2 * C + 1));
  CHECK(same_state(session, want));

  const auto nothing = session.read(all, {.stop = stop.get_token()});
  CHECK(nothing.tokens == 0);
  CHECK(nothing.nll.empty());
  CHECK(same_state(session, want));
}

TEST_CASE("session: full attention needs max_tokens, and holds to it") {
  const auto full = tiny_weights<FullReader>(Cpu(1));
  using FullSession = Session<Weights<FullReader, Cpu>>;
  CHECK_THROWS_WITH_AS(FullSession(full, learner),
                       Contains("full attention needs SessionOptions::max_tokens"), Error);
  CHECK_THROWS_AS(FullSession(full, learner, {.max_tokens = -1}), Error);
  CHECK_THROWS_AS((void)FullSession::required_bytes(full, learner), Error);

  const auto all = text(2 * C + 4);
  FullSession session(full, learner, {.max_tokens = 2 * C + 3}),
      roomy(full, learner, {.max_tokens = 100});
  CHECK_THROWS_WITH_AS(session.read(all), Contains("would exceed max_tokens = 19"), Error);
  CHECK(session.counters().tokens == 0);
  session.read(part(all, 0, 2 * C));
  CHECK_THROWS_AS(session.read(part(all, 2 * C, 4)), Error);
  const auto last = session.read(part(all, 2 * C, 3));
  const auto want = roomy.read(all).nll;
  CHECK(furthest(last.nll, std::span(want).subspan(2 * C, 3)) <= 1e-5);
  CHECK(session.logits().size() == 61);  // the last token's place is there
  CHECK_THROWS_WITH_AS((void)session.generate(1), Contains("max_tokens"), Error);
  CHECK_THROWS_AS(session.read(part(all, 0, 1)), Error);
  CHECK(session.read(std::span<const Token>{}).tokens == 0);
  session.reset();
  CHECK(session.read(part(all, 0, 2 * C)).tokens == 2 * C);
  CHECK_THROWS_AS((void)session.generate(4), Error);
  CHECK(session.counters().tokens == 2 * C + 3);  // what was made before stays
}

TEST_CASE("session: learners that do not suit the model, and sizes that cannot be") {
  const auto refuse = [](const auto& weights, const auto& how, const char* why) {
    using S = Session<std::decay_t<decltype(weights)>, std::decay_t<decltype(how)>>;
    CHECK_THROWS_WITH_AS(S(weights, how), Contains(why), Error);
    CHECK_THROWS_WITH_AS((void)S::required_bytes(weights, how), Contains(why), Error);
  };
  refuse(weights(), InnerLoop<Sgd>{.chunk = 0}, "chunk must be from 1 to 2^24 tokens");
  refuse(weights(), InnerLoop<Sgd>{.chunk = -5}, "chunk must be from 1 to 2^24 tokens");
  refuse(weights(), NoLearning{.chunk = (Index{1} << 24) + 1}, "chunk must be from 1 to 2^24");
  using Plain = LanguageModel<Stack<2, TinyBlock>>;
  const auto plain = tiny_weights<Plain>(Cpu(1));
  refuse(plain, InnerLoop<Sgd>{.chunk = 8}, "finds nothing in this model that learns");
  refuse(plain, InnerLoop<Sgd>{.chunk = 8, .what = Learns::SuffixMlps}, "finds nothing");
  Config wide = tiny_config();
  wide.head_dim = 2 * Cpu::most_head_dim;
  wide.heads = 1;
  refuse(tiny_weights(Cpu(1), wide), learner, "is more than this backend's");
  Config far = tiny_config();
  far.window = Index{1} << 30;
  CHECK(TinySession::required_bytes(tiny_weights(Cpu(1), far), learner) > Index{1} << 32);
}

TEST_CASE("session: bytes are tokens") {
  Config config = tiny_config();
  config.vocabulary = 256;
  const auto byte_weights = tiny_weights(Cpu(1), config);
  std::string bytes;
  Random random{5};
  for (int i = 0; i < 3 * C; ++i) bytes.push_back(static_cast<char>(random.bits() % 256));
  bytes += "\xff\x80\0";
  const auto as_tokens = io::ByteTokenizer().encode(bytes);
  TinySession a(byte_weights, learner), b(byte_weights, learner), c(byte_weights, learner);
  const auto want = a.read(as_tokens).nll;
  CHECK(same_bits(b.read(std::string_view(bytes)).nll, want));
  const std::span raw(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  CHECK(same_bits(c.read(raw).nll, want));
  CHECK(same_state(a, b));
  CHECK(same_state(a, c));
}

TEST_CASE("session: a state made elsewhere must fit") {
  const auto all = text(2 * C + 3);
  TinySession session(weights(), learner);
  session.read(all);
  (void)session.logits();  // everything pending is evaluated
  const auto before = session.fork();
  const auto refuse = [&](const auto& change) {
    auto state = session.state().clone(weights().backend());
    change(state);
    CHECK_THROWS_WITH_AS(session.adopt(std::move(state)), Contains("different model or learner"),
                         Error);
    CHECK(same_state(session, before));
  };
  using State = TinySession::State;
  refuse([](State& s) { s.cache_size -= 1; });
  refuse([](State& s) { s.learned_size -= 1; });
  refuse([](State& s) { s.marks.pop_back(); });
  refuse([](State& s) { s.counters.tokens += 1; });
  refuse([](State& s) { s.counters.tokens = 1; });
  refuse([](State& s) { s.evaluated = 100; });
  refuse([](State& s) { s.evaluated = -1; });
  refuse([](State& s) { s.logits.clear(); });
  refuse([](State& s) {
    s.pending.clear();
    s.marks.clear();
  });
  refuse([](State& s) {
    s.pending.resize(C + 1);
    s.marks.resize(C + 1);
    s.counters.tokens = 3 * C + 1;
  });

  TinySession other(weights(), InnerLoop<Sgd>{.chunk = 2 * C});
  CHECK_THROWS_AS(other.restore(session.snapshot()), Error);

  // To forget what was only computed changes nothing.
  auto state = session.state().clone(weights().backend());
  state.evaluated = 0;
  state.logits.clear();
  TinySession lean(weights(), learner);
  lean.adopt(std::move(state));
  const auto rest = text(C, 4);
  CHECK(furthest(lean.read(rest).nll, session.read(rest).nll) <= 1e-5);
  CHECK(same_state(lean, session));
}
