// SPDX-License-Identifier: MIT
// Products in bfloat16 are exact products of rounded operands, and a model read with them is near
// the one read in float.
#include <cmath>
#include <support/equivalence.hpp>
#include <support/golden.hpp>
#include <support/primitives.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/session.hpp>
#include <ttt/outer/meta_gradient.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;

using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;

/// Numbers that bfloat16 can hold.
Matrix<float> rounded(Random& random, Index rows, Index cols, Index gap) {
  auto out = Matrix<float>::input(random, rows, cols, gap);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) out(i, j) = static_cast<float>(bfloat16(out(i, j)));
  }
  return out;
}

/// On sizes that the kernel's tiles divide and that they do not, aligned rows and others.
template <class Check>
void for_products(const Check& check) {
  for (Index rows : {1, 3, 17, 128, 130, 257}) {
    for (Index depth : {1, 8, 32, 100, 300}) {
      for (Index cols : {1, 48, 128, 131}) {
        for (Index gap : {0, 3, 4}) {
          CAPTURE(rows);
          CAPTURE(depth);
          CAPTURE(cols);
          CAPTURE(gap);
          check(rows, depth, cols, gap);
        }
      }
    }
  }
}

/// Gives queries and results rows that the fast kernels can move.
void align(Random& random, AttentionInputs<float>& inputs) {
  const Index width = inputs.shape.heads * inputs.shape.head_dim;
  inputs.q = Matrix<float>::input(random, inputs.rows, width, 4);
  inputs.dout = Matrix<float>::input(random, inputs.rows, width, 8);
  const Index keys = inputs.dkeys.view().rows, key_width = inputs.dkeys.view().cols;
  inputs.dkeys = Matrix<float>::output(random, keys, key_width, 4);
  inputs.dvalues = inputs.dkeys;
  inputs.gap = 4;
}

/// Blocks of queries from the first to many, windows that wrap around, shared keys.
template <class Check>
void for_blocks(const Check& check) {
  for (Index d : {16, 64, 80, 96, 128}) {
    for (Index rows : {1, 8, 64, 70, 200, 300}) {
      check(rows, AttentionShape{2, 1, d, 1000, 0}, 0, 0);
      check(rows, AttentionShape{2, 2, d, 100, 300}, 7, 60);
      check(rows, AttentionShape{4, 2, d, 20, 150}, 0, 0);
      check(rows, AttentionShape{1, 1, d, 150, 140}, 64, 500);
      check(rows, AttentionShape{4, 2, d, 300, 410}, 9, 230);
      check(rows, AttentionShape{2, 1, d, 513, 1200}, 40, 0);
    }
    if (d > 80) continue;
    // Many tiles, windows about the size of one, far positions.
    check(200, AttentionShape{1, 1, d, 2100, 3000}, 9, 0);
    for (const Index window : {1, 2, 63, 65, 128}) {
      check(129, AttentionShape{2, 1, d, window, 1'000'003}, 7, 0);
      check(65, AttentionShape{2, 1, d, window, window - 1}, 0, 0);
    }
    // So many heads that blocks of more rows fill a GPU.
    for (Index rows : {230, 256}) {
      check(rows, AttentionShape{70, 2, d, 1000, 0}, 0, 0);
      check(rows, AttentionShape{70, 70, d, 150, 140}, 64, 0);
    }
  }
}

}  // namespace

