// SPDX-License-Identifier: MIT
// A host that stays as it is learns from what it reads once its targets are trained; a table of it
// is in docs/hosts.md.
#include <array>
#include <span>
#include <support/ciphers.hpp>
#include <support/kernels.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/in_place_loop.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/model/hosts.hpp>
#include <ttt/outer/trainer.hpp>

namespace {

using namespace ttt;
using test::Ciphers;

constexpr Index length = Ciphers::length(), chunk = 16;

using Host = HostModel<SlidingWindowAttention<8, NoQkNorm, HalfSplitRope>, TiedHead, InPlaceMLP<>>;

/// Nats a letter on documents nobody has seen, by quarters of the document, then of all of it.
using Quarters = std::array<double, 5>;

template <class LearnerType>
Quarters read(const Weights<Host, Cpu>& weights, const LearnerType& learner) {
  Session session(weights, learner);
  Quarters mean{};
  constexpr Index documents = 40, quarter = length / 4;
  for (Index i = 0; i < documents; ++i) {
    std::vector<Token> text(length + 1);
    Ciphers{2}.sample(i, text);
    session.reset();
    const auto report = session.read(text);
    for (Index t = 0; t < length; ++t) {
      const double nats = static_cast<double>(report.nll[static_cast<std::size_t>(t + 1)]);
      mean[static_cast<std::size_t>(t / quarter)] += nats / (quarter * documents);
    }
    mean[4] += report.total_nll / (length * documents);
  }
  MESSAGE(mean[0], "  ", mean[1], "  ", mean[2], "  ", mean[3], "  all ", mean[4]);
  return mean;
}

template <class LearnerType>
Weights<Host, Cpu> train(const Weights<Host, Cpu>& start, const LearnerType& learner, Index steps,
                         double peak, std::uint64_t seed, Trains trains) {
  Trainer trainer(
      start, learner,
      OuterLoop<AdamW, WarmupCosine>{
          .schedule = {.peak = peak, .steps = steps, .warmup = steps / 10}},
      Ciphers{seed},
      TrainerOptions{.length = length, .batch = 8, .steps = steps, .meta = {.trains = trains}});
  trainer.run();
  return trainer.weights();
}

}  // namespace

TEST_CASE("a frozen host learns in place once its targets are trained" *
          doctest::test_suite("slow")) {
  const Cpu cpu;
  Config config{.vocabulary = Ciphers::letters,
                .width = 64,
                .heads = 4,
                .hidden = 256,
                .prefix_blocks = 2,
                .rope_base = 10000,
                .eps = 1e-6};
  config.in_place = BlockSet::first(2);
  config.in_place_projection = true;
  const InPlaceLoop learner{.chunk = chunk, .rate = 1.0f};
  const auto host =
      train(initialise<Host>(config, cpu, 1), NoLearning{}, 300, 5e-3, 1,
            [](const ParameterName& name) { return name.role != Role::InPlaceTarget; });
  MESSAGE("the host, frozen, and with targets that nobody trained");
  const Quarters frozen = read(host, NoLearning{.chunk = chunk});
  const Quarters untrained = read(host, learner);
  CHECK(untrained == frozen);

  const auto trained = train(host, learner, 600, 2e-2, 3, trains_in_place_targets);
  MESSAGE("with targets trained, learning and not");
  const Quarters learning = read(trained, learner);
  const Quarters still = read(trained, NoLearning{.chunk = chunk});
  CHECK(still == frozen);
  CHECK(learning[0] < frozen[0]);
  for (std::size_t quarter = 1; quarter < 4; ++quarter) {
    CHECK(learning[quarter] < frozen[quarter] - 0.1);
  }
  CHECK(learning[1] < learning[0]);
  CHECK(learning[3] < learning[1]);
}
