// SPDX-License-Identifier: MIT
// Sequences that go through the upper half together: what each of them gives is what it gives
// alone.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <support/finding.hpp>
#include <support/meta_gradient.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::test::meta;

template <class S>
constexpr double tolerance = std::is_same_v<S, double> ? 1e-12 : 1e-5;

void check_same(const BatchLoss& got, const BatchLoss& want, double bound) {
  CHECK(std::abs(got.loss - want.loss) <= bound * std::abs(want.loss));
  REQUIRE(got.sequences.size() == want.sequences.size());
  for (std::size_t s = 0; s < want.sequences.size(); ++s) {
    const SequenceLoss &a = got.sequences[s], &b = want.sequences[s];
    CAPTURE(s);
    CHECK(a.inner_steps == b.inner_steps);
    CHECK(a.skipped_steps == b.skipped_steps);
    CHECK(a.clipped_steps == b.clipped_steps);
    CHECK(std::abs(a.loss - b.loss) <= bound * std::abs(b.loss));
    REQUIRE(a.chunk_loss.size() == b.chunk_loss.size());
    for (std::size_t i = 0; i < b.chunk_loss.size(); ++i) {
      CHECK(std::abs(a.chunk_loss[i] - b.chunk_loss[i]) <= bound * std::abs(b.chunk_loss[i]));
    }
  }
}

/// Parameter by parameter, in the norm of each.
template <class Model, class S>
void check_same(const Model& model, const std::vector<S>& got, const std::vector<S>& want,
                double bound) {
  REQUIRE(got.size() == want.size());
  std::size_t i = 0;
  auto shapes = model.shapes();
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        CAPTURE(to_string(name));
        double error = 0, size = 0;
        for (const auto end = i + static_cast<std::size_t>(shape.size()); i < end; ++i) {
          const double a = static_cast<double>(got[i]), b = static_cast<double>(want[i]);
          error += (a - b) * (a - b);
          size += b * b;
        }
        CHECK(std::isfinite(size));
        CHECK(std::sqrt(error) <= bound * std::sqrt(size));
      },
      shapes);
}

/// A batch of five, alone and in groups of two, three, five and more than there are.
template <class Model, class B, class LearnerType, class Order = SecondOrder>
void check_stacked(const Config& config, const LearnerType& learner, Index length,
                   const std::vector<std::uint8_t>& counts = {}, MetaOptions options = {},
                   const B& backend = B()) {
  constexpr Index batch = 5;
  using P = Problem<Model, B, LearnerType, Order>;
  constexpr double bound = tolerance<typename B::Scalar>;
  options.stacked = 1;
  P alone(config, learner, length, batch, options, backend);
  alone.counts = counts;
  std::vector<typename B::Scalar> want, got;
  const BatchLoss want_loss = alone.loss(want);
  for (const Index stacked : {2, 3, 5, 7}) {
    CAPTURE(stacked);
    options.stacked = stacked;
    P together(config, learner, length, batch, options, backend);
    together.counts = counts;
    check_same(together.loss(got), want_loss, bound);
    check_same(together.model, got, want, bound);
    const auto first = got;
    together.loss(got);
    CHECK(got == first);  // nothing of one batch, or of a larger group, is left in the next
  }
}

std::vector<std::uint8_t> some_counts(std::size_t size) {
  std::vector<std::uint8_t> counts(size, 1);
  for (std::size_t i : {1u, 9u, 20u, 21u, 22u, 23u, 40u}) counts[i] = 0;
  return counts;
}

/// Makes the inner gradient of every chunk that has a certain target a thing that is no number.
/// Only that: a second pass has a primitive of its own for the loss.
template <class Base>
struct Poisoned : Base {
  using S = typename Base::Scalar;
  static constexpr Token poison = 10;

  void cross_entropy(View<const S> h, Weight<S> head, const Token* targets, const S* weights,
                     S* nll, View<S> dh, S* scratch) const {
    Base::cross_entropy(h, head, targets, weights, nll, dh, scratch);
    for (Index t = 0; t < dh.rows; ++t) {
      if (targets[t] != poison) continue;
      std::fill_n(dh.row(t), dh.cols, std::numeric_limits<S>::quiet_NaN());
    }
  }
};

}  // namespace