TEST_CASE("products in bfloat16 add up in float") {
  Random random{1};
  const Staged<Fast> gpu;
  const reference::Backend<double> reference;
  const auto compare = [&](const auto& run, const Matrix<float>& out) {
    auto got = out.as<float>();
    auto want = out.as<double>();
    run(gpu, got);
    run(reference, want);
    CHECK(relative_error<float>(got.view(), want.view()) <= 2e-5);
    CHECK(got.guarded());
  };
  for_products([&](Index rows, Index depth, Index cols, Index gap) {
    for (const Write write : {Write::Replace, Write::Add}) {
      const auto x = rounded(random, rows, depth, gap);
      const auto y = Matrix<float>::output(random, rows, cols, gap);
      for (const bool transposed : {false, true}) {
        const auto w =
            transposed ? rounded(random, cols, depth, gap) : rounded(random, depth, cols, gap);
        compare(
            [&](const auto& b, auto& out) {
              using T = ScalarOf<std::decay_t<decltype(b)>>;
              const auto x_ = x.as<T>(), w_ = w.as<T>();
              const Weight<T> stored(w_.view());
              b.matmul(x_.view(), transposed ? stored.transpose() : stored, out.view(), write);
            },
            y);
        const StoredWeight<float> narrow(random, {depth, cols}, transposed, true, gap);
        compare(
            [&](const auto& b, auto& out) {
              using T = ScalarOf<std::decay_t<decltype(b)>>;
              const auto x_ = x.as<T>();
              const auto w_ = narrow.as<T>();
              b.matmul(x_.view(), w_.weight(), out.view(), write);
            },
            y);
      }
      const auto from = rounded(random, depth, rows, gap), to = rounded(random, depth, cols, gap);
      compare(
          [&](const auto& b, auto& out) {
            using T = ScalarOf<std::decay_t<decltype(b)>>;
            b.matmul_gradient(from.as<T>().view(), to.as<T>().view(), out.view(), write);
          },
          y);
    }
  });
}

TEST_CASE("an axpby that rounds is an axpby and a rounding, wherever vectors begin") {
  Random random{5};
  const Fast gpu;
  constexpr Index room = 20010;
  auto memory = gpu.allocate<float>(2 * room);
  auto copies = gpu.allocate<bfloat16>(room);
  for (const Index size : {1, 3, 4095, 4096, 4097, 20000}) {
    const auto x = uniforms(random, size), y = uniforms(random, size);
    const std::vector<float> host_x(x.begin(), x.end()), host_y(y.begin(), y.end());
    double sum = 0, squares = 0;
    for (const Index begin : {0, 8, 1}) {
      CAPTURE(size);
      CAPTURE(begin);
      float* const from = memory.data() + begin;
      float* const to = memory.data() + room + begin;
      bfloat16* const copy = copies.data() + begin;
      const auto run = [&](double b, bool at_once) {
        gpu.to_device(host_x.data(), from, size);
        gpu.to_device(host_y.data(), to, size);
        gpu.fill(bfloat16(), copies.data(), room);
        if (at_once) {
          gpu.axpby(0.3, from, b, to, size, copy);
        } else {
          gpu.axpby(0.3, from, b, to, size);
          gpu.narrow(to, copy, size);
        }
        auto all = on_host(gpu, to, size);
        for (const bfloat16 each : on_host(gpu, copies.data(), room)) {
          all.push_back(static_cast<float>(each));
        }
        return all;
      };
      for (const double b : {0.0, 1.0, 0.7}) CHECK(run(b, true) == run(b, false));
      const double got[] = {gpu.dot(from, to, size), gpu.dot(from, from, size)};
      if (begin > 0) CHECK((got[0] == sum && got[1] == squares));
      sum = got[0];
      squares = got[1];
    }
  }
}

