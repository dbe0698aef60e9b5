// SPDX-License-Identifier: MIT
// Decoding from a CUDA graph: the same bits as its steps put on the stream one by one.
#include <cmath>
#include <limits>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/cuda/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/language_model.hpp>

namespace {

using namespace ttt;
using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;

using Attention = SlidingWindowAttention<>;
using Reader = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                             Stack<1, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
using FullBlock = Block<FullAttention<>, SwiGLU>;
using FullReader = LanguageModel<Stack<1, FullBlock>, Stack<1, FullBlock>>;

Config config(Index head_dim) {
  return {.vocabulary = 97,
          .width = 2 * head_dim,
          .heads = 2,
          .hidden = 40,
          .window = 300,
          .rope_base = 10000,
          .eps = 1e-6};
}

std::vector<Token> text(Index size) {
  std::vector<Token> tokens;
  Random random{21};
  while (std::ssize(tokens) < size) tokens.push_back(static_cast<Token>(random.bits() % 97));
  return tokens;
}

/// The same weights in bfloat16.
template <class Model>
Weights<Model, Fast> rounded(const Weights<Model, Fast>& from) {
  const Fast& gpu = from.backend();
  typename Weights<Model, Fast>::Memory memory;
  auto tree = from.parameters();
  Model::each(
      [&](const ParameterName&, Weight<float>& leaf) {
        const Shape shape = leaf.shape();
        memory.narrow.push_back(gpu.allocate<bfloat16>(shape.size()));
        bfloat16* const to = memory.narrow.back().data();
        gpu.narrow(static_cast<const float*>(leaf.data), to, shape.size());
        leaf = View<const bfloat16>(to, shape.rows, shape.cols);
      },
      tree);
  gpu.synchronize();
  return {from.model(), gpu, tree, std::move(memory)};
}

/// Generates one token at a time; `anew` from memory that the session has not used before, so that
/// no graph fits.
template <class Session>
std::vector<float> scores(Session& session, Index count, bool anew) {
  std::vector<float> all;
  for (Index i = 0; i < count; ++i) {
    if (anew) session.restore(session.snapshot());
    const auto logits = session.logits();
    all.insert(all.end(), logits.begin(), logits.end());
    session.generate(1, Greedy{});
  }
  return all;
}

template <class Model>
void check(Index head_dim, const auto& learner, Index read, Index count, bool narrow = false) {
  const Fast gpu;
  const auto wide = initialise<Model>(config(head_dim), gpu, 3, 0.25);
  const auto weights = narrow ? rounded(wide) : wide;
  const SessionOptions options{.max_tokens = 1000};
  Session graphs(weights, learner, options), steps(weights, learner, options);
  graphs.read(text(read));
  steps.read(text(read));
  const auto snapshot = graphs.snapshot();
  const auto want = scores(steps, count, true);
  CHECK(scores(graphs, count, false) == want);
  CHECK(graphs.counters() == steps.counters());

  // Back to where it was, in other memory; and as a text is generated, without its logits.
  graphs.restore(snapshot);
  CHECK(scores(graphs, count, false) == want);
  graphs.restore(snapshot);
  steps.restore(snapshot);
  std::vector<Token> made;
  for (Index i = 0; i < count; ++i) {
    steps.restore(steps.snapshot());
    made.push_back(steps.generate(1, Greedy{}).at(0));
  }
  CHECK(graphs.generate(count, Greedy{}) == made);
}

}  // namespace

TEST_CASE("each step is taken once") {
  const Fast gpu;
  auto numbers = gpu.allocate<float>(2);
  gpu.fill(1.0f, numbers.data(), 1);
  gpu.fill(0.0f, numbers.data() + 1, 1);
  const void* const places[] = {numbers.data()};
  Fast::Steps steps(gpu);
  for (int n = 1; n < 6; ++n) {
    steps(places, {}, nullptr, n, [&](const Fast& machine) {
      machine.axpby(1.0, numbers.data(), 1.0, numbers.data() + 1, 1);
    });
    CHECK(steps.has_graph() == (n > 1));
    float sum = 0;
    gpu.to_host(numbers.data() + 1, &sum, 1);
    CHECK(sum == static_cast<float>(n));
  }
}