TEST_CASE_TEMPLATE("stacked: losses and gradients are those of sequences alone", B,
                   eigen::Backend<float>, eigen::Backend<double>, reference::Backend<double>) {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  check_stacked<Tiny, B>(tiny(), learner, 16);
  check_stacked<Tiny, B, InnerLoop<Sgd>, FirstOrder>(tiny(), learner, 16);
}

TEST_CASE("stacked: whatever is kept, and several groups at a time") {
  const InnerLoop<Momentum> learner{.chunk = 2, .clip = 0.3f};
  for (const Keep keep : {Keep{1}, Keep{3}, Keep::sqrt()}) {
    CAPTURE(keep.chunks);
    check_stacked<Tiny, Double>(tiny(), learner, 14, {}, {.keep = keep, .recompute = true});
  }
  for (const Index at_once : {1, 2, 3}) {
    CAPTURE(at_once);
    check_stacked<Tiny, Double>(tiny(), learner, 14, {}, {.sequences = at_once}, Double(2));
  }
}

TEST_CASE("stacked: what is kept and what is computed again does not change a bit") {
  const InnerLoop<Momentum> learner{.chunk = 2, .clip = 0.3f};
  using P = Problem<Tiny, Double, InnerLoop<Momentum>>;
  const auto want = P(tiny(), learner, 14, 3, {.stacked = 2}).gradient();
  for (const Keep keep : {Keep{1}, Keep{2}, Keep::sqrt()}) {
    CAPTURE(keep.chunks);
    CHECK(P(tiny(), learner, 14, 3, {.keep = keep, .recompute = true, .stacked = 2}).gradient() ==
          want);
  }
}

TEST_CASE("stacked: masked targets, a masked token, and a chunk of one without any target") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f, .masked_target = Token{3}};
  check_stacked<Tiny, Double>(tiny(), learner, 16, some_counts(80));
  check_stacked<Tiny, Double, InnerLoop<Sgd>, FirstOrder>(tiny(), learner, 16, some_counts(80));
}

TEST_CASE("stacked: variants of the model") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  SUBCASE("a window shorter than the chunk") {
    Config config = tiny();
    config.window = 3;
    check_stacked<Tiny, Double>(config, learner, 12);
  }
  SUBCASE("grouped queries, heads of another size, three blocks learn") {
    using Model = LanguageModel<Stack<1, Plain<Windowed>>, Stack<3, Learning<Windowed>>>;
    Config config = tiny();
    config.heads = 4;
    config.key_heads = 2;
    config.head_dim = 6;
    check_stacked<Model, Double>(config, learner, 12);
  }
  SUBCASE("pre-norm, no QK-norm, half-split RoPE, ordinary MLPs learn, a head of its own") {
    using Attention = SlidingWindowAttention<dynamic, NoQkNorm, HalfSplitRope>;
    using Model = LanguageModel<Stack<1, Plain<Attention, PreNorm>>,
                                Stack<2, Plain<Attention, PreNorm>>, SeparateHead>;
    check_stacked<Model, Double>(
        tiny(), InnerLoop<Sgd>{.chunk = 4, .clip = 0.3f, .what = Learns::SuffixMlps}, 12);
  }
  SUBCASE("the static half of a DualMLP learns, behind a dynamic half that does not") {
    check_stacked<Tiny, Double>(
        tiny(), InnerLoop<Sgd>{.chunk = 4, .clip = 0.3f, .what = Learns::SuffixMlps}, 12);
  }
  SUBCASE("full attention in the suffix") {
    using Model = LanguageModel<Stack<1, Plain<Windowed>>, Stack<2, Learning<FullAttention<>>>>;
    check_stacked<Model, Double>(tiny(), learner, 16);
  }
  SUBCASE("nothing learns") {
    check_stacked<Tiny, Double>(tiny(), NoLearning{}, 12);
  }
}

TEST_CASE("stacked: the gradient is the loss's, differences say so") {
  Problem<Tiny, Double, InnerLoop<Sgd>> problem(
      tiny(), {.chunk = 4, .clip = 0.3f, .masked_target = Token{3}}, 16, 3, {.stacked = 2});
  problem.counts = some_counts(48);
  check_directions(problem);
}

