// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <span>
#include <string>
#include <support/kernels.hpp>
#include <support/random.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>
#include <ttt/backend/workspace.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/model/weights.hpp>

namespace {

using namespace ttt;

Config config() {
  return {.vocabulary = 11,
          .width = 8,
          .heads = 2,
          .hidden = 6,
          .window = 5,
          .rope_base = 1000,
          .eps = 1e-6};
}

using Windowed = SlidingWindowAttention<>;
using Dual = DualMLP<SwiGLU, SwiGLU>;
using Reader = LanguageModel<Stack<1, Block<Windowed, SwiGLU>>, Stack<2, Block<Windowed, Dual>>>;
using Untied =
    LanguageModel<Stack<1, Block<Windowed, SwiGLU>>, Stack<2, Block<Windowed, Dual>>, SeparateHead>;
using HalfSplit = SlidingWindowAttention<dynamic, NoQkNorm, HalfSplitRope>;
using Llama = LanguageModel<Stack<1, Block<HalfSplit, SwiGLU, PreNorm>>,
                            Stack<2, Block<HalfSplit, SwiGLU, PreNorm>>>;
using Full =
    LanguageModel<Stack<0, Block<FullAttention<>, SwiGLU>>, Stack<3, Block<FullAttention<>, Dual>>>;
using Dynamic =
    LanguageModel<Stack<dynamic, Block<Windowed, SwiGLU>>, Stack<dynamic, Block<Windowed, Dual>>>;

/// The loss of a chunk behind another, as a function of the model's parameters, and its gradient.
template <class Model, class B>
class ChunkLoss {
 public:
  using Tree = typename Model::template Parameters<Weight<double>>;
  using Gradients = typename Model::template Parameters<View<double>>;

  ChunkLoss(const Config& sizes, Index chunk, std::uint64_t seed)
      : weights_(initialise<Model>(sizes, B(), seed, 0.3)), chunk_(chunk) {
    Random random{seed};
    before_ = test::tokens(random, chunk, sizes.vocabulary);
    now_ = test::tokens(random, chunk + 1, sizes.vocabulary);
    loss_weights_ = test::uniforms(random, chunk);
    const Index slots = 2 * chunk + 3;
    caches_ = {model().blocks(), model().config().key_heads, slots, model().config().head_dim};
    old_ = std::vector<double>(static_cast<std::size_t>(caches_.size()));
    auto c = context();
    forward(c, before_, 0, old_.data(), false);
  }

  const Model& model() const { return weights_.model(); }
  const Tree& tree() const { return weights_.parameters(); }

  double loss() { return run(nullptr); }
  void gradient(const Gradients& gradients) { run(&gradients); }

 private:
  double run(const Gradients* gradients) {
    std::vector<double> cache = old_, nll(loss_weights_.size());
    auto c = context();
    const std::span inputs = std::span<const Token>(now_).first(now_.size() - 1);
    const auto at = forward(c, inputs, chunk_, cache.data(), gradients != nullptr);
    const auto dy = ops::cross_entropy(c, saved_.output.y, model().head(tree()), now_.data() + 1,
                                       loss_weights_.data(), nll.data(), gradients != nullptr);
    if (gradients != nullptr) {
      const Index used = c.workspace.used();
      model().upper_backward(c, tree(), saved_, dy, *gradients, false, at,
                             [&](Index i) { return caches_.at(cache.data(), i); });
      CHECK(c.workspace.used() >= used);
    }
    double sum = 0;
    for (std::size_t i = 0; i < nll.size(); ++i) sum += loss_weights_[i] * nll[i];
    return sum;
  }
  Context<B> context() {
    workspace_.release(0);
    return {weights_.backend(), workspace_};
  }
  Positions<double> forward(Context<B>& c, std::span<const Token> tokens, Index position,
                            double* cache, bool keep) {
    const Index rows = std::ssize(tokens);
    View<double> h = ops::embedding(c, tree().embedding, tokens.data(), rows);
    const auto at = model().positions(c, position, rows);
    for (Index i = 0; i < model().lower_blocks(); ++i) {
      h = model().lower_attend(c, tree(), i, h, false, lower_, at, caches_.at(cache, i));
      h = model().lower_feed(c, tree(), i, h, false, lower_, InPlacePass<double>{});
    }
    model().upper_forward(c, tree(), h, keep, saved_, at,
                          [&](Index i) { return caches_.at(cache, i); });
    return at;
  }

