// SPDX-License-Identifier: MIT
// Six training steps are those of the authors' program.
#include <cmath>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/golden.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/outer/trainer.hpp>

namespace {

using namespace ttt;
using test::Golden;

/// The same batch at every step.
struct OneBatch {
  std::vector<Token> tokens;
  Index each = 0;

  Index size() const { return std::ssize(tokens) / (each + 1); }
  Index length() const { return each; }
  void sample(Index index, std::span<Token> out) const {
    const Index first = index % size() * (each + 1);
    std::copy_n(tokens.begin() + first, each + 1, out.begin());
  }
};

}  // namespace

TEST_CASE_TEMPLATE("golden: a training trajectory", B, TTT_TEST_BACKENDS) {
  const Golden golden("e2e_train");
  const B backend;
  const auto weights = golden.template weights<test::GoldenReader>(backend);
  const io::Json& settings = golden.training().at("optimizer_outer");
  const OuterLoop<AdamW, WarmupCosine> outer{
      .optimizer = {.beta1 = settings.at("b1").number(),
                    .beta2 = settings.at("b2").number(),
                    .decay = settings.at("weight_decay").number()},
      .schedule = {.peak = settings.at("lr").number(),
                   .steps = settings.at("lr_decay_steps").integer(),
                   .warmup = settings.at("lr_warmup_steps").integer(),
                   .first = settings.at("init_lr").number(),
                   .last = settings.at("end_lr").number()},
      .clip = settings.at("clip_gradient").number()};
  InnerLoop<Sgd> learner = golden.learner();
  learner.rate_multiplier = 1;  // the trainer warms up
  const OneBatch batch{golden.template values<Token>("tokens"),
                       golden.file().at("tokens").shape.at(1) - 1};
  Trainer trainer(weights, learner, outer, batch,
                  TrainerOptions{.length = batch.length(),
                                 .batch = batch.size(),
                                 .steps = 6,
                                 .inner_warmup = {
                                     .first = golden.training().at("ilr_init").number(),
                                     .steps = golden.training().at("ilr_warmup_steps").integer()}});
  std::vector<TrainingStep> log;
  CHECK(trainer.run([&](const TrainingStep& step) { log.push_back(step); }));
  REQUIRE(log.size() == 6);
  const auto losses = golden.template values<double>("trajectory.loss");
  const auto norms = golden.template values<double>("trajectory.grad_norm");
  const auto rates = golden.template values<double>("trajectory.lr");
  for (std::size_t i = 0; i < log.size(); ++i) {
    CAPTURE(i);
    CHECK(log[i].taken);
    CHECK(std::abs(log[i].loss - losses[i]) <= 2e-4);
    // The authors log sqrt(sum of squares + 1e-5).
    const double norm = std::sqrt(log[i].gradient_norm * log[i].gradient_norm + 1e-5);
    CHECK(std::abs(norm - norms[i]) <= 1e-3 * norms[i]);
    // To the last bits of a float, in which the authors compute it.
    CHECK(std::abs(log[i].rate - rates[i]) <= 1.2e-7 * rates[i]);
  }
  const auto want = io::load_weights<test::GoldenReader>(
      io::SafeTensors::open(golden.file().path()), golden.template config<test::GoldenReader>(),
      reference::Backend<double>(), "trajectory.params.");
  const auto got = trainer.weights();
  test::GoldenReader::each(
      [&](const ParameterName& name, const Weight<double>& expected,
          const Weight<typename B::Scalar>& leaf) {
        CAPTURE(to_string(name));
        const auto e = expected.template stored<double>();
        const auto g = test::on_host(backend, leaf.template stored<typename B::Scalar>().data,
                                     leaf.shape().size());
        double error = 0, size = 0;
        for (Index i = 0; i < e.rows; ++i) {
          for (Index j = 0; j < e.cols; ++j) {
            const auto at = static_cast<std::size_t>(i * e.cols + j);
            error += std::pow(static_cast<double>(g[at]) - e(i, j), 2);
            size += e(i, j) * e(i, j);
          }
        }
        CHECK(std::sqrt(error / size) <= 1e-3);
      },
      want.parameters(), got.parameters());
}
