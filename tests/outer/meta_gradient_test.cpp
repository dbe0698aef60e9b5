// SPDX-License-Identifier: MIT
// The meta-gradient against differences of the library's own loss, and against itself computed in
// other ways.
#include <array>
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

/// Says how much it was asked for.
struct Counts : Double {
  static inline Index bytes = 0;
  using Double::Double;

  template <class T>
  auto allocate(Index n) const {
    bytes += n * static_cast<Index>(sizeof(T));
    return Double::allocate<T>(n);
  }
};

}  // namespace

TEST_CASE("every element of every parameter, through five chunks with clipping") {
  Problem<Tiny, Double, InnerLoop<Sgd>> problem(tiny(), {.chunk = 4, .clip = 0.3f}, 20, 1);
  std::vector<double> gradient;
  const BatchLoss loss = problem.loss(gradient);
  CHECK(loss.sequences[0].inner_steps == 4);  // nobody reads behind the last chunk
  CHECK(loss.sequences[0].clipped_steps == 4);
  std::size_t i = 0;
  auto shapes = problem.model.shapes();
  Tiny::each(
      [&](const ParameterName& name, const Shape& shape) {
        CAPTURE(to_string(name));
        double error = 0, size = 0;
        for (Index n = 0; n < shape.size(); ++n, ++i) {
          const double difference =
              problem.difference([&](double by) { problem.parameters[i] += by; });
          error += (gradient[i] - difference) * (gradient[i] - difference);
          size += difference * difference;
        }
        CHECK(size > 0);
        CHECK(std::sqrt(error / size) <= 1e-6);
      },
      shapes);
}

TEST_CASE("a batch, masked targets, a masked token and a chunk without any target") {
  Problem<Tiny, Double, InnerLoop<Sgd>> problem(
      tiny(), {.chunk = 4, .clip = 0.3f, .masked_target = Token{3}}, 16, 3);
  problem.counts.assign(48, 1);
  for (std::size_t i : {1u, 9u, 20u, 21u, 22u, 23u, 40u}) problem.counts[i] = 0;
  std::vector<double> gradient;
  const BatchLoss loss = problem.loss(gradient);
  CHECK(loss.sequences[1].chunk_loss[1] == 0);
  CHECK(loss.sequences[1].inner_steps == 2);
  check_directions(problem);
}

TEST_CASE("variants of the model") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  SUBCASE("a window shorter than the chunk") {
    Config config = tiny();
    config.window = 3;
    Problem<Tiny, Double, InnerLoop<Sgd>> problem(config, learner, 12, 1);
    check_directions(problem);
  }
  SUBCASE("grouped queries, heads of another size") {
    Config config = tiny();
    config.heads = 4;
    config.key_heads = 2;
    config.head_dim = 6;
    Problem<Tiny, Double, InnerLoop<Sgd>> problem(config, learner, 12, 1);
    check_directions(problem);
  }
  SUBCASE("pre-norm, no QK-norm, half-split RoPE, ordinary MLPs learn, a head of its own") {
    using Attention = SlidingWindowAttention<dynamic, NoQkNorm, HalfSplitRope>;
    using Model = LanguageModel<Stack<1, Plain<Attention, PreNorm>>,
                                Stack<2, Plain<Attention, PreNorm>>, SeparateHead>;
    Problem<Model, Double, InnerLoop<Sgd>> problem(
        tiny(), {.chunk = 4, .clip = 0.3f, .what = Learns::SuffixMlps}, 12, 1);
    check_directions(problem);
  }
  SUBCASE("the static half of a DualMLP learns, behind a dynamic half that does not") {
    Problem<Tiny, Double, InnerLoop<Sgd>> problem(
        tiny(), {.chunk = 4, .clip = 0.3f, .what = Learns::SuffixMlps}, 12, 1);
    check_directions(problem);
  }
  SUBCASE("full attention in the suffix") {
    using Model = LanguageModel<Stack<1, Plain<Windowed>>, Stack<2, Learning<FullAttention<>>>>;
    Problem<Model, Double, InnerLoop<Sgd>> problem(tiny(), learner, 16, 1);
    check_directions(problem);
  }
  SUBCASE("every block learns") {
    using Model = LanguageModel<Stack<0, Plain<Windowed>>, Stack<3, Learning<Windowed>>>;
    Problem<Model, Double, InnerLoop<Sgd>> problem(tiny(), learner, 12, 1);
    check_directions(problem);
  }
  SUBCASE("one block learns, without clipping") {
    using Model = LanguageModel<Stack<2, Plain<Windowed>>, Stack<1, Learning<Windowed>>>;
    Problem<Model, Double, InnerLoop<Sgd>> problem(tiny(), {.chunk = 3, .clip = 0}, 12, 1);
    check_directions(problem);
  }
  SUBCASE("nothing learns") {
    Problem<Tiny, Double, NoLearning> problem(tiny(), {}, 12, 2);
    check_directions(problem);
  }
}

TEST_CASE("through an optimizer with a memory of its own") {
  Problem<Tiny, Double, InnerLoop<Momentum>> problem(
      tiny(), {.chunk = 4, .clip = 0.3f, .optimizer = {.rate = 0.7f, .decay = 0.6f}}, 20, 1);
  check_directions(problem);
}

