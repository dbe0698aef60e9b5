// SPDX-License-Identifier: MIT
// Factors of products that are rounded where they are made: the bits that rounding them later
// gives.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <support/backends.hpp>
#include <support/equivalence.hpp>
#include <support/primitives.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/cuda/backend.hpp>
#include <ttt/ops/swiglu.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;

/// A result in the GPU's memory, in float or rounded, and what it is once it is rounded.
class Result {
 public:
  Result(const Fast& gpu, Index rows, Index cols, bool narrow)
      : gpu_(gpu),
        memory_(gpu.allocate<float>(rows * cols)),
        factor_(View<float>(memory_.data(), rows, narrow ? Factor<float>::narrow_cols(cols) : cols),
                cols) {
    gpu.fill(7.0f, memory_.data(), rows * cols);
  }

  const Factor<float>& factor() const { return factor_; }

  std::vector<std::uint16_t> bits() const {
    const auto size = static_cast<std::size_t>(factor_.shape().size());
    std::vector<bfloat16> out(size);
    if (factor_.narrow) {
      gpu_.to_host(factor_.rounded().data, out.data(), factor_.shape().size());
      const auto [rows, cols] = factor_.shape();
      const Index used = rows * Factor<float>::narrow_cols(cols);
      const auto rest = on_host(gpu_, memory_.data() + used, rows * cols - used);
      CHECK(std::ranges::all_of(rest, [](float x) { return x == 7.0f; }));
    } else {
      std::vector<float> values(size);
      gpu_.to_host(factor_.values().data, values.data(), factor_.shape().size());
      for (std::size_t i = 0; i < size; ++i) out[i] = bfloat16(values[i]);
    }
    std::vector<std::uint16_t> bits(size);
    for (std::size_t i = 0; i < size; ++i) bits[i] = out[i].bits;
    return bits;
  }

 private:
  const Fast& gpu_;
  cuda::Buffer<float> memory_;
  Factor<float> factor_;
};

/// Everything that can be made as a factor, of rows of heads of 8.
std::vector<std::vector<std::uint16_t>> make_all(const Fast& gpu, Index rows, Index cols,
                                                 bool narrow) {
  Random random{5};
  std::vector<Matrix<float>> in;
  for (int i = 0; i < 6; ++i) in.push_back(Matrix<float>::input(random, rows, cols, 4));
  const Index d = 8, heads = cols / d;
  const auto scale = TestNorm<float>::make(random, cols, 1, 1e-5);
  const auto head_scale = TestNorm<float>::make(random, d, 1, 1e-5);
  const auto angles_ = Matrix<float>::input(random, rows, d, 4);
  auto inverse_ = Matrix<float>::input(random, rows, 1, 3), tinverse_ = inverse_;
  auto of_heads_ = Matrix<float>::input(random, rows, heads, 4), tof_heads_ = of_heads_;
  StagedCall<Fast> call(gpu);  // writes back at its end
  const auto x = call(in[0].view()), tx = call(in[1].view()), dy = call(in[2].view()),
             tdy = call(in[3].view()), g = call(in[4].view()), tg = call(in[5].view());
  const auto norm = call(scale.norm()), head_norm = call(head_scale.norm());
  const auto angles = call(angles_.view());
  const auto inverse = call(inverse_.view()), tinverse = call(tinverse_.view());
  const auto of_heads = call(of_heads_.view()), tof_heads = call(tof_heads_.view());

  std::vector<std::vector<std::uint16_t>> all;
  const auto make = [&](const auto& primitive) {
    const Result to(gpu, rows, cols, narrow);
    primitive(to.factor());
    all.push_back(to.bits());
  };
  const auto make_two = [&](const auto& primitive) {
    const Result first(gpu, rows, cols, narrow), second(gpu, rows, cols, narrow);
    primitive(first.factor(), second.factor());
    all.push_back(first.bits());
    all.push_back(second.bits());
  };
  const auto make_with_sums = [&](Index width, const auto& primitive) {
    auto sums = gpu.allocate<float>(width);
    gpu.fill(0.0f, sums.data(), width);
    make([&](auto to) { primitive(to, View<float>(sums.data(), 1, width)); });
    const auto values = on_host(gpu, sums.data(), width);
    auto& bits = all.emplace_back(2 * values.size());
    std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  };
  make([&](auto to) { gpu.rms_norm(x, norm, to, inverse); });
  make([&](auto to) {  // of a sum that is made with it
    auto sum = gpu.allocate<float>(rows * cols);
    const View<float> out(sum.data(), rows, cols);
    gpu.add_rms_norm(x, dy, norm, out, inverse);
    gpu.rms_norm(out, norm, to, inverse);
    gpu.synchronize();
  });
  make([&](auto to) { gpu.rms_norm_tangent(x, tx, norm, inverse, {}, to, tinverse); });
  const auto none = View<float>();
  make([&](auto to) { gpu.rms_norm_backward(x, norm, inverse, dy, to, Write::Replace, none); });
  make([&](auto to) {
    gpu.rms_norm_backward_tangent(x, tx, norm, inverse, tinverse, dy, tdy, to, Write::Replace,
                                  none);
  });
  make_with_sums(cols, [&](auto to, auto dscale) {
    gpu.rms_norm_backward(x, norm, inverse, dy, to, Write::Replace, dscale);
  });
  make_with_sums(cols, [&](auto to, auto dscale) {
    gpu.rms_norm_backward_tangent(x, tx, norm, inverse, tinverse, dy, tdy, to, Write::Replace,
                                  dscale);
  });
  for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
    make([&](auto to) {
      gpu.head_norm_rope_backward(x, head_norm, of_heads, angles, layout, dy, to, none);
    });
    make([&](auto to) {
      gpu.head_norm_rope_backward_tangent(x, tx, head_norm, of_heads, tof_heads, angles, layout, dy,
                                          tdy, to, none);
    });
    make_with_sums(d, [&](auto to, auto dscale) {
      gpu.head_norm_rope_backward(x, head_norm, of_heads, angles, layout, dy, to, dscale);
    });
  }
  make([&](auto to) { gpu.swiglu(x, g, to); });
  make([&](auto to) { gpu.swiglu_tangent(x, tx, g, tg, to); });
  make_two([&](auto a, auto b) { gpu.swiglu_backward(x, g, dy, a, b); });
  make_two([&](auto a, auto b) { gpu.swiglu_backward_tangent(x, tx, g, tg, dy, tdy, a, b); });
  return all;
}

}  // namespace

