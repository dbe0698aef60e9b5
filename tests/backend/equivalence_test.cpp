// SPDX-License-Identifier: MIT
// Every primitive of eigen::Backend against the reference in double, at sizes on both sides of each
// packet, panel and tile, between guards, on one, two and three threads.
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <support/equivalence.hpp>
#include <support/matrix.hpp>
#include <support/primitives.hpp>
#include <support/random.hpp>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace {

using namespace ttt;
using namespace ttt::test;

TEST_CASE_TEMPLATE("matmul: every form of weight", S, float, double) {
  Random random{1};
  constexpr Index depths[] = {1, 6, 33, 64, 100, 255, 256, 300};
  std::size_t turn = 0;
  for_shapes([&](Index rows, Index cols) {
    const Index depth = depths[turn++ % std::size(depths)];
    CAPTURE(depth);
    for (const bool transposed : {false, true}) {
      for (const bool narrow : {false, true}) {
        for (const Write write : {Write::Replace, Write::Add}) {
          CAPTURE(transposed);
          CAPTURE(narrow);
          CAPTURE(static_cast<int>(write));
          const auto x = Matrix<S>::input(random, rows, depth, 3);
          const StoredWeight<S> w(random, {depth, cols}, transposed, narrow, 5);
          const auto y = Matrix<S>::output(random, rows, cols, 7);
          check_equivalent<S>(
              [&](const auto& b) {
                using T = ScalarOf<std::decay_t<decltype(b)>>;
                auto out = y.template as<T>();
                const auto weight = w.template as<T>();
                b.matmul(x.template as<T>().view(), weight.weight(), out.view(), write);
                return results(std::move(out));
              },
              2);
        }
      }
    }
  });
}

TEST_CASE_TEMPLATE("widen", S, float, double) {
  Random random{20};
  for (const bool transposed : {false, true}) {
    for (const bool narrow : {false, true}) {
      const StoredWeight<S> w(random, {7, 33}, transposed, narrow, 3);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        auto out = Matrix<T>::output(7, 33, 2), product = out;
        auto identity = Matrix<T>::output(7, 7);
        b.fill(T(0), identity.view().data, 49);
        for (Index i = 0; i < 7; ++i) identity(i, i) = 1;
        const auto weight = w.template as<T>();
        b.widen(weight.weight(), out.view());
        b.matmul(identity.view(), weight.weight(), product.view(), Write::Replace);
        CHECK(out.same_bits(product));
        return results(std::move(out));
      });
    }
  }
}

TEST_CASE_TEMPLATE("matmul_gradient", S, float, double) {
  Random random{2};
  const auto check = [&](Index time, Index in, Index out_size) {
    CAPTURE(time);
    CAPTURE(in);
    CAPTURE(out_size);
    for (const Write write : {Write::Replace, Write::Add}) {
      const auto x = Matrix<S>::input(random, time, in, 3);
      const auto dy = Matrix<S>::input(random, time, out_size, 2);
      const auto dw = Matrix<S>::output(random, in, out_size, 1);
      check_equivalent<S>(
          [&](const auto& b) {
            using T = ScalarOf<std::decay_t<decltype(b)>>;
            auto out = dw.template as<T>();
            b.matmul_gradient(x.template as<T>().view(), dy.template as<T>().view(), out.view(),
                              write);
            return results(std::move(out));
          },
          2);
    }
  };
  for (Index time : {0, 1, 2, 3, 64, 130, 256, 257}) {
    for (Index in : {1, 5, 33, 61, 257}) {
      for (Index out_size : {1, 17, 48, 100}) check(time, in, out_size);
    }
  }
}

TEST_CASE_TEMPLATE("embed", S, float, double) {
  Random random{3};
  for_shapes([&](Index rows, Index cols) {
    for (const bool narrow : {false, true}) {
      const StoredWeight<S> table(random, {50, cols}, false, narrow, 3);
      const auto ids = tokens(random, rows, 50);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        auto out = Matrix<T>::output(rows, cols, 3);
        const auto weight = table.template as<T>();
        b.embed(weight.weight(), ids.data(), out.view());
        return results(std::move(out));
      });
    }
  });
}