TEST_CASE_TEMPLATE("stacked: a step that one does not take is nothing to the others", Base,
                   eigen::Backend<double>, reference::Backend<double>,
                   test::Finding<eigen::Backend<double>>) {
  using B = Poisoned<Base>;
  const InnerLoop<Momentum> learner{.chunk = 4, .clip = 0.3f};
  using P = Problem<Tiny, B, InnerLoop<Momentum>>;
  for (const Keep keep : {Keep::all(), Keep{1}}) {
    P alone(tiny(), learner, 16, 4, {.keep = keep});
    // Of four sequences the first two lose their second step, and the second also its first.
    for (Token& token : alone.tokens) token = token == B::poison ? Token{2} : token;
    for (const std::size_t at : {6u, 17u + 3u, 17u + 7u}) alone.tokens[at] = B::poison;
    std::vector<double> want, got;
    const BatchLoss loss = alone.loss(want);
    CHECK(loss.sequences[0].skipped_steps == 1);
    CHECK(loss.sequences[0].inner_steps == 2);
    CHECK(loss.sequences[1].skipped_steps == 2);
    CHECK(loss.sequences[2].skipped_steps == 0);
    for (const Index stacked : {2, 3, 4}) {
      CAPTURE(stacked);
      P together(tiny(), learner, 16, 4, {.keep = keep, .stacked = stacked});
      together.tokens = alone.tokens;
      check_same(together.loss(got), loss, 1e-12);
      check_same(together.model, got, want, 1e-12);
    }
  }
}

TEST_CASE(
    "stacked: a score that is not finite is an error, and the next batch knows nothing of it") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  using Untied =
      LanguageModel<Stack<1, Plain<Windowed>>, Stack<2, Learning<Windowed>>, SeparateHead>;
  Problem<Untied, Double, InnerLoop<Sgd>> problem(tiny(), learner, 8, 4, {.stacked = 2});
  for (Token& token : problem.tokens) token = token == 10 ? Token{2} : token;
  const auto want = problem.gradient();
  const auto tokens = problem.tokens;
  problem.parameters[10 * 8] = std::numeric_limits<double>::quiet_NaN();  // of nobody's embedding
  CHECK(problem.gradient() == want);
  problem.tokens[9 + 5] = 10;
  CHECK_THROWS_AS(problem.gradient(), NonFiniteError);
  problem.tokens = tokens;
  CHECK(problem.gradient() == want);

  // Both of two groups at a time, of which one failure is told.
  Problem<Untied, Double, InnerLoop<Sgd>> both(tiny(), learner, 8, 4,
                                               {.sequences = 2, .stacked = 2});
  both.parameters = problem.parameters;
  both.tokens = tokens;
  both.tokens[9 + 5] = both.tokens[3 * 9 + 5] = 10;
  CHECK_THROWS_AS(both.gradient(), NonFiniteError);
  both.tokens = tokens;
  CHECK(both.gradient() == want);
}

TEST_CASE("stacked: memory is known beforehand, and what cannot be is refused") {
  const Double cpu(1);
  const Tiny model(tiny());
  const InnerLoop<Sgd> learner{.chunk = 4};
  const auto bytes = [&](Index stacked) {
    return MetaGradient<Tiny, Double>::required_bytes(model, cpu, learner, 64,
                                                      {.stacked = stacked});
  };
  const double each = static_cast<double>(bytes(1));
  for (const Index stacked : {2, 8, 64}) {
    // The rows of all at the seam between the halves are one copy more.
    const double of_each = static_cast<double>(bytes(stacked)) / static_cast<double>(stacked);
    CHECK(of_each <= 1.05 * each);
    CHECK(of_each >= 0.9 * each);
  }
  for (const Index wrong : {Index{0}, Index{-1}, Index{5000}, Index{1} << 62}) {
    CHECK_THROWS_WITH_AS(bytes(wrong),
                         ("ttt: training: MetaOptions::stacked is " + std::to_string(wrong) +
                          ", expected from 1 to 4096")
                             .c_str(),
                         Error);
  }
}
