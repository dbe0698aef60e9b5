// SPDX-License-Identifier: MIT
// Rows that lie as the fast kernels can move them, and copies in bfloat16 beside them.
#include <cmath>
#include <support/equivalence.hpp>
#include <support/primitives.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/cuda/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;
const reference::Backend<double> exact;

/// Heads of every size that lies in eights, few and many, and both layouts, with and without norms.
template <class Check>
void for_heads(const Check& check) {
  for (Index d : {8, 24, 64, 80, 96, 128}) {
    for (Index heads : {1, 3, 6, 10}) {
      for (Index rows : {1, 5, 33}) {
        for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
          for (const double eps : {1e-5, -1.0}) {
            CAPTURE(d);
            CAPTURE(heads);
            CAPTURE(rows);
            CAPTURE(static_cast<int>(layout));
            CAPTURE(eps);
            check(d, heads, rows, layout, eps);
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("queries and keys turned and kept at once are those turned and kept apart") {
  Random random{1};
  const Fast gpu;
  for_heads([&](Index d, Index heads, Index rows, RopeLayout layout, double eps) {
    for (const Index key_heads : {heads, (heads + 1) / 2}) {
      const Index slots = 40, position = 3 * slots - 2;
      const auto q = Matrix<float>::input(random, rows, heads * d, 4);
      const auto k = Matrix<float>::input(random, rows, key_heads * d, 8);
      const auto v = Matrix<float>::input(random, rows, key_heads * d, 0);
      const auto angles = Matrix<float>::input(random, rows, d, 4);
      const auto q_norm = TestNorm<float>::make(random, d, 1, eps);
      const auto k_norm = TestNorm<float>::make(random, d, 2, eps);
      auto y = Matrix<float>::output(rows, heads * d, 4);
      auto of_q = Matrix<float>::output(rows, heads, 1);
      auto of_k = Matrix<float>::output(rows, key_heads, 1);
      std::vector<bfloat16> keys(static_cast<std::size_t>(key_heads * slots * d), bfloat16(7.0f));
      auto values = keys;
      const Cache<bfloat16> key_cache{keys.data(), key_heads, slots, d};
      const Cache<bfloat16> value_cache{values.data(), key_heads, slots, d};
      {
        StagedCall<Fast> call(gpu);
        CHECK(gpu.rotate_and_store(call(q.view()), call(k.view()), call(v.view()),
                                   call(q_norm.norm()), call(k_norm.norm()), call(angles.view()),
                                   layout, call(y.view()), call(of_q.view()), call(of_k.view()),
                                   call(key_cache), call(value_cache), position));
      }
      auto want = y.as<double>(), of_q_ = of_q.as<double>(), of_k_ = of_k.as<double>();
      auto rotated = Matrix<double>::output(rows, key_heads * d, 0);
      const auto angles_ = angles.as<double>();
      exact.head_norm_rope(q.as<double>().view(), q_norm.as<double>().norm(), angles_.view(),
                           layout, want.view(), of_q_.view());
      exact.head_norm_rope(k.as<double>().view(), k_norm.as<double>().norm(), angles_.view(),
                           layout, rotated.view(), of_k_.view());
      CHECK(relative_error<float>(y.view(), want.view()) <= 2e-5);
      CHECK(y.guarded());
      if (eps >= 0) {
        CHECK(relative_error<float>(of_q.view(), of_q_.view()) <= 2e-5);
        CHECK(relative_error<float>(of_k.view(), of_k_.view()) <= 2e-5);
      }
      bool near = true, untouched = true;
      std::vector<bool> is_kept(static_cast<std::size_t>(slots));
      for (Index t = 0; t < rows; ++t) {
        is_kept[static_cast<std::size_t>((position + t) % slots)] = true;
        for (Index j = 0; j < key_heads * d; ++j) {
          const Index h = j / d;
          const auto key = static_cast<double>(float(key_cache.at(h, position + t)[j % d]));
          const float value = float(value_cache.at(h, position + t)[j % d]);
          const double error = std::abs(key - rotated(t, j));
          near = near && error <= 0.0041 * std::abs(rotated(t, j)) + 1e-5;
          near = near && value == float(bfloat16(v(t, j)));
        }
      }
      for (Index slot = 0; slot < slots; ++slot) {
        if (is_kept[static_cast<std::size_t>(slot)]) continue;
        for (Index h = 0; h < key_heads; ++h) {
          untouched = untouched && float(key_cache.at(h, slot)[0]) == 7.0f;
          untouched = untouched && float(value_cache.at(h, slot)[d - 1]) == 7.0f;
        }
      }
      CHECK(near);
      CHECK(untouched);
    }
  });
}

TEST_CASE("heads that lie in fours have the gradients of others") {
  Random random{2};
  const Fast gpu;
  for_heads([&](Index d, Index heads, Index rows, RopeLayout layout, double eps) {
    const auto x = Matrix<float>::input(random, rows, heads * d, 4);
    const auto tx = Matrix<float>::input(random, rows, heads * d, 8);
    const auto dy = Matrix<float>::input(random, rows, heads * d, 0);
    const auto tdy = Matrix<float>::input(random, rows, heads * d, 4);
    const auto angles = Matrix<float>::input(random, rows, d, 4);
    const auto inverse = Matrix<float>::input(random, rows, heads, 1);
    const auto tinverse = Matrix<float>::input(random, rows, heads, 2);
    const auto norm = TestNorm<float>::make(random, d, 1, eps);
    auto dx = Matrix<float>::output(rows, heads * d, 4), tdx = dx;
    auto want = dx.as<double>(), twant = want;
    {
      StagedCall<Fast> call(gpu);
      const auto norm_ = call(norm.norm());
      gpu.head_norm_rope_backward(call(x.view()), norm_, call(inverse.view()), call(angles.view()),
                                  layout, call(dy.view()), call(dx.view()), {});
      gpu.head_norm_rope_backward_tangent(
          call(x.view()), call(tx.view()), norm_, call(inverse.view()), call(tinverse.view()),
          call(angles.view()), layout, call(dy.view()), call(tdy.view()), call(tdx.view()), {});
    }
    const auto x_ = x.as<double>(), dy_ = dy.as<double>(), inverse_ = inverse.as<double>();
    const auto norm_ = norm.as<double>();
    exact.head_norm_rope_backward(x_.view(), norm_.norm(), inverse_.view(),
                                  angles.as<double>().view(), layout, dy_.view(), want.view(), {});
    exact.head_norm_rope_backward_tangent(x_.view(), tx.as<double>().view(), norm_.norm(),
                                          inverse_.view(), tinverse.as<double>().view(),
                                          angles.as<double>().view(), layout, dy_.view(),
                                          tdy.as<double>().view(), twant.view(), {});
    CHECK(relative_error<float>(dx.view(), want.view()) <= 2e-5);
    CHECK(relative_error<float>(tdx.view(), twant.view()) <= 2e-5);
    CHECK(dx.guarded());
    CHECK(tdx.guarded());
  });
}

TEST_CASE("gradients of scales over many rows are sums of what every block has of them") {
  Random random{4};
  const Fast gpu;
  struct Rows {
    Index rows, width, d;
  };
  for (const auto& [rows, width, d] :
       {Rows{1, 64, 64}, {265, 640, 80}, {700, 72, 8}, {1100, 2560, 128}, {300, 4096, 64}}) {
    for (const Write write : {Write::Replace, Write::Add}) {
      CAPTURE(rows);
      CAPTURE(width);
      CAPTURE(d);
      CAPTURE(static_cast<int>(write));
      const Index heads = width / d;
      const auto in = [&](Index n, Index m) { return Matrix<float>::input(random, n, m, 4); };
      const auto x = in(rows, width), tx = in(rows, width), dy = in(rows, width),
                 tdy = in(rows, width), angles = in(rows, d);
      const auto inverse = in(rows, 1), tinverse = in(rows, 1);
      const auto of_heads = in(rows, heads), tof_heads = in(rows, heads);
      const auto norm = TestNorm<float>::make(random, width, 1, 1e-5);
      const auto head_norm = TestNorm<float>::make(random, d, 2, 1e-5);
      const auto run = [&](const auto& backend, auto&& call, const auto& as) {
        using S = typename std::decay_t<decltype(backend)>::Scalar;
        std::vector<Matrix<S>> out;
        for (int i = 0; i < 4; ++i) out.push_back(as(Matrix<float>::input(random, rows, width, 8)));
        for (int i = 0; i < 2; ++i) out.push_back(as(Matrix<float>::input(random, 1, width, 0)));
        for (int i = 0; i < 2; ++i) out.push_back(as(Matrix<float>::input(random, 1, d, 0)));
        const auto x_ = as(x), tx_ = as(tx), dy_ = as(dy), tdy_ = as(tdy), angles_ = as(angles),
                   inverse_ = as(inverse), tinverse_ = as(tinverse), of_heads_ = as(of_heads),
                   tof_heads_ = as(tof_heads);
        const auto norm_ = as(norm), head_norm_ = as(head_norm);
        const auto layout = RopeLayout::HalfSplit;
        call([&](auto& to) {
          backend.rms_norm_backward(to(x_.view()), to(norm_.norm()), to(inverse_.view()),
                                    to(dy_.view()), to(out[0].view()), write, to(out[4].view()));
          backend.rms_norm_backward_tangent(to(x_.view()), to(tx_.view()), to(norm_.norm()),
                                            to(inverse_.view()), to(tinverse_.view()),
                                            to(dy_.view()), to(tdy_.view()), to(out[1].view()),
                                            write, to(out[5].view()));
          backend.head_norm_rope_backward(to(x_.view()), to(head_norm_.norm()),
                                          to(of_heads_.view()), to(angles_.view()), layout,
                                          to(dy_.view()), to(out[2].view()), to(out[6].view()));
          backend.head_norm_rope_backward_tangent(
              to(x_.view()), to(tx_.view()), to(head_norm_.norm()), to(of_heads_.view()),
              to(tof_heads_.view()), to(angles_.view()), layout, to(dy_.view()), to(tdy_.view()),
              to(out[3].view()), to(out[7].view()));
        });
        return out;
      };
      const Random same = random;
      const auto got = run(
          gpu,
          [&](const auto& f) {
            StagedCall<Fast> call(gpu);
            f(call);
          },
          [](const auto& m) { return m; });
      random = same;
      const auto want = run(
          exact,
          [](const auto& f) {
            const auto as_it_is = [](const auto& v) { return v; };
            f(as_it_is);
          },
          [](const auto& m) { return m.template as<double>(); });
      for (std::size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(relative_error<float>(got[i].view(), want[i].view()) <= 5e-5);
        CHECK(got[i].guarded());
      }
    }
  }
}

TEST_CASE("products of what kernels left rounded are the products of it") {
  Random random{3};
  const Index rows = 70, heads = 2;
  for (const Index d : {16, 64, 80}) {
    CAPTURE(d);
    const Index width = heads * d;
    std::vector<Matrix<float>> in;
    for (int i = 0; i < 4; ++i) in.push_back(Matrix<float>::input(random, rows, width, 4));
    const auto angles = Matrix<float>::input(random, rows, d, 0);
    const auto norm = TestNorm<float>::make(random, width, 1);
    const auto head_norm = TestNorm<float>::make(random, d, 1);
    const auto scales = Matrix<float>::output(random, 1, d, 0);
    const StoredWeight<float> w(random, {width, 24}, false, true);
    const std::vector<bfloat16> keys(static_cast<std::size_t>(width * rows), bfloat16(0.5f));
    const AttentionShape shape{heads, heads, d, rows, 0};
    // Every kernel writes `a`, or `a` and `b`, over what it wrote before, and products read both.
    const auto run = [&](bool remember) {
      const Fast gpu;
      if (!remember) static_cast<void>(gpu.stream());
      std::vector<Matrix<float>> y;
      for (int i = 0; i < 20; ++i) y.push_back(Matrix<float>::output(rows, 24));
      auto a = in[0], b = in[1], inverse = Matrix<float>::output(rows, 1, 0);
      auto of_heads = in[2], dscales = scales;
      auto lse = Matrix<float>::output(heads, rows, 0);
      {
        StagedCall<Fast> call(gpu);
        const auto x0 = call(in[0].view()), x1 = call(in[1].view()), x2 = call(in[2].view()),
                   x3 = call(in[3].view());
        const auto weight = call(w.weight());
        const auto a_ = call(a.view()), b_ = call(b.view());
        const auto inverse_ = call(inverse.view());
        const auto of_heads_ = call(of_heads.view()).cols_at(0, heads);
        const auto norm_ = call(norm.norm()), head_norm_ = call(head_norm.norm());
        const auto angles_ = call(angles.view());
        const auto lse_ = call(lse.view());
        const auto dscales_ = call(dscales.view());
        const Cache<const bfloat16> cache{call.in(keys.data(), width * rows), heads, rows, d};
        std::vector<View<float>> to;
        for (auto& each : y) to.push_back(call(each.view()));
        std::size_t next = 0;
        const auto products = [&] {
          gpu.matmul(b_, weight, to[next++], Write::Replace);
          gpu.matmul(a_, weight, to[next++], Write::Replace);
        };
        gpu.swiglu_backward(x1, x0, x2, a_, b_);  // first, so that there is room for two copies
        products();
        gpu.swiglu(x0, x1, a_);
        gpu.rms_norm(x0, norm_, b_, inverse_);
        products();
        gpu.rms_norm_backward(x1, norm_, inverse_, x2, a_, Write::Add, {});
        products();
        gpu.rms_norm_backward(x3, norm_, inverse_, x2, b_, Write::Replace, {});
        products();
        gpu.swiglu_backward(x0, x1, x2, b_, a_);
        products();
        gpu.head_norm_rope_backward(x0, head_norm_, of_heads_, angles_, RopeLayout::Interleaved, x1,
                                    b_, {});
        gpu.head_norm_rope_backward(x2, head_norm_, of_heads_, angles_, RopeLayout::HalfSplit, x3,
                                    a_, dscales_);
        products();
        gpu.attention(x0, cache, cache, shape, b_, lse_);
        products();
        // A part of a matrix of which there is a copy.
        gpu.swiglu(x2.rows_at(3, 9), x3.rows_at(3, 9), a_.rows_at(7, 9));
        products();
        CHECK(next <= to.size());
      }
      y.insert(y.end(), {a, b, dscales});
      return y;
    };
    const auto got = run(true), want = run(false);
    for (std::size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      CHECK(got[i].same_bits(want[i]));
    }
  }
}