TEST_CASE("products find the rows of what is rounded, and only those") {
  Random random{6};
  const Fast gpu;
  constexpr Index rows = 48, cols = 24, out = 16;
  const auto gate = Matrix<float>::input(random, rows, cols),
             up = Matrix<float>::input(random, rows, cols),
             w = Matrix<float>::input(random, cols, out),
             high = Matrix<float>::input(random, 16, out);
  StagedCall<Fast> call(gpu);
  auto hidden_memory = gpu.allocate<float>(rows * cols), y_memory = gpu.allocate<float>(rows * out);
  const View<float> hidden(hidden_memory.data(), rows, cols), y(y_memory.data(), rows, out);
  const auto gate_ = call(gate.view()), up_ = call(up.view()), w_ = call(w.view());
  const auto high_ = call(high.view());
  // Of all rows, of some, of some as the left operand of a gradient, of rows cut otherwise.
  const auto with = [&](bool forgets) {
    const auto forget = [&] {
      if (forgets) gpu.fill(0.0f, y.data, 0);  // as whatever is no product
    };
    std::vector<float> all;
    const auto keep = [&](const View<float>& v) {
      const auto values = on_host(gpu, v.data, v.shape().size());
      all.insert(all.end(), values.begin(), values.end());
    };
    // Twice, for there is no room the first time.
    for (int i = 0; i < 2; ++i) {
      for (const Index first : {0, 16, 32}) {
        gpu.fill(0.0f, y.data, rows * out);
        gpu.swiglu(gate_, up_, hidden);
        forget();
        gpu.matmul(hidden.rows_at(first, 16), w_, y.rows_at(first, 16), Write::Replace);
        forget();
        gpu.matmul(hidden, w_, y, Write::Add);
        keep(y);
        gpu.swiglu(gate_, up_, hidden);
        forget();
        gpu.matmul_gradient(hidden.rows_at(first, 16), high_, {y.data, cols, out}, Write::Replace);
        forget();
        gpu.matmul_gradient(View<const float>(hidden.row(first) + 1, 16, cols - 1, cols), high_,
                            {y.data, cols - 1, out}, Write::Add);
        forget();
        const View<const float> twice(hidden.data, rows / 2, cols, 2 * cols);
        gpu.matmul(twice, w_, {y.data, rows / 2, out}, Write::Add);
        keep(y);
      }
    }
    return all;
  };
  CHECK(with(false) == with(true));
}

TEST_CASE("products of one matrix of many rows at once are the products") {
  Random random{7};
  const Fast gpu;
  const reference::Backend<double> reference;
  // Results one behind the other, and weights in an order of their own.
  const auto check = [&](Index rows, Index depth, Index cols, bool transposed, bool narrow,
                         const std::array<Index, 3>& order, bool backwards) {
    CAPTURE(rows);
    CAPTURE(depth);
    CAPTURE(cols);
    CAPTURE(transposed);
    CAPTURE(narrow);
    const auto x = rounded(random, rows, depth, 0);
    const Shape lies = transposed ? Shape{cols, depth} : Shape{depth, cols};
    const auto all = rounded(random, 4 * lies.rows, lies.cols, 0);
    StagedCall<Fast> call(gpu);
    const View<const float> x_ = call(x.view());
    const View<const float> wide = call(all.view());
    auto copies = gpu.allocate<bfloat16>(all.view().shape().size());
    gpu.narrow(wide.data, copies.data(), all.view().shape().size());
    auto memory = gpu.allocate<float>(3 * rows * cols);
    gpu.fill(0.0f, memory.data(), 3 * rows * cols);
    std::array<Weight<float>, 3> w;
    std::array<View<float>, 3> y;
    for (std::size_t i = 0; i < 3; ++i) {
      const Index at = order[i] * lies.size();
      w[i] = narrow ? Weight<float>(View<const bfloat16>(copies.data() + at, lies.rows, lies.cols))
                    : View<const float>(wide.data + at, lies.rows, lies.cols);
      if (transposed) w[i] = w[i].transpose();
      const Index place = backwards ? 2 - static_cast<Index>(i) : static_cast<Index>(i);
      y[i] = {memory.data() + place * rows * cols, rows, cols};
    }
    const bool done = gpu.matmul_each(x_, w, y);
    CHECK(done == (!backwards && rows * cols % 4 == 0));
    const auto got = on_host(gpu, memory.data(), 3 * rows * cols);
    if (!done) {
      CHECK(got == std::vector<float>(got.size(), 0.0f));
      return;
    }
    for (std::size_t i = 0; i < 3; ++i) {
      auto want = Matrix<double>::output(rows, cols);
      const auto right = all.as<double>();
      Weight<double> stored(right.view().rows_at(order[i] * lies.rows, lies.rows));
      if (transposed) stored = stored.transpose();
      reference.matmul(x.as<double>().view(), stored, want.view(), Write::Replace);
      const View<const float> mine(got.data() + static_cast<Index>(i) * rows * cols, rows, cols);
      CHECK(relative_error<float>(mine, want.view()) <= 2e-5);
    }
    for (int again = 0; again < 2; ++again) {
      CHECK(gpu.matmul_each(x_, w, y));
      CHECK(on_host(gpu, memory.data(), 3 * rows * cols) == got);
    }
  };
  for (const Index rows : {9, 64, 130}) {
    for (const Index depth : {8, 100}) {
      for (const Index cols : {1, 48, 132}) {
        for (const bool transposed : {false, true}) {
          for (const bool narrow : {false, true}) {
            check(rows, depth, cols, transposed, narrow, {0, 1, 2}, false);
            check(rows, depth, cols, transposed, narrow, {0, 2, 3}, false);
            check(rows, depth, cols, transposed, narrow, {2, 1, 0}, false);
          }
        }
      }
    }
  }
  check(64, 16, 48, false, true, {0, 1, 2}, true);

  // As much as fills a GPU, and weights that differ.
  const auto x = rounded(random, 64, 8, 0), w = rounded(random, 8, 48, 0);
  StagedCall<Fast> call(gpu);
  const View<const float> x_ = call(x.view()), w_ = call(w.view());
  auto memory = gpu.allocate<float>(2 * 64 * 48);
  const View<float> first(memory.data(), 64, 48), second(memory.data() + 64 * 48, 64, 48);
  const std::array<Weight<float>, 2> turned{
      w_, Weight<float>(View<const float>(w_.data, 48, 8)).transpose()};
  CHECK(!gpu.matmul_each(x_, turned, std::array{first, second}));
  const View<float> wide(memory.data(), 1 << 13, 1 << 13);
  CHECK(!gpu.matmul_each(View<const float>(w_.data, wide.rows, 8),
                         std::array<Weight<float>, 2>{w_, w_}, std::array{wide, wide}));
}