TEST_CASE("steps become a graph the second time, and only where they can") {
  const Fast gpu;
  auto token = gpu.allocate<Token>(2);
  auto angles = gpu.allocate<float>(32), row = gpu.allocate<float>(16);
  auto cache = gpu.allocate<bfloat16>(16 * 8);
  const double frequencies[8] = {1, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.001};
  const auto turn = [&](const Fast& machine, Index position) {
    machine.rope_angles(position, frequencies, View<float>(angles.data(), 1, 16));
    machine.rope_angles(position - 3, frequencies, View<float>(angles.data() + 16, 1, 16));
  };
  const void* const places[] = {angles.data()};
  Fast::Steps steps(gpu);
  for (const Index position : {3, 4, 5, 70000}) {
    const std::vector<Token> tokens{7, static_cast<Token>(position)};
    steps(places, tokens, token.data(), position,
          [&](const Fast& machine) { turn(machine, position); });
    CHECK(steps.has_graph() == (position > 3));
    std::vector<float> got(32), want(32);
    gpu.to_host(angles.data(), got.data(), 32);
    turn(gpu, position);
    gpu.to_host(angles.data(), want.data(), 32);
    CHECK(got == want);
    std::vector<Token> seen(2);
    gpu.to_host(token.data(), seen.data(), 2);
    CHECK(seen == tokens);
  }

  // How many keys before the queries have gradients depends on the position.
  gpu.fill(0.0f, row.data(), 16);
  gpu.fill(bfloat16{}, cache.data(), 16 * 8);
  Fast::Steps never(gpu);
  for (Index i = 1; i < 4; ++i) {
    never(places, text(1), token.data(), i, [&](const Fast& machine) {
      const View<float> own(row.data(), 1, 16);
      const Cache<const bfloat16> keys{cache.data(), 1, 8, 16};
      machine.attention_backward(own, keys, keys, {1, 1, 16, 8, i}, own, {row.data(), 1, 1}, own,
                                 {angles.data(), 1, 16}, {}, {}, i - 1);
    });
    CHECK_FALSE(never.has_graph());
  }
}

TEST_CASE("a step from a graph is the step") {
  const InnerLoop<Sgd> learner{.chunk = 16, .optimizer = {.rate = 0.1f}};
  check<Reader>(16, learner, 330, 40);  // beyond the window, through two updates
  check<Reader>(16, learner, 1, 20);
  check<FullReader>(16, NoLearning{.chunk = 16}, 290, 20);
  check<Reader>(12, learner, 20, 20);  // heads that do not lie in eights
}

TEST_CASE("a step of narrow weights from a graph is the step, with heads of any size") {
  const InnerLoop<Sgd> learner{.chunk = 16, .optimizer = {.rate = 0.1f}};
  check<Reader>(64, learner, 330, 40, true);  // beyond the window, through two updates
  check<Reader>(16, learner, 1, 20, true);
  check<Reader>(80, learner, 290, 40, true);
  check<FullReader>(128, NoLearning{.chunk = 16}, 250, 20, true);
  check<FullReader>(96, NoLearning{.chunk = 16}, 20, 20, true);
  check<Reader>(12, learner, 20, 20, true);  // heads that do not lie in eights
}

namespace {

template <class Session>
std::vector<float> learned(const Session& session) {
  std::vector<float> all(static_cast<std::size_t>(session.state().learned_size));
  session.weights().backend().to_host(session.state().learned.data(), all.data(), std::ssize(all));
  return all;
}

/// Reads pieces of chunks; `anew` from memory that the session has not used before, so that no
/// graph fits.
template <class Session>
std::vector<float> read_pieces(Session& session, const std::vector<Token>& tokens, Index piece,
                               bool anew) {
  std::vector<float> all;
  for (Index at = 0; at < std::ssize(tokens); at += piece) {
    if (anew) session.restore(session.snapshot());
    const auto nll = session.read(
        std::span(tokens).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(piece)));
    all.insert(all.end(), nll.nll.begin(), nll.nll.end());
  }
  return all;
}

