// SPDX-License-Identifier: MIT
// Every tangent primitive of the reference against finite differences of its value form.
#include <cmath>
#include <limits>
#include <support/flats.hpp>
#include <support/gradcheck.hpp>
#include <support/random.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

const reference::Backend<double> backend;

TEST_CASE("rms_norm_tangent") {
  constexpr Index time = 4, width = 6;
  Random random{2};
  const auto scale = uniforms(random, width);
  for (const bool scaled : {false, true}) {
    for (const bool added : {false, true}) {
      const Norm<double> norm{scaled ? Weight<double>(as(scale, 1, width)) : Weight<double>(),
                              0.01};
      // Inputs h, x; outputs [h +] norm(x) and the inverses.
      CHECK_TANGENT(
          Flats{uniforms(random, time * width), uniforms(random, time * width)},
          [&](const Flats& x) {
            auto y = x[0], inverse = zeros(time);
            const View<double> out = as(y, time, width);
            if (added) {
              backend.add_rms_norm(out, as(x[1], time, width), norm, out, as(inverse, time, 1));
            } else {
              backend.rms_norm(as(x[1], time, width), norm, out, as(inverse, time, 1));
            }
            return Flats{y, inverse};
          },
          [&](const Flats& x, const Flats& t) {
            auto y = zeros(time * width), inverse = zeros(time), ty = t[0], tinverse = inverse;
            backend.rms_norm(as(x[1], time, width), norm, as(y, time, width), as(inverse, time, 1));
            backend.rms_norm_tangent(as(x[1], time, width), as(t[1], time, width), norm,
                                     as(inverse, time, 1),
                                     added ? as(t[0], time, width) : View<const double>(),
                                     as(ty, time, width), as(tinverse, time, 1));
            // In place, and each output alone.
            auto again = t[0], alone = ty, tinverse_alone = tinverse;
            const View<double> th = as(again, time, width);
            backend.rms_norm_tangent(as(x[1], time, width), as(t[1], time, width), norm,
                                     as(inverse, time, 1), added ? th : View<double>(), th, {});
            backend.rms_norm_tangent(as(x[1], time, width), as(t[1], time, width), norm,
                                     as(inverse, time, 1), {}, {}, as(tinverse_alone, time, 1));
            CHECK(again == ty);
            CHECK(tinverse_alone == tinverse);
            return Flats{ty, tinverse};
          });
    }
  }
}

TEST_CASE("rms_norm_backward_tangent") {
  constexpr Index time = 4, width = 6;
  Random random{3};
  const auto scale = uniforms(random, width);
  for (const bool scaled : {false, true}) {
    for (const Write write : {Write::Replace, Write::Add}) {
      const Norm<double> norm{scaled ? Weight<double>(as(scale, 1, width)) : Weight<double>(),
                              0.01};
      const double earlier = write == Write::Add ? 1 : 0;  // what dx holds before, times dy
      CHECK_TANGENT(
          Flats{uniforms(random, time * width), uniforms(random, time * width)},
          [&](const Flats& x) {
            auto y = zeros(time * width), inverse = zeros(time), dx = x[1], dscale = zeros(width);
            backend.rms_norm(as(x[0], time, width), norm, as(y, time, width), as(inverse, time, 1));
            for (double& d : dx) d *= earlier;
            backend.rms_norm_backward(as(x[0], time, width), norm, as(inverse, time, 1),
                                      as(x[1], time, width), as(dx, time, width), write,
                                      as(dscale, 1, width));
            return Flats{dx, dscale};
          },
          [&](const Flats& x, const Flats& t) {
            auto y = zeros(time * width), inverse = zeros(time), tinverse = inverse;
            // tdx is tdy: it is there already where it adds to it.
            auto tdx = t[1], tdscale = ones(width);
            backend.rms_norm(as(x[0], time, width), norm, as(y, time, width), as(inverse, time, 1));
            backend.rms_norm_tangent(as(x[0], time, width), as(t[0], time, width), norm,
                                     as(inverse, time, 1), {}, {}, as(tinverse, time, 1));
            backend.rms_norm_backward_tangent(as(x[0], time, width), as(t[0], time, width), norm,
                                              as(inverse, time, 1), as(tinverse, time, 1),
                                              as(x[1], time, width), as(tdx, time, width),
                                              as(tdx, time, width), write, as(tdscale, 1, width));
            for (double& d : tdscale) d -= 1;
            return Flats{tdx, tdscale};
          });
    }
  }
}