TEST_CASE_TEMPLATE("what is kept and what is computed again does not change a bit", B,
                   eigen::Backend<float>, eigen::Backend<double>, reference::Backend<double>,
                   test::Finding<eigen::Backend<float>>) {
  const InnerLoop<Momentum> learner{.chunk = 2, .clip = 0.3f};
  Problem<Tiny, B, InnerLoop<Momentum>> everything(tiny(), learner, 22, 2);
  const auto want = everything.gradient();
  for (const Keep keep : {Keep{1}, Keep{2}, Keep{3}, Keep{10}, Keep{11}, Keep::sqrt()}) {
    for (const bool recompute : {false, true}) {
      CAPTURE(keep.chunks);
      CAPTURE(recompute);
      Problem<Tiny, B, InnerLoop<Momentum>> less(tiny(), learner, 22, 2,
                                                 {.keep = keep, .recompute = recompute});
      std::vector<typename B::Scalar> gradient;
      CHECK(less.loss(gradient).sequences[1].inner_steps == 10);
      CHECK(gradient == want);
    }
  }
}

TEST_CASE("a document of many chunks and windows has the same bits whatever is kept") {
  const InnerLoop<Momentum> learner{.chunk = 4, .clip = 0.3f};
  using P = Problem<Tiny, Double, InnerLoop<Momentum>>;
  for (const Index stacked : {1, 2}) {
    CAPTURE(stacked);
    const auto want = P(tiny(), learner, 32 * 4, 2, {.stacked = stacked}).gradient();
    for (const Keep keep : {Keep{1}, Keep{2}, Keep{5}, Keep{31}, Keep::sqrt()}) {
      CAPTURE(keep.chunks);
      P less(tiny(), learner, 32 * 4, 2, {.keep = keep, .recompute = true, .stacked = stacked});
      CHECK(less.gradient() == want);
      CHECK(less.gradient() == want);  // and nothing of one batch is left in the next
    }
  }
}

TEST_CASE("blocks that are run again some rows at a time give the same to rounding") {
  const InnerLoop<Sgd> learner{.chunk = 1000, .clip = 0.3f};
  using P = Problem<Tiny, Double, InnerLoop<Sgd>>;
  const auto want = P(tiny(), learner, 17000, 1).gradient();
  const auto got = P(tiny(), learner, 17000, 1, {.keep = Keep{2}, .recompute = true}).gradient();
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  CHECK(std::sqrt(error / size) <= 1e-13);
}

TEST_CASE("segments: longer where states that nobody needs any more leave room") {
  using Begins = std::vector<Index>;
  CHECK(Keep{2}.segments(12, 1, 2) == Begins{0, 2, 5, 8, 10, 12});  // 2, 2, 3, 3, 4 from the end
  CHECK(Keep{3}.segments(7, 0, 5) == Begins{0, 1, 4, 7});
  CHECK(Keep{7}.segments(7, 1, 1) == Begins{0, 7});
  CHECK(Keep::all().segments(7, 1, 1) == Begins{0, 7});
  CHECK(Keep::sqrt().segments(1, 3, 4) == Begins{0, 1});
  // However many chunks the last one has, states and its chunks are no fewer bytes.
  const auto bytes = [](const Begins& begins, Index state, Index chunk) {
    const auto count = static_cast<Index>(begins.size()) - 1;
    return count * state + (begins.back() - begins[begins.size() - 2]) * chunk;
  };
  for (const auto& [n, state, chunk] :
       {std::array<Index, 3>{128, 138, 732}, {1000, 1, 30}, {64, 10, 11}, {5, 1, 100}}) {
    const Index least = bytes(Keep::sqrt().segments(n, state, chunk), state, chunk);
    for (Index k = 1; k <= n; ++k) {
      CHECK(least <= bytes(Keep{k}.segments(n, state, chunk), state, chunk));
    }
  }
}

TEST_CASE("threads and sequences at a time do not change a bit") {
  using B = eigen::Backend<float>;
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  Problem<Tiny, B, InnerLoop<Sgd>> alone(tiny(), learner, 12, 5, {.sequences = 1}, B(1));
  const auto want = alone.gradient();
  for (const int threads : {1, 2, 3}) {
    for (const Index at_once : {0, 1, 2, 5, 9}) {
      CAPTURE(threads);
      CAPTURE(at_once);
      Problem<Tiny, B, InnerLoop<Sgd>> problem(tiny(), learner, 12, 5, {.sequences = at_once},
                                               B(threads));
      CHECK(problem.gradient() == want);
      CHECK(problem.gradient() == want);  // and nothing of one batch is left in the next
    }
  }
}

