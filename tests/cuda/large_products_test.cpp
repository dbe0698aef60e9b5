// SPDX-License-Identifier: MIT
// Products that end in something else than their sums: head and loss of rows of many words, with
// logits in memory and without, feed-forwards, and gradients of large weights.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
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

/// Numbers that bfloat16 can hold.
Matrix<float> rounded(Random& random, Index rows, Index cols, Index gap, double scale = 1) {
  auto out = Matrix<float>::input(random, rows, cols, gap, scale);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) out(i, j) = float(bfloat16(out(i, j)));
  }
  return out;
}

struct Loss {
  Index rows, depth, words;
  bool transposed = true, tangents = false;
  double scale = 3;
  bool narrow = true;
};

void check_loss(const Loss& loss) {
  const Index rows = loss.rows, depth = loss.depth, words = loss.words;
  const bool transposed = loss.transposed, tangents = loss.tangents;
  const double scale = loss.scale;
  CAPTURE(rows);
  CAPTURE(depth);
  CAPTURE(words);
  CAPTURE(transposed);
  CAPTURE(scale);
  Random random{4};
  const Fast gpu;
  const auto h = rounded(random, rows, depth, 4, scale), th = rounded(random, rows, depth, 0);
  const StoredWeight<float> head(random, {depth, words}, transposed, loss.narrow);
  if (!loss.narrow) {
    const auto stored = head.weight().stored<float>();
    for (Index i = 0; i < stored.rows; ++i) {
      float* const row = const_cast<float*>(stored.row(i));
      std::transform(row, row + stored.cols, row, [](float x) { return float(bfloat16(x)); });
    }
  }
  std::vector<Token> targets;
  std::vector<float> weights;
  for (Index t = 0; t < rows; ++t) {
    targets.push_back(static_cast<Token>(t == 0 ? words - 1 : words * t / rows));
    weights.push_back(t == 1 ? 0.0f : 0.25f * static_cast<float>(t % 7 + 1));
  }
  const std::vector<double> weights_(weights.begin(), weights.end());
  const Index size = tangents ? gpu.cross_entropy_tangent_scratch(rows, words)
                              : gpu.cross_entropy_scratch(rows, words);
  std::vector<float> nll(static_cast<std::size_t>(rows)), only = nll, again = nll;
  auto dh = Matrix<float>::output(rows, depth, 4), dh_again = dh, tdh = dh;
  {
    StagedCall<Fast> call(gpu);
    auto scratch = gpu.allocate<float>(size);
    const auto h_ = call(h.view()), th_ = call(th.view());
    const auto head_ = call(head.weight());
    const Token* const at = call.in(targets.data(), rows);
    const float* const by = call.in(weights.data(), rows);
    gpu.cross_entropy(h_, head_, at, by, call.out(nll.data(), rows), call(dh.view()),
                      scratch.data());
    gpu.cross_entropy(h_, head_, at, by, call.out(only.data(), rows), {}, scratch.data());
    gpu.cross_entropy(h_, head_, at, by, call.out(again.data(), rows), call(dh_again.view()),
                      scratch.data());
    if (tangents) {
      gpu.cross_entropy_tangent(h_, th_, head_, at, by, 0.5, call(tdh.view()), {}, scratch.data());
    }
  }
  auto want = dh.as<double>(), twant = tdh.as<double>();
  std::vector<double> nll_(static_cast<std::size_t>(rows));
  std::vector<double> scratch(static_cast<std::size_t>(exact.cross_entropy_scratch(rows, words)));
  const auto x = h.as<double>(), tx = th.as<double>();
  const auto exact_head = head.as<double>();
  exact.cross_entropy(x.view(), exact_head.weight(), targets.data(), weights_.data(), nll_.data(),
                      want.view(), scratch.data());
  for (std::size_t t = 0; t < nll.size(); ++t) {
    CAPTURE(t);
    CHECK(std::abs(nll[t] - nll_[t]) <= 2e-5 * (1 + std::abs(nll_[t])));
    CHECK(only[t] == nll[t]);
    CHECK(again[t] == nll[t]);
  }
  CHECK(dh.guarded());
  CHECK(dh_again.same_bits(dh));
  CHECK(relative_error<float>(dh.view(), want.view()) <= 5e-3);
  if (!tangents) return;
  exact.cross_entropy_tangent(x.view(), tx.view(), exact_head.weight(), targets.data(),
                              weights_.data(), 0.5, twant.view(), {}, scratch.data());
  CHECK(relative_error<float>(tdh.view(), twant.view()) <= 5e-3);
}

}  // namespace

TEST_CASE("the loss of rows of many words") {
  for (const Index words : {100, 8188, 8192, 16388, 16390, 50304, 128256, 131076}) {
    check_loss({3, 8, words, true, true});
    if (words <= 20000) check_loss({20, 8, words, true, true});
  }
}

TEST_CASE("the loss of many rows, whose logits are in no memory") {
  for (const bool transposed : {true, false}) {
    for (const Index words : {61, 256, 1000, 3003}) {
      for (const Index rows : {64, 130, 257}) check_loss({rows, 72, words, transposed});
    }
    check_loss({300, 200, 2056, transposed, false, 1});
    check_loss({300, 64, 2056, transposed, false, 0.01});
  }
  check_loss({130, 72, 1000, false, false, 0.3, false});  // a head in float
  check_loss({1100, 16, 128256});                         // more rows than are computed at once
}

TEST_CASE("words that differ by more than powers can tell") {
  check_loss({70, 64, 1000, true, false, 40});
  check_loss({70, 64, 1000, false, false, 200});
}