TEST_CASE("products of several sequences at once are the products") {
  Random random{8};
  const Fast gpu;
  constexpr Index sequences = 3, depth = 24, cols = 32, learned = 2 * depth * cols;
  for (const Index rows : {9, 40}) {
    for (const Index off : {0, 4, 1}) {  // some leave no room for sixteen bytes at a time
      for (const bool transposed : {false, true}) {
        for (const Write write : {Write::Replace, Write::Add}) {
          CAPTURE(rows);
          CAPTURE(off);
          CAPTURE(transposed);
          const Index apart = learned + off;
          const auto x = rounded(random, sequences * rows, depth, 0),
                     dy = rounded(random, sequences * rows, cols, 4),
                     w = rounded(random, 1, sequences * apart, 0),
                     y = Matrix<float>::output(random, sequences * rows, cols, 4),
                     dw = Matrix<float>::output(random, 1, sequences * apart);
          const auto run = [&](const auto& backend, const auto& weight) {
            using T = ScalarOf<std::decay_t<decltype(backend)>>;
            const auto x_ = x.as<T>(), dy_ = dy.as<T>();
            auto y_ = y.as<T>(), dw_ = dw.as<T>();
            weight(backend, x_.view(), dy_.view(), y_.view(), dw_.view());
            return results(std::move(y_), std::move(dw_));
          };
          const auto operate = [&](const auto& backend, auto x_, auto dy_, auto first, auto y_,
                                   auto* dw_) {
            using T = ScalarOf<std::decay_t<decltype(backend)>>;
            const Weight<T> lies = transposed ? first.transpose() : first;
            const StackedWeight<T> stacked(lies, sequences, apart);
            ops::detail::product(backend, x_, stacked, y_, write);
            ops::detail::product_gradient(backend, x_, dy_, stacked, {dw_, depth, cols}, write);
          };
          const Shape stored = transposed ? Shape{cols, depth} : Shape{depth, cols};
          const auto want = run(reference::Backend<double>(), [&](const auto& backend, auto x_,
                                                                  auto dy_, auto y_, auto dw_) {
            const auto w_ = w.as<double>();
            operate(backend, x_, dy_,
                    Weight<double>(View<const double>(w_.view().data, stored.rows, stored.cols)),
                    y_, dw_.data);
          });
          const auto got = run(gpu, [&](const auto& backend, auto x_, auto dy_, auto y_, auto dw_) {
            StagedCall<Fast> call(backend);
            const auto w_ = call(w.view());
            auto copies = backend.template allocate<bfloat16>(w_.cols);
            backend.narrow(w_.data, copies.data(), w_.cols);
            operate(backend, View<const float>(call(x_)), View<const float>(call(dy_)),
                    Weight<float>(View<const bfloat16>(copies.data(), stored.rows, stored.cols)),
                    call(y_), call(dw_).data);
          });
          for (std::size_t i = 0; i < want.size(); ++i) {
            CAPTURE(i);
            CHECK(relative_error<float>(got[i].view(), want[i].view()) <= 2e-5);
            CHECK(got[i].guarded());
          }
        }
      }
    }
  }
}

