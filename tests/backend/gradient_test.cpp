// SPDX-License-Identifier: MIT
// Every backward primitive of the reference against finite differences of its forward.
#include <algorithm>
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

TEST_CASE("matmul") {
  constexpr Index time = 5, in = 4, out = 3;
  Random random{1};
  for (const bool transposed : {false, true}) {
    const auto weight = [&](const std::vector<double>& w) {
      return transposed ? Weight<double>(as(w, out, in)).transpose()
                        : Weight<double>(as(w, in, out));
    };
    CHECK_GRADIENT(
        {uniforms(random, time * in), uniforms(random, in * out)},
        [&](const Flats& x) {
          auto y = zeros(time * out);
          backend.matmul(as(x[0], time, in), weight(x[1]), as(y, time, out), Write::Replace);
          return y;
        },
        [&](const Flats& x, const std::vector<double>& dy) {
          auto dx = zeros(time * in), dw = zeros(in * out);
          backend.matmul(as(dy, time, out), weight(x[1]).transpose(), as(dx, time, in), Write::Add);
          if (transposed) {
            backend.matmul_gradient(as(dy, time, out), as(x[0], time, in), as(dw, out, in),
                                    Write::Replace);
          } else {
            backend.matmul_gradient(as(x[0], time, in), as(dy, time, out), as(dw, in, out),
                                    Write::Add);
          }
          return Flats{dx, dw};
        });
  }
}

TEST_CASE("rms_norm") {
  constexpr Index time = 4, width = 6;
  Random random{2};
  for (const bool scaled : {false, true}) {
    for (const Write write : {Write::Replace, Write::Add}) {
      const auto norm = [&](const Flats& x) {
        return Norm<double>{scaled ? Weight<double>(as(x[1], 1, width)) : Weight<double>(), 0.01};
      };
      CHECK_GRADIENT(
          {uniforms(random, time * width), uniforms(random, width)},
          [&](const Flats& x) {
            auto y = zeros(time * width);
            backend.rms_norm(as(x[0], time, width), norm(x), as(y, time, width), {});
            // With Add, dx holds what another way from x to the output has left there.
            if (write == Write::Add) {
              backend.add(as(y, time, width), as(x[0], time, width), as(y, time, width));
            }
            return y;
          },
          [&](const Flats& x, const std::vector<double>& dy) {
            auto y = zeros(time * width), inverse = zeros(time), dscale = zeros(width);
            auto dx = write == Write::Add ? dy : y;
            backend.rms_norm(as(x[0], time, width), norm(x), as(y, time, width),
                             as(inverse, time, 1));
            backend.rms_norm_backward(as(x[0], time, width), norm(x), as(inverse, time, 1),
                                      as(dy, time, width), as(dx, time, width), write,
                                      as(dscale, 1, width));
            return Flats{dx, scaled ? dscale : std::vector<double>()};
          });
    }
  }
}

TEST_CASE("rms_norm_backward adds to dscale") {
  constexpr Index time = 3, width = 4;
  Random random{3};
  const auto x = uniforms(random, time * width), dy = uniforms(random, time * width);
  auto y = zeros(time * width), inverse = zeros(time), dx = y;
  auto once = zeros(width), added = ones(width);
  backend.rms_norm(as(x, time, width), {{}, 0.01}, as(y, time, width), as(inverse, time, 1));
  for (auto* dscale : {&once, &added}) {
    backend.rms_norm_backward(as(x, time, width), {{}, 0.01}, as(inverse, time, 1),
                              as(dy, time, width), as(dx, time, width), Write::Replace,
                              as(*dscale, 1, width));
  }
  for (std::size_t i = 0; i < once.size(); ++i) CHECK(added[i] == doctest::Approx(once[i] + 1));
}

TEST_CASE("add_rms_norm") {
  constexpr Index time = 4, width = 6;
  Random random{4};
  const auto norm = [](const Flats& x) { return Norm<double>{as(x[2], 1, width), 0.01}; };
  CHECK_GRADIENT(
      {uniforms(random, time * width), uniforms(random, time * width), uniforms(random, width)},
      [&](const Flats& x) {
        auto y = x[0];
        backend.add_rms_norm(as(y, time, width), as(x[1], time, width), norm(x), as(y, time, width),
                             {});
        return y;
      },
      [&](const Flats& x, const std::vector<double>& dy) {
        auto y = zeros(time * width), inverse = zeros(time), dx = y, dscale = zeros(width);
        backend.add_rms_norm(as(x[0], time, width), as(x[1], time, width), norm(x),
                             as(y, time, width), as(inverse, time, 1));
        backend.rms_norm_backward(as(x[1], time, width), norm(x), as(inverse, time, 1),
                                  as(dy, time, width), as(dx, time, width), Write::Replace,
                                  as(dscale, 1, width));
        return Flats{dy, dx, dscale};
      });
}