TEST_CASE("without a step, orders agree with each other and with a model that does not learn") {
  const InnerLoop<Sgd> still{.chunk = 4, .optimizer = {.rate = 0}};
  Problem<Tiny, Double, InnerLoop<Sgd>> exact(tiny(), still, 12, 2);
  Problem<Tiny, Double, InnerLoop<Sgd>, FirstOrder> first(tiny(), still, 12, 2);
  Problem<Tiny, Double, NoLearning> plain(tiny(), {}, 12, 2);
  const auto a = exact.gradient(), b = first.gradient(), c = plain.gradient();
  CHECK(exact.value() == doctest::Approx(plain.value()).epsilon(1e-13));
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i] == doctest::Approx(c[i]).epsilon(1e-9));
    CHECK(b[i] == doctest::Approx(c[i]).epsilon(1e-9));
  }
}

TEST_CASE("first order leaves out just what goes through the steps") {
  // With the inner gradient's dependence on everything cut, the loss of a chunk depends on what
  // learns as if its weights had been given: a difference that moves the start of learning and
  // keeps the steps says the same.
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  Problem<Tiny, Double, InnerLoop<Sgd>, FirstOrder> first(tiny(), learner, 8, 1);
  Problem<Tiny, Double, InnerLoop<Sgd>> exact(tiny(), learner, 8, 1);
  const auto a = first.gradient(), b = exact.gradient();
  double distance = 0, size = 0, along = 0, other = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    distance += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
    along += a[i] * b[i];
    other += a[i] * a[i];
  }
  CHECK(std::sqrt(distance / size) > 1e-3);
  CHECK(along / std::sqrt(size * other) > 0.5);
  // Nothing follows the only chunk of a sequence: there is nothing to leave out.
  Problem<Tiny, Double, InnerLoop<Sgd>, FirstOrder> short_first(tiny(), learner, 4, 1);
  Problem<Tiny, Double, InnerLoop<Sgd>> short_exact(tiny(), learner, 4, 1);
  CHECK(short_first.gradient() == short_exact.gradient());
}

TEST_CASE("wrong sizes and tokens are refused before anything happens") {
  const InnerLoop<Sgd> learner{.chunk = 4};
  const auto message = [](const auto& f) -> std::string {
    try {
      f();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  using P = Problem<Tiny, Double, InnerLoop<Sgd>>;
  CHECK(message([&] { P(tiny(), learner, 10, 1); }) ==
        "ttt: training: a sequence of 10 tokens is not a whole number of chunks of 4");
  P problem(tiny(), learner, 8, 1);
  const auto want = problem.gradient();
  const auto tokens = problem.tokens;
  problem.tokens.pop_back();
  CHECK(message([&] { problem.gradient(); }) ==
        "ttt: training: a batch has 8 tokens, expected a whole number of sequences of 9");
  problem.tokens = tokens;
  problem.tokens[3] = 11;
  CHECK(message([&] { problem.gradient(); }) ==
        "ttt: training: token 11 at place 3 is outside the vocabulary of 11");
  problem.tokens = tokens;
  problem.counts = {1};
  CHECK(message([&] { problem.gradient(); }) == "ttt: training: a batch has 1 marks, expected 8");
  problem.counts.clear();
  const auto parameters = problem.parameters;
  problem.parameters[7] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(problem.gradient(), NonFiniteError);
  problem.parameters = parameters;
  CHECK(problem.gradient() == want);
}

TEST_CASE("the memory of a gradient is what was said beforehand") {
  const InnerLoop<Momentum> learner{.chunk = 4, .clip = 0.3f};
  for (const Index stacked : {1, 2}) {
    for (const Keep keep : {Keep::all(), Keep{1}, Keep{3}, Keep::sqrt()}) {
      for (const bool recompute : {false, true}) {
        CAPTURE(stacked);
        CAPTURE(keep.chunks);
        CAPTURE(recompute);
        const MetaOptions options{.keep = keep, .recompute = recompute, .stacked = stacked};
        using Meta = MetaGradient<Tiny, Counts, InnerLoop<Momentum>>;
        Counts::bytes = 0;
        const Index planned = Meta::required_bytes(Tiny(tiny()), Counts(1), learner, 80, options);
        CHECK(Counts::bytes == 0);
        const Meta meta(Tiny(tiny()), Counts(1), learner, 80, options);
        CHECK(Counts::bytes <= planned);
        CHECK(planned <= Counts::bytes + 4 * 8);  // tokens round up
      }
    }
  }
}

TEST_CASE("the memory of a gradient is known beforehand, and sqrt takes less") {
  const Double cpu(1);
  const Tiny model(tiny());
  const InnerLoop<Sgd> learner{.chunk = 4};
  const auto bytes = [&](Index length, Keep keep) {
    return MetaGradient<Tiny, Double>::required_bytes(model, cpu, learner, length,
                                                      {.keep = keep, .recompute = true});
  };
  const auto inner = [&](Index length, Keep keep) {  // what is not linear in tokens
    return static_cast<double>(bytes(length, keep)) -
           static_cast<double>(length) *
               static_cast<double>(bytes(1 << 20, Keep{1}) - bytes(1 << 19, Keep{1})) / (1 << 19);
  };
  CHECK(bytes(4096, Keep::sqrt()) < bytes(4096, Keep::all()) / 2);
  CHECK(inner(1 << 14, Keep::sqrt()) < 2.5 * inner(1 << 12, Keep::sqrt()));
}