TEST_CASE("factors that are rounded where they are made are what rounding makes of them") {
  const Fast gpu;
  for (const Index rows : {9, 130}) {
    for (const Index cols : {8, 72, 2560, 5640}) {
      CAPTURE(rows);
      CAPTURE(cols);
      CHECK(Fast::rounds_factors(rows, cols));
      const auto got = make_all(gpu, rows, cols, true), want = make_all(gpu, rows, cols, false);
      REQUIRE(got.size() == want.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(got[i] == want[i]);
      }
    }
  }
  CHECK_FALSE(Fast::rounds_factors(2, 72));    // few rows multiply weights where they lie
  CHECK_FALSE(Fast::rounds_factors(100, 70));  // rows that do not lie in eights
}

TEST_CASE("products of factors in bfloat16 are those of the numbers they hold") {
  Random random{6};
  const Fast gpu;
  const Index rows = 96, depth = 72, cols = 136, parts = 4;
  const auto values = [&](Index n, Index m) {
    auto out = Matrix<float>::input(random, n, m, 0);
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < m; ++j) out(i, j) = float(bfloat16(out(i, j)));
    }
    return out;
  };
  const auto x = values(rows, depth), dy = values(rows, cols);
  const StoredWeight<float> w(random, {depth, cols}, false, true);
  const StoredWeight<float> w2(random, {depth, cols}, false, true);
  const auto run = [&](bool narrow) {
    StagedCall<Fast> call(gpu);
    const Result left(gpu, rows, depth, narrow), right(gpu, rows, cols, narrow);
    for (const auto& [from, to] : {std::pair(&x, &left), std::pair(&dy, &right)}) {
      const auto at = call(from->view());
      if (narrow) {
        gpu.narrow(at.data, to->factor().rounded().data, at.shape().size());
      } else {
        gpu.copy(at.data, to->factor().values().data, at.shape().size());
      }
    }
    const Factor<const float> a = left.factor(), b = right.factor();
    const auto weight = call(w.weight()), other = call(w2.weight());
    std::vector<std::vector<float>> all;
    const auto make = [&](Index n, Index m, const auto& product) {
      auto to = gpu.allocate<float>(n * m);
      gpu.fill(0.0f, to.data(), n * m);
      product(View<float>(to.data(), n, m));
      all.emplace_back(static_cast<std::size_t>(n * m));
      gpu.to_host(to.data(), all.back().data(), n * m);
    };
    make(rows, cols, [&](auto y) { gpu.matmul(a, weight, y, Write::Replace); });
    make(depth, cols, [&](auto y) { gpu.matmul_gradient(a, b, y, Write::Add); });
    make(rows, depth, [&](auto y) { gpu.matmul(b, weight.transpose(), y, Write::Replace); });
    make(rows / 2, cols, [&](auto y) { gpu.matmul(a.part(1, 2), weight, y, Write::Replace); });
    make(2 * rows, cols, [&](auto y) {
      const std::array<Weight<float>, 2> both{weight, other};
      const std::array<View<float>, 2> to{y.part(0, 2), y.part(1, 2)};
      if (!gpu.matmul_each(a, both, to)) {
        for (std::size_t i = 0; i < 2; ++i) gpu.matmul(a, both[i], to[i], Write::Replace);
      }
    });
    make(parts * depth, cols, [&](auto y) {
      CHECK(gpu.matmul_gradient_parts(a, b, parts, depth * cols, y.part(0, parts), Write::Replace));
    });
    make(depth, cols, [&](auto y) { gpu.matmul_gradient_sum({a, a}, {b, b}, y, Write::Add); });
    return all;
  };
  const auto got = run(true), want = run(false);
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i] == want[i]);
  }
}