TEST_CASE("attention on tensor cores is near attention") {
  Random random{2};
  const Staged<Fast> gpu;
  const reference::Backend<double> reference;
  double worst[5] = {};
  const auto check = [&](Index rows, const AttentionShape& shape, Index spare, Index before) {
    CAPTURE(rows);
    CAPTURE(shape.head_dim);
    CAPTURE(shape.window);
    CAPTURE(shape.position);
    AttentionInputs<float> inputs(random, rows, shape, spare, before);
    align(random, inputs);
    const auto got = inputs.run(gpu);
    const auto want = inputs.run(reference);
    for (std::size_t i = 0; i < want.size(); ++i) {
      CAPTURE(i);
      const double error = relative_error<float>(got[i].view(), want[i].view());
      CHECK(error <= 0.02);
      CHECK(got[i].guarded());
      if (!(error <= worst[i])) worst[i] = error;
    }
    const auto again = inputs.run(gpu);
    for (std::size_t i = 0; i < want.size(); ++i) CHECK(again[i].same_bits(got[i]));
  };
  for_blocks(check);
  MESSAGE("attention in bfloat16, worst errors: o " << worst[0] << ", lse " << worst[1] << ", dq "
                                                    << worst[2] << ", dk " << worst[3] << ", dv "
                                                    << worst[4]);
}

TEST_CASE("attention's tangents on tensor cores are near attention's tangents") {
  Random random{3};
  const Staged<Fast> gpu;
  const reference::Backend<double> reference;
  double worst[5] = {};
  for_blocks([&](Index rows, const AttentionShape& shape, Index spare, Index before) {
    CAPTURE(rows);
    CAPTURE(shape.head_dim);
    CAPTURE(shape.window);
    CAPTURE(shape.position);
    AttentionTangentInputs<float> inputs(random, rows, shape, spare, before);
    align(random, inputs.values);
    const Index width = shape.heads * shape.head_dim, key_width = shape.key_heads * shape.head_dim;
    inputs.tq = Matrix<float>::input(random, rows, width, 4);
    inputs.tdout = Matrix<float>::input(random, rows, width, 12);
    inputs.tkeys = Matrix<float>::input(random, rows, key_width, 4);
    inputs.tvalues = Matrix<float>::input(random, rows, key_width, 8);
    const auto got = inputs.run(gpu), again = inputs.run(gpu);
    const auto want = inputs.run(reference);
    for (std::size_t i = 0; i < want.size(); ++i) {
      CAPTURE(i);
      const double error = relative_error<float>(got[i].view(), want[i].view());
      CHECK(error <= 0.03);
      CHECK(got[i].guarded());
      CHECK(again[i].same_bits(got[i]));
      if (!(error <= worst[i])) worst[i] = error;
    }
  });
  MESSAGE("attention's tangents in bfloat16, worst errors: o "
          << worst[0] << ", lse " << worst[1] << ", dq " << worst[2] << ", dk " << worst[3]
          << ", dv " << worst[4]);
}

