// SPDX-License-Identifier: MIT
// Optimizers and learners: those that come with the library, and a user's own.
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <support/finding.hpp>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using doctest::Contains;

constexpr Index C = 8;

std::vector<Token> text(Index size) {
  Random random{21};
  return tokens(random, size, 61);
}

/// All scores but that of the first token, which has none.
std::vector<float> part(std::vector<float> nll) {
  nll.erase(nll.begin());
  return nll;
}

/// Runs updates by hand: gradients one after another, from the same weights.
template <class Optimizer, class S>
struct ByHand {
  Optimizer optimizer;
  std::vector<S> weights, slots;

  template <class B>
  void step(const B& backend, const std::vector<S>& gradient, double scale, double multiplier,
            Index step) {
    slots.resize(Optimizer::slots * weights.size());
    std::vector<S*> pointers;
    for (std::size_t i = 0; i < Optimizer::slots; ++i) {
      pointers.push_back(slots.data() + i * weights.size());
    }
    optimizer.step(backend, Update<S>{.gradient = gradient.data(),
                                      .scale = scale,
                                      .multiplier = multiplier,
                                      .step = step,
                                      .slots = pointers.data(),
                                      .weights = weights.data(),
                                      .size = static_cast<Index>(weights.size())});
  }
};

/// Adam, as a user would write it: two slots and the count of steps, which the session keeps.
struct Adam {
  float rate = 1e-3f;
  static constexpr std::size_t slots = 2;

  template <Backend B>
  void step(const B&, const Update<typename B::Scalar>& u) const {
    static_assert(B::is_host, "written for host memory");
    using S = typename B::Scalar;
    const double n = static_cast<double>(u.step + 1);
    for (Index i = 0; i < u.size; ++i) {
      const double g = u.scale * static_cast<double>(u.gradient[i]);
      const double m = 0.9 * static_cast<double>(u.slots[0][i]) + 0.1 * g;
      const double v = 0.99 * static_cast<double>(u.slots[1][i]) + 0.01 * g * g;
      u.slots[0][i] = static_cast<S>(m);
      u.slots[1][i] = static_cast<S>(v);
      const double unbiased =
          m / (1 - std::pow(0.9, n)) / (std::sqrt(v / (1 - std::pow(0.99, n))) + 1e-8);
      u.weights[i] -= static_cast<S>(static_cast<double>(rate) * u.multiplier * unbiased);
    }
  }
};

/// A learner of a user's own: one tensor of one block learns, by the gradient's sign, and never
/// from a space.
struct SignOfW2 {
  Index chunk = C;
  static constexpr std::size_t slots = 0;

  bool learns(const ParameterName& name) const {
    return name.role == Role::DynamicMlp && name.tensor == "w2" && name.suffix_block == 1;
  }
  bool masks(Token token) const { return token == 32; }
  template <class B>
  Step update(const B& backend, const Update<typename B::Scalar>& u) const {
    for (Index i = 0; i < u.size; ++i) {
      u.weights[i] -=
          typename B::Scalar(0.01) * typename B::Scalar((u.gradient[i] > 0) - (u.gradient[i] < 0));
    }
    return {.gradient_norm = std::sqrt(backend.dot(u.gradient, u.gradient, u.size)), .taken = true};
  }
};

/// Asks for parameters by a rule of the test's.
struct Asks {
  bool (*wants)(const ParameterName&);
  Index chunk = C;
  static constexpr std::size_t slots = 0;

  bool learns(const ParameterName& name) const { return wants(name); }
  bool masks(Token) const { return false; }
  template <class B>
  Step update(const B&, const Update<typename B::Scalar>&) const {
    return {.taken = true};
  }
};

}  // namespace

TEST_CASE_TEMPLATE("optimizers: the formulas", B, eigen::Backend<float>, eigen::Backend<double>,
                   reference::Backend<double>) {
  using S = typename B::Scalar;
  const B backend;
  const std::vector<S> w{S(1), S(-2), S(0.5)}, g{S(0.25), S(4), S(-1)}, h{S(-1), S(0), S(2)};
  const auto close = [](S got, double want) {
    CHECK(static_cast<double>(got) == doctest::Approx(want).epsilon(1e-6));
  };

  ByHand<Sgd, S> sgd{{.rate = 0.5f}, w, {}};
  sgd.step(backend, g, 0.5, 2.0, 0);
  for (std::size_t i = 0; i < 3; ++i) close(sgd.weights[i], double(w[i]) - 0.5 * double(g[i]));

  ByHand<Momentum, S> momentum{{.rate = 0.5f, .decay = 0.25f}, w, {}};
  momentum.step(backend, g, 0.5, 1.0, 0);
  momentum.step(backend, h, 1.0, 3.0, 1);
  for (std::size_t i = 0; i < 3; ++i) {
    const double v0 = 0.5 * double(g[i]), v1 = 0.25 * v0 + double(h[i]);
    close(momentum.weights[i], double(w[i]) - 0.5 * v0 - 1.5 * v1);
    close(momentum.slots[i], v1);
  }
}