TEST_CASE("the way back through a gate, with what is between in bfloat16") {
  Random random{8};
  const Fast gpu;
  const reference::Backend<double> exact;
  const Index rows = 100, width = 72, hidden = 200;
  for (const bool transposed : {true, false}) {
    CAPTURE(transposed);
    auto x = Matrix<float>::input(random, rows, width, 0);
    auto dout = Matrix<float>::input(random, rows, hidden, 0);
    auto gate = Matrix<float>::input(random, rows, hidden, 0);
    auto up = Matrix<float>::input(random, rows, hidden, 0);
    const StoredWeight<float> w1(random, {width, hidden}, transposed, true);
    const StoredWeight<float> w3(random, {width, hidden}, transposed, false);
    auto dx = Matrix<float>::output(rows, width, 4);
    auto dw1 = Matrix<float>::input(random, width, hidden, 4), dw3 = dw1;
    auto dx_ = dx.as<double>(), dw1_ = dw1.as<double>(), dw3_ = dw3.as<double>();
    {
      StagedCall<Fast> call(gpu);
      Workspace<Fast> workspace(gpu, 4 * rows * hidden);
      Context<Fast> c{gpu, workspace, Write::Add};
      const ops::Gated<View<float>> saved{call(gate.view()), call(up.view()), {}};
      ops::gated_backward(c, Factor<float>(call(x.view())), saved, call(w1.weight()),
                          call(w3.weight()), call(dout.view()), call(dw1.view()), call(dw3.view()),
                          call(dx.view()));
      CHECK(workspace.peak() <= rows * hidden + 32);  // two matrices of half the size
    }
    auto dgate = Matrix<double>::output(rows, hidden), dup = dgate;
    const auto w1_ = w1.as<double>(), w3_ = w3.as<double>();
    exact.swiglu_backward(gate.as<double>().view(), up.as<double>().view(),
                          dout.as<double>().view(), dgate.view(), dup.view());
    exact.matmul(dgate.view(), w1_.weight().transpose(), dx_.view(), Write::Replace);
    exact.matmul(dup.view(), w3_.weight().transpose(), dx_.view(), Write::Add);
    exact.matmul_gradient(x.as<double>().view(), dgate.view(), dw1_.view(), Write::Add);
    exact.matmul_gradient(x.as<double>().view(), dup.view(), dw3_.view(), Write::Add);
    CHECK(relative_error<float>(dx.view(), dx_.view()) <= 5e-3);
    CHECK(relative_error<float>(dw1.view(), dw1_.view()) <= 5e-3);
    CHECK(relative_error<float>(dw3.view(), dw3_.view()) <= 5e-3);
    CHECK(dx.guarded());
    CHECK(dw1.guarded());
  }
}