TEST_CASE("a model read and differentiated with products in bfloat16 is near the one in float") {
  const Golden golden("e2e");
  const Fast gpu;
  const auto weights = golden.weights<GoldenReader>(gpu);
  Session session(weights, golden.learner());
  const auto report = session.read(golden.tokens());
  const auto want = golden.values<double>("token_nll", 0);
  double worst = 0, mean = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double distance = std::abs(static_cast<double>(report.nll[i + 1]) - want[i]);
    mean += distance / static_cast<double>(want.size());
    if (!(distance <= worst)) worst = distance;
  }
  MESSAGE("scores in bfloat16: mean difference " << mean << " nats, largest " << worst);
  CHECK(mean <= 0.02);
  CHECK(worst <= 0.1);

  const std::vector<Token> tokens = golden.values<Token>("tokens");
  const Index length = golden.file().at("tokens").shape.at(1) - 1;
  const auto gradient = [&](const auto& backend) {
    const auto parameters = golden.weights<GoldenReader>(backend);
    MetaGradient meta(parameters.model(), backend, golden.learner(), length);
    auto memory = backend.template allocate<float>(meta.size());
    meta(parameters.parameters(), tokens, {}, memory.data());
    return on_host(backend, memory.data(), meta.size());
  };
  const auto exact = gradient(Cuda()), fast = gradient(gpu);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(static_cast<double>(fast[i] - exact[i]), 2);
    size += std::pow(static_cast<double>(exact[i]), 2);
  }
  MESSAGE("meta-gradient in bfloat16: relative error " << std::sqrt(error / size));
  CHECK(std::sqrt(error / size) <= 0.1);
}

TEST_CASE("stacked sequences have the gradient in bfloat16 that they have alone, to rounding") {
  using Attention = SlidingWindowAttention<>;
  using Model = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                              Stack<2, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
  const Config config{.vocabulary = 40,
                      .width = 32,
                      .heads = 2,
                      .hidden = 48,
                      .window = 24,
                      .rope_base = 10000,
                      .eps = 1e-6};
  const InnerLoop<Sgd> learner{.chunk = 16, .clip = 0.5f};
  const auto gradient = [&](const auto& gpu, Index stacked) {
    const auto weights = initialise<Model>(config, gpu, 5, 0.2);
    Random random{23};
    const auto all = tokens(random, 3 * 49, config.vocabulary);
    MetaGradient meta(weights.model(), gpu, learner, 48, {.stacked = stacked});
    auto memory = gpu.template allocate<float>(meta.size());
    meta(weights.parameters(), all, {}, memory.data());
    const auto first = on_host(gpu, memory.data(), meta.size());
    meta(weights.parameters(), all, {}, memory.data());
    CHECK(on_host(gpu, memory.data(), meta.size()) == first);
    return first;
  };
  const auto distance = [](const std::vector<float>& got, const std::vector<float>& want) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      error += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
      size += std::pow(static_cast<double>(want[i]), 2);
    }
    return std::sqrt(error / size);
  };
  const Fast gpu;
  const auto alone = gradient(gpu, 1);
  const double in_float = distance(alone, gradient(Cuda(), 1));
  MESSAGE("relative error to the meta-gradient in float: " << in_float);
  CHECK(in_float <= 0.1);
  for (const Index stacked : {2, 3}) {
    const double error = distance(gradient(gpu, stacked), alone);
    MESSAGE("of " << stacked << " stacked to each alone: " << error);
    CHECK(error <= in_float);  // which roundings make, and here only some fall otherwise
  }
}