template <class Model>
void check_chunks(Index head_dim, const auto& learner, Index ahead, bool narrow = false) {
  const Fast gpu;
  const auto wide = initialise<Model>(config(head_dim), gpu, 3, 0.25);
  const auto weights = narrow ? rounded(wide) : wide;
  const SessionOptions options{.max_tokens = 3000, .read_ahead = ahead};
  Session graphs(weights, learner, options), steps(weights, learner, options);
  const Index piece = ahead * learner.chunk;
  const auto tokens = text(24 * learner.chunk);
  for (int document = 0; document < 2; ++document) {  // the second in the memory of the first
    graphs.read(text(1));
    steps.read(text(1));
    const auto want = read_pieces(steps, tokens, piece, true);
    CHECK(read_pieces(graphs, tokens, piece, false) == want);
    CHECK(graphs.counters() == steps.counters());
    CHECK(learned(graphs) == learned(steps));
    CHECK(scores(graphs, 5, false) == scores(steps, 5, true));
    graphs.reset();
    steps.reset();
  }
}

}  // namespace

TEST_CASE("a chunk from a graph is the chunk") {
  const InnerLoop<Sgd> clips{.chunk = 64, .clip = 0.1f, .optimizer = {.rate = 0.5f}};
  const InnerLoop<Sgd> short_chunks{.chunk = 16, .clip = 0, .optimizer = {.rate = 0.1f}};
  const InnerLoop<Momentum> ragged{.chunk = 100, .optimizer = {.rate = 0.1f}};
  check_chunks<Reader>(64, clips, 1);
  check_chunks<Reader>(80, clips, 2, true);
  check_chunks<Reader>(64, ragged, 1);
  check_chunks<Reader>(128, ragged, 2);
  check_chunks<Reader>(16, short_chunks, 1);
  check_chunks<Reader>(12, short_chunks, 2);
  check_chunks<FullReader>(96, NoLearning{.chunk = 64}, 1, true);
  check_chunks<FullReader>(16, NoLearning{.chunk = 16}, 2);
}

namespace {

/// May do more than move by its update, so its step waits for the norm.
struct OwnSgd : Sgd {};

template <class Machine>
void check_waiting() {
  const Machine gpu;
  const auto weights = initialise<Reader>(config(64), gpu, 3, 0.25);
  for (const float clip : {0.0f, 0.1f}) {
    const InnerLoop<Sgd> ahead{.chunk = 64, .clip = clip};
    const InnerLoop<OwnSgd> waits{.chunk = 64, .clip = clip};
    static_assert(ttt::detail::steps_ahead<InnerLoop<Sgd>, Machine>);
    static_assert(!ttt::detail::steps_ahead<InnerLoop<OwnSgd>, Machine>);
    Session a(weights, ahead);
    Session b(weights, waits);
    a.read(text(1));
    b.read(text(1));
    CHECK(a.read(text(12 * 64)).nll == b.read(text(12 * 64)).nll);
    CHECK(a.counters() == b.counters());
    CHECK(a.counters().clipped_steps == (clip > 0 ? 12 : 0));
    CHECK(learned(a) == learned(b));
  }
}

}  // namespace

TEST_CASE("a step whose scale the GPU finds is the step") {
  check_waiting<Fast>();
  check_waiting<Cuda>();
}

TEST_CASE_TEMPLATE("sessions on threads that share a GPU learn what each would alone", Machine,
                   Fast, Cuda) {
  const Machine gpu;
  const auto weights = initialise<Reader>(config(64), gpu, 3, 0.25);
  const InnerLoop<Sgd> learner{.chunk = 32, .clip = 0.1f};
  constexpr std::size_t count = 4;
  const auto read = [&](std::size_t i) {
    Session session(weights, learner);
    session.read(text(1 + static_cast<Index>(i)));  // so that each reads something else
    std::vector<float> all;
    for (int n = 0; n < 6; ++n) {
      const auto nll = session.read(text(70)).nll;
      all.insert(all.end(), nll.begin(), nll.end());
    }
    all.push_back(static_cast<float>(session.counters().gradient_norm));
    return all;
  };
  std::vector<std::vector<float>> want(count), got(count);
  for (std::size_t i = 0; i < count; ++i) want[i] = read(i);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < count; ++i) threads.emplace_back([&, i] { got[i] = read(i); });
  for (std::thread& thread : threads) thread.join();
  CHECK(got == want);
}

