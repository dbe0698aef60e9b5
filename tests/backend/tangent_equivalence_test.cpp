// SPDX-License-Identifier: MIT
// Every tangent primitive of eigen::Backend against the reference in double, at sizes on both sides
// of each packet, panel and tile, between guards, on one, two and three threads.
#include <algorithm>
#include <limits>
#include <support/equivalence.hpp>
#include <support/matrix.hpp>
#include <support/primitives.hpp>
#include <support/random.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace {

using namespace ttt;
using namespace ttt::test;

TEST_CASE_TEMPLATE("rms_norm_tangent", S, float, double) {
  Random random{1};
  for_shapes([&](Index rows, Index cols) {
    for (int kind = 0; kind < 3; ++kind) {
      const auto x = Matrix<S>::input(random, rows, cols, 3);
      const auto tx = Matrix<S>::input(random, rows, cols, 1);
      const auto th = Matrix<S>::output(random, rows, cols, 5);
      const auto norm = TestNorm<S>::make(random, cols, kind, 0.1);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto x_ = x.template as<T>(), tx_ = tx.template as<T>();
        const auto norm_ = norm.template as<T>();
        auto y = Matrix<T>::output(rows, cols), inverse = Matrix<T>::output(rows, 1, 2);
        auto ty = Matrix<T>::output(rows, cols, 2), sum = ty, in_place = th.template as<T>();
        auto tinverse = Matrix<T>::output(rows, 1, 3), alone = tinverse;
        b.rms_norm(x_.view(), norm_.norm(), y.view(), inverse.view());
        b.rms_norm_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(), {}, ty.view(),
                           tinverse.view());
        b.rms_norm_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(),
                           th.template as<T>().view(), sum.view(), {});
        b.rms_norm_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(), in_place.view(),
                           in_place.view(), {});
        b.rms_norm_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(), {}, {},
                           alone.view());
        CHECK(alone.same_bits(tinverse));
        return results(std::move(ty), std::move(sum), std::move(in_place), std::move(tinverse));
      });
    }
  });
}

TEST_CASE_TEMPLATE("rms_norm_backward_tangent", S, float, double) {
  Random random{2};
  for_shapes([&](Index rows, Index cols) {
    for (int kind = 0; kind < 3; ++kind) {
      for (const Write write : {Write::Replace, Write::Add}) {
        const auto x = Matrix<S>::input(random, rows, cols, 3);
        const auto tx = Matrix<S>::input(random, rows, cols, 2);
        const auto dy = Matrix<S>::input(random, rows, cols, 1);
        const auto tdy = Matrix<S>::output(random, rows, cols, 4);
        const auto tdx = Matrix<S>::output(random, rows, cols, 2);
        const auto tdscale = Matrix<S>::output(random, 1, cols);
        const auto norm = TestNorm<S>::make(random, cols, kind, 0.1);
        check_equivalent<S>(
            [&](const auto& b) {
              using T = ScalarOf<std::decay_t<decltype(b)>>;
              const auto x_ = x.template as<T>(), tx_ = tx.template as<T>();
              const auto dy_ = dy.template as<T>(), tdy_ = tdy.template as<T>();
              const auto norm_ = norm.template as<T>();
              auto y = Matrix<T>::output(rows, cols), inverse = Matrix<T>::output(rows, 1, 2);
              auto tinverse = Matrix<T>::output(rows, 1);
              auto out = tdx.template as<T>(), again = out, in_place = tdy_;
              auto scale = tdscale.template as<T>(), scale_alone = scale;
              const auto run = [&](View<const T> tdy_view, View<T> tdx_view, View<T> scale_view) {
                b.rms_norm_backward_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(),
                                            tinverse.view(), dy_.view(), tdy_view, tdx_view, write,
                                            scale_view);
              };
              b.rms_norm(x_.view(), norm_.norm(), y.view(), inverse.view());
              b.rms_norm_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(), {}, {},
                                 tinverse.view());
              run(tdy_.view(), out.view(), scale.view());
              run(tdy_.view(), again.view(), {});
              run(tdy_.view(), {}, scale_alone.view());
              run(in_place.view(), in_place.view(), {});
              CHECK(again.same_bits(out));
              CHECK(scale_alone.same_bits(scale));
              return results(std::move(out), std::move(in_place), std::move(scale));
            },
            2);
      }
    }
  });
}