TEST_CASE("head_norm_rope") {
  constexpr Index time = 3, heads = 2, d = 6;
  Random random{5};
  std::vector<double> angles = zeros(time * d);
  const double frequencies[] = {1.0, 0.1, 0.01};
  backend.rope_angles(7, frequencies, as(angles, time, d));
  for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
    for (const bool scaled : {false, true}) {
      for (const double eps : {0.01, -1.0}) {
        CAPTURE(static_cast<int>(layout));
        CAPTURE(scaled);
        CAPTURE(eps);
        const auto norm = [&](const Flats& x) {
          return Norm<double>{scaled ? Weight<double>(as(x[1], 1, d)) : Weight<double>(), eps};
        };
        CHECK_GRADIENT(
            {uniforms(random, time * heads * d), uniforms(random, d)},
            [&](const Flats& x) {
              auto y = zeros(time * heads * d);
              backend.head_norm_rope(as(x[0], time, heads * d), norm(x), as(angles, time, d),
                                     layout, as(y, time, heads * d), {});
              return y;
            },
            [&](const Flats& x, const std::vector<double>& dy) {
              auto y = zeros(time * heads * d), inverse = zeros(time * heads), dx = y;
              auto dscale = zeros(d);
              backend.head_norm_rope(as(x[0], time, heads * d), norm(x), as(angles, time, d),
                                     layout, as(y, time, heads * d), as(inverse, time, heads));
              backend.head_norm_rope_backward(
                  as(x[0], time, heads * d), norm(x), as(inverse, time, heads), as(angles, time, d),
                  layout, as(dy, time, heads * d), as(dx, time, heads * d), as(dscale, 1, d));
              return Flats{dx, scaled ? dscale : std::vector<double>()};
            });
      }
    }
  }
}

TEST_CASE("embed") {
  constexpr Index time = 6, width = 3, words = 4;
  const Token ids[] = {2, 0, 2, 2, 3, 0};
  Random random{10};
  CHECK_GRADIENT(
      {uniforms(random, words * width)},
      [&](const Flats& x) {
        auto out = zeros(time * width);
        backend.embed(as(x[0], words, width), ids, as(out, time, width));
        return out;
      },
      [&](const Flats&, const std::vector<double>& dout) {
        auto dtable = ones(words * width);
        backend.embed_backward(ids, as(dout, time, width), as(dtable, words, width));
        for (double& d : dtable) d -= 1;
        return Flats{dtable};
      });
}

TEST_CASE("swiglu") {
  constexpr Index time = 3, width = 5;
  Random random{6};
  CHECK_GRADIENT(
      {uniforms(random, time * width, 4), uniforms(random, time * width)},
      [](const Flats& x) {
        auto y = zeros(time * width);
        backend.swiglu(as(x[0], time, width), as(x[1], time, width), as(y, time, width));
        return y;
      },
      [](const Flats& x, const std::vector<double>& dy) {
        auto dgate = zeros(time * width), dup = dgate;
        backend.swiglu_backward(as(x[0], time, width), as(x[1], time, width), as(dy, time, width),
                                as(dgate, time, width), as(dup, time, width));
        return Flats{dgate, dup};
      });
}