TEST_CASE("head_norm_rope_tangent and head_norm_rope_backward_tangent") {
  constexpr Index time = 3, heads = 2, d = 6, width = heads * d;
  Random random{5};
  std::vector<double> angles = zeros(time * d);
  const double frequencies[] = {1.0, 0.1, 0.01};
  backend.rope_angles(7, frequencies, as(angles, time, d));
  const auto scale = uniforms(random, d);
  for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
    for (const bool scaled : {false, true}) {
      CAPTURE(static_cast<int>(layout));
      CAPTURE(scaled);
      const Norm<double> norm{scaled ? Weight<double>(as(scale, 1, d)) : Weight<double>(), 0.01};
      CHECK_TANGENT(
          Flats{uniforms(random, time * width), uniforms(random, time * width)},
          [&](const Flats& x) {
            auto y = zeros(time * width), inverse = zeros(time * heads), dx = y, dscale = zeros(d);
            backend.head_norm_rope(as(x[0], time, width), norm, as(angles, time, d), layout,
                                   as(y, time, width), as(inverse, time, heads));
            backend.head_norm_rope_backward(as(x[0], time, width), norm, as(inverse, time, heads),
                                            as(angles, time, d), layout, as(x[1], time, width),
                                            as(dx, time, width), as(dscale, 1, d));
            return Flats{y, inverse, dx, dscale};
          },
          [&](const Flats& x, const Flats& t) {
            auto y = zeros(time * width), inverse = zeros(time * heads), ty = y, tdx = y;
            auto tinverse = inverse, tdscale = ones(d);
            backend.head_norm_rope(as(x[0], time, width), norm, as(angles, time, d), layout,
                                   as(y, time, width), as(inverse, time, heads));
            backend.head_norm_rope_tangent(as(x[0], time, width), as(t[0], time, width), norm,
                                           as(inverse, time, heads), as(angles, time, d), layout,
                                           as(ty, time, width), as(tinverse, time, heads));
            backend.head_norm_rope_backward_tangent(
                as(x[0], time, width), as(t[0], time, width), norm, as(inverse, time, heads),
                as(tinverse, time, heads), as(angles, time, d), layout, as(x[1], time, width),
                as(t[1], time, width), as(tdx, time, width), as(tdscale, 1, d));
            for (double& s : tdscale) s -= 1;
            return Flats{ty, tinverse, tdx, tdscale};
          });
    }
  }
}

TEST_CASE("swiglu_tangent and swiglu_backward_tangent") {
  constexpr Index time = 3, width = 5;
  Random random{6};
  CHECK_TANGENT(
      Flats{uniforms(random, time * width, 4), uniforms(random, time * width),
            uniforms(random, time * width)},
      [](const Flats& x) {
        auto y = zeros(time * width), dgate = y, dup = y;
        backend.swiglu(as(x[0], time, width), as(x[1], time, width), as(y, time, width));
        backend.swiglu_backward(as(x[0], time, width), as(x[1], time, width), as(x[2], time, width),
                                as(dgate, time, width), as(dup, time, width));
        return Flats{y, dgate, dup};
      },
      [](const Flats& x, const Flats& t) {
        auto ty = zeros(time * width), tdgate = ty, tdup = ty;
        backend.swiglu_tangent(as(x[0], time, width), as(t[0], time, width), as(x[1], time, width),
                               as(t[1], time, width), as(ty, time, width));
        backend.swiglu_backward_tangent(as(x[0], time, width), as(t[0], time, width),
                                        as(x[1], time, width), as(t[1], time, width),
                                        as(x[2], time, width), as(t[2], time, width),
                                        as(tdgate, time, width), as(tdup, time, width));
        return Flats{ty, tdgate, tdup};
      });
}

TEST_CASE("swiglu's tangents are numbers, however small the sigmoid") {
  const std::vector<double> one{1}, gate{-2000};
  auto tout = one, tdgate = one, tdup = one;
  backend.swiglu_tangent(as(gate, 1, 1), as(one, 1, 1), as(one, 1, 1), as(one, 1, 1),
                         as(tout, 1, 1));
  backend.swiglu_backward_tangent(as(gate, 1, 1), as(one, 1, 1), as(one, 1, 1), as(one, 1, 1),
                                  as(one, 1, 1), as(one, 1, 1), as(tdgate, 1, 1), as(tdup, 1, 1));
  CHECK(tout[0] == 0);
  CHECK(tdgate[0] == 0);
  CHECK(tdup[0] == 0);
}

