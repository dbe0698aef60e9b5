// SPDX-License-Identifier: MIT
#include <cmath>
#include <string>
#include <support/layers.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

Config config() {
  return {.vocabulary = 5, .width = 6, .heads = 1, .hidden = 7, .rope_base = 100, .eps = 1e-6};
}

template <class Placement, class B>
void check_residual() {
  using Layer = Residual<Placement, SwiGLU>;
  using Saved = typename Layer::template Saved<View<double>>;
  const Layer layer(config());
  Bench<B> bench;
  for (const Index rows : {1, 5}) {
    CAPTURE(rows);
    Random random{3};
    Flats inputs = random_parameters(layer, random);
    inputs.insert(inputs.begin(), uniforms(random, rows * 6));
    const auto run = [&](Flats& flats, Saved& saved, Context<B>& c) {
      return layer.forward(c, tree_of<Layer, Weight<double>>(layer, flats, 1), view(flats[0], rows),
                           true, saved);
    };
    const auto f = [&](Flats flats) {
      auto c = bench.context();
      Saved saved;
      const auto y = run(flats, saved, c);
      return std::vector<double>(y.data, y.data + rows * 6);
    };
    for (const bool want_dh : {true, false}) {
      const auto vjp = [&](Flats flats, std::vector<double> dy) {
        auto c = bench.context();
        Saved saved;
        (void)run(flats, saved, c);
        const Index used = c.workspace.used();
        Flats d = zeros_like(flats);
        const auto dh =
            layer.backward(c, tree_of<Layer, Weight<double>>(layer, flats, 1), saved,
                           view(dy, rows), tree_of<Layer, View<double>>(layer, d, 1), want_dh);
        CHECK(c.workspace.used() == used);  // gives its scratch back
        CHECK(dh.data == (want_dh ? dy.data() : nullptr));
        d[0] = dy;  // received the gradient of h
        if (!want_dh) d[0].clear();
        if (!want_dh) d[1].clear();  // nobody asked: the first norm is not reached either
        return d;
      };
      CHECK_GRADIENT(inputs, f, vjp);
    }
    // Without a way back the sum may be written where it came from.
    auto c = bench.context();
    Saved saved;
    const auto want = f(inputs);
    std::vector<double> h = inputs[0];
    layer.forward(c, tree_of<Layer, Weight<double>>(layer, inputs, 1), view(h, rows), false, saved);
    for (std::size_t i = 0; i < h.size(); ++i) {
      CHECK(h[i] == doctest::Approx(want[i]).epsilon(1e-13));
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("Residual: gradients with norms before and behind", B, TTT_GRADIENT_BACKENDS) {
  check_residual<SandwichNorm, B>();
}
TEST_CASE_TEMPLATE("Residual: gradients with a norm before", B, TTT_GRADIENT_BACKENDS) {
  check_residual<PreNorm, B>();
}

TEST_CASE("Residual: its parameters") {
  const auto names = []<class Placement>() {
    const Residual<Placement, SwiGLU> layer(config());
    std::string all;
    auto shapes = layer.shapes();
    Residual<Placement, SwiGLU>::each(
        {.layer = "mlp", .block = 2, .role = Role::Mlp},
        [&](const ParameterName& name, const Shape& shape) {
          all += to_string(name) + to_string(shape) + (name.role == Role::Norm ? "n " : " ");
        },
        shapes);
    return all;
  };
  CHECK(names.template operator()<SandwichNorm>() ==
        "blocks.2.mlp.norm(1, 6)n blocks.2.mlp.post_norm(1, 6)n blocks.2.mlp.w1(6, 7) "
        "blocks.2.mlp.w2(7, 6) blocks.2.mlp.w3(6, 7) ");
  CHECK(names.template operator()<PreNorm>() ==
        "blocks.2.mlp.norm(1, 6)n blocks.2.mlp.w1(6, 7) blocks.2.mlp.w2(7, 6) "
        "blocks.2.mlp.w3(6, 7) ");
}