TEST_CASE("chunk_conv: what it says, and its gradient") {
  constexpr Index time = 11, width = 3, taps = 5;
  Random random{16};
  const auto x = uniforms(random, time * width), w = uniforms(random, width * taps);
  for (const Index chunk : {4, 11, 20}) {
    CAPTURE(chunk);
    auto y = zeros(time * width);
    const auto weight = [&](const std::vector<double>& flat) {
      return Weight<double>(as(flat, width, taps));
    };
    backend.chunk_conv(as(x, time, width), weight(w), chunk, as(y, time, width));
    for (Index t = 0; t < time; ++t) {
      for (Index j = 0; j < width; ++j) {
        double want = 0;
        for (Index k = 0; k < taps; ++k) {
          const Index from = t + k - 2;
          if (from < t / chunk * chunk || from >= std::min(time, (t / chunk + 1) * chunk)) continue;
          want += as(w, width, taps)(j, k) * as(x, time, width)(from, j);
        }
        CHECK(as(y, time, width)(t, j) == doctest::Approx(want));
      }
    }
    CHECK_GRADIENT(
        Flats{x, w},
        [&](const Flats& in) {
          auto out = zeros(time * width);
          backend.chunk_conv(as(in[0], time, width), weight(in[1]), chunk, as(out, time, width));
          return out;
        },
        [&](const Flats& in, const std::vector<double>& dy) {
          auto dx = ones(time * width), dw = ones(width * taps);
          backend.chunk_conv_backward(as(in[0], time, width), weight(in[1]), chunk,
                                      as(dy, time, width), as(dx, time, width), Write::Add,
                                      as(dw, width, taps));
          for (double& d : dx) d -= 1;
          for (double& d : dw) d -= 1;
          return Flats{dx, dw};
        });
  }
}

/// Attention of one block. Inputs are the queries, and the keys and values that have gradients:
/// the earlier ones and the block's own.
void check_attention(const BlockInRing& block) {
  const AttentionShape& shape = block.shape;
  const Index rows = block.rows, width = block.width(), key_width = block.key_width();
  const Index own = rows * key_width, cached = block.cached() * key_width;
  CAPTURE(rows);
  CAPTURE(shape.heads);
  CAPTURE(shape.key_heads);
  CAPTURE(shape.window);
  CAPTURE(shape.position);
  CAPTURE(block.before);
  Random random{7};
  const auto old_keys = uniforms(random, block.constants() * key_width);
  const auto old_values = uniforms(random, block.constants() * key_width);
  CHECK_GRADIENT(
      {uniforms(random, rows * width), uniforms(random, cached), uniforms(random, own),
       uniforms(random, cached), uniforms(random, own)},
      [&](const Flats& x) {
        auto o = zeros(rows * width);
        const auto keys = block.ring(old_keys, x[1], x[2]);
        const auto values = block.ring(old_values, x[3], x[4]);
        backend.attention(as(x[0], rows, width), keys.cache, values.cache, shape,
                          as(o, rows, width), {});
        return o;
      },
      [&](const Flats& x, const std::vector<double>& dout) {
        // Outputs that hold something else: dq is replaced, the other two are added to.
        auto o = zeros(rows * width), lse = zeros(shape.heads * rows), dq = ones(rows * width);
        auto dkeys = ones(cached + own), dvalues = dkeys;
        const auto keys = block.ring(old_keys, x[1], x[2]);
        const auto values = block.ring(old_values, x[3], x[4]);
        backend.attention(as(x[0], rows, width), keys.cache, values.cache, shape,
                          as(o, rows, width), as(lse, shape.heads, rows));
        backend.attention_backward(as(x[0], rows, width), keys.cache, values.cache, shape,
                                   as(o, rows, width), as(lse, shape.heads, rows),
                                   as(dout, rows, width), as(dq, rows, width),
                                   as(dkeys, block.cached() + rows, key_width),
                                   as(dvalues, block.cached() + rows, key_width), block.first());
        for (auto* all : {&dkeys, &dvalues}) {
          for (double& d : *all) d -= 1;
        }
        const auto part = [&](const std::vector<double>& all, Index first, Index size) {
          return std::vector<double>(all.begin() + first, all.begin() + first + size);
        };
        return Flats{dq, part(dkeys, 0, cached), part(dkeys, cached, own), part(dvalues, 0, cached),
                     part(dvalues, cached, own)};
      });
}

