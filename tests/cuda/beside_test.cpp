// SPDX-License-Identifier: MIT
// Reading with the lower half of chunks to come on a second stream: the same reading.
#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <stop_token>
#include <support/random.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/cuda/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/language_model.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using Exact = cuda::Backend<double>;
using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;
using Tokens = std::span<const Token>;

constexpr Index chunk = 16;

using Attention = SlidingWindowAttention<>;
using Reader = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                             Stack<2, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;

Config config(Index head_dim, Index window) {
  return {.vocabulary = 61,
          .width = 2 * head_dim,
          .heads = 2,
          .hidden = 40,
          .window = window,
          .rope_base = 10000,
          .eps = 1e-6};
}

const InnerLoop<Sgd> learner{.chunk = chunk, .clip = 1.0f, .optimizer = {.rate = 0.1f}};

Tokens part(const std::vector<Token>& tokens, Index first, Index count) {
  return Tokens(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

/// What a state holds, its keys included, brought to the host.
template <class Session>
std::vector<double> contents(const Session& session) {
  const auto& machine = session.weights().backend();
  const auto& state = session.state();
  std::vector<typename Session::Scalar> learned(static_cast<std::size_t>(state.learned_size));
  machine.to_host(state.learned.data(), learned.data(), state.learned_size);
  using Key = typename std::decay_t<decltype(machine)>::CacheScalar;
  std::vector<Key> keys(static_cast<std::size_t>(state.cache_size));
  machine.to_host(state.cache.data(), keys.data(), state.cache_size);
  std::vector<double> all(learned.begin(), learned.end());
  for (const Key key : keys) all.push_back(static_cast<double>(static_cast<float>(key)));
  return all;
}

template <class T>
double furthest(const std::vector<T>& a, const std::vector<T>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;  // the document's first token
    const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(apart <= most)) most = apart;
  }
  return most;
}

/// Pieces that end anywhere, and callbacks that want to see the state in the middle of one.
void check_exact(const Exact& gpu) {
  Random random{31};
  const Index n = 30 * chunk + 5;
  const auto text = tokens(random, n, 61);
  for (const Index window : {5, 40}) {
    const auto weights = initialise<Reader>(config(8, window), gpu, 3, 0.25);
    for (const Index ahead : {2, 8}) {
      CAPTURE(ahead);
      Session one(weights, learner), many(weights, learner, {.read_ahead = ahead});
      for (Index at = 0; at < n;) {
        CAPTURE(at);
        const Index size =
            std::min(n - at, 1 + static_cast<Index>(random.bits() % (12 * std::uint64_t{chunk})));
        std::optional<decltype(one)> fork;
        const auto tick = [&](Index, Index) {
          if (!fork && random.bits() % 4 == 0) fork = many.fork();
        };
        const auto want = one.read(part(text, at, size));
        const auto got = many.read(part(text, at, size), {.progress = tick});
        CHECK(furthest(got.nll, want.nll) <= 1e-10);
        at += size;
        if (fork) {
          const Index stood = fork->counters().tokens;
          (void)fork->read(part(text, stood, at - stood));
          CHECK(furthest(contents(*fork), contents(many)) <= 1e-6);  // keys seen as float
        }
        const auto logits = one.logits();
        const std::vector<double> known(logits.begin(), logits.end());
        const auto same = many.logits();
        CHECK(furthest(std::vector<double>(same.begin(), same.end()), known) <= 1e-10);
      }
      CHECK(many.counters().inner_steps == one.counters().inner_steps);
    }
  }
}

}  // namespace

TEST_CASE("beside: reading on two streams is reading on one") {
  check_exact(Exact());
}

TEST_CASE("beside: so it is when the stream is the caller's") {
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  check_exact(Exact(0, stream));
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
  check_exact(Exact(0, nullptr));  // CUDA's default stream
}

TEST_CASE("beside: in bfloat16 every reading has the same bits") {
  const Fast gpu;
  Random random{32};
  const auto text = tokens(random, 20 * chunk + 1, 61);
  const auto weights = initialise<Reader>(config(64, 100), gpu, 3, 0.1);
  Session one(weights, learner);
  const auto want = one.read(text).nll;
  std::vector<float> scores;
  std::vector<double> left;
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    Session many(weights, learner, {.read_ahead = 8});
    const auto got = many.read(text).nll;
    CHECK(furthest(got, want) <= 0.1);
    if (i == 0) {
      scores = got;
      left = contents(many);
    }
    CHECK(furthest(got, scores) == 0);
    CHECK(furthest(contents(many), left) == 0);
  }
}

TEST_CASE("beside: sessions of one backend come and go") {
  const Exact gpu;
  Random random{33};
  const auto text = tokens(random, 20 * chunk, 61);
  const auto weights = initialise<Reader>(config(8, 40), gpu, 3, 0.25);
  Session one(weights, learner);
  const auto want = one.read(text).nll;
  for (Index stop = 1; stop < 20; stop += 3) {
    CAPTURE(stop);
    Session kept(weights, learner, {.read_ahead = 8});
    std::stop_source source;
    Index chunks = 0;
    {  // the chunks ahead are still being worked on when its memory goes
      Session gone(weights, learner, {.read_ahead = 8});
      const auto tick = [&](Index, Index) {
        if (++chunks == stop) source.request_stop();
      };
      (void)gone.read(text, {.progress = tick, .stop = source.get_token()});
    }
    CHECK(furthest(kept.read(text).nll, want) <= 1e-10);
    kept.reset();
    CHECK(furthest(kept.read(text).nll, want) <= 1e-10);
  }
}

TEST_CASE("a chunk of little more than few rows leaves room for pieces of few") {
  const Fast gpu;
  Random random{9};
  const auto text = tokens(random, 200, 61);
  const auto weights = initialise<Reader>(config(16, 24), gpu, 5, 0.1);
  for (const Index size : {3, 4, 6, 9, 17}) {
    CAPTURE(size);
    InnerLoop<Sgd> own = learner;
    own.chunk = size;
    Session whole(weights, own), pieces(weights, own);
    const auto want = whole.read(text).nll;
    std::vector<float> got;
    for (std::size_t at = 0; at < text.size(); at += 2) {
      const auto some = pieces.read(part(text, static_cast<Index>(at), 2)).nll;
      got.insert(got.end(), some.begin(), some.end());
    }
    REQUIRE(got.size() == want.size());
    float worst = 0;
    for (std::size_t i = 1; i < got.size(); ++i)
      worst = std::max(worst, std::abs(got[i] - want[i]));
    CHECK(worst <= 0.1f);
  }
}
