// SPDX-License-Identifier: MIT
// Training models that learn in place: the parallel form is what reading does, its gradients are
// those of the loss, and a host can stay as it is while its targets train.
#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/in_place.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/session.hpp>
#include <ttt/outer/meta_gradient.hpp>
#include <ttt/outer/trainer.hpp>

namespace {

using namespace ttt;
using test::some_tokens;

constexpr Index length = 40, chunk = 8;
constexpr InPlaceLoop learner{.chunk = chunk, .rate = 0.5f};

template <class Model, class B>
void check_loss(const B& backend, const MetaOptions& options) {
  const auto weights = test::in_place_weights<Model>(backend);
  const auto text = some_tokens(length + 1);
  MetaGradient meta(weights.model(), backend, learner, length, options);
  auto memory = backend.template allocate<typename B::Scalar>(meta.size());
  const BatchLoss loss = meta(weights.parameters(), text, {}, memory.data());
  Session session(weights, learner, {.max_tokens = length + 1});
  const auto report = session.read(text);
  CHECK(report.inner_steps == length / chunk);
  CHECK(loss.loss == doctest::Approx(report.mean_nll()).epsilon(1e-5));
  REQUIRE(loss.sequences[0].chunk_loss.size() == length / chunk);
  for (std::size_t i = 0; i < length / chunk; ++i) {
    double sum = 0;
    for (std::size_t t = 0; t < chunk; ++t) {
      sum += static_cast<double>(report.nll[1 + i * chunk + t]);
    }
    CHECK(loss.sequences[0].chunk_loss[i] == doctest::Approx(sum / chunk).epsilon(1e-5));
  }
}

/// The derivative of the loss along a random direction, of every parameter in turn.
template <class Model>
void check_gradient(const MetaOptions& options) {
  using B = reference::Backend<double>;
  const B backend;
  const auto weights = test::in_place_weights<Model>(backend);
  const auto text = some_tokens(2 * (length + 1));
  MetaGradient meta(weights.model(), backend, learner, length, options);
  std::vector<double> gradient(static_cast<std::size_t>(meta.size())), unused(gradient.size());
  meta(weights.parameters(), text, {}, gradient.data());
  const double* at = gradient.data();
  Random random{11};
  Model::each(
      [&](const ParameterName& name, const Weight<double>& leaf) {
        CAPTURE(to_string(name));
        const Index size = leaf.shape().size();
        auto* const place = const_cast<double*>(static_cast<const double*>(leaf.data));
        const std::vector<double> old(place, place + size), along = test::uniforms(random, size);
        double want = 0;
        for (Index i = 0; i < size; ++i) want += at[i] * along[static_cast<std::size_t>(i)];
        at += size;
        const auto loss = [&](double by) {
          for (Index i = 0; i < size; ++i) {
            place[i] = old[static_cast<std::size_t>(i)] + by * along[static_cast<std::size_t>(i)];
          }
          return meta(weights.parameters(), text, {}, unused.data()).loss;
        };
        constexpr double step = 1e-5;
        const double got = (loss(step) - loss(-step)) / (2 * step);
        std::copy(old.begin(), old.end(), place);
        REQUIRE(std::abs(want) > 1e-6);
        CHECK(got == doctest::Approx(want).epsilon(1e-5));
      },
      weights.parameters());
}

/// Numbers that nobody can know, each document its own.
struct Noise {
  static Index size() { return 0; }
  static Index length() { return ::length; }
  void sample(Index index, std::span<Token> out) const {
    const auto text = some_tokens(std::ssize(out), static_cast<std::uint64_t>(index) + 5);
    std::copy(text.begin(), text.end(), out.begin());
  }
};

}  // namespace

TEST_CASE_TEMPLATE("in place: the training form scores what reading scores", B, TTT_TEST_BACKENDS) {
  const B backend;
  for (const bool recompute : {false, true}) {
    check_loss<test::InPlaceHost>(backend, {.recompute = recompute});
    check_loss<test::InPlaceFromEmbeddings>(backend, {.recompute = recompute});
  }
}

