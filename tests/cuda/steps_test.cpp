// SPDX-License-Identifier: MIT
// Decoding from a CUDA graph: the same bits as its steps put on the stream one by one.
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

  gpu.fill(0.0f, row.data(), 16);
  Fast::Steps never(gpu);
  for (int i = 0; i < 3; ++i) {
    never(places, text(1), token.data(), i, [&](const Fast& machine) {
      machine.store(View<const float>(row.data(), 1, 16), Cache<bfloat16>{cache.data(), 1, 8, 16},
                    i);
    });
    CHECK_FALSE(never.has_graph());
  }
}

TEST_CASE("a step from a graph is the step") {
  const InnerLoop<Sgd> learner{.chunk = 16, .optimizer = {.rate = 0.1f}};
  check<Reader>(16, learner, 330, 40);  // beyond the window, through two updates
  check<Reader>(16, learner, 1, 20);
  check<FullReader>(16, NoLearning{.chunk = 16}, 290, 20);
  check<Reader>(12, learner, 20, 20);  // heads without a kernel that a graph can have
}

TEST_CASE("a step of narrow weights from a graph is the step, with heads of any size") {
  const InnerLoop<Sgd> learner{.chunk = 16, .optimizer = {.rate = 0.1f}};
  check<Reader>(64, learner, 330, 40, true);  // beyond the window, through two updates
  check<Reader>(16, learner, 1, 20, true);
  check<Reader>(80, learner, 290, 40, true);
  check<FullReader>(128, NoLearning{.chunk = 16}, 250, 20, true);
  check<FullReader>(96, NoLearning{.chunk = 16}, 20, 20, true);
  check<Reader>(12, learner, 20, 20, true);  // heads without a kernel that a graph can have
}