TEST_CASE("on a GPU, too, a chunk whose scores are not finite changes nothing") {
  using Untied = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                               Stack<1, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>, SeparateHead>;
  const Fast gpu;
  const auto weights = initialise<Untied>(config(64), gpu, 3, 0.25);
  const float none = std::nanf("");
  auto* const embedding = static_cast<const float*>(weights.parameters().embedding.data);
  gpu.to_device(&none, const_cast<float*>(embedding) + 96 * 128, 1);  // of token 96
  const InnerLoop<Sgd> learner{.chunk = 64};
  auto sound = text(8 * 64 + 1);
  for (Token& token : sound) token %= 96;
  auto bad = sound;
  bad[2 * 64 + 5] = 96;
  for (const Index ahead : {1, 4}) {
    for (const Index first : {0, 3}) {  // chunks
      Session session(weights, learner, {.read_ahead = ahead}),
          want(weights, learner, {.read_ahead = ahead});
      session.read(std::span(sound).first(static_cast<std::size_t>(first * 64 + 1)));
      want.read(std::span(sound).first(static_cast<std::size_t>(first * 64 + 1)));
      const auto before = learned(session);
      CHECK_THROWS_AS(session.read(std::span(bad).subspan(2 * 64, 64)), NonFiniteError);
      CHECK(session.counters() == want.counters());
      CHECK(learned(session) == before);
      const auto rest = std::span(sound).subspan(static_cast<std::size_t>(first * 64 + 1));
      CHECK(session.read(rest).nll == want.read(rest).nll);
      CHECK(learned(session) == learned(want));
    }
  }
}

TEST_CASE("a GPU scales by what it finds, or does nothing") {
  const Fast gpu;
  const std::vector<float> ones(1000, 1.0f);
  auto x = gpu.allocate<float>(1000), y = gpu.allocate<float>(1000), nll = gpu.allocate<float>(9);
  auto copy = gpu.allocate<bfloat16>(1000);
  auto found = gpu.allocate<GradientScale>(1);
  const auto find = [&](double clip) {
    gpu.gradient_scale(x.data(), 1000, clip, View<const float>(nll.data(), 1, 9), found.data());
    GradientScale result;
    gpu.to_host(found.data(), &result, 1);
    return result;
  };
  const auto moved = [&](const double* times) {
    gpu.fill(3.0f, y.data(), 1000);
    gpu.fill(bfloat16{}, copy.data(), 1000);
    gpu.axpby(2.0, x.data(), 1.0, y.data(), 1000, copy.data(), times);
    std::vector<float> result(1000);
    std::vector<bfloat16> rounded(1000);
    gpu.to_host(y.data(), result.data(), 1000);
    gpu.to_host(copy.data(), rounded.data(), 1000);
    return std::pair(result[999], static_cast<float>(rounded[999]));
  };
  gpu.to_device(ones.data(), x.data(), 1000);
  gpu.fill(0.0f, nll.data(), 9);
  CHECK(find(0).scale == 1);
  CHECK(find(100).scale == 1);
  CHECK(find(100).norm == doctest::Approx(std::sqrt(1000.0)));
  CHECK(find(2).scale == 2 / std::sqrt(1000.0));
  CHECK(find(2).taken == 1);
  CHECK(moved(&found.data()->taken) == std::pair(5.0f, 5.0f));
  CHECK(moved(&found.data()->scale).first == doctest::Approx(3 + 4 / std::sqrt(1000.0)));
  const auto does_nothing = [&] {
    CHECK(std::isnan(find(2).scale));
    CHECK(std::isnan(find(0).taken));
    CHECK(moved(&found.data()->taken) == std::pair(3.0f, 3.0f));
    CHECK(moved(&found.data()->scale) == std::pair(3.0f, 3.0f));
  };
  const float bad[] = {std::nanf(""), std::numeric_limits<float>::infinity()};
  for (const float each : bad) {
    gpu.to_device(&each, nll.data() + 8, 1);
    does_nothing();
    gpu.fill(0.0f, nll.data(), 9);
    gpu.to_device(&each, x.data() + 500, 1);
    does_nothing();
    CHECK(!std::isfinite(find(2).norm));
    gpu.to_device(ones.data(), x.data(), 1000);
  }
}