/// Attention of one block, forwards and backwards: o, lse, dq, dkeys and dvalues along q, the
/// block's own keys and values, and dout.
void check_attention(const BlockInRing& block) {
  const AttentionShape& shape = block.shape;
  const Index rows = block.rows, width = block.width(), key_width = block.key_width();
  const Index own = rows * key_width, gradients = block.cached() + rows;
  CAPTURE(rows);
  CAPTURE(shape.heads);
  CAPTURE(shape.key_heads);
  CAPTURE(shape.window);
  CAPTURE(shape.position);
  CAPTURE(block.before);
  Random random{7};
  const auto old_keys = uniforms(random, block.constants() * key_width);
  const auto old_values = uniforms(random, block.constants() * key_width);
  const auto earlier_keys = uniforms(random, block.cached() * key_width);
  const auto earlier_values = uniforms(random, block.cached() * key_width);
  CHECK_TANGENT(
      Flats{uniforms(random, rows * width), uniforms(random, own), uniforms(random, own),
            uniforms(random, rows * width)},
      [&](const Flats& x) {
        auto o = zeros(rows * width), lse = zeros(shape.heads * rows), dq = o;
        auto dkeys = zeros(gradients * key_width), dvalues = dkeys;
        const auto keys = block.ring(old_keys, earlier_keys, x[1]);
        const auto values = block.ring(old_values, earlier_values, x[2]);
        backend.attention(as(x[0], rows, width), keys.cache, values.cache, shape,
                          as(o, rows, width), as(lse, shape.heads, rows));
        backend.attention_backward(
            as(x[0], rows, width), keys.cache, values.cache, shape, as(o, rows, width),
            as(lse, shape.heads, rows), as(x[3], rows, width), as(dq, rows, width),
            as(dkeys, gradients, key_width), as(dvalues, gradients, key_width), block.first());
        return Flats{o, lse, dq, dkeys, dvalues};
      },
      [&](const Flats& x, const Flats& t) {
        auto o = zeros(rows * width), lse = zeros(shape.heads * rows);
        auto to = ones(rows * width), tlse = ones(shape.heads * rows), tdq = to;
        auto tdkeys = ones(gradients * key_width), tdvalues = tdkeys;
        const auto keys = block.ring(old_keys, earlier_keys, x[1]);
        const auto values = block.ring(old_values, earlier_values, x[2]);
        backend.attention(as(x[0], rows, width), keys.cache, values.cache, shape,
                          as(o, rows, width), as(lse, shape.heads, rows));
        backend.attention_tangent(
            as(x[0], rows, width), as(t[0], rows, width), keys.cache, values.cache,
            as(t[1], rows, key_width), as(t[2], rows, key_width), shape, as(o, rows, width),
            as(lse, shape.heads, rows), as(to, rows, width), as(tlse, shape.heads, rows));
        backend.attention_backward_tangent(
            as(x[0], rows, width), as(t[0], rows, width), keys.cache, values.cache,
            as(t[1], rows, key_width), as(t[2], rows, key_width), shape, as(o, rows, width),
            as(to, rows, width), as(lse, shape.heads, rows), as(tlse, shape.heads, rows),
            as(x[3], rows, width), as(t[3], rows, width), as(tdq, rows, width),
            as(tdkeys, gradients, key_width), as(tdvalues, gradients, key_width), block.first());
        for (auto* all : {&tdkeys, &tdvalues}) {
          for (double& d : *all) d -= 1;
        }
        return Flats{to, tlse, tdq, tdkeys, tdvalues};
      });
}

TEST_CASE("attention_tangent and attention_backward_tangent") {
  constexpr Index huge = std::numeric_limits<Index>::max();
  constexpr Index heads[][2] = {{1, 1}, {4, 2}};
  for (const auto& [h, k] : heads) {
    for (Index window : {Index{1}, Index{3}, Index{6}, Index{20}, huge}) {
      for (Index position : {0, 1, 5, 13}) {
        for (Index before : {0, 2, 100}) {
          check_attention({6, {h, k, 4, window, position}, before});
        }
      }
    }
  }
}