  Weights<Model, B> weights_;
  Workspace<B> workspace_{weights_.backend(), 1 << 18};
  Index chunk_;
  std::vector<Token> before_, now_;
  std::vector<double> loss_weights_, old_;
  CacheShape<double> caches_;
  typename Model::template LowerSaved<View<double>> lower_ =
      model().template lower_saved<View<double>>();
  typename Model::template Saved<View<double>> saved_ = model().template saved<View<double>>();
};

/// Every parameter that the inner gradient reaches, against finite differences; the others must not
/// be touched.
template <class Model, class B>
void check_gradient(Config sizes, Index chunk) {
  CAPTURE(chunk);
  CAPTURE(sizes.window);
  ChunkLoss<Model, B> loss(sizes, chunk, 6);
  const Model& model = loss.model();
  auto shapes = model.shapes();
  auto gradients = model.template tree<View<double>>();
  std::vector<std::vector<double>> memory;
  memory.reserve(1000);
  Model::each(
      [&](const ParameterName& name, const Shape& shape, View<double>& leaf) {
        const bool reached = name.suffix_block > 0 || name.role == Role::DynamicMlp ||
                             (name.suffix_block == 0 && name.layer != "attention");
        if (!reached && to_string(name) != "norm") return;
        memory.emplace_back(static_cast<std::size_t>(shape.size()), 0.0);
        leaf = View<double>(memory.back().data(), shape.rows, shape.cols);
      },
      shapes, gradients);
  loss.gradient(gradients);
  const std::string first_norm =
      to_string(ParameterName{.layer = Model::has_dynamic ? "dynamic_mlp" : "mlp",
                              .tensor = "norm",
                              .block = model.config().prefix_blocks});
  Index checked = 0;
  Model::each(
      [&](const ParameterName& name, const Weight<double>& weight, const View<double>& got) {
        if (got.empty()) return;
        const std::string which = to_string(name);
        CAPTURE(which);
        if (which == first_norm) {  // where the way back ends: nobody needs the input's gradient
          for (Index i = 0; i < got.cols; ++i) CHECK(got(0, i) == 0);
          return;
        }
        auto* values = const_cast<double*>(static_cast<const double*>(weight.data));
        double most = 0, worst = 0;
        for (Index i = 0; i < weight.shape().size(); ++i) {
          const double old = values[i], step = 1e-5;
          values[i] = old + step;
          const double above = loss.loss();
          values[i] = old - step;
          const double below = loss.loss();
          values[i] = old;
          const double want = (above - below) / (2 * step);
          most = std::max(most, std::abs(want));
          worst = std::max(worst, std::abs(want - got.data[i]));
        }
        CHECK(most > 1e-4);
        CHECK(worst <= 1e-6 * most);
        ++checked;
      },
      loss.tree(), gradients);
  CHECK(checked >= 13);
}

template <class Model>
std::vector<std::pair<std::string, Shape>> parameters(const Config& sizes) {
  const Model model(sizes);
  std::vector<std::pair<std::string, Shape>> all;
  auto shapes = model.shapes();
  Model::each([&](const ParameterName& name,
                  const Shape& shape) { all.emplace_back(to_string(name), shape); },
              shapes);
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("LanguageModel: the inner gradient, to every parameter it reaches", B,
                   reference::Backend<double>, eigen::Backend<double>) {
  for (const Index window : {3, 6, 20}) {  // below, at and above the chunk
    Config sizes = config();
    sizes.window = window;
    check_gradient<Reader, B>(sizes, 6);
  }
}
TEST_CASE_TEMPLATE("LanguageModel: ... with a head of its own", B, reference::Backend<double>,
                   eigen::Backend<double>) {
  check_gradient<Untied, B>(config(), 7);
}
TEST_CASE_TEMPLATE("LanguageModel: ... without post-norms, QK-norm and dynamic MLPs", B,
                   reference::Backend<double>, eigen::Backend<double>) {
  Config sizes = config();
  sizes.heads = 4;
  sizes.key_heads = 2;
  check_gradient<Llama, B>(sizes, 7);
}
TEST_CASE_TEMPLATE("LanguageModel: ... with full attention and every block in the suffix", B,
                   reference::Backend<double>, eigen::Backend<double>) {
  check_gradient<Full, B>(config(), 4);
}

TEST_CASE("LanguageModel: parameters have names of their own and the sizes of the formula") {
  const auto check = [&](const auto& all, Index want) {
    std::set<std::string> names;
    Index count = 0;
    for (const auto& [name, shape] : all) {
      const std::string which = name;
      CAPTURE(which);
      CHECK(names.insert(which).second);
      CHECK(shape.size() > 0);
      count += shape.size();
    }
    CHECK(count == want);
  };
  const Index V = 11, D = 8, F = 6, d = 4;
  const Index attention = 4 * D * D, mlp = 3 * D * F;
  const Index plain = attention + 2 * d + mlp + 4 * D, dual = plain + mlp + 2 * D;
  check(parameters<Reader>(config()), V * D + plain + 2 * dual + D);
  check(parameters<Untied>(config()), 2 * V * D + plain + 2 * dual + D);
  check(parameters<Full>(config()), V * D + 3 * dual + D);
  Config grouped = config();
  grouped.heads = 4;
  grouped.key_heads = 2;
  grouped.head_dim = 6;
  check(parameters<Llama>(grouped), V * D + 3 * (2 * D * 24 + 2 * D * 12 + mlp + 2 * D) + D);
  // The bundled model: 4.8M parameters.
  Config demo{.vocabulary = 256,
              .width = 256,
              .heads = 4,
              .hidden = 512,
              .prefix_blocks = 4,
              .suffix_blocks = 2,
              .window = 256,
              .rope_base = 1e4,
              .eps = 1e-6};
  const Index block = 4 * 256 * 256 + 2 * 64 + 3 * 256 * 512 + 4 * 256;
  check(parameters<Dynamic>(demo), 256 * 256 + 6 * block + 2 * (3 * 256 * 512 + 2 * 256) + 256);

  const auto all = parameters<Untied>(config());
  CHECK(all.front().first == "embedding");
  CHECK(all[1].first == "blocks.0.attention.norm");
  CHECK(all.back().first == "head");
  CHECK(all.back().second == Shape{8, 11});
  CHECK(all[all.size() - 2].first == "norm");
}

TEST_CASE("LanguageModel: suffix blocks count on from the prefix") {
  const Reader model(config());
  auto shapes = model.shapes();
  std::map<Index, Index> suffix_of;
  Reader::each(
      [&](const ParameterName& name, const Shape&) { suffix_of[name.block] = name.suffix_block; },
      shapes);
  CHECK(suffix_of == std::map<Index, Index>{{-1, -1}, {0, -1}, {1, 0}, {2, 1}});
}

TEST_CASE("LanguageModel: what the type fixes and what the Config says") {
  const Reader model(config());
  CHECK(model.config().prefix_blocks == 1);
  CHECK(model.config().suffix_blocks == 2);
  CHECK(model.config().head_dim == 4);
  CHECK(model.blocks() == 3);
  CHECK(model.window() == 5);
  static_assert(Reader::is_windowed && !Full::is_windowed);
  static_assert(Reader::has_dynamic && !Llama::has_dynamic);
  static_assert(Reader::has_tied_head && !Untied::has_tied_head);

  Config sizes = config();
  sizes.prefix_blocks = 2;
  CHECK_THROWS_WITH_AS(Reader{sizes},
                       "ttt: Config: prefix_blocks is 2, but the model's type says 1", Error);
  sizes = config();
  sizes.suffix_blocks = 3;
  CHECK_THROWS_WITH_AS(Reader{sizes},
                       "ttt: Config: suffix_blocks is 3, but the model's type says 2", Error);
  for (const auto& [prefix, suffix] : std::vector<std::pair<Index, Index>>{
           {0, 0}, {-1, 2}, {2, -1}, {4096, 1}, {Index{1} << 40, 1}}) {
    sizes = config();
    sizes.prefix_blocks = prefix;
    sizes.suffix_blocks = suffix;
    const std::string message = "ttt: Config: prefix_blocks is " + std::to_string(prefix) +
                                " and suffix_blocks " + std::to_string(suffix) +
                                ": the model must have from 1 to 4096 blocks";
    CHECK_THROWS_WITH_AS(Dynamic{sizes}, message.c_str(), Error);
  }
  sizes.prefix_blocks = 3;
  sizes.suffix_blocks = 0;
  CHECK(Dynamic(sizes).blocks() == 3);
  sizes.window = 0;
  CHECK_THROWS_WITH_AS(Dynamic{sizes}, "ttt: Config: window must be set and positive", Error);

  // The longest reach of any block.
  using Mixed = LanguageModel<Stack<1, Block<SlidingWindowAttention<4>, SwiGLU>>,
                              Stack<1, Block<SlidingWindowAttention<9>, SwiGLU>>>;
  sizes = config();
  sizes.window = 0;
  CHECK(Mixed(sizes).window() == 9);
  CHECK(Full(sizes).window() > Index{1} << 60);
}

TEST_CASE("LanguageModel: too large for any machine is an error, not an overflow") {
  Config sizes = config();
  const Index most = Index{1} << 30;
  sizes.vocabulary = sizes.width = sizes.hidden = most;
  CHECK_THROWS_AS((void)initialise<Reader>(sizes, eigen::Backend<float>(1), 1), Error);
  sizes.heads = most;
  sizes.head_dim = most;
  CHECK_THROWS_AS((void)initialise<Reader>(sizes, eigen::Backend<float>(1), 1), Error);
}

TEST_CASE("initialise: the seed decides, norms are ones, matrices are normal") {
  const eigen::Backend<double> cpu(1);
  Config sizes = config();
  sizes.width = 32;
  sizes.hidden = 64;
  const auto weights = initialise<Reader>(sizes, cpu, 5);
  const auto same = initialise<Reader>(sizes, cpu, 5), other = initialise<Reader>(sizes, cpu, 6);
  double squares = 0, sum = 0, count = 0;
  bool equal = true, differs = false;
  Reader::each(
      [&](const ParameterName& name, const Weight<double>& a, const Weight<double>& b,
          const Weight<double>& c) {
        const auto x = a.stored<double>(), y = b.stored<double>(), z = c.stored<double>();
        for (Index i = 0; i < a.shape().size(); ++i) {
          equal = equal && x.data[i] == y.data[i];
          differs = differs || x.data[i] != z.data[i];
          if (name.role == Role::Norm) {
            CHECK(x.data[i] == 1);
          } else {
            squares += x.data[i] * x.data[i];
            sum += x.data[i];
            ++count;
          }
        }
      },
      weights.parameters(), same.parameters(), other.parameters());
  CHECK(equal);
  CHECK(differs);
  CHECK(std::sqrt(squares / count) == doctest::Approx(0.02).epsilon(0.02));
  CHECK(std::abs(sum / count) < 4 * 0.02 / std::sqrt(count));
  CHECK(weights.bytes() == weights.count() * 8);

  const auto copy = weights;  // shares
  CHECK(copy.parameters().embedding.data == weights.parameters().embedding.data);
  CHECK(&copy.model() == &weights.model());
}
