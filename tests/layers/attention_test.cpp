// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <string>
#include <support/layers.hpp>
#include <type_traits>

namespace {

using namespace ttt;
using namespace ttt::test;

Config config(Index heads, Index key_heads, Index window) {
  return ttt::detail::complete({.vocabulary = 5,
                                .width = 8,
                                .heads = heads,
                                .key_heads = key_heads,
                                .head_dim = 4,
                                .hidden = 1,
                                .window = window,
                                .rope_base = 100,
                                .eps = 1e-6});
}

/// A layer at work on a block of rows behind keys and values that are there already.
template <class Layer, class B>
struct Scene {
  Layer layer;
  Index key_heads, slots, rows, position;
  std::vector<double> old_keys, old_values;
  Bench<B> bench{};
  std::vector<double> keys{}, values{};

  View<double> run(Context<B>& c, Flats& flats, typename Layer::template Saved<View<double>>& saved,
                   Positions<double>& at) {
    keys = old_keys;
    values = old_values;
    at = {position, c.make(rows, 4)};
    const double frequencies[] = {1, 0.1};
    c.backend.rope_angles(position, frequencies, at.angles);
    return layer.forward(c, tree_of<Layer, Weight<double>>(layer, flats, 1), view(flats[0], rows),
                         saved, at, cache());
  }
  ops::KeyValues<double> cache() {
    return {{keys.data(), key_heads, slots, 4}, {values.data(), key_heads, slots, 4}};
  }
};

template <class Layer, class B>
void check_attention(Index heads, Index key_heads, Index window, Index rows, Index position) {
  CAPTURE(heads);
  CAPTURE(key_heads);
  CAPTURE(window);
  CAPTURE(rows);
  CAPTURE(position);
  Random random{static_cast<std::uint64_t>(heads + 10 * window + 100 * rows + position)};
  const Layer layer(config(heads, key_heads, window));
  const Index slots = std::min<Index>(window, position) + rows;
  Scene<Layer, B> scene{layer,
                        key_heads,
                        slots,
                        rows,
                        position,
                        uniforms(random, key_heads * slots * 4),
                        uniforms(random, key_heads * slots * 4)};
  Flats inputs = random_parameters(layer, random);
  inputs.insert(inputs.begin(), uniforms(random, rows * 8));

  using Saved = typename Layer::template Saved<View<double>>;
  const auto f = [&](Flats flats) {
    auto c = scene.bench.context();
    Saved saved;
    Positions<double> at;
    const auto y = scene.run(c, flats, saved, at);
    return std::vector<double>(y.data, y.data + rows * 8);
  };
  const auto vjp = [&](Flats flats, std::vector<double> dy) {
    auto c = scene.bench.context();
    Saved saved;
    Positions<double> at;
    (void)scene.run(c, flats, saved, at);
    Flats d = zeros_like(flats);
    layer.backward(c, tree_of<Layer, Weight<double>>(layer, flats, 1), saved, view(dy, rows),
                   view(d[0], rows), tree_of<Layer, View<double>>(layer, d, 1), at, scene.cache());
    return d;
  };
  CHECK_GRADIENT(inputs, f, vjp);
}

template <class Layer, class B>
void check_shapes() {
  check_attention<Layer, B>(2, 2, 5, 1, 0);
  check_attention<Layer, B>(2, 2, 5, 7, 0);   // a window smaller than the block
  check_attention<Layer, B>(2, 2, 5, 4, 11);  // old keys, and a ring that wraps
  check_attention<Layer, B>(2, 2, 20, 6, 9);  // a window larger than everything
  check_attention<Layer, B>(4, 2, 5, 4, 11);  // grouped queries
  check_attention<Layer, B>(4, 1, 3, 5, 2);
  check_attention<Layer, B>(2, 2, 1, 3, 4);  // sees itself only
}

/// Plain attention, by the formulas, for one token after `count` others: what forward should give.
std::vector<double> last_row(const Flats& flats, Index rows, Index window, bool norm,
                             bool half_split) {
  const auto at = [&](std::size_t tensor, std::size_t i, std::size_t j) {
    return flats[tensor][i * 8 + j];
  };
  const auto project = [&](Index t, std::size_t tensor) {
    std::vector<double> out(8, 0.0);
    for (std::size_t j = 0; j < 8; ++j) {
      for (std::size_t i = 0; i < 8; ++i) {
        out[j] += flats[0][static_cast<std::size_t>(t) * 8 + i] * at(tensor, i, j);
      }
    }
    return out;
  };
  const auto turn = [&](std::vector<double> x, Index t, std::size_t scale) {
    for (std::size_t h = 0; h < 8; h += 4) {
      if (norm) {
        double sum = 0;
        for (std::size_t j = 0; j < 4; ++j) sum += x[h + j] * x[h + j] / 4;
        for (std::size_t j = 0; j < 4; ++j) x[h + j] *= flats[scale][j] / std::sqrt(sum + 1e-6);
      }
      for (std::size_t i = 0; i < 2; ++i) {
        const std::size_t a = h + (half_split ? i : 2 * i),
                          b = h + (half_split ? i + 2 : 2 * i + 1);
        const double angle = static_cast<double>(t) * (i == 0 ? 1 : 0.1);
        const double u = x[a], v = x[b];
        x[a] = u * std::cos(angle) - v * std::sin(angle);
        x[b] = u * std::sin(angle) + v * std::cos(angle);
      }
    }
    return x;
  };
  const Index last = rows - 1;
  const auto q = turn(project(last, 1), last, 5);
  std::vector<double> heads(8, 0.0), y(8, 0.0);
  for (std::size_t h = 0; h < 8; h += 4) {
    double total = 0;
    std::vector<double> sum(4, 0.0);
    for (Index t = std::max<Index>(0, rows - window); t < rows; ++t) {
      const auto k = turn(project(t, 2), t, 6), v = project(t, 3);
      double score = 0;
      for (std::size_t j = 0; j < 4; ++j) score += q[h + j] * k[h + j] / 2;
      total += std::exp(score);
      for (std::size_t j = 0; j < 4; ++j) sum[j] += std::exp(score) * v[h + j];
    }
    for (std::size_t j = 0; j < 4; ++j) heads[h + j] = sum[j] / total;
  }
  for (std::size_t j = 0; j < 8; ++j) {
    for (std::size_t i = 0; i < 8; ++i) y[j] += heads[i] * at(4, i, j);
  }
  return y;
}

template <class Qk, class Rope>
using Dynamic = SlidingWindowAttention<dynamic, Qk, Rope>;

}  // namespace