TEST_CASE_TEMPLATE("embed_backward: tokens that repeat add up", S, float, double) {
  Random random{22};
  for_shapes([&](Index rows, Index cols) {
    const auto dout = Matrix<S>::input(random, rows, cols, 3);
    const auto dtable = Matrix<S>::output(random, 50, cols, 2);
    const auto ids = tokens(random, rows, rows % 2 == 0 ? 50 : 4);
    check_equivalent<S>([&](const auto& b) {
      using T = ScalarOf<std::decay_t<decltype(b)>>;
      auto out = dtable.template as<T>();
      b.embed_backward(ids.data(), dout.template as<T>().view(), out.view());
      return results(std::move(out));
    });
  });
}

TEST_CASE_TEMPLATE("rms_norm, add and add_rms_norm", S, float, double) {
  Random random{4};
  for_shapes([&](Index rows, Index cols) {
    for (int kind = 0; kind < 3; ++kind) {
      const auto x = Matrix<S>::input(random, rows, cols, 3);
      const auto h = Matrix<S>::output(random, rows, cols, 5);
      const auto norm = TestNorm<S>::make(random, cols, kind);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto x_ = x.template as<T>();
        const auto norm_ = norm.template as<T>();
        auto y = Matrix<T>::output(rows, cols, 2), z = Matrix<T>::output(rows, cols, 2);
        auto inverse = Matrix<T>::output(rows, 1, 2), inverse2 = Matrix<T>::output(rows, 1);
        auto in_place = h.template as<T>(), sum = h.template as<T>();
        b.rms_norm(x_.view(), norm_.norm(), y.view(), inverse.view());
        b.add_rms_norm(h.template as<T>().view(), x_.view(), norm_.norm(), z.view(),
                       inverse2.view());
        b.add_rms_norm(in_place.view(), x_.view(), norm_.norm(), in_place.view(), {});
        b.add(sum.view(), x_.view(), sum.view());
        return results(std::move(y), std::move(z), std::move(inverse), std::move(inverse2),
                       std::move(in_place), std::move(sum));
      });
    }
  });
}

TEST_CASE_TEMPLATE("rms_norm_backward", S, float, double) {
  Random random{5};
  for_shapes([&](Index rows, Index cols) {
    for (int kind = 0; kind < 3; ++kind) {
      for (const Write write : {Write::Replace, Write::Add}) {
        const auto x = Matrix<S>::input(random, rows, cols, 3);
        const auto dy = Matrix<S>::input(random, rows, cols, 1);
        const auto dx = Matrix<S>::output(random, rows, cols, 2);
        const auto dscale = Matrix<S>::output(random, 1, cols);
        const auto norm = TestNorm<S>::make(random, cols, kind, 0.1);
        check_equivalent<S>([&](const auto& b) {
          using T = ScalarOf<std::decay_t<decltype(b)>>;
          const auto x_ = x.template as<T>(), dy_ = dy.template as<T>();
          const auto norm_ = norm.template as<T>();
          auto y = Matrix<T>::output(rows, cols), inverse = Matrix<T>::output(rows, 1, 2);
          auto dx_ = dx.template as<T>(), again = dx_;
          auto dscale_ = dscale.template as<T>();
          b.rms_norm(x_.view(), norm_.norm(), y.view(), inverse.view());
          b.rms_norm_backward(x_.view(), norm_.norm(), inverse.view(), dy_.view(), dx_.view(),
                              write, dscale_.view());
          b.rms_norm_backward(x_.view(), norm_.norm(), inverse.view(), dy_.view(), again.view(),
                              write, {});
          return results(std::move(dx_), std::move(again), std::move(dscale_));
        });
      }
    }
  });
}

