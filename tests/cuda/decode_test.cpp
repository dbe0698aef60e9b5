// SPDX-License-Identifier: MIT
// What a step of few rows puts off until what follows does it on the way.
#include <array>
#include <support/equivalence.hpp>
#include <support/primitives.hpp>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/cuda/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;

/// The end of a sub-layer and the products that the next one begins with. Everything that is left
/// in memory; `apart` waits after each.
struct Seam {
  Matrix<float> in, h, out, inverse, narrow, wide;
  StoredWeight<float> w, w1, w2, w3;
  TestNorm<float> norm, next;
  bool has_norm, in_place, is_gated;

  std::vector<Matrix<float>> run(const Fast& gpu, bool apart) const {
    auto product = out, h_ = h, out_ = out, y = out, of_sum = inverse, of_y = inverse;
    auto a = wide, b = wide, c = is_gated ? wide : narrow;
    {
      StagedCall<Fast> call(gpu);
      const View<const float> x = call(in.view());
      const std::array<Weight<float>, 3> weights{call(w1.weight()), call(w2.weight()),
                                                 call(w3.weight())};
      const auto weight = call(w.weight());
      const auto first = call(h_.view()), made = call(product.view()), result = call(y.view());
      const auto to = in_place ? first : call(out_.view());
      const auto inverse_ = call(of_sum.view()), last = call(of_y.view());
      const auto post = call(norm.norm()), pre = call(next.norm());
      const std::array<View<float>, 3> to_products{call(a.view()), call(b.view()), call(c.view())};
      const auto wait = [&] {
        if (apart) gpu.synchronize();
      };
      gpu.matmul(x, weight, made, Write::Replace);
      wait();
      if (has_norm) {
        gpu.add_rms_norm(first, made, post, to, inverse_);
      } else {
        gpu.add(first, made, to);
      }
      wait();
      gpu.rms_norm(to, pre, result, last);
      wait();
      if (is_gated) {
        CHECK(gpu.gated(result, weights[0], weights[1], to_products[0], to_products[1],
                        to_products[2]));
      } else {
        CHECK(gpu.matmul_each(View<const float>(result), weights, to_products));
      }
    }
    return results(product, h_, out_, y, of_sum, of_y, a, b, c);
  }
};

}  // namespace

TEST_CASE("products make the sum and the norm that they read, to the bit") {
  Random random{1};
  const Fast gpu;
  for (const Index rows : {1, 2}) {
    for (const Index width : {8, 100, 768, 2560, 4096, 4104}) {
      for (const bool transposed : {false, true}) {
        for (const bool narrow : {false, true}) {
          for (int which = 0; which < 8; ++which) {
            if (width > 768 && (rows == 2 || narrow == transposed)) continue;
            CAPTURE(rows);
            CAPTURE(width);
            CAPTURE(transposed);
            CAPTURE(narrow);
            CAPTURE(which);
            const auto stored = [&](Index in, Index out) {
              return StoredWeight<float>(random, {in, out}, transposed, narrow, 0);
            };
            const bool is_gated = (which & 4) != 0;
            const Seam seam{.in = Matrix<float>::input(random, rows, 40),
                            .h = Matrix<float>::output(random, rows, width, 4),
                            .out = Matrix<float>::output(rows, width, 4),
                            .inverse = Matrix<float>::output(rows, 1, 2),
                            .narrow = Matrix<float>::output(rows, 24, 0),
                            .wide = Matrix<float>::output(rows, 72, 3),
                            .w = stored(40, width),
                            .w1 = stored(width, 72),
                            .w2 = stored(width, 72),
                            .w3 = stored(width, 24),
                            .norm = TestNorm<float>::make(random, width, 1),
                            .next = TestNorm<float>::make(random, width, which & 3),
                            .has_norm = (which & 1) != 0,
                            .in_place = (which & 2) != 0,
                            .is_gated = is_gated};
            CHECK(same_bits(seam.run(gpu, false), seam.run(gpu, true)));
          }
        }
      }
    }
  }
}

TEST_CASE("blocks that share the depth of large weights make the sum and the norm, too") {
  Random random{11};
  const Fast gpu;
  const reference::Backend<double> exact;
  const Index rows = 2, width = 2560;
  for (const bool is_gated : {false, true}) {
    for (const bool narrow : {false, true}) {
      CAPTURE(is_gated);
      CAPTURE(narrow);
      const auto stored = [&](Index in, Index out) {
        return StoredWeight<float>(random, {in, out}, false, narrow, 0);
      };
      const Seam seam{.in = Matrix<float>::input(random, rows, 40),
                      .h = Matrix<float>::output(random, rows, width, 4),
                      .out = Matrix<float>::output(rows, width, 4),
                      .inverse = Matrix<float>::output(rows, 1, 2),
                      .narrow = Matrix<float>::output(rows, 24, 0),
                      .wide = Matrix<float>::output(rows, 1640, 3),
                      .w = stored(40, width),
                      .w1 = stored(width, 1640),
                      .w2 = stored(width, 1640),
                      .w3 = stored(width, 24),
                      .norm = TestNorm<float>::make(random, width, 1),
                      .next = TestNorm<float>::make(random, width, 0),
                      .has_norm = true,
                      .in_place = true,
                      .is_gated = is_gated};
      const auto got = seam.run(gpu, false);
      CHECK(same_bits(got, seam.run(gpu, true)));
      const auto y = got[3].as<double>();
      for (const auto& [result, w] : {std::pair{&got[6], &seam.w1}, {&got[7], &seam.w2}}) {
        auto want = result->as<double>();
        exact.matmul(y.view(), w->as<double>().weight(), want.view(), Write::Replace);
        CHECK(relative_error<float>(result->view(), want.view()) <= 2e-5);
        CHECK(result->guarded());
      }
    }
  }
}