TEST_CASE("a loss that is no number stays none, and its row's alone") {
  Random random{5};
  const Fast gpu;
  const Index rows = 70, depth = 16, words = 600;
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    CAPTURE(bad);
    auto h = rounded(random, rows, depth, 0);
    h(30, 3) = static_cast<float>(bad);
    const StoredWeight<float> head(random, {depth, words}, true, true);
    const std::vector<Token> targets(rows, 7);
    const std::vector<float> weights(rows, 1.0f);
    std::vector<float> nll(rows);
    auto dh = Matrix<float>::output(rows, depth);
    {
      StagedCall<Fast> call(gpu);
      auto scratch = gpu.allocate<float>(gpu.cross_entropy_scratch(rows, words));
      gpu.cross_entropy(call(h.view()), call(head.weight()), call.in(targets.data(), rows),
                        call.in(weights.data(), rows), call.out(nll.data(), rows), call(dh.view()),
                        scratch.data());
    }
    for (Index t = 0; t < rows; ++t) {
      CAPTURE(t);
      CHECK(std::isfinite(nll[static_cast<std::size_t>(t)]) == (t != 30));
      CHECK(std::isfinite(dh(t, 0)) == (t != 30));
    }
  }
}

TEST_CASE("a gradient of two pairs of operands is the sum of both") {
  Random random{6};
  const Fast gpu;
  const auto check = [&](Index rows, Index in, Index out, Index gap, Write write) {
    CAPTURE(rows);
    CAPTURE(in);
    CAPTURE(out);
    CAPTURE(gap);
    const std::array x{rounded(random, rows, in, gap), rounded(random, rows, in, 0)};
    const std::array dy{rounded(random, rows, out, 0), rounded(random, rows, out, gap)};
    const auto before = Matrix<float>::input(random, in, out, gap);
    auto dw = before, again = before;
    {
      StagedCall<Fast> call(gpu);
      const std::array<Weight<float>, 2> x_{call(x[0].view()), call(x[1].view())};
      const std::array<Weight<float>, 2> dy_{call(dy[0].view()), call(dy[1].view())};
      gpu.matmul_gradient_sum(x_, dy_, call(dw.view()), write);
      gpu.matmul_gradient_sum(x_, dy_, call(again.view()), write);
    }
    CHECK(dw.guarded());
    CHECK(again.same_bits(dw));
    double worst = 0;
    for (Index i = 0; i < in; i += 1 + in / 61) {
      for (Index j = i % 7; j < out; j += 1 + out / 53) {
        double sum = write == Write::Add ? before(i, j) : 0.0f;
        for (std::size_t p = 0; p < 2; ++p) {
          for (Index t = 0; t < rows; ++t) {
            sum += static_cast<double>(x[p](t, i)) * static_cast<double>(dy[p](t, j));
          }
        }
        worst = std::max(worst, std::abs(sum - dw(i, j)));
      }
    }
    CHECK(worst <= 1e-6 * static_cast<double>(rows + 10));
  };
  for (const Write write : {Write::Replace, Write::Add}) {
    check(70, 40, 24, 0, write);
    check(100, 2100, 2200, 0, write);
    check(33, 2120, 2312, 8, write);
    check(64, 5000, 1000, 3, write);  // rows that no box can describe
  }
}

TEST_CASE("a feed-forward of many rows of which nothing but the end is needed") {
  Random random{7};
  const Fast gpu;
  const auto check = [&](Index rows, Index width, Index hidden, bool transposed) {
    CAPTURE(rows);
    CAPTURE(width);
    CAPTURE(hidden);
    CAPTURE(transposed);
    const auto x = rounded(random, rows, width, 4);
    const StoredWeight<float> w1(random, {width, hidden}, transposed, true);
    const StoredWeight<float> w3(random, {width, hidden}, transposed, true);
    const StoredWeight<float> w2(random, {hidden, width}, transposed, true);
    auto y = Matrix<float>::output(rows, width, 4);
    bool done = false;
    {
      StagedCall<Fast> call(gpu);
      auto memory = gpu.allocate<float>(rows * hidden);
      done = gpu.feed_forward(call(x.view()), call(w1.weight()), call(w3.weight()),
                              call(w2.weight()), memory.data(), call(y.view()));
    }
    if (!done) return false;
    auto want = y.as<double>();
    auto gate = Matrix<double>::output(rows, hidden), up = gate, inner = gate;
    const auto x_ = x.as<double>();
    const auto w1_ = w1.as<double>(), w2_ = w2.as<double>(), w3_ = w3.as<double>();
    exact.matmul(x_.view(), w1_.weight(), gate.view(), Write::Replace);
    exact.matmul(x_.view(), w3_.weight(), up.view(), Write::Replace);
    exact.swiglu(gate.view(), up.view(), inner.view());
    exact.matmul(inner.view(), w2_.weight(), want.view(), Write::Replace);
    CHECK(y.guarded());
    CHECK(relative_error<float>(y.view(), want.view()) <= 5e-3);
    return true;
  };
  bool hopper = false;
  for (const bool transposed : {true, false}) {
    hopper = check(2048, 40, 1088, transposed);
    CHECK(check(2100, 72, 1000, transposed) == hopper);
    CHECK(check(1030, 136, 3000, transposed) == hopper);
  }
  CHECK_FALSE(check(100, 40, 64, false));    // too little for a GPU
  CHECK_FALSE(check(2048, 40, 1002, true));  // rows that no box can describe
}