TEST_CASE_TEMPLATE("rows that can be moved in packs", S, float, double) {
  Random random{23};
  for (Index rows : {1, 3, 9}) {
    for (Index cols : {8, 64, 1028, 2068}) {
      CAPTURE(rows);
      CAPTURE(cols);
      const auto x = Matrix<S>::input(random, rows, cols, 8);
      const auto u = Matrix<S>::input(random, rows, cols, 4);
      const auto dy = Matrix<S>::input(random, rows, cols, 12);
      const auto sum = Matrix<S>::output(random, rows, cols, 4);
      const auto dscale = Matrix<S>::output(random, 1, cols);
      const auto norm = TestNorm<S>::make(random, cols, 1, 0.1);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto x_ = x.template as<T>(), u_ = u.template as<T>(), dy_ = dy.template as<T>();
        const auto norm_ = norm.template as<T>();
        auto y = Matrix<T>::output(rows, cols, 4), z = y, g = y, dg = y, du = y;
        auto dx = sum.template as<T>(), added = dx;
        auto inverse = Matrix<T>::output(rows, 1, 2);
        auto dscale_ = dscale.template as<T>();
        b.rms_norm(x_.view(), norm_.norm(), y.view(), inverse.view());
        b.add_rms_norm(u_.view(), x_.view(), norm_.norm(), z.view(), {});
        b.rms_norm_backward(x_.view(), norm_.norm(), inverse.view(), dy_.view(), dx.view(),
                            Write::Add, dscale_.view());
        b.swiglu(x_.view(), u_.view(), g.view());
        b.swiglu_backward(x_.view(), u_.view(), dy_.view(), dg.view(), du.view());
        b.add(added.view(), x_.view(), added.view());
        return results(std::move(y), std::move(z), std::move(dx), std::move(dscale_), std::move(g),
                       std::move(dg), std::move(du), std::move(added));
      });
    }
  }
}

TEST_CASE_TEMPLATE("rope_angles", S, float, double) {
  for (Index position : {Index{0}, Index{17}, Index{1'000'003}}) {
    for (Index d : {2, 8, 80, 128}) {
      std::vector<double> frequencies;
      for (Index i = 0; i < d / 2; ++i) {
        frequencies.push_back(
            std::pow(500000.0, -2.0 * static_cast<double>(i) / static_cast<double>(d)));
      }
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        auto out = Matrix<T>::output(65, d, 3);
        b.rope_angles(position, frequencies.data(), out.view());
        return results(std::move(out));
      });
    }
  }
}