TEST_CASE("cross_entropy_tangent") {
  constexpr Index time = 5, width = 4, words = 7;
  Random random{9};
  const auto stored = uniforms(random, width * words, 3);
  const auto targets = tokens(random, time, words);
  const std::vector<double> weights{0.5, 0, -1.5, 1, 0};
  for (const bool transposed : {false, true}) {
    for (const bool still : {false, true}) {  // h does not move
      const Weight<double> head = transposed ? Weight<double>(as(stored, words, width)).transpose()
                                             : Weight<double>(as(stored, width, words));
      const Index rows = transposed ? words : width, cols = transposed ? width : words;
      const auto h0 = uniforms(random, time * width);
      const auto hidden = [&](const Flats& x) { return still ? h0 : x[0]; };
      // Inputs: h, and what the weights are multiplied with.
      CHECK_TANGENT(
          Flats{uniforms(random, time * width), {1.0}},
          [&](const Flats& x) {
            const auto h = hidden(x);
            auto w = weights, nll = zeros(time), dh = zeros(time * width);
            for (double& weight : w) weight *= x[1][0];
            auto scratch = zeros(backend.cross_entropy_scratch(time, words));
            backend.cross_entropy(as(h, time, width), head, targets.data(), w.data(), nll.data(),
                                  as(dh, time, width), scratch.data());
            auto logits = zeros(time * words), dhead = zeros(width * words);
            const View<double> l = as(logits, time, words);
            backend.matmul(as(h, time, width), head, l, Write::Replace);
            for (Index t = 0; t < time; ++t) {
              const auto at = static_cast<std::size_t>(t);
              const double lse = nll[at] + l(t, targets[at]);
              for (Index j = 0; j < words; ++j) {
                l(t, j) = w[at] * (std::exp(l(t, j) - lse) - (j == targets[at] ? 1 : 0));
              }
            }
            const View<const double> dl = l, hs = as(h, time, width);
            backend.matmul_gradient(transposed ? dl : hs, transposed ? hs : dl,
                                    as(dhead, rows, cols), Write::Replace);
            return Flats{dh, dhead};
          },
          [&](const Flats& x, const Flats& t) {
            const auto h = hidden(x);
            auto tdh = ones(time * width), tdhead = ones(width * words);
            auto scratch = zeros(backend.cross_entropy_tangent_scratch(time, words));
            const View<const double> th = still ? View<const double>() : as(t[0], time, width);
            backend.cross_entropy_tangent(as(h, time, width), th, head, targets.data(),
                                          weights.data(), t[1][0], as(tdh, time, width),
                                          as(tdhead, rows, cols), scratch.data());
            auto tdh_alone = tdh, tdhead_alone = ones(width * words);
            backend.cross_entropy_tangent(as(h, time, width), th, head, targets.data(),
                                          weights.data(), t[1][0], as(tdh_alone, time, width), {},
                                          scratch.data());
            backend.cross_entropy_tangent(as(h, time, width), th, head, targets.data(),
                                          weights.data(), t[1][0], {}, as(tdhead_alone, rows, cols),
                                          scratch.data());
            CHECK(tdh_alone == tdh);
            CHECK(tdhead_alone == tdhead);
            for (double& d : tdhead) d -= 1;
            return Flats{tdh, tdhead};
          });
    }
  }
}

TEST_CASE("the harness notices a wrong tangent") {
  const auto square = [](const Flats& x) { return Flats{{x[0][0] * x[0][0]}, {x[0][1]}}; };
  const auto with_slope = [](double slope) {
    return [slope](const Flats& x, const Flats& t) {
      return Flats{{slope * x[0][0] * t[0][0]}, {t[0][1]}};
    };
  };
  const Flats at{{0.5, 2.0}};
  CHECK(check_tangent(at, square, with_slope(2)).worst <= gradient_tolerance);
  CHECK(check_tangent(at, square, with_slope(2.001)).worst > gradient_tolerance);
  CHECK_FALSE(check_tangent(at, square, with_slope(NAN)).worst <= gradient_tolerance);
  CHECK(check_tangent(at, square, [](const Flats&, const Flats&) {
          return Flats{{1, 2}};
        }).worst > gradient_tolerance);
}

}  // namespace