TEST_CASE("optimizers: Momentum without decay is Sgd") {
  const auto weights = tiny_weights(Cpu(1));
  Session plain(weights, InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 0.7f}});
  Session heavy(weights, InnerLoop<Momentum>{.chunk = C, .optimizer = {.rate = 0.7f, .decay = 0}});
  const auto all = text(10 * C);
  CHECK(furthest(plain.read(all).nll, heavy.read(all).nll) <= 1e-5);
  const auto w = learned(plain);
  CHECK(std::ssize(learned(heavy)) == 2 * std::ssize(w));
  CHECK(furthest(learned(heavy).first(w.size()), w) <= 1e-6);

  Session moving(weights,
                 InnerLoop<Momentum>{.chunk = C, .optimizer = {.rate = 0.7f, .decay = 0.9f}});
  CHECK(furthest(moving.read(all).nll, plain.read(all).nll) > 1e-3);
}

TEST_CASE("learner: clipping") {
  const auto weights = tiny_weights(eigen::Backend<double>(1));
  const auto all = text(C + 1);
  const auto step_of = [&](float clip, double& norm, Index& clipped) {
    Session session(weights, InnerLoop<Sgd>{.chunk = C, .clip = clip, .optimizer = {.rate = 0.5f}});
    Session still(weights, InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 0}});
    session.read(all);
    still.read(all);
    norm = session.counters().gradient_norm;
    clipped = session.counters().clipped_steps;
    double sum = 0;
    for (std::size_t i = 0; i < learned(session).size(); ++i) {
      sum += std::pow(learned(session)[i] - learned(still)[i], 2);
    }
    return std::sqrt(sum);
  };
  double norm = 0, again = 0;
  Index clipped = -1;
  const double free = step_of(0, norm, clipped);
  CHECK(norm > 0);
  CHECK(free == doctest::Approx(0.5 * norm));
  CHECK(clipped == 0);
  const double loose = step_of(static_cast<float>(2 * norm), again, clipped);
  CHECK(loose == doctest::Approx(0.5 * norm));
  CHECK(clipped == 0);
  CHECK(again == norm);
  const double tight = step_of(static_cast<float>(norm / 4), again, clipped);
  CHECK(tight == doctest::Approx(0.5 * norm / 4));
  CHECK(clipped == 1);
  CHECK(again == norm);  // reported before clipping
}

/// A user's optimizer, which may do more than move by its update.
struct OwnMomentum : Momentum {};

TEST_CASE_TEMPLATE("learner: a step whose scale the backend finds is the step", Optimizer, Sgd,
                   Momentum, OwnMomentum) {
  using Ahead = Finding<Cpu>;
  static_assert(detail::steps_ahead<InnerLoop<Sgd>, Ahead>);
  static_assert(!detail::steps_ahead<InnerLoop<Sgd>, Cpu>);
  static_assert(!detail::steps_ahead<InnerLoop<OwnMomentum>, Ahead>);
  const auto waits = tiny_weights(Cpu(1));
  const auto goes = tiny_weights(Ahead(1));
  for (const float clip : {0.0f, 0.5f, 2.0f}) {
    for (const Index ahead : {1, 3}) {
      CAPTURE(clip);
      CAPTURE(ahead);
      const InnerLoop<Optimizer> learner{.chunk = C, .clip = clip, .rate_multiplier = 0.5f};
      Session a(waits, learner, {.read_ahead = ahead});
      Session b(goes, learner, {.read_ahead = ahead});
      for (int document = 0; document < 2; ++document) {
        CHECK(same_bits(part(a.read(text(7 * C + 3)).nll), part(b.read(text(7 * C + 3)).nll)));
        CHECK(a.counters() == b.counters());
        CHECK(a.counters().inner_steps == 7);
        CHECK(same_bits(learned(a), learned(b)));
        a.reset();
        b.reset();
        CHECK(b.state().learned_size == 0);
      }
    }
  }
}

