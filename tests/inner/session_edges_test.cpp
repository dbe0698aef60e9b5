// SPDX-License-Identifier: MIT
// Sessions at the ends of what sizes, numbers and lifetimes allow.
#include <cmath>
#include <io/temporary.hpp>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <support/random.hpp>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/model/language_model.hpp>

namespace {

using namespace ttt;
using test::TinyReader;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

using B = eigen::Backend<float>;
using TinyWeights = Weights<TinyReader, B>;
using Reader = Session<TinyWeights>;
using FullModel = LanguageModel<Stack<1, Block<FullAttention<>, SwiGLU>>,
                                Stack<1, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;
/// Any number of blocks, of either kind.
using DeepReader =
    LanguageModel<Stack<dynamic, test::TinyBlock>, Stack<dynamic, test::TinyLearning>>;

constexpr Index most = std::numeric_limits<Index>::max();

TinyWeights weights(const Config& config = test::tiny_config()) {
  return test::tiny_weights(B(1), config);
}

InnerLoop<Sgd> learner(Index chunk = 8) {
  return {.chunk = chunk, .optimizer = {.rate = 0.5f}};
}

std::vector<Token> text(Index size, std::uint64_t seed = 1, Index vocabulary = 61) {
  Random random{seed};
  return test::tokens(random, size, vocabulary);
}

}  // namespace

TEST_CASE("session: texts and windows too long for any memory are refused, nothing overflows") {
  Config config = test::tiny_config();
  config.window = 0;
  const auto full = initialise<FullModel>(config, B(1), 1);
  using FullReader = Session<Weights<FullModel, B>>;
  for (const Index longest : {most, most - 1, most - 8, most / 2 + 1, most / 2, Index{1} << 62,
                              Index{1} << 56, (Index{1} << 50) / 64}) {
    CAPTURE(longest);
    const SessionOptions options{.max_tokens = longest};
    CHECK(contains(thrown<Error>([&] { FullReader::required_bytes(full, learner(), options); }),
                   "too large to address"));
    CHECK(contains(thrown<Error>([&] { FullReader(full, learner(), options); }),
                   "too large to address"));
  }
  for (const Index longest : {Index{0}, Index{-1}, -most, -most - 1}) {
    CHECK(contains(thrown<Error>([&] { FullReader(full, learner(), {.max_tokens = longest}); }),
                   "max_tokens"));
  }
  // Addressable, but nobody has it: the sum is right and the constructor fails like any allocation.
  const SessionOptions petabyte{.max_tokens = Index{1} << 43};
  CHECK(FullReader::required_bytes(full, learner(), petabyte) > (Index{1} << 50));
  if (!ttt_test::sanitized) {
    CHECK(contains(thrown<Error>([&] { FullReader(full, learner(), petabyte); }), "out of memory"));
  }

  config.window = Index{1} << 30;
  const Index bytes = Reader::required_bytes(weights(config), learner());
  CHECK(bytes > (Index{1} << 38));
  CHECK(bytes < (Index{1} << 40));
}

TEST_CASE("session: chunks from one token to more than there are") {
  for (const Index chunk : {Index{0}, Index{-1}, -most, (Index{1} << 24) + 1, most}) {
    CAPTURE(chunk);
    CHECK(contains(thrown<Error>([&] { Reader(weights(), learner(chunk)); }), "chunk must be"));
    CHECK(contains(thrown<Error>([&] { Reader::required_bytes(weights(), learner(chunk)); }),
                   "chunk must be"));
  }
  CHECK(Reader::required_bytes(weights(), learner(Index{1} << 24)) > (Index{1} << 30));

  Reader longer(weights(), learner(4096)), plain(weights(), learner(64));
  const auto tokens = text(50);
  CHECK(test::furthest(longer.read(tokens).nll, plain.read(tokens).nll) < 1e-5);
  CHECK(longer.counters().inner_steps == 0);
  CHECK(longer.generate(20).size() == 20);
}