TEST_CASE("products that are written where a sum is read wait for it") {
  Random random{2};
  const Fast gpu;
  const Index rows = 2, width = 32;
  const auto x = Matrix<float>::input(random, rows, width), h = x;
  const StoredWeight<float> w(random, {width, width}, false, true);
  const auto norm = TestNorm<float>::make(random, width, 1);
  const auto run = [&](bool apart) {
    StagedCall<Fast> call(gpu);
    const auto weight = call(w.weight());
    const auto scale = call(norm.norm());
    const Index size = rows * width;
    auto memory = gpu.allocate<float>(5 * size);
    gpu.fill(0.0f, memory.data(), 5 * size);
    const auto part = [&](Index i) { return View<float>(memory.data() + i * size, rows, width); };
    gpu.to_device(x.view().data, part(0).data, size);
    gpu.to_device(h.view().data, part(1).data, size);
    const auto wait = [&] {
      if (apart) gpu.synchronize();
    };
    gpu.matmul(part(0), weight, part(2), Write::Replace);
    gpu.add(part(1), part(2), part(3));
    wait();
    gpu.rms_norm(part(3), scale, part(4), {});
    wait();
    // Over the residual stream's old value and over the first product.
    CHECK(gpu.matmul_each(View<const float>(part(4)), std::array{weight, weight},
                          std::array{part(1), part(2)}));
    wait();
    gpu.matmul(part(4), weight, part(0), Write::Replace);
    return on_host(gpu, memory.data(), 5 * size);
  };
  CHECK(run(false) == run(true));
}

TEST_CASE("attention turns and stores what it reads") {
  Random random{3};
  const Fast gpu;
  constexpr Index slots = 288, window = 260;
  for (const Index d : {8, 24, 64, 80, 96, 128}) {
    for (const Index heads : {3, 6}) {
      const Index key_heads = heads == 3 ? 3 : 2;
      for (const Index position : {0, 1, 63, 64, 200, 258, 400, 287, 288, 5000}) {
        for (const bool has_norm : {false, true}) {
          const auto layout = position % 2 == 0 ? RopeLayout::HalfSplit : RopeLayout::Interleaved;
          CAPTURE(d);
          CAPTURE(heads);
          CAPTURE(position);
          CAPTURE(has_norm);
          const auto q = Matrix<float>::input(random, 1, heads * d);
          const auto k = Matrix<float>::input(random, 1, key_heads * d);
          const auto v = Matrix<float>::input(random, 1, key_heads * d);
          const auto angles = Matrix<float>::input(random, 1, d);
          const auto q_norm = TestNorm<float>::make(random, d, 1, has_norm ? 1e-5 : -1.0);
          const auto k_norm = TestNorm<float>::make(random, d, 2, has_norm ? 1e-5 : -1.0);
          std::vector<bfloat16> kept(static_cast<std::size_t>(key_heads * slots * d));
          for (auto& x : kept) x = bfloat16(static_cast<float>(random.uniform()) - 0.5f);
          const auto run = [&](bool apart) {
            auto keys = kept, values = kept;
            auto y = Matrix<float>::output(1, heads * d, 4), o = y;
            auto of_q = Matrix<float>::output(1, heads, 1), lse = Matrix<float>::output(heads, 1);
            auto of_k = Matrix<float>::output(1, key_heads, 1);
            {
              StagedCall<Fast> call(gpu);
              const auto on_gpu = [&](std::vector<bfloat16>& cache) {
                return call(Cache<bfloat16>{cache.data(), key_heads, slots, d});
              };
              const auto key_cache = on_gpu(keys), value_cache = on_gpu(values);
              const View<const float> turned = call(y.view());
              const auto result = call(o.view()), sums = call(lse.view());
              CHECK(gpu.rotate_and_store(
                  call(q.view()), call(k.view()), call(v.view()), call(q_norm.norm()),
                  call(k_norm.norm()), call(angles.view()), layout, call(y.view()),
                  call(of_q.view()), call(of_k.view()), key_cache, value_cache, position));
              if (apart) gpu.synchronize();
              gpu.attention(turned, key_cache, value_cache,
                            {.heads = heads,
                             .key_heads = key_heads,
                             .head_dim = d,
                             .window = window,
                             .position = position},
                            result, sums);
            }
            std::vector<float> own;
            bool is_kept = true;
            for (const auto* cache : {&keys, &values}) {
              for (std::size_t i = 0; i < kept.size(); ++i) {
                if (static_cast<Index>(i) / d % slots == position % slots) {
                  own.push_back(float((*cache)[i]));
                } else {
                  is_kept = is_kept && float((*cache)[i]) == float(kept[i]);
                }
              }
            }
            CHECK(is_kept);
            CHECK(o.guarded());
            return std::tuple(results(y, of_q, of_k), results(o, lse), own);
          };
          const auto once = run(false), apart = run(true);
          CHECK(same_bits(std::get<0>(once), std::get<0>(apart)));
          CHECK(std::get<2>(once) == std::get<2>(apart));
          CHECK(same_bits(std::get<1>(once), std::get<1>(apart)));
        }
      }
    }
  }
}
