// SPDX-License-Identifier: MIT
// Training through the inner loop teaches a model to learn from what it reads; training without it
// does not, and steps at test time alone do not make up for it.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <support/ciphers.hpp>
#include <support/kernels.hpp>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/outer/trainer.hpp>

namespace {

using namespace ttt;

using test::Ciphers;

constexpr Index letters = Ciphers::letters, length = Ciphers::length(), chunk = 16;

using Attention = SlidingWindowAttention<8>;
using Model = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                            Stack<1, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
constexpr Config config{.vocabulary = letters,
                        .width = 32,
                        .heads = 2,
                        .hidden = 64,
                        .rope_base = 10000,
                        .eps = 1e-6,
                        .chunk = chunk};
using Steps = InnerLoop<Sgd>;

template <class LearnerType, class Order = SecondOrder>
Weights<Model, Cpu> train(const Cpu& cpu, const LearnerType& learner, Index steps,
                          Order order = {}) {
  Trainer trainer(initialise<Model>(config, cpu, 1), learner,
                  OuterLoop<AdamW, WarmupCosine>{
                      .schedule = {.peak = 5e-3, .steps = steps, .warmup = steps / 10}},
                  Ciphers{1},
                  TrainerOptions{.length = length,
                                 .batch = 8,
                                 .steps = steps,
                                 .inner_warmup = {.first = 0.1, .steps = steps / 10}},
                  order);
  trainer.run();
  return trainer.weights();
}

/// Nats a letter on documents nobody has seen: all of them, and their last quarters.
std::pair<double, double> read(const Weights<Model, Cpu>& weights, const Steps& learner) {
  Session session(weights, learner);
  double all = 0, late = 0;
  constexpr Index documents = 40, quarter = length / 4;
  for (Index i = 0; i < documents; ++i) {
    std::vector<Token> text(length + 1);
    Ciphers{2}.sample(i, text);
    session.reset();
    const auto report = session.read(text);
    all += report.total_nll / length;
    late += std::accumulate(report.nll.end() - quarter, report.nll.end(), 0.0) / quarter;
  }
  return {all / documents, late / documents};
}

}  // namespace

TEST_CASE("meta-training beats plain training, with and without steps at test time" *
          doctest::test_suite("slow")) {
  const Cpu cpu;
  constexpr Index steps = 400;  // past the moment when it clicks, which is anywhere from 150 to 350
  const Steps learner{.chunk = chunk, .clip = 1.0f, .optimizer = {.rate = 1.0f}};
  const auto meta = train(cpu, learner, steps);
  const auto first_order = train(cpu, learner, steps, FirstOrder{});
  const auto plain = train(cpu, NoLearning{}, steps);
  const auto at_rate = [&](const auto& weights, float rate) {
    Steps other = learner;
    other.optimizer.rate = rate;
    const auto [all, late] = read(weights, other);
    MESSAGE("rate ", rate, ": ", all, " nats a letter, ", late, " in the last quarter");
    return all;
  };
  MESSAGE("meta-trained");
  const double learning = at_rate(meta, 1.0f);
  const double frozen = at_rate(meta, 0.0f);
  MESSAGE("meta-trained, first order");
  at_rate(first_order, 1.0f);
  MESSAGE("trained plainly");
  const double without = at_rate(plain, 0.0f);
  double steps_alone = without;  // dynamic evaluation, at the rate that suits it best
  for (const float rate : {0.1f, 0.3f, 1.0f, 3.0f, 10.0f}) {
    steps_alone = std::min(steps_alone, at_rate(plain, rate));
  }
  CHECK(learning < without - 1.5);
  CHECK(learning < steps_alone - 1.5);
  CHECK(learning < frozen - 1.5);
}