TEST_CASE("session: a chunk of one, a window of one, a vocabulary of one, and all of them") {
  for (const Index chunk : {1, 2, 8}) {
    for (const Index window : {1, 2, 12}) {
      for (const Index vocabulary : {1, 2, 61}) {
        CAPTURE(chunk);
        CAPTURE(window);
        CAPTURE(vocabulary);
        Config config = test::tiny_config();
        config.window = window;
        config.vocabulary = vocabulary;
        const auto shared = weights(config);
        Reader whole(shared, learner(chunk)), pieces(shared, learner(chunk));
        const auto tokens = text(41, 2, vocabulary);
        const auto report = whole.read(tokens);
        CHECK(report.inner_steps == 40 / chunk);
        for (const Token token : tokens) pieces.read(std::span(&token, 1));
        CHECK(test::same_state(whole, pieces));
        if (vocabulary == 1) CHECK(report.total_nll == 0.0);
        CHECK(whole.generate(9) == pieces.generate(9));
        CHECK(test::same_state(whole, pieces));
        Reader fork = whole.fork();
        CHECK(test::same_state(whole, fork));
      }
    }
  }
}

TEST_CASE("session: moved, moved onto, and left behind") {
  const auto tokens = text(21), more = text(30, 3);
  Reader reference(weights(), learner());
  reference.read(tokens);

  auto first = std::make_unique<Reader>(weights(), learner());
  first->read(tokens);
  Reader second = std::move(*first);
  first.reset();
  CHECK(test::same_state(second, reference));
  Reader third(weights(test::tiny_config()), learner(16));
  third.read(more);
  third = std::move(second);  // its own model, memory and learner go
  CHECK(test::same_state(third, reference));
  CHECK(test::same_bits(third.read(more).nll, reference.read(more).nll));
  CHECK(test::same_state(third, reference));
  second = reference.fork();  // what was left behind can be used again
  CHECK(test::same_bits(second.read(more).nll, third.read(more).nll));

  std::vector<Reader> many;
  for (int i = 0; i < 5; ++i) many.insert(many.begin(), reference.fork());  // moves the rest
  const auto nll = reference.read(tokens).nll;
  for (Reader& session : many) CHECK(test::same_bits(session.read(tokens).nll, nll));
}

TEST_CASE("session: snapshots of oneself, forks of forks, and those that outlive the session") {
  const auto tokens = text(21), more = text(30, 3);
  auto session = std::make_unique<Reader>(weights(), learner());
  session->read(tokens);
  session->restore(session->snapshot());
  const auto snapshot = session->snapshot();
  Reader child = session->fork();
  Reader grandchild = child.fork();
  const auto nll = session->read(more).nll;
  CHECK(test::same_bits(child.read(more).nll, nll));
  session.reset();
  CHECK(test::same_bits(grandchild.read(more).nll, nll));
  CHECK(test::same_state(child, grandchild));
  child.restore(snapshot);
  child.restore(snapshot);  // a snapshot is not used up
  CHECK(test::same_bits(child.read(more).nll, nll));
  child.restore(grandchild.snapshot());
  CHECK(test::same_state(child, grandchild));
}

TEST_CASE("session: a state from a model with another vocabulary is refused") {
  Config config = test::tiny_config();
  config.vocabulary = 31;  // everything else has the same sizes
  Reader small(weights(config), learner()), large(weights(), learner());
  small.read(text(21, 1, 31));
  large.read(std::vector<Token>(21, 60));
  const auto foreign = thrown<Error>([&] { small.restore(large.snapshot()); });
  CHECK(contains(foreign, "different model"));  // a pending token that small does not have
  small.logits();
  CHECK_THROWS_AS(large.restore(small.snapshot()), Error);  // too few logits
  CHECK(small.counters().tokens == 21);
  CHECK(large.read(text(9)).scored == 9);

  auto state = small.state().clone(small.weights().backend());
  state.counters.tokens = -most - 1;
  CHECK_THROWS_AS(small.adopt(std::move(state)), Error);
}

TEST_CASE("session: generating nothing, and arguments that are not numbers") {
  const auto tokens = text(21);
  Reader session(weights(), learner(), {.seed = 4}), untouched(weights(), learner(), {.seed = 4});
  session.read(tokens);
  untouched.read(tokens);
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  CHECK(session.generate(0).empty());
  CHECK_THROWS_AS(session.generate(-1), Error);
  CHECK_THROWS_AS(session.generate(-most - 1), Error);
  for (const float bad : {nan, 0.0f, -1.0f, infinity, -infinity}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(session.generate(5, Temperature{bad}), Error);
    CHECK_THROWS_AS(session.generate(5, TopK{.k = 5, .temperature = bad}), Error);
    CHECK_THROWS_AS(session.generate(5, TopP{.p = 0.5f, .temperature = bad}), Error);
    CHECK_THROWS_AS(session.generate(5, Greedy{}, {.repetition_penalty = bad}), Error);
  }
  for (const float bad : {nan, 0.0f, -1.0f, 1.5f}) {
    CHECK_THROWS_AS(session.generate(5, TopP{.p = bad}), Error);
  }
  CHECK_THROWS_AS(session.generate(5, TopK{.k = 0}), Error);
  CHECK(test::same_state(session, untouched));
  CHECK(session.generate(20, TopK{.k = most}) == untouched.generate(20));
  const float least = std::numeric_limits<float>::denorm_min();
  CHECK(session.generate(20, TopK{.k = most, .temperature = least}).size() == 20);
  CHECK(session.generate(20, Temperature{3e38f}).size() == 20);
  CHECK(session.generate(20, Temperature{}, {.repetition_penalty = 3e38f}).size() == 20);
  CHECK(session.generate(20, Temperature{}, {.repetition_penalty = least}).size() == 20);
}