TEST_CASE_TEMPLATE("head_norm_rope and its gradient", S, float, double) {
  Random random{6};
  for (Index rows : {1, 2, 5, 16, 17, 64, 130}) {
    for (Index d : {2, 8, 16, 34, 64, 80}) {
      for (Index heads : {1, 3}) {
        for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
          for (int kind = 0; kind < 3; ++kind) {
            for (const double eps : {1e-5, -1.0}) {
              CAPTURE(rows);
              CAPTURE(d);
              CAPTURE(heads);
              CAPTURE(static_cast<int>(layout));
              CAPTURE(kind);
              CAPTURE(eps);
              const auto x = Matrix<S>::input(random, rows, heads * d, 3);
              const auto dy = Matrix<S>::input(random, rows, heads * d, 1);
              const auto angles = Matrix<S>::input(random, rows, d, 2);
              const auto dscale = Matrix<S>::output(random, 1, d);
              const auto norm = TestNorm<S>::make(random, d, kind, eps);
              check_equivalent<S>(
                  [&](const auto& b) {
                    using T = ScalarOf<std::decay_t<decltype(b)>>;
                    const auto x_ = x.template as<T>(), dy_ = dy.template as<T>();
                    const auto angles_ = angles.template as<T>();
                    const auto norm_ = norm.template as<T>();
                    auto y = Matrix<T>::output(rows, heads * d, 5), dx = y, again = y;
                    auto inverse = Matrix<T>::output(rows, heads, 2);
                    auto dscale_ = dscale.template as<T>();
                    b.head_norm_rope(x_.view(), norm_.norm(), angles_.view(), layout, y.view(),
                                     inverse.view());
                    b.head_norm_rope_backward(x_.view(), norm_.norm(), inverse.view(),
                                              angles_.view(), layout, dy_.view(), dx.view(),
                                              dscale_.view());
                    b.head_norm_rope_backward(x_.view(), norm_.norm(), inverse.view(),
                                              angles_.view(), layout, dy_.view(), again.view(), {});
                    return results(std::move(y), std::move(dx), std::move(again),
                                   std::move(inverse), std::move(dscale_));
                  },
                  d == 2 ? 10 : 1);  // where both channels are near zero, dx loses digits
            }
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("swiglu and its gradient", S, float, double) {
  Random random{7};
  for_shapes([&](Index rows, Index cols) {
    for (double scale : {1.0, 20.0, 1000.0}) {
      const auto gate = Matrix<S>::input(random, rows, cols, 3, scale);
      const auto up = Matrix<S>::input(random, rows, cols, 1);
      const auto dout = Matrix<S>::input(random, rows, cols, 2);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto gate_ = gate.template as<T>(), up_ = up.template as<T>();
        auto out = Matrix<T>::output(rows, cols, 5), dgate = out, dup = out;
        b.swiglu(gate_.view(), up_.view(), out.view());
        b.swiglu_backward(gate_.view(), up_.view(), dout.template as<T>().view(), dgate.view(),
                          dup.view());
        return results(std::move(out), std::move(dgate), std::move(dup));
      });
    }
  });
}

TEST_CASE_TEMPLATE("chunk_conv and its gradient", S, float, double) {
  Random random{18};
  for_shapes([&](Index rows, Index cols) {
    for (const Index chunk : {1, 4, 64, 300}) {
      const Index taps = chunk == 4 ? 3 : 5;
      CAPTURE(chunk);
      const auto x = Matrix<S>::input(random, rows, cols, 3);
      const auto dy = Matrix<S>::input(random, rows, cols, 2);
      const StoredWeight<S> w(random, {cols, taps}, chunk == 64, chunk == 300, 1);
      const auto dx = Matrix<S>::output(random, rows, cols, 1);
      const auto dw = Matrix<S>::output(random, cols, taps, 2);
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto x_ = x.template as<T>(), dy_ = dy.template as<T>();
        const auto w_ = w.template as<T>();
        auto y = Matrix<T>::output(rows, cols, 5), dx_alone = y;
        auto dx_ = dx.template as<T>();
        auto dw_ = dw.template as<T>(), dw_alone = dw_;
        b.chunk_conv(x_.view(), w_.weight(), chunk, y.view());
        b.chunk_conv_backward(x_.view(), w_.weight(), chunk, dy_.view(), dx_.view(), Write::Add,
                              dw_.view());
        b.chunk_conv_backward(x_.view(), w_.weight(), chunk, dy_.view(), dx_alone.view(),
                              Write::Replace, {});
        b.chunk_conv_backward(x_.view(), w_.weight(), chunk, dy_.view(), {}, Write::Replace,
                              dw_alone.view());
        CHECK(dw_alone.same_bits(dw_));
        return results(std::move(y), std::move(dx_), std::move(dx_alone), std::move(dw_));
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
  const AttentionInputs<S> inputs(random, rows, shape, spare, before, scale);
  check_equivalent<S>([&](const auto& b) { return inputs.run(b); }, 5 * scale);
}

TEST_CASE_TEMPLATE("attention: windows, positions and rings", S, float, double) {
  Random random{8};
  constexpr Index huge = std::numeric_limits<Index>::max();
  constexpr Index heads[][2] = {{1, 1}, {4, 2}, {3, 1}, {2, 2}};
  std::size_t turn = 0;
  for (Index rows : {1, 2, 3, 5, 17, 63, 64, 65, 127, 130}) {
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

TEST_CASE_TEMPLATE("attention: sizes of a head", S, float, double) {
  Random random{9};
  for (Index d : {1, 2, 8, 16, 33, 64, 80, 128, 250, 256}) {
    if (d > most_head_dim<S>) break;
    for (Index rows : {1, 2, 3, 70}) {
      check_attention<S>(random, rows, {2, 1, d, 20, 0}, 0);
      check_attention<S>(random, rows, {1, 1, d, 150, 140}, 1, 130);
    }
  }
}

TEST_CASE_TEMPLATE("attention: scores far from zero", S, float, double) {
  Random random{10};
  for (Index rows : {1, 2, 7, 70, 130}) {
    for (Index window : {5, 100, 1000}) {
      check_attention<S>(random, rows, {2, 2, 64, window, 300}, 0, 50, 30);
    }
  }
}

TEST_CASE_TEMPLATE("attention: gradients of some or none of the block's own keys", S, float,
                   double) {
  Random random{23};
  for (Index skipped : {1, 5, 64, 69, 70}) {
    AttentionInputs<S> inputs(random, 70, {2, 1, 16, 30, 50}, 0);
    inputs.first += skipped;
    check_equivalent<S>([&](const auto& b) { return inputs.run(b); }, 5);
  }
}

TEST_CASE_TEMPLATE("attention without log-sum-exp", S, float, double) {
  Random random{11};
  for (Index rows : {1, 40}) {
    const AttentionInputs<S> inputs(random, rows, {2, 1, 16, 30, 50}, 0);
    check_equivalent<S>([&](const auto& b) {
      using B = std::decay_t<decltype(b)>;
      using T = ScalarOf<B>;
      const auto keys = inputs.template kept<B>(inputs.keys);
      const auto values = inputs.template kept<B>(inputs.values);
      auto o = Matrix<T>::output(rows, 32, 5);
      b.attention(inputs.q.template as<T>().view(), inputs.cache(keys), inputs.cache(values),
                  inputs.shape, o.view(), {});
      return results(std::move(o));
    });
  }
}

TEST_CASE_TEMPLATE("store", S, float, double) {
  Random random{12};
  for (Index position : {0, 5, 1'000'003}) {
    const auto rows = Matrix<S>::input(random, 9, 3 * 5, 2);
    check_equivalent<S>([&](const auto& b) {
      using T = ScalarOf<std::decay_t<decltype(b)>>;
      auto ring = Matrix<T>::output(3 * 11, 5);
      b.store(rows.template as<T>().view(), {ring.view().data, 3, 11, 5}, position);
      return results(std::move(ring));
    });
  }
}

/// nll and, where `gradient`, dh.
template <class S>
auto run_cross_entropy(const auto& b, const Matrix<S>& h, const StoredWeight<S>& head,
                       const std::vector<Token>& targets, const Matrix<S>& weights, bool gradient) {
  using T = ScalarOf<std::decay_t<decltype(b)>>;
  const auto head_ = head.template as<T>();
  const auto weights_ = weights.template as<T>();
  const Index rows = h.view().rows;
  auto nll = Matrix<T>::output(1, rows), dh = Matrix<T>::output(rows, h.view().cols, 3);
  auto scratch = Matrix<T>::output(1, b.cross_entropy_scratch(rows, head_.weight().cols));
  b.cross_entropy(h.template as<T>().view(), head_.weight(), targets.data(),
                  gradient ? weights_.view().data : nullptr, nll.view().data,
                  gradient ? dh.view() : View<T>(), scratch.view().data);
  CHECK(scratch.guarded());
  return results(std::move(nll), std::move(dh));
}

TEST_CASE_TEMPLATE("cross_entropy", S, float, double) {
  Random random{13};
  const auto check = [&](Index rows, Index width, Index words, bool transposed, bool narrow,
                         double scale) {
    CAPTURE(rows);
    CAPTURE(width);
    CAPTURE(words);
    CAPTURE(transposed);
    CAPTURE(narrow);
    const auto h = Matrix<S>::input(random, rows, width, 3, scale);
    const StoredWeight<S> head(random, {width, words}, transposed, narrow, 2);
    const auto targets = tokens(random, rows, words);
    auto weights = Matrix<S>::input(random, 1, rows);
    for (Index t = 0; t < rows; t += 3) weights(0, t) = 0;
    for (const bool gradient : {false, true}) {
      check_equivalent<S>(
          [&](const auto& b) { return run_cross_entropy(b, h, head, targets, weights, gradient); },
          std::max(2.0, scale));
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

TEST_CASE_TEMPLATE("flat vectors", S, float, double) {
  Random random{14};
  for (Index size : {0, 1, 7, 16, 1000, 16384, 16385, 100003, 1'100'000}) {
    CAPTURE(size);
    const auto x = Matrix<S>::input(random, 1, size);
    const auto y = Matrix<S>::output(random, 1, size);
    for (double b_factor : {0.0, 1.0, 0.9}) {
      check_equivalent<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto x_ = x.template as<T>();
        auto out = y.template as<T>();
        b.axpby(-0.3, x_.view().data, b_factor, out.view().data, size);
        return results(std::move(out));
      });
    }
    for (const auto* other : {&x, &y}) {
      const auto x_ = x.template as<double>(), other_ = other->template as<double>();
      const reference::Backend<double> reference;
      const double want = reference.dot(x_.view().data, other_.view().data, size);
      const double squares = reference.dot(x_.view().data, x_.view().data, size);
      const double got = machines<S>()[0].dot(x.view().data, other->view().data, size);
      CHECK(std::abs(got - want) <= 10 * Tolerance<S>::relative * squares);
      CHECK(got == machines<S>()[1].dot(x.view().data, other->view().data, size));
      CHECK(got == machines<S>()[2].dot(x.view().data, other->view().data, size));
    }
    auto second = Matrix<S>::output(random, 1, size);
    for (Index i = 0; i < size; ++i) second(0, i) *= second(0, i);
    check_equivalent<S>([&](const auto& b) {
      using T = ScalarOf<std::decay_t<decltype(b)>>;
      const AdamStep step{.scale = 0.5,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-4,
                          .rate = 0.1,
                          .unbias1 = 1 / (1 - 0.9 * 0.9),
                          .unbias2 = 1 / (1 - 0.95 * 0.95)};
      const auto x_ = x.template as<T>();
      auto m = y.template as<T>(), v = second.template as<T>(), weights = m;
      b.adam(step, x_.view().data, m.view().data, v.view().data, weights.view().data, size);
      return results(std::move(m), std::move(v), std::move(weights));
    });
  }
}

TEST_CASE("threads may share a backend: each gets the bits it would get alone") {
  Random random{21};
  const AttentionInputs<float> inputs(random, 70, {4, 2, 16, 50, 60}, 0);
  const eigen::Backend<float> backend(2);
  const auto alone = inputs.run(backend);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int turn = 0; turn < 10; ++turn) {
        const auto all = inputs.run(backend);
        for (std::size_t k = 0; k < all.size(); ++k) wrong += !all[k].same_bits(alone[k]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

// A number that is not one must never be hidden: the caller's only sign of trouble is the score.

constexpr double bad_numbers[] = {std::numeric_limits<double>::quiet_NaN(),
                                  std::numeric_limits<double>::infinity()};

TEST_CASE_TEMPLATE("attention hides nothing", S, float, double) {
  Random random{15};
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (Index rows : {1, 2, 7, 40, 70}) {
    for (Index d : {8, 17, 64}) {
      for (int operand = 0; operand < 4; ++operand) {
        CAPTURE(rows);
        CAPTURE(d);
        CAPTURE(operand);
        AttentionInputs<S> inputs(random, rows, {2, 1, d, 200, 10}, 0);
        const Index t = rows / 2;
        if (operand == 0) inputs.q(t, d - 1) = static_cast<S>(nan);
        if (operand == 1) inputs.keys(10 + t, d / 2) = static_cast<S>(nan);
        if (operand == 2) inputs.values(10 + t, d / 2) = static_cast<S>(nan);
        if (operand == 3) inputs.dout(t, d / 2) = static_cast<S>(nan);
        check_not_hidden<S>([&](const auto& b) {
          auto all = inputs.run(b);
          if (operand == 2) all = results(all[0], all[2], all[3]);  // lse and dv know no values
          if (operand == 3) all.erase(all.begin(), all.begin() + 2);
          return all;
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("swiglu hides nothing", S, float, double) {
  Random random{16};
  for (double bad : bad_numbers) {
    for (Index at = 0; at < 37; ++at) {
      for (int operand = 0; operand < 2; ++operand) {
        auto gate = Matrix<S>::input(random, 1, 37), up = Matrix<S>::input(random, 1, 37);
        (operand == 0 ? gate : up)(0, at) = static_cast<S>(bad);
        const auto dout = Matrix<S>::input(random, 1, 37);
        check_not_hidden<S>([&](const auto& b) {
          using T = ScalarOf<std::decay_t<decltype(b)>>;
          const auto gate_ = gate.template as<T>(), up_ = up.template as<T>();
          auto out = Matrix<T>::output(1, 37), dgate = out, dup = out;
          b.swiglu(gate_.view(), up_.view(), out.view());
          b.swiglu_backward(gate_.view(), up_.view(), dout.template as<T>().view(), dgate.view(),
                            dup.view());
          return operand == 0 ? results(std::move(out), std::move(dgate), std::move(dup))
                              : results(std::move(out), std::move(dgate));
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("next_token", S, float, double) {
  Random random{18};
  const auto run = [](const Matrix<S>& logits) {
    return [&logits](const auto& b) {
      using T = ScalarOf<std::decay_t<decltype(b)>>;
      const Index rows = logits.view().rows;
      auto out = Matrix<T>::output(rows, 2, 2), at = Matrix<T>::output(rows, 1, 0);
      std::vector<NextToken<T>> next(static_cast<std::size_t>(rows));
      b.next_token(logits.template as<T>().view(), next.data());
      for (Index t = 0; t < rows; ++t) {
        const NextToken<T>& row = next[static_cast<std::size_t>(t)];
        out(t, 0) = row.log_sum;
        out(t, 1) = row.most;
        at(t, 0) = std::isfinite(row.log_sum) ? T(row.likeliest) : row.log_sum;
      }
      return results(std::move(out), std::move(at));
    };
  };
  for (Index words : {1, 3, 61, 256, 5000, 70001}) {
    for (double scale : {1.0, 20.0}) {
      CAPTURE(words);
      auto logits = Matrix<S>::input(random, 3, words, 3, scale);
      check_equivalent<S>(run(logits));
      for (Index j : {words - 1, words / 2, words / 3}) {  // the first of several
        for (Index t = 0; t < 3; ++t) logits(t, j) = static_cast<S>(100);
        check_equivalent<S>(run(logits));
      }
      for (double bad : bad_numbers) {
        logits(1, words / 2) = static_cast<S>(bad);
        check_not_hidden<S>(run(logits));
      }
    }
  }
}

TEST_CASE_TEMPLATE("cross_entropy hides nothing", S, float, double) {
  Random random{17};
  for (double bad : bad_numbers) {
    for (Index rows : {1, 2, 20}) {
      for (Index words : {3, 61, 256}) {
        for (int operand = 0; operand < 3; ++operand) {
          CAPTURE(rows);
          CAPTURE(words);
          CAPTURE(operand);
          auto h = Matrix<S>::input(random, rows, 20);
          const StoredWeight<S> head(random, {20, words}, false, false);
          const auto targets = tokens(random, rows, words);
          auto weights = Matrix<S>::input(random, 1, rows);
          if (operand == 0) h(rows / 2, 3) = static_cast<S>(bad);
          if (operand == 1) weights(0, rows / 2) = static_cast<S>(bad);
          if (operand == 2) {  // one logit only
            const_cast<S*>(head.weight().template stored<S>().row(4))[words - 1] =
                static_cast<S>(bad);
          }
          check_not_hidden<S>([&](const auto& b) {
            auto all = run_cross_entropy(b, h, head, targets, weights, true);
            if (operand == 1) all.erase(all.begin());
            return all;
          });
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("norms and flat vectors hide nothing", S, float, double) {
  Random random{18};
  for (double bad : bad_numbers) {
    for (Index at = 0; at < 37; ++at) {
      auto x = Matrix<S>::input(random, 1, 37);
      x(0, at) = static_cast<S>(bad);
      const auto dy = Matrix<S>::input(random, 1, 37);
      check_not_hidden<S>([&](const auto& b) {
        using T = ScalarOf<std::decay_t<decltype(b)>>;
        const auto x_ = x.template as<T>();
        auto y = Matrix<T>::output(1, 37), dx = y, inverse = Matrix<T>::output(1, 1);
        auto sum = Matrix<T>::output(1, 1);
        b.rms_norm(x_.view(), {{}, 1e-6}, y.view(), inverse.view());
        b.rms_norm_backward(x_.view(), {{}, 1e-6}, inverse.view(), dy.template as<T>().view(),
                            dx.view(), Write::Replace, {});
        sum(0, 0) = static_cast<T>(b.dot(dy.template as<T>().view().data, x_.view().data, 37));
        auto m = dx.template as<T>(), v = m, weights = m, table = m;
        for (auto* all : {&m, &v, &weights, &table}) b.fill(T(1), all->view().data, 37);
        b.adam({.scale = 1, .beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8, .rate = 0.1}, x_.view().data,
               m.view().data, v.view().data, weights.view().data, 37);
        const Token id = 0;
        b.embed_backward(&id, x_.view(), table.view());
        return results(std::move(y), std::move(dx), std::move(sum), std::move(m), std::move(v),
                       std::move(weights), std::move(table));
      });
    }
  }
}

}  // namespace