TEST_CASE_TEMPLATE("attention: gradients with QK-norm, interleaved pairs", B,
                   TTT_GRADIENT_BACKENDS) {
  check_shapes<Dynamic<QkNorm, InterleavedRope>, B>();
}
TEST_CASE_TEMPLATE("attention: gradients without QK-norm, half-split pairs", B,
                   TTT_GRADIENT_BACKENDS) {
  check_shapes<Dynamic<NoQkNorm, HalfSplitRope>, B>();
}
TEST_CASE_TEMPLATE("attention: gradients with QK-norm, half-split pairs", B,
                   TTT_GRADIENT_BACKENDS) {
  check_attention<Dynamic<QkNorm, HalfSplitRope>, B>(4, 2, 5, 4, 11);
}
TEST_CASE_TEMPLATE("attention: gradients without QK-norm, interleaved pairs", B,
                   TTT_GRADIENT_BACKENDS) {
  check_attention<Dynamic<NoQkNorm, InterleavedRope>, B>(4, 2, 5, 4, 11);
}
TEST_CASE_TEMPLATE("attention: gradients of full attention, and of a window in the type", B,
                   TTT_GRADIENT_BACKENDS) {
  check_attention<FullAttention<>, B>(2, 2, 1000, 6, 9);
  check_attention<SlidingWindowAttention<5>, B>(2, 2, 5, 4, 11);
}

TEST_CASE_TEMPLATE("attention: the formulas", B, TTT_GRADIENT_BACKENDS) {
  const auto check = [&]<class Layer>(bool norm, bool half_split) {
    for (const Index window : {1, 3, 100}) {
      CAPTURE(window);
      const Index rows = 6;
      Random random{4};
      const Layer layer(config(2, 2, window));
      Scene<Layer, B> scene{layer, 2, 8, rows, 0, std::vector<double>(64), std::vector<double>(64)};
      Flats flats = random_parameters(layer, random);
      flats.insert(flats.begin(), uniforms(random, rows * 8));
      const auto want = last_row(flats, rows, window, norm, half_split);
      auto c = scene.bench.context();
      typename Layer::template Saved<View<double>> saved;
      Positions<double> at;
      const auto y = scene.run(c, flats, saved, at);
      for (Index j = 0; j < 8; ++j) {
        CHECK(y(rows - 1, j) == doctest::Approx(want[static_cast<std::size_t>(j)]).epsilon(1e-12));
      }
    }
  };
  check.template operator()<Dynamic<QkNorm, InterleavedRope>>(true, false);
  check.template operator()<Dynamic<QkNorm, HalfSplitRope>>(true, true);
  check.template operator()<Dynamic<NoQkNorm, InterleavedRope>>(false, false);
  check.template operator()<Dynamic<NoQkNorm, HalfSplitRope>>(false, true);
}

TEST_CASE("attention: a window in the type takes no room and must agree with the Config") {
  static_assert(std::is_empty_v<Extent<256>>);
  static_assert(sizeof(Extent<dynamic>) == sizeof(Index));
  static_assert(Extent<256>(0).value() == 256);
  static_assert(Extent<dynamic>(7).value() == 7);
  static_assert(sizeof(SlidingWindowAttention<256>) + sizeof(Index) ==
                sizeof(SlidingWindowAttention<>));
  CHECK(SlidingWindowAttention<5>(config(2, 2, 0)).window() == 5);
  CHECK(SlidingWindowAttention<5>(config(2, 2, 5)).window() == 5);
  CHECK(SlidingWindowAttention<>(config(2, 2, 6)).window() == 6);
  CHECK(FullAttention<>(config(2, 2, 0)).window() > Index{1} << 60);
  CHECK_THROWS_WITH_AS(SlidingWindowAttention<5>(config(2, 2, 6)),
                       "ttt: Config: window is 6, but the model's type says 5", Error);
  CHECK_THROWS_WITH_AS(SlidingWindowAttention<>(config(2, 2, 0)),
                       "ttt: Config: window must be set and positive", Error);
}