TEST_CASE("session: a token that breaks the scores leaves a state that can be saved and loaded") {
  // With a head of its own, so that only what follows the token has no score.
  using Model =
      LanguageModel<Stack<1, test::TinyBlock>, Stack<2, test::TinyLearning>, SeparateHead>;
  const auto broken = test::tiny_weights<Model>(B(1));
  test::change(broken, [](const ParameterName& name, std::span<float> values) {
    if (name.role != Role::Embedding) return;
    for (float& value : values.last(16)) value = std::nanf("");  // of token 60
  });
  const TemporaryFolder folder;
  const auto good = text(30, 5, 60);
  const std::vector<Token> bad = {1, 2, 60, 3, 4};
  for (const Index size : {0, 1, 5, 9, 13, 20}) {
    CAPTURE(size);
    using BrokenReader = Session<Weights<Model, B>>;
    BrokenReader session(broken, learner()), fresh(broken, learner()), untouched(broken, learner());
    session.read(std::span(good).first(static_cast<std::size_t>(size)));
    untouched.read(std::span(good).first(static_cast<std::size_t>(size)));
    CHECK_THROWS_AS(session.read(bad), NonFiniteError);
    session.save(folder.path("state"));
    fresh.load(folder.path("state"));
    CHECK(test::same_state(session, untouched));
    // The token alone is taken; asking what follows it fails.
    session.read(std::span(bad).subspan(2, 1));
    CHECK_THROWS_AS(session.logits(), NonFiniteError);
    session.save(folder.path("state"));
    fresh.load(folder.path("state"));
    CHECK(test::same_state(session, fresh));
    session.restore(untouched.snapshot());
    CHECK(test::same_bits(session.read(good).nll, untouched.read(good).nll));
    CHECK(test::same_state(session, untouched));
  }
}

TEST_CASE("model: sizes that fit one by one and not together are refused before any memory") {
  const auto refused = [](const Config& config) {
    const std::string what = thrown<Error>([&] { DeepReader model(config); });
    CHECK(contains(what, "Config: "));
    CHECK_THROWS_AS(initialise<DeepReader>(config, B(1), 1), Error);
  };
  Config config = test::tiny_config();
  config.prefix_blocks = 4096;
  REQUIRE_NOTHROW(DeepReader{config});
  const auto with = [&](auto member, Index size) {
    Config other = config;
    other.*member = size;
    return other;
  };
  constexpr Index large = Index{1} << 30;
  config.width = config.hidden = config.vocabulary = large;
  config.head_dim = 2;
  refused(config);  // each below 2^30, altogether beyond 2^64
  config.prefix_blocks = 1;
  refused(config);
  config = test::tiny_config();
  config.prefix_blocks = 1;
  refused(with(&Config::head_dim, large));  // a table of as many frequencies
  refused(with(&Config::head_dim, 1 << 17));
  refused(with(&Config::prefix_blocks, most));
  refused(with(&Config::prefix_blocks, -1));
  refused(with(&Config::suffix_blocks, -1));
  refused(with(&Config::suffix_blocks, 4096));
  config.suffix_blocks = most;
  refused(with(&Config::prefix_blocks, most));
  config.suffix_blocks = 0;
  refused(with(&Config::prefix_blocks, 0));
  refused(with(&Config::prefix_blocks, 4097));
  for (auto member : {&Config::vocabulary, &Config::width, &Config::heads, &Config::key_heads,
                      &Config::head_dim, &Config::hidden, &Config::window, &Config::chunk}) {
    refused(with(member, most));
    refused(with(member, -1));
    refused(with(member, -most - 1));
    refused(with(member, large + 1));
  }
  config.heads = config.key_heads = large;
  config.head_dim = 2;
  refused(config);
}
