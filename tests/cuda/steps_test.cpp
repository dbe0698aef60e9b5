// SPDX-License-Identifier: MIT
// Decoding from a CUDA graph: the same bits as its steps put on the stream one by one.
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
void check(Index head_dim, const auto& learner, Index read, Index count) {
  const Fast gpu;
  const auto weights = initialise<Model>(config(head_dim), gpu, 3, 0.25);
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

TEST_CASE("a step from a graph is the step") {
  const InnerLoop<Sgd> learner{.chunk = 16, .optimizer = {.rate = 0.1f}};
  check<Reader>(16, learner, 330, 40);  // beyond the window, through two updates
  check<Reader>(16, learner, 1, 20);
  check<FullReader>(16, NoLearning{.chunk = 16}, 290, 20);
  check<Reader>(12, learner, 20, 20);  // heads without a kernel that a graph can have
}
