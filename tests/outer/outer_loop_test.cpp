// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <support/kernels.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>
#include <ttt/model/flat.hpp>
#include <ttt/model/presets.hpp>
#include <ttt/outer/outer_loop.hpp>

namespace {

using namespace ttt;
using Tiny = TttE2e<1, 1, 4>;
constexpr Config config{
    .vocabulary = 5, .width = 4, .heads = 1, .hidden = 3, .rope_base = 100, .eps = 1e-6};

TEST_CASE("schedules") {
  CHECK(ConstantRate{.peak = 0.25}.rate(123) == 0.25);
  const WarmupCosine schedule{.peak = 1, .steps = 12, .warmup = 4, .first = 0.2, .last = 0.1};
  CHECK(schedule.rate(0) == doctest::Approx(0.2));
  CHECK(schedule.rate(2) == doctest::Approx(0.6));
  CHECK(schedule.rate(4) == doctest::Approx(1));
  CHECK(schedule.rate(8) == doctest::Approx(0.55));
  CHECK(schedule.rate(12) == doctest::Approx(0.1));
  CHECK(schedule.rate(1000) == doctest::Approx(0.1));
  CHECK(WarmupCosine{.peak = 1, .steps = 3, .warmup = 3}.rate(3) ==
        doctest::Approx(1e-5).epsilon(1));
  const InnerWarmup warmup{.first = 0.1, .steps = 10};
  CHECK(warmup.multiplier(3, 1.0) == doctest::Approx(0.46));
  CHECK(warmup.multiplier(9, 1.0) == doctest::Approx(1));
  CHECK(warmup.multiplier(5000, 0.3) == doctest::Approx(1));
  CHECK(warmup.multiplier(0, 0.5) == doctest::Approx((0.1 + 0.4 * 0.1) / 0.5));
  CHECK(InnerWarmup{}.multiplier(0, 1) == 1);
}

TEST_CASE_TEMPLATE("AdamW: the formulas, step by step", B, reference::Backend<double>,
                   eigen::Backend<double>) {
  const B backend;
  const AdamW adam{.rate = 2.0f, .beta1 = 0.8, .beta2 = 0.7, .eps = 1e-3};
  constexpr std::size_t size = 37;
  std::vector<double> w(size), m(size), v(size), wm(size), wv(size), want(size);
  for (std::size_t i = 0; i < size; ++i) want[i] = w[i] = 0.1 * static_cast<double>(i);
  double* slots[] = {m.data(), v.data()};
  for (Index step = 0; step < 3; ++step) {
    std::vector<double> g(size);
    for (std::size_t i = 0; i < size; ++i) {
      g[i] = std::sin(static_cast<double>(i) + 10 * static_cast<double>(step));
    }
    adam.step(backend, Update<double>{.gradient = g.data(),
                                      .scale = 0.5,
                                      .multiplier = 0.01,
                                      .step = step,
                                      .slots = slots,
                                      .weights = w.data(),
                                      .size = static_cast<Index>(size)});
    const double n = static_cast<double>(step + 1);
    for (std::size_t i = 0; i < size; ++i) {
      const double x = 0.5 * g[i];
      wm[i] = 0.8 * wm[i] + 0.2 * x;
      wv[i] = 0.7 * wv[i] + 0.3 * x * x;
      want[i] -= 0.02 * (wm[i] / (1 - std::pow(0.8, n))) /
                 (std::sqrt(wv[i] / (1 - std::pow(0.7, n))) + 1e-3);
      CHECK(w[i] == doctest::Approx(want[i]).epsilon(1e-12));
    }
  }
}

/// The least optimizer that decays.
struct Decaying {
  static constexpr std::size_t slots = 0;
  double decay = 0.5;
  void step(const reference::Backend<double>& b, const Update<double>& u) const {
    b.axpby(-u.multiplier * u.scale, u.gradient, 1, u.weights, u.size);
  }
};

template <class Decays>
std::vector<double> decayed(double gradient_scale, OuterStep& step, double clip = 1) {
  const reference::Backend<double> backend;
  const Tiny model(config);
  const auto size = static_cast<std::size_t>(parameter_count(model));
  std::vector<double> weights(size, 1.0), gradient(size, gradient_scale);
  const OuterLoop<Decaying, ConstantRate, Decays> loop{.schedule = {.peak = 0.1}, .clip = clip};
  step = loop.update(model, backend,
                     Update<double>{.gradient = gradient.data(),
                                    .weights = weights.data(),
                                    .size = static_cast<Index>(size)});
  return weights;
}

TEST_CASE("OuterLoop: clips to the global norm, and decays what it is told to") {
  OuterStep step;
  const Tiny model(config);
  const double size = static_cast<double>(parameter_count(model));
  const auto all = decayed<DecayAll>(3, step);
  CHECK(step.taken);
  CHECK(step.clipped);
  CHECK(step.rate == 0.1);
  CHECK(step.gradient_norm == doctest::Approx(3 * std::sqrt(size)));
  for (const double w : all) CHECK(w == doctest::Approx(0.95 - 0.1 / std::sqrt(size)));
  const auto matrices = decayed<DecayMatrices>(1e-9, step);
  CHECK(!step.clipped);
  auto shapes = model.shapes();
  std::size_t i = 0;
  Tiny::each(
      [&](const ParameterName& name, const Shape& shape) {
        for (Index n = 0; n < shape.size(); ++n) {
          CHECK(matrices[i++] == doctest::Approx(name.role == Role::Norm ? 1.0 : 0.95));
        }
      },
      shapes);
  (void)decayed<DecayAll>(3, step, 0);
  CHECK(!step.clipped);
}

TEST_CASE("OuterLoop: a gradient that is not finite never reaches the weights") {
  OuterStep step;
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    for (const double w : decayed<DecayAll>(bad, step)) CHECK(w == 1);
    CHECK(!step.taken);
  }
}

}  // namespace
