// SPDX-License-Identifier: MIT
#include <cmath>
#include <support/layers.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

Config config() {
  return {.vocabulary = 5, .width = 6, .heads = 1, .hidden = 9, .rope_base = 100, .eps = 1e-6};
}

}  // namespace

TEST_CASE("SwiGLU: the formula") {
  const SwiGLU layer(config());
  Random random{1};
  Flats flats = random_parameters(layer, random);
  std::vector<double> x = uniforms(random, 6);
  Bench<reference::Backend<double>> bench;
  auto c = bench.context();
  SwiGLU::Saved<View<double>> saved;
  const auto p = tree_of<SwiGLU, Weight<double>>(layer, flats, 0);
  const auto y = layer.forward(c, p, view(x, 1), saved);
  for (std::size_t j = 0; j < 6; ++j) {
    double want = 0;
    for (std::size_t k = 0; k < 9; ++k) {
      double gate = 0, up = 0;
      for (std::size_t i = 0; i < 6; ++i) {
        gate += x[i] * flats[0][i * 9 + k];
        up += x[i] * flats[2][i * 9 + k];
      }
      want += gate / (1 + std::exp(-gate)) * up * flats[1][k * 6 + j];
    }
    CHECK(y(0, static_cast<Index>(j)) == doctest::Approx(want).epsilon(1e-12));
  }
}

TEST_CASE_TEMPLATE("SwiGLU: the gradient of everything, and of less", B, TTT_GRADIENT_BACKENDS) {
  const SwiGLU layer(config());
  Bench<B> bench;
  for (const Index rows : {1, 3, 17}) {
    CAPTURE(rows);
    Random random{2};
    Flats inputs = random_parameters(layer, random);
    inputs.insert(inputs.begin(), uniforms(random, rows * 6));
    const auto forward = [&](Flats& flats, auto& saved, Context<B>& c) {
      return layer.forward(c, tree_of<SwiGLU, Weight<double>>(layer, flats, 1),
                           view(flats[0], rows), saved);
    };
    const auto f = [&](Flats flats) {
      auto c = bench.context();
      SwiGLU::Saved<View<double>> saved;
      const auto y = forward(flats, saved, c);
      return std::vector<double>(y.data, y.data + rows * 6);
    };
    for (const bool want_dx : {true, false}) {
      const auto vjp = [&](Flats flats, std::vector<double> dy) {
        auto c = bench.context();
        SwiGLU::Saved<View<double>> saved;
        (void)forward(flats, saved, c);
        Flats d = zeros_like(flats);
        layer.backward(c, tree_of<SwiGLU, Weight<double>>(layer, flats, 1), saved, view(dy, rows),
                       want_dx ? view(d[0], rows) : View<double>(),
                       tree_of<SwiGLU, View<double>>(layer, d, 1));
        if (!want_dx) d[0].clear();
        return d;
      };
      CHECK_GRADIENT(inputs, f, vjp);
    }
  }
}