TEST_CASE("learner: the rate's multiplier multiplies the rate") {
  const auto weights = tiny_weights(Cpu(1));
  Session a(weights, InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 0.25f}});
  Session b(weights,
            InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 0.5f}, .rate_multiplier = 0.5f});
  const auto all = text(4 * C);
  CHECK(same_bits(a.read(all).nll, b.read(all).nll));
  CHECK(same_bits(learned(a), learned(b)));
}

TEST_CASE("learner: which parameters learn") {
  // With a DualMLP either half may: the dynamic one by default.
  const auto weights = tiny_weights(Cpu(1));
  const auto all = text(4 * C);
  const Index each = 3 * 16 * 24;
  for (const Learns what : {Learns::DynamicMlps, Learns::SuffixMlps}) {
    Session session(weights, InnerLoop<Sgd>{.chunk = C, .what = what});
    CHECK(session.learned_size() == 2 * each);
    session.read(all);
    CHECK(session.counters().inner_steps == 3);
  }
}

TEST_CASE("learner: what lies in the prefix never learns, a DualMLP neither") {
  using Model = LanguageModel<Stack<1, TinyLearning>, Stack<2, TinyLearning>>;
  const auto weights = tiny_weights<Model>(Cpu(1));
  Session session(weights, InnerLoop<Sgd>{.chunk = C});
  CHECK(session.learned_size() == 2 * 3 * 16 * 24);
  CHECK(session.read(text(4 * C)).inner_steps == 3);
}

TEST_CASE("a user's optimizer: its slots and its count of steps are the session's") {
  const auto weights = tiny_weights(Cpu(1));
  const InnerLoop<Adam> learner{.chunk = C, .optimizer = {.rate = 0.01f}};
  const auto all = text(12 * C + 1);
  Session session(weights, learner);
  session.read(all);
  CHECK(session.counters().inner_steps == 12);
  CHECK(session.learned_size() == 3 * 2 * 3 * 16 * 24);

  // By hand, from the gradients' point of view: pieces, snapshots and forks carry the slots along.
  Session pieces(weights, learner);
  for (std::size_t at = 0; at < all.size(); at += 13) {
    pieces.read(std::span(all).subspan(at, std::min<std::size_t>(13, all.size() - at)));
    const auto snapshot = pieces.snapshot();
    pieces.read(text(2 * C));
    pieces.restore(snapshot);
  }
  CHECK(same_state(pieces, session));
  auto reset = session.fork();
  reset.reset();
  reset.read(all);
  CHECK(same_state(reset, session));
}

TEST_CASE("a user's learner") {
  const auto weights = tiny_weights(Cpu(1));
  auto all = text(6 * C + 1);
  for (std::size_t i = C + 1; i <= 2 * C; ++i) all[i] = 32;  // a chunk it masks
  Session session(weights, SignOfW2{});
  CHECK(session.learned_size() == 16 * 24);
  const auto report = session.read(all);
  CHECK(report.inner_steps == 5);
  Session still(weights, InnerLoop<Sgd>{.chunk = C, .optimizer = {.rate = 0}});
  still.read(all);
  const auto own = learned(session);
  const auto before = learned(still).subspan(3 * 16 * 24 + 16 * 24, 16 * 24);  // after w1
  for (std::size_t i = 0; i < own.size(); ++i) {
    const double steps = static_cast<double>(own[i] - before[i]) / 0.01;
    CHECK(std::abs(steps - std::round(steps)) < 1e-3);
    CHECK(std::abs(steps) < 5.5);
  }
  Session again(weights, SignOfW2{});
  CHECK(same_bits(again.read(all).nll, report.nll));
}

TEST_CASE("a learner may ask only for what an inner gradient exists for") {
  const auto weights = tiny_weights(Cpu(1));
  const auto refuse = [&](bool (*wants)(const ParameterName&), const char* which) {
    using S = Session<std::decay_t<decltype(weights)>, Asks>;
    CHECK_THROWS_WITH_AS(S(weights, Asks{wants}), Contains(which), Error);
    CHECK_THROWS_WITH_AS((void)S::required_bytes(weights, Asks{wants}), Contains(which), Error);
  };
  refuse([](const ParameterName&) { return true; }, "embedding");
  refuse([](const ParameterName& n) { return n.role == Role::Mlp; }, "blocks.0.mlp.w1");
  refuse([](const ParameterName& n) { return n.role == Role::Attention && n.suffix_block >= 0; },
         "blocks.1.attention.wq");
  refuse([](const ParameterName& n) { return n.role == Role::Norm && n.suffix_block >= 0; },
         "blocks.1.attention.norm");
  refuse([](const ParameterName& n) { return n.tensor == "norm" && n.block < 0; }, "norm");
}