TEST_CASE("attention") {
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

TEST_CASE("attention's log-sum-exp is the logarithm of the sum of exponentials") {
  constexpr Index rows = 4, d = 4;
  const AttentionShape shape{1, 1, d, 3, 0};
  Random random{8};
  const auto q = uniforms(random, rows * d), k = uniforms(random, rows * d);
  auto o = zeros(rows * d), lse = zeros(rows);
  const Cache<const double> cache{k.data(), 1, rows, d};
  backend.attention(as(q, rows, d), cache, cache, shape, as(o, rows, d), as(lse, 1, rows));
  for (Index t = 0; t < rows; ++t) {
    double sum = 0;
    for (Index j = std::max<Index>(0, t - 2); j <= t; ++j) {
      double score = 0;
      for (Index i = 0; i < d; ++i) score += as(q, rows, d)(t, i) * as(k, rows, d)(j, i);
      sum += std::exp(score / 2);
    }
    CHECK(lse[static_cast<std::size_t>(t)] == doctest::Approx(std::log(sum)));
  }
}

TEST_CASE("cross_entropy") {
  constexpr Index time = 5, width = 4, words = 7;
  Random random{9};
  const auto head = uniforms(random, width * words, 3);
  const auto targets = tokens(random, time, words);
  const std::vector<double> weights{0.5, 0, -1.5, 1, 0};
  const auto run = [&](const std::vector<double>& h, bool transposed, View<double> dh) {
    auto scratch = zeros(backend.cross_entropy_scratch(time, words)), nll = zeros(time);
    const Weight<double> w = transposed ? Weight<double>(as(head, words, width)).transpose()
                                        : Weight<double>(as(head, width, words));
    backend.cross_entropy(as(h, time, width), w, targets.data(), weights.data(), nll.data(), dh,
                          scratch.data());
    return nll;
  };
  for (const bool transposed : {false, true}) {
    // The primitive's cotangent is its weights, so the output here is the weighted sum.
    CHECK_GRADIENT(
        {uniforms(random, time * width)},
        [&](const Flats& x) {
          const auto nll = run(x[0], transposed, {});
          double sum = 0;
          for (std::size_t t = 0; t < nll.size(); ++t) sum += weights[t] * nll[t];
          return std::vector<double>{sum};
        },
        [&](const Flats& x, const std::vector<double>& dy) {
          auto dh = ones(time * width);
          run(x[0], transposed, as(dh, time, width));
          for (double& d : dh) d *= dy[0];
          return Flats{dh};
        });
  }
}

TEST_CASE("adam") {
  // From nothing, and unbiased, the first step is the rate, against the gradient's sign.
  const AdamStep first{.scale = 0.5,
                       .beta1 = 0.9,
                       .beta2 = 0.99,
                       .eps = 0,
                       .rate = 0.25,
                       .unbias1 = 1 / (1 - 0.9),
                       .unbias2 = 1 / (1 - 0.99)};
  const std::vector<double> gradient{3, -0.5};
  std::vector<double> m = zeros(2), v = m, w{1, 2};
  backend.adam(first, gradient.data(), m.data(), v.data(), w.data(), 2);
  CHECK(m[0] == doctest::Approx(0.15));
  CHECK(v[0] == doctest::Approx(0.0225));
  CHECK(w[0] == doctest::Approx(0.75));
  CHECK(w[1] == doctest::Approx(2.25));
  // Then by the formula, eps outside the root.
  AdamStep second = first;
  second.eps = 2;
  second.unbias1 = second.unbias2 = 1;
  backend.adam(second, gradient.data(), m.data(), v.data(), w.data(), 2);
  CHECK(m[0] == doctest::Approx(0.9 * 0.15 + 0.1 * 1.5));
  CHECK(v[0] == doctest::Approx(0.99 * 0.0225 + 0.01 * 2.25));
  CHECK(w[0] == doctest::Approx(0.75 - 0.25 * m[0] / (std::sqrt(v[0]) + 2)));
}

TEST_CASE("the harness notices a wrong gradient") {
  const auto square = [](const Flats& x) {
    return std::vector<double>{x[0][0] * x[0][0], x[0][1]};
  };
  const auto with_slope = [](double slope) {
    return [slope](const Flats& x, const std::vector<double>& dy) {
      return Flats{{slope * x[0][0] * dy[0], dy[1]}};
    };
  };
  const Flats at{{0.5, 2.0}};
  CHECK(check_gradient(at, square, with_slope(2)).worst <= gradient_tolerance);
  CHECK(check_gradient(at, square, with_slope(2.001)).worst > gradient_tolerance);
  CHECK_FALSE(check_gradient(at, square, with_slope(NAN)).worst <= gradient_tolerance);
  CHECK(check_gradient(at, square, [](const Flats&, const std::vector<double>&) {
          return Flats{{1.0}};
        }).worst > gradient_tolerance);
}

}  // namespace