TEST_CASE_TEMPLATE("head_norm_rope_tangent and head_norm_rope_backward_tangent", S, float, double) {
  Random random{3};
  for (Index rows : {1, 2, 5, 16, 17, 64, 130}) {
    for (Index d : {2, 8, 16, 34, 64, 80, 256}) {
      if (d > most_head_dim<S>) break;
      for (Index heads : {1, 3}) {
        for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
          for (int kind = 0; kind < 3; ++kind) {
            CAPTURE(rows);
            CAPTURE(d);
            CAPTURE(heads);
            CAPTURE(static_cast<int>(layout));
            CAPTURE(kind);
            const auto x = Matrix<S>::input(random, rows, heads * d, 3);
            const auto tx = Matrix<S>::input(random, rows, heads * d, 2);
            const auto dy = Matrix<S>::input(random, rows, heads * d, 1);
            const auto tdy = Matrix<S>::output(random, rows, heads * d, 4);
            const auto angles = Matrix<S>::input(random, rows, d, 2);
            const auto tdscale = Matrix<S>::output(random, 1, d);
            const auto norm = TestNorm<S>::make(random, d, kind, 0.1);
            check_equivalent<S>(
                [&](const auto& b) {
                  using T = ScalarOf<std::decay_t<decltype(b)>>;
                  const auto x_ = x.template as<T>(), tx_ = tx.template as<T>();
                  const auto dy_ = dy.template as<T>(), tdy_ = tdy.template as<T>();
                  const auto angles_ = angles.template as<T>();
                  const auto norm_ = norm.template as<T>();
                  auto y = Matrix<T>::output(rows, heads * d, 5), ty = y, tdx = y, ty_alone = y;
                  auto tdx_alone = y, in_place = tdy_;
                  auto inverse = Matrix<T>::output(rows, heads, 2), tinverse = inverse;
                  auto tinverse_alone = inverse;
                  auto scale = tdscale.template as<T>(), scale_alone = scale;
                  b.head_norm_rope(x_.view(), norm_.norm(), angles_.view(), layout, y.view(),
                                   inverse.view());
                  const auto forward = [&](View<T> out, View<T> inverse_out) {
                    b.head_norm_rope_tangent(x_.view(), tx_.view(), norm_.norm(), inverse.view(),
                                             angles_.view(), layout, out, inverse_out);
                  };
                  const auto backward = [&](View<const T> in, View<T> out, View<T> scale_out) {
                    b.head_norm_rope_backward_tangent(
                        x_.view(), tx_.view(), norm_.norm(), inverse.view(), tinverse.view(),
                        angles_.view(), layout, dy_.view(), in, out, scale_out);
                  };
                  forward(ty.view(), tinverse.view());
                  forward(ty_alone.view(), {});
                  forward({}, tinverse_alone.view());
                  backward(tdy_.view(), tdx.view(), scale.view());
                  backward(tdy_.view(), tdx_alone.view(), {});
                  backward(tdy_.view(), {}, scale_alone.view());
                  CHECK(ty_alone.same_bits(ty));
                  CHECK(tinverse_alone.same_bits(tinverse));
                  CHECK(tdx_alone.same_bits(tdx));
                  CHECK(scale_alone.same_bits(scale));
                  return results(std::move(ty), std::move(tinverse), std::move(tdx),
                                 std::move(scale));
                },
                2);
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("swiglu_tangent and swiglu_backward_tangent", S, float, double) {
  Random random{4};
  for_shapes([&](Index rows, Index cols) {
    for (double scale : {1.0, 20.0, 1000.0}) {
      const auto gate = Matrix<S>::input(random, rows, cols, 3, scale);
      const auto tgate = Matrix<S>::input(random, rows, cols, 1);
      const auto up = Matrix<S>::input(random, rows, cols, 1);
      const auto tup = Matrix<S>::input(random, rows, cols, 4);
      const auto dout = Matrix<S>::input(random, rows, cols, 2);
      const auto tdout = Matrix<S>::input(random, rows, cols);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto gate_ = gate.template as<T>(), tgate_ = tgate.template as<T>();
        const auto up_ = up.template as<T>(), tup_ = tup.template as<T>();
        const auto dout_ = dout.template as<T>(), tdout_ = tdout.template as<T>();
        auto tout = Matrix<T>::output(rows, cols, 5), tdgate = tout, tdup = tout;
        auto tdgate_alone = tout, tdup_alone = tout;
        const auto backward = [&](View<T> gate_out, View<T> up_out) {
          b.swiglu_backward_tangent(gate_.view(), tgate_.view(), up_.view(), tup_.view(),
                                    dout_.view(), tdout_.view(), gate_out, up_out);
        };
        b.swiglu_tangent(gate_.view(), tgate_.view(), up_.view(), tup_.view(), tout.view());
        backward(tdgate.view(), tdup.view());
        backward(tdgate_alone.view(), {});
        backward({}, tdup_alone.view());
        CHECK(tdgate_alone.same_bits(tdgate));
        CHECK(tdup_alone.same_bits(tdup));
        return results(std::move(tout), std::move(tdgate), std::move(tdup));
      });
    }
  });
}

template <class S>
void check_attention(Random& random, Index rows, const AttentionShape& shape, Index spare,
                     Index before = 0, double scale = 1) {
  CAPTURE(rows);
  CAPTURE(shape.heads);
  CAPTURE(shape.key_heads);
  CAPTURE(shape.head_dim);
  CAPTURE(shape.window);
  CAPTURE(shape.position);
  CAPTURE(spare);
  CAPTURE(before);
  const AttentionTangentInputs<S> inputs(random, rows, shape, spare, before, scale);
  check_equivalent<S>([&](const auto& b) { return inputs.run(b); }, 5 * scale);
}

TEST_CASE_TEMPLATE("attention's tangents: windows, positions and rings", S, float, double) {
  Random random{5};
  constexpr Index huge = std::numeric_limits<Index>::max();
  constexpr Index heads[][2] = {{1, 1}, {4, 2}, {3, 1}, {2, 2}};
  std::size_t turn = 0;
  for (Index rows : {1, 2, 3, 5, 17, 31, 63, 64, 65, 127, 130}) {
    for (Index window : {Index{1}, Index{5}, Index{16}, Index{64}, Index{100}, huge}) {
      for (Index position : {0, 3, 127, 200, 1'000'003}) {
        if (window == huge && position > 200) continue;
        const auto& [h, k] = heads[turn % std::size(heads)];
        const Index spare = static_cast<Index>(turn % 3) * 7;
        const Index before = turn % 5 == 0 ? 1000 : static_cast<Index>(turn % 5 - 1) * 9;
        ++turn;
        check_attention<S>(random, rows, {h, k, 16, window, position}, spare, before);
      }
    }
  }
}

TEST_CASE_TEMPLATE("attention's tangents: sizes of a head", S, float, double) {
  Random random{6};
  for (Index d : {1, 2, 8, 16, 33, 64, 80, 128, 250, 256}) {
    if (d > most_head_dim<S>) break;
    for (Index rows : {1, 3, 70}) {
      check_attention<S>(random, rows, {2, 1, d, 20, 0}, 0);
      check_attention<S>(random, rows, {1, 1, d, 150, 140}, 1, 130);
    }
  }
}

TEST_CASE_TEMPLATE("attention's tangents: scores far from zero", S, float, double) {
  Random random{7};
  for (Index rows : {1, 7, 70, 130}) {
    for (Index window : {5, 100, 1000}) {
      check_attention<S>(random, rows, {2, 2, 64, window, 300}, 0, 50, 30);
    }
  }
}

TEST_CASE_TEMPLATE("attention's tangents: one output at a time", S, float, double) {
  Random random{8};
  for (Index rows : {1, 40, 70}) {
    for (Index before : {0, 9}) {
      const AttentionTangentInputs<S> inputs(random, rows, {4, 2, 16, 30, 50}, 0, before);
      check_equivalent<S>([&](const auto& b) { return inputs.run(b, true); }, 5);
    }
  }
}

TEST_CASE_TEMPLATE("attention's tangents: no gradient of any key", S, float, double) {
  Random random{9};
  AttentionTangentInputs<S> inputs(random, 70, {2, 1, 16, 30, 50}, 0);
  inputs.values.first = 50 + 70;
  check_equivalent<S>(
      [&](const auto& b) {
        auto all = inputs.run(b);
        for (std::size_t i : {3u, 4u}) {
          const auto before = (i == 3 ? inputs.values.dkeys : inputs.values.dvalues)
                                  .template as<ScalarOf<std::decay_t<decltype(b)>>>();
          CHECK(all[i].same_bits(before));
        }
        return all;
      },
      5);
}

TEST_CASE_TEMPLATE("attention's tangents: gradients of some of the block's own keys", S, float,
                   double) {
  Random random{15};
  for (Index skipped : {1, 5, 64, 69}) {
    AttentionTangentInputs<S> inputs(random, 70, {2, 1, 16, 30, 50}, 0);
    inputs.values.first += skipped;
    check_equivalent<S>([&](const auto& b) { return inputs.run(b); }, 5);
  }
}

/// tdh and tdhead. Where `alone`, each is computed without the other, too, and must be the same.
template <class S>
auto run_cross_entropy(const auto& b, const Matrix<S>& h, const Matrix<S>* th,
                       const StoredWeight<S>& head, const std::vector<Token>& targets,
                       const Matrix<S>& weights, double seed, const Matrix<S>& dhead,
                       bool alone = false) {
  using T = ScalarOf<std::decay_t<decltype(b)>>;
  const auto h_ = h.template as<T>();
  const auto th_ = (th == nullptr ? h : *th).template as<T>();
  const auto head_ = head.template as<T>();
  const auto weights_ = weights.template as<T>();
  const Index rows = h.view().rows;
  auto tdh = Matrix<T>::output(rows, h.view().cols, 3), tdh_alone = tdh;
  auto tdhead = dhead.template as<T>(), tdhead_alone = tdhead;
  auto scratch = Matrix<T>::output(1, b.cross_entropy_tangent_scratch(rows, head_.weight().cols));
  const auto run = [&](View<T> dh_out, View<T> dhead_out) {
    b.cross_entropy_tangent(h_.view(), th == nullptr ? View<const T>() : th_.view(), head_.weight(),
                            targets.data(), weights_.view().data, seed, dh_out, dhead_out,
                            scratch.view().data);
    CHECK(scratch.guarded());
  };
  run(tdh.view(), tdhead.view());
  if (alone) {
    run(tdh_alone.view(), {});
    run({}, tdhead_alone.view());
    CHECK(tdh_alone.same_bits(tdh));
    CHECK(tdhead_alone.same_bits(tdhead));
  }
  return results(std::move(tdh), std::move(tdhead));
}

TEST_CASE_TEMPLATE("cross_entropy_tangent", S, float, double) {
  Random random{10};
  const auto check = [&](Index rows, Index width, Index words, bool transposed, bool narrow,
                         double scale) {
    CAPTURE(rows);
    CAPTURE(width);
    CAPTURE(words);
    CAPTURE(transposed);
    CAPTURE(narrow);
    const auto h = Matrix<S>::input(random, rows, width, 3, scale);
    const auto th = Matrix<S>::input(random, rows, width, 2);
    const StoredWeight<S> head(random, {width, words}, transposed, narrow, 2);
    const auto targets = tokens(random, rows, words);
    auto weights = Matrix<S>::input(random, 1, rows);
    for (Index t = 0; t < rows; t += 3) weights(0, t) = 0;
    for (const bool still : {false, true}) {
      CAPTURE(still);
      for (const bool as_embedding : {transposed, !transposed}) {
        CAPTURE(as_embedding);
        const auto dhead = Matrix<S>::output(random, as_embedding ? words : width,
                                             as_embedding ? width : words, 1);
        check_equivalent<S>(
            [&](const auto& b) {
              return run_cross_entropy(b, h, still ? nullptr : &th, head, targets, weights, 0.25,
                                       dhead, rows == 17);
            },
            std::max(2.0, scale));
        if (rows > 17) break;
      }
    }
  };
  for (Index words : {1, 3, 61, 256}) {
    for (Index rows : {1, 2, 3, 17, 65, 130}) {
      for (const bool transposed : {false, true}) {
        for (const bool narrow : {false, true}) check(rows, 20, words, transposed, narrow, 1);
      }
      check(rows, 48, words, false, false, 20);
    }
  }
  // More rows than logits are held for, the last block thin or not.
  Index words = 5000, block = 0;
  while ((block = machines<S>()[0].cross_entropy_scratch(100000, words) / words) > 500) words *= 2;
  for (Index more : {1, 2, 5}) check(block + more, 6, words, more == 2, false, 1);
}

// A number that is not one must never be hidden: the caller's only sign of trouble is the score.

constexpr double bad_numbers[] = {std::numeric_limits<double>::quiet_NaN(),
                                  std::numeric_limits<double>::infinity()};

TEST_CASE_TEMPLATE("attention's tangents hide nothing", S, float, double) {
  Random random{11};
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (Index rows : {1, 2, 7, 40, 70}) {
    for (Index d : {8, 17, 64}) {
      for (int operand = 0; operand < 8; ++operand) {
        CAPTURE(rows);
        CAPTURE(d);
        CAPTURE(operand);
        AttentionTangentInputs<S> inputs(random, rows, {2, 1, d, 200, 10}, 0, 3);
        const Index t = rows / 2;
        const S bad = static_cast<S>(nan);
        if (operand == 0) inputs.values.q(t, d - 1) = bad;
        if (operand == 1) inputs.values.keys(10 + t, d / 2) = bad;
        if (operand == 2) inputs.values.values(10 + t, d / 2) = bad;
        if (operand == 3) inputs.values.dout(t, d / 2) = bad;
        if (operand == 4) inputs.tq(t, d / 2) = bad;
        if (operand == 5) inputs.tkeys(t, d / 2) = bad;
        if (operand == 6) inputs.tvalues(t, d / 2) = bad;
        if (operand == 7) inputs.tdout(t, d / 2) = bad;
        check_not_hidden<S>([&](const auto& b) {
          auto all = inputs.run(b);
          const bool values_only = operand == 2 || operand == 6;  // tlse and tdv know no values
          if (values_only) all = results(all[0], all[2], all[3]);
          const bool backward_only = operand == 3 || operand == 7;
          if (backward_only) all.erase(all.begin(), all.begin() + 2);
          return all;
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("swiglu's tangents hide nothing", S, float, double) {
  Random random{12};
  for (double bad : bad_numbers) {
    for (Index at = 0; at < 37; ++at) {
      for (std::size_t operand = 0; operand < 4; ++operand) {
        CAPTURE(bad);
        CAPTURE(at);
        CAPTURE(operand);
        std::vector<Matrix<S>> in(4, Matrix<S>::input(1, 37));
        for (auto& matrix : in) fill(random, matrix.view());
        in[operand](0, at) = static_cast<S>(bad);
        const auto dout = Matrix<S>::input(random, 1, 37), tdout = dout;
        check_not_hidden<S>([&](const auto& b) {
          using T = ScalarOf<std::decay_t<decltype(b)>>;
          const auto gate = in[0].template as<T>(), tgate = in[1].template as<T>();
          const auto up = in[2].template as<T>(), tup = in[3].template as<T>();
          auto tout = Matrix<T>::output(1, 37), tdgate = tout, tdup = tout;
          b.swiglu_tangent(gate.view(), tgate.view(), up.view(), tup.view(), tout.view());
          b.swiglu_backward_tangent(gate.view(), tgate.view(), up.view(), tup.view(),
                                    dout.template as<T>().view(), tdout.template as<T>().view(),
                                    tdgate.view(), tdup.view());
          return operand < 2 ? results(std::move(tout), std::move(tdgate), std::move(tdup))
                             : results(std::move(tout), std::move(tdgate));
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("the norms' tangents hide nothing", S, float, double) {
  Random random{13};
  constexpr Index d = 38;
  for (double bad : bad_numbers) {
    for (Index at = 0; at < d; ++at) {
      for (std::size_t operand = 0; operand < 4; ++operand) {
        CAPTURE(bad);
        CAPTURE(at);
        CAPTURE(operand);
        std::vector<Matrix<S>> in(4, Matrix<S>::input(1, d));
        for (auto& matrix : in) fill(random, matrix.view());
        in[operand](0, at) = static_cast<S>(bad);
        const auto angles = Matrix<S>::input(random, 1, d);
        check_not_hidden<S>([&](const auto& b) {
          using T = ScalarOf<std::decay_t<decltype(b)>>;
          const auto x = in[0].template as<T>(), tx = in[1].template as<T>();
          const auto dy = in[2].template as<T>(), tdy = in[3].template as<T>();
          const auto angles_ = angles.template as<T>();
          auto y = Matrix<T>::output(1, d), ty = y, tdx = y, rotated = y, tdx_rotated = y;
          auto inverse = Matrix<T>::output(1, 1), tinverse = inverse, tinverse_head = inverse;
          const Norm<T> norm{{}, 1e-6};
          b.rms_norm(x.view(), norm, y.view(), inverse.view());
          b.rms_norm_tangent(x.view(), tx.view(), norm, inverse.view(), {}, ty.view(),
                             tinverse.view());
          b.head_norm_rope_tangent(x.view(), tx.view(), norm, inverse.view(), angles_.view(),
                                   RopeLayout::Interleaved, rotated.view(), tinverse_head.view());
          b.rms_norm_backward_tangent(x.view(), tx.view(), norm, inverse.view(), tinverse.view(),
                                      dy.view(), tdy.view(), tdx.view(), Write::Replace, {});
          b.head_norm_rope_backward_tangent(x.view(), tx.view(), norm, inverse.view(),
                                            tinverse.view(), angles_.view(), RopeLayout::HalfSplit,
                                            dy.view(), tdy.view(), tdx_rotated.view(), {});
          return operand < 2
                     ? results(std::move(ty), std::move(tinverse), std::move(rotated),
                               std::move(tinverse_head), std::move(tdx), std::move(tdx_rotated))
                     : results(std::move(tdx), std::move(tdx_rotated));
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("cross_entropy_tangent hides nothing", S, float, double) {
  Random random{14};
  for (double bad : bad_numbers) {
    for (Index rows : {1, 2, 20}) {
      for (Index words : {3, 61, 256}) {
        for (int operand = 0; operand < 4; ++operand) {
          for (const bool still : {false, true}) {
            if (operand == 3 && still) continue;
            CAPTURE(rows);
            CAPTURE(words);
            CAPTURE(operand);
            CAPTURE(still);
            auto h = Matrix<S>::input(random, rows, 20), th = h;
            const StoredWeight<S> head(random, {20, words}, false, false);
            const auto targets = tokens(random, rows, words);
            const auto dhead = Matrix<S>::output(random, 20, words);
            auto weights = Matrix<S>::input(random, 1, rows);
            if (operand == 0) h(rows / 2, 3) = static_cast<S>(bad);
            if (operand == 1) weights(0, rows / 2) = static_cast<S>(bad);
            if (operand == 2) {  // one logit only
              const_cast<S*>(head.weight().template stored<S>().row(4))[words - 1] =
                  static_cast<S>(bad);
            }
            if (operand == 3) th(rows / 2, 3) = static_cast<S>(bad);
            check_not_hidden<S>([&](const auto& b) {
              return run_cross_entropy(b, h, still ? nullptr : &th, head, targets, weights, 0.25,
                                       dhead);
            });
          }
        }
      }
    }
  }
}

}  // namespace
