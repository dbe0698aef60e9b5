// SPDX-License-Identifier: MIT
#include <cmath>
#include <string>
#include <support/layers.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

constexpr Index width = 6, rows = 5, position = 7, window = 4, slots = 9;

Config config() {
  return ttt::detail::complete({.vocabulary = 5,
                                .width = width,
                                .heads = 3,
                                .hidden = 4,
                                .window = window,
                                .rope_base = 100,
                                .eps = 1e-6});
}

/// Both halves of a block behind old keys and values, and the way back through both.
template <class Block, class B>
void check_block() {
  using Saved = typename Block::template Saved<View<double>>;
  const Block block(config());
  Bench<B> bench;
  Random random{5};
  const auto old_keys = uniforms(random, width * slots),
             old_values = uniforms(random, width * slots);
  auto keys = old_keys, values = old_values;
  const ops::KeyValues<double> cache{{keys.data(), 3, slots, 2}, {values.data(), 3, slots, 2}};
  Flats inputs = random_parameters(block, random);
  inputs.insert(inputs.begin(), uniforms(random, rows * width));

  struct Outcome {
    View<double> y;
    Positions<double> at;
  };
  const auto run = [&](Flats& flats, Saved& saved, Context<B>& c) {
    keys = old_keys;
    values = old_values;
    Outcome out{{}, {position, c.make(rows, 2)}};
    const double frequency = 1;
    c.backend.rope_angles(position, &frequency, out.at.angles);
    const auto p = tree_of<Block, Weight<double>>(block, flats, 1);
    const auto attended = block.attention().forward(c, p.attention, view(flats[0], rows), true,
                                                    saved.attention, out.at, cache);
    out.y = block.feed_forward().forward(c, p.feed_forward, attended, true, saved.feed_forward);
    return out;
  };
  const auto f = [&](Flats flats) {
    auto c = bench.context();
    Saved saved;
    const auto y = run(flats, saved, c).y;
    return std::vector<double>(y.data, y.data + rows * width);
  };
  const auto vjp = [&](Flats flats, std::vector<double> dy) {
    auto c = bench.context();
    Saved saved;
    const auto out = run(flats, saved, c);
    Flats d = zeros_like(flats);
    const auto p = tree_of<Block, Weight<double>>(block, flats, 1);
    const auto dp = tree_of<Block, View<double>>(block, d, 1);
    block.feed_forward().backward(c, p.feed_forward, saved.feed_forward, view(dy, rows),
                                  dp.feed_forward, true);
    block.attention().backward(c, p.attention, saved.attention, view(dy, rows), dp.attention, true,
                               out.at, cache);
    d[0] = dy;
    return d;
  };
  CHECK_GRADIENT(inputs, f, vjp);
}

using Attention = SlidingWindowAttention<window>;
using Twin = DualMLP<SwiGLU, SwiGLU>;

template <class Block>
std::string names() {
  const Block block(config());
  std::string all;
  auto shapes = block.shapes();
  Block::each(
      {.block = 3, .suffix_block = 1},
      [&](const ParameterName& name, const Shape&) {
        constexpr const char* roles[] = {"E", "H", "N", "A", "M", "D"};
        all += std::string(name.layer) + "." + std::string(name.tensor) + ":" +
               roles[static_cast<int>(name.role)] + " ";
        CHECK(name.block == 3);
        CHECK(name.suffix_block == 1);
      },
      shapes);
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("Block: gradients with a DualMLP between sandwich norms", B,
                   TTT_GRADIENT_BACKENDS) {
  check_block<Block<Attention, Twin>, B>();
}
TEST_CASE_TEMPLATE("Block: gradients with a DualMLP behind pre-norms", B, TTT_GRADIENT_BACKENDS) {
  check_block<Block<Attention, Twin, PreNorm>, B>();
}
TEST_CASE_TEMPLATE("Block: gradients with one MLP", B, TTT_GRADIENT_BACKENDS) {
  check_block<Block<Attention, SwiGLU>, B>();
  check_block<Block<SlidingWindowAttention<window, NoQkNorm, HalfSplitRope>, SwiGLU, PreNorm>, B>();
}

TEST_CASE("Block: its parameters, the dynamic MLP before the static one") {
  CHECK(names<Block<Attention, Twin>>() ==
        "attention.norm:N attention.post_norm:N attention.wq:A attention.wk:A attention.wv:A "
        "attention.wo:A attention.q_norm:N attention.k_norm:N "
        "dynamic_mlp.norm:N dynamic_mlp.post_norm:N dynamic_mlp.w1:D dynamic_mlp.w2:D "
        "dynamic_mlp.w3:D mlp.norm:N mlp.post_norm:N mlp.w1:M mlp.w2:M mlp.w3:M ");
  CHECK(names<Block<SlidingWindowAttention<window, NoQkNorm>, SwiGLU, PreNorm>>() ==
        "attention.norm:N attention.wq:A attention.wk:A attention.wv:A attention.wo:A "
        "mlp.norm:N mlp.w1:M mlp.w2:M mlp.w3:M ");
}