TEST_CASE("in place: the gradient of every parameter is the loss's") {
  check_gradient<test::InPlaceHost>({});
  check_gradient<test::InPlaceFromEmbeddings>({});
  check_gradient<test::InPlaceFromEmbeddings>({.keep = Keep::sqrt(), .recompute = true});
  check_gradient<test::InPlaceHost>({.stacked = 2});
  check_gradient<test::InPlaceFromEmbeddings>({.recompute = true, .stacked = 2});
}

TEST_CASE("in place: sequences that go through the upper half together give what they give alone") {
  const eigen::Backend<double> cpu(2);
  const auto weights = test::in_place_weights(cpu);
  const auto text = some_tokens(3 * (length + 1));
  MetaGradient alone(weights.model(), cpu, learner, length);
  MetaGradient together(weights.model(), cpu, learner, length, {.stacked = 2});
  std::vector<double> a(static_cast<std::size_t>(alone.size())), b(a.size());
  const double loss = alone(weights.parameters(), text, {}, a.data()).loss;
  CHECK(together(weights.parameters(), text, {}, b.data()).loss ==
        doctest::Approx(loss).epsilon(1e-13));
  double error = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += a[i] * a[i];
  }
  CHECK(std::sqrt(error / size) <= 1e-12);
}

TEST_CASE("in place: the gradients of what trains alone are those among all") {
  const eigen::Backend<double> cpu(2);
  const auto weights = test::in_place_weights(cpu);
  const auto text = some_tokens(length + 1);
  MetaGradient all(weights.model(), cpu, learner, length);
  MetaGradient some(weights.model(), cpu, learner, length, {.trains = trains_in_place_targets});
  std::vector<double> a(static_cast<std::size_t>(all.size())), b(a.size(), 1.0);
  CHECK(all(weights.parameters(), text, {}, a.data()).loss ==
        some(weights.parameters(), text, {}, b.data()).loss);
  std::size_t i = 0;
  test::InPlaceHost::each(
      [&](const ParameterName& name, const Weight<double>& leaf) {
        const auto end = i + static_cast<std::size_t>(leaf.shape().size());
        double most = 0;
        for (; i < end; ++i) {
          CHECK(b[i] == (name.role == Role::InPlaceTarget ? a[i] : 0));
          most = std::max(most, std::abs(a[i]));
        }
        CHECK(most > 0);
      },
      weights.parameters());
}

TEST_CASE("in place: a host that does not train stays as it is, to the bit, decay or not") {
  const Cpu cpu(2);
  const auto start = test::in_place_weights(cpu);
  Trainer trainer(
      start, learner,
      OuterLoop<AdamW, ConstantRate>{.optimizer = {.decay = 0.5f}, .schedule = {.peak = 1e-2}},
      Noise{},
      TrainerOptions{
          .length = length, .batch = 2, .steps = 3, .meta = {.trains = trains_in_place_targets}});
  trainer.run();
  const auto end = trainer.weights();
  test::InPlaceHost::each(
      [&](const ParameterName& name, const Weight<float>& a, const Weight<float>& b) {
        CAPTURE(to_string(name));
        const auto x = a.stored<float>(), y = b.stored<float>();
        const bool same = std::equal(x.data, x.data + x.rows * x.cols, y.data);
        CHECK(same == (name.role != Role::InPlaceTarget));
      },
      start.parameters(), end.parameters());
}

TEST_CASE("in place: what training refuses") {
  const Cpu cpu(1);
  const auto weights = test::in_place_weights(cpu);
  const auto refused = [&](const InPlaceLoop& loop, Index tokens) -> std::string {
    try {
      MetaGradient meta(weights.model(), cpu, loop, tokens);
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  };
  CHECK(refused({.chunk = 8, .clip = 1e-5f}, 40).find("can clip what it adds while reading only") !=
        std::string::npos);
  CHECK(refused({.chunk = 16}, 40).find("not a whole number of chunks of 16") != std::string::npos);
  CHECK(refused({.chunk = 8}, 40).empty());
}
