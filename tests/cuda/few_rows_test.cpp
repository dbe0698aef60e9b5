// SPDX-License-Identifier: MIT
// What is one kernel where others have several, in a backend with products in bfloat16.
#include <array>
#include <cmath>
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
const reference::Backend<double> exact;

void check_near(const Matrix<float>& got, const Matrix<double>& want) {
  CHECK(relative_error<float>(got.view(), want.view()) <= 2e-5);
  CHECK(got.guarded());
}

constexpr Index few = 2;

/// Few rows and one too many, depths and gaps that eights divide and others, every form of weight.
template <class Check>
void for_weights(const Check& check) {
  for (Index rows : {Index{1}, few, few + 1}) {
    for (Index depth : {1, 8, 100, 768, 1032}) {
      for (Index gap : {0, 3, 8}) {
        for (const bool transposed : {false, true}) {
          for (const bool narrow : {false, true}) {
            CAPTURE(rows);
            CAPTURE(depth);
            CAPTURE(gap);
            CAPTURE(transposed);
            CAPTURE(narrow);
            check(rows, depth, gap, transposed, narrow);
          }
        }
      }
    }
  }
}

/// A sum on the residual stream, what is read of it, and where all of that is.
struct Sum {
  bool has_norm, in_place;
  Matrix<float> h, x, out, inverse, y, y_inverse;
  TestNorm<float> norm, next;

  Sum(Random& random, Index rows, Index cols, Index gap, bool has_norm_, bool in_place_)
      : has_norm(has_norm_),
        in_place(in_place_),
        h(Matrix<float>::output(random, rows, cols, gap)),
        x(Matrix<float>::input(random, rows, cols, gap)),
        out(Matrix<float>::output(rows, cols, gap)),
        inverse(Matrix<float>::output(rows, 1, 2)),
        y(out),
        y_inverse(inverse),
        norm(TestNorm<float>::make(random, cols, 1)),
        next(TestNorm<float>::make(random, cols, in_place ? 2 : 0)) {}

  /// Calls between(call, out) behind the sum and before the norm of it, and stage(call) before
  /// both; h or out, inverse, y, inverse.
  template <class Between, class Stage>
  std::vector<Matrix<float>> run(const Fast& gpu, const Between& between,
                                 const Stage& stage) const {
    auto h_ = h, out_ = out, inverse_ = inverse, y_ = y, y_inverse_ = y_inverse;
    {
      StagedCall<Fast> call(gpu);
      const auto from = call(x.view());
      const auto to = call(in_place ? h_.view() : out_.view());
      const auto first = call(h_.view()), result = call(y_.view());
      const auto of_sum = call(inverse_.view()), of_result = call(y_inverse_.view());
      const auto post = call(norm.norm()), pre = call(next.norm());
      stage(call);
      if (has_norm) {
        gpu.add_rms_norm(first, from, post, to, of_sum);
      } else {
        gpu.add(first, from, to);
      }
      between(call, View<const float>(to));
      gpu.rms_norm(to, pre, result, of_result);
    }
    return results(in_place ? h_ : out_, inverse_, y_, y_inverse_);
  }
  std::vector<Matrix<float>> run(const Fast& gpu) const {
    const auto nothing = [](auto&&...) {};
    return run(gpu, nothing, nothing);
  }
  std::vector<Matrix<double>> want() const {
    const auto h_ = h.as<double>(), x_ = x.as<double>();
    auto out_ = out.as<double>(), inverse_ = inverse.as<double>(), y_ = out_, y_inverse_ = inverse_;
    const auto norm_ = norm.as<double>(), next_ = next.as<double>();
    if (has_norm) {
      exact.add_rms_norm(h_.view(), x_.view(), norm_.norm(), out_.view(), inverse_.view());
    } else {
      exact.add(h_.view(), x_.view(), out_.view());
    }
    exact.rms_norm(out_.view(), next_.norm(), y_.view(), y_inverse_.view());
    return results(out_, inverse_, y_, y_inverse_);
  }
};

}  // namespace

TEST_CASE("products of one x at once are the products") {
  Random random{1};
  const Fast gpu;
  for_weights([&](Index rows, Index depth, Index gap, bool transposed, bool narrow) {
    const auto x = Matrix<float>::input(random, rows, depth, gap);
    for (const std::array<Index, 3>& cols :
         {std::array<Index, 3>{48, 16, 16}, {131, 1, 40}, {8, 264, 33}, {1600, 1600, 1600}}) {
      if (cols[0] > 1000 && depth != 8) continue;
      std::vector<StoredWeight<float>> w;
      std::vector<Matrix<float>> y;
      for (const Index each : cols) {
        w.emplace_back(random, Shape{depth, each}, transposed, narrow, gap);
        y.push_back(Matrix<float>::output(rows, each, gap));
      }
      const auto untouched = y;
      bool done = false;
      {
        StagedCall<Fast> call(gpu);
        const std::array<Weight<float>, 3> weights{call(w[0].weight()), call(w[1].weight()),
                                                   call(w[2].weight())};
        const std::array<View<float>, 3> to{call(y[0].view()), call(y[1].view()),
                                            call(y[2].view())};
        done = gpu.matmul_each(call(x.view()), weights, to);
      }
      const bool are_alike = cols[0] == cols[1] && cols[1] == cols[2];
      if (rows <= few || !are_alike) CHECK(done == (rows <= few));
      if (!done) CHECK(same_bits(y, untouched));
      if (rows > few) continue;
      for (std::size_t i = 0; i < 3; ++i) {
        auto want = untouched[i].as<double>();
        exact.matmul(x.as<double>().view(), w[i].as<double>().weight(), want.view(),
                     Write::Replace);
        check_near(y[i], want);
      }
    }
  });
}

TEST_CASE("blocks that share the depth of a large weight add up to the product") {
  Random random{10};
  const Fast gpu;
  struct Large {
    Index depth;
    std::array<Index, 3> cols;
  };
  for (const Large& large : {Large{2053, {1032, 1000, 24}}, Large{600, {7000, 8, 8}},
                             Large{300, {16300, 16, 40}}, Large{5000, {840, 0, 0}}}) {
    const Index depth = large.depth;
    const std::array<Index, 3>& cols = large.cols;
    for (Index rows : {Index{1}, few}) {
      for (const int how : {0, 1, 2, 3}) {
        const bool narrow = how % 2 != 0;
        const Write write = how < 2 ? Write::Replace : Write::Add;
        if (write == Write::Add && cols[1] > 0) continue;
        CAPTURE(depth);
        CAPTURE(rows);
        CAPTURE(how);
        const auto x = Matrix<float>::input(random, rows, depth, 4 - depth % 4);
        std::vector<StoredWeight<float>> w;
        std::vector<Matrix<float>> y;
        std::vector<Matrix<double>> want;
        for (const Index each : cols) {
          if (each == 0) continue;
          w.emplace_back(random, Shape{depth, each}, false, narrow, 8);
          y.push_back(Matrix<float>::output(random, rows, each, 4));
          want.push_back(y.back().as<double>());
        }
        {
          StagedCall<Fast> call(gpu);
          const View<const float> from = call(x.view());
          if (w.size() == 1) {
            gpu.matmul(from, call(w[0].weight()), call(y[0].view()), write);
          } else {
            const std::array<Weight<float>, 3> weights{call(w[0].weight()), call(w[1].weight()),
                                                       call(w[2].weight())};
            const std::array<View<float>, 3> to{call(y[0].view()), call(y[1].view()),
                                                call(y[2].view())};
            CHECK(gpu.matmul_each(from, weights, to));
          }
        }
        for (std::size_t i = 0; i < w.size(); ++i) {
          exact.matmul(x.as<double>().view(), w[i].as<double>().weight(), want[i].view(), write);
          check_near(y[i], want[i]);
        }
      }
    }
  }
}

TEST_CASE("a head's many columns are the product's") {
  Random random{9};
  const Fast gpu;
  for (Index cols : {16384, 16388, 16390}) {
    for (Index depth : {8, 100, 1032}) {
      for (Index gap : {0, 4}) {
        for (const bool narrow : {false, true}) {
          for (const Write write : {Write::Replace, Write::Add}) {
            if (depth > 8 && (cols != 16388 || (depth > 100 && !narrow))) continue;
            CAPTURE(cols);
            CAPTURE(depth);
            CAPTURE(gap);
            CAPTURE(narrow);
            const Index rows = gap == 0 ? 1 : 2;
            const auto x = Matrix<float>::input(random, rows, depth, gap);
            const StoredWeight<float> w(random, {depth, cols}, true, narrow, gap);
            auto y = Matrix<float>::output(random, rows, cols, gap);
            auto want = y.as<double>();
            {
              StagedCall<Fast> call(gpu);
              gpu.matmul(call(x.view()), call(w.weight()), call(y.view()), write);
            }
            exact.matmul(x.as<double>().view(), w.as<double>().weight(), want.view(), write);
            check_near(y, want);
          }
        }
      }
    }
  }
}

TEST_CASE("weights that do not lie alike are multiplied one by one") {
  Random random{2};
  const Fast gpu;
  const auto x = Matrix<float>::input(random, 1, 24);
  const StoredWeight<float> wide(random, {24, 16}, false, false),
      narrow(random, {24, 16}, false, true), turned(random, {24, 16}, true, false);
  const auto untouched = Matrix<float>::output(1, 16);
  for (const auto* other : {&narrow, &turned}) {
    auto y = untouched, z = untouched, g = untouched;
    {
      StagedCall<Fast> call(gpu);
      const std::array<Weight<float>, 2> w{call(wide.weight()), call(other->weight())};
      const std::array<View<float>, 2> to{call(y.view()), call(z.view())};
      CHECK(!gpu.matmul_each(call(x.view()), w, to));
      CHECK(!gpu.gated(call(x.view()), w[0], w[1], to[0], to[1], call(g.view())));
    }
    CHECK(same_bits(results(y, z, g), results(untouched, untouched, untouched)));
    // The operations then do what they do elsewhere.
    Workspace<Fast> workspace(gpu, 1000);
    Context<Fast> c{gpu, workspace};
    StagedCall<Fast> call(gpu);
    const auto in = call(x.view());
    const auto [a, b] = ops::linears(c, in, call(wide.weight()), call(other->weight()));
    const auto gated = ops::gated(c, in, call(wide.weight()), call(other->weight()));
    auto gate = Matrix<double>::output(1, 16), up = gate, hidden = gate;
    exact.matmul(x.as<double>().view(), wide.as<double>().weight(), gate.view(), Write::Replace);
    exact.matmul(x.as<double>().view(), other->as<double>().weight(), up.view(), Write::Replace);
    exact.swiglu(gate.view(), up.view(), hidden.view());
    const auto check = [&](const View<float>& got, const Matrix<double>& want) {
      const auto values = on_host(gpu, got.data, 16);
      CHECK(relative_error<float>({values.data(), 1, 16}, want.view()) <= 2e-5);
    };
    check(a, gate);
    check(b, up);
    check(gated.gate, gate);
    check(gated.up, up);
    check(gated.hidden, hidden);
  }
}

TEST_CASE("a gate, what it gates and both together are the three") {
  Random random{3};
  const Fast gpu;
  for_weights([&](Index rows, Index depth, Index gap, bool transposed, bool narrow) {
    for (Index cols : {1, 16, 48, 131, 2080}) {
      if (cols > 1000 && depth != 8) continue;
      CAPTURE(cols);
      const auto x = Matrix<float>::input(random, rows, depth, gap);
      const StoredWeight<float> w1(random, {depth, cols}, transposed, narrow, gap);
      const StoredWeight<float> w3(random, {depth, cols}, transposed, narrow, gap);
      const auto untouched = Matrix<float>::output(rows, cols, gap);
      auto gate = untouched, up = untouched, out = untouched;
      bool done = false;
      {
        StagedCall<Fast> call(gpu);
        done = gpu.gated(call(x.view()), call(w1.weight()), call(w3.weight()), call(gate.view()),
                         call(up.view()), call(out.view()));
      }
      CHECK(done == (rows <= few));
      if (!done) CHECK(same_bits(results(gate, up, out), results(untouched, untouched, untouched)));
      if (!done) continue;
      auto gate_ = untouched.as<double>(), up_ = gate_, out_ = gate_;
      const auto x_ = x.as<double>();
      exact.matmul(x_.view(), w1.as<double>().weight(), gate_.view(), Write::Replace);
      exact.matmul(x_.view(), w3.as<double>().weight(), up_.view(), Write::Replace);
      exact.swiglu(gate_.view(), up_.view(), out_.view());
      check_near(gate, gate_);
      check_near(up, up_);
      check_near(out, out_);
    }
  });
}

TEST_CASE("a sum and the norm of it have the bits that they have apart") {
  Random random{4};
  const Fast gpu;
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  {
    const Fast at_once(0, stream);
    const auto wait = [&](auto&&...) { gpu.synchronize(); };
    for (Index rows : {1, 2, 8, 9, 70}) {
      for (Index cols : {1, 8, 100, 131, 768, 1028, 4096, 4100}) {
        if (rows > 9 && cols > 1000) continue;
        for (Index gap : {0, 4, 5}) {
          for (const bool has_norm : {false, true}) {
            for (const bool in_place : {false, true}) {
              CAPTURE(rows);
              CAPTURE(cols);
              CAPTURE(gap);
              CAPTURE(has_norm);
              CAPTURE(in_place);
              const Sum sum(random, rows, cols, gap, has_norm, in_place);
              const auto got = sum.run(gpu);
              CHECK(same_bits(got, sum.run(gpu, wait, wait)));
              CHECK(same_bits(got, sum.run(at_once)));
              const auto want = sum.want();
              for (std::size_t i = 0; i < want.size(); ++i) {
                CAPTURE(i);
                check_near(got[i], want[i]);
              }
            }
          }
        }
      }
    }
  }
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("whatever reads a sum, reads the sum") {
  Random random{5};
  const Fast gpu;
  const Index rows = 2, cols = 40;
  for (const bool has_norm : {false, true}) {
    const Sum sum(random, rows, cols, 4, has_norm, false);
    const auto want = sum.want();
    const StoredWeight<float> w(random, {cols, 24}, false, true);
    const auto check = [&](const auto& read, const Matrix<double>& expected) {
      auto seen = Matrix<float>::output(expected.view().rows, expected.view().cols);
      // Everything is on the GPU before: a copy would be the first to read.
      const auto stage = [&](auto& call) {
        call(w.weight());
        call(sum.x.view());
        call(sum.norm.norm());
        call(seen.view());
      };
      const auto between = [&](auto& call, const auto& to) { read(call, to, call(seen.view())); };
      const auto got = sum.run(gpu, between, stage);
      check_near(seen, expected);
      for (std::size_t i = 0; i < want.size(); ++i) check_near(got[i], want[i]);
    };
    auto product = Matrix<double>::output(rows, 24), twice = Matrix<double>::output(rows, cols);
    exact.matmul(want[0].view(), w.as<double>().weight(), product.view(), Write::Replace);
    exact.add(want[0].view(), want[0].view(), twice.view());
    check([&](auto& call, auto to,
              auto seen) { gpu.matmul(to, call(w.weight()), seen, Write::Replace); },
          product);
    check(
        [&](auto& call, auto to, auto seen) {
          CHECK(gpu.matmul_each(to, std::array<Weight<float>, 1>{call(w.weight())},
                                std::array<View<float>, 1>{seen}));
        },
        product);
    check([&](auto&, auto to, auto seen) { gpu.add(to, to, seen); }, twice);
    // Another sum, of which nothing is read but by the host.
    check(
        [&](auto&, auto to, auto seen) {
          gpu.add(to, to, seen);
          gpu.add(seen, to, seen);
          gpu.axpby(-1, to.data, 1, seen.data, cols);
          gpu.axpby(-1, to.row(1), 1, seen.row(1), cols);
        },
        twice);
    // The norm of something else.
    auto normed = Matrix<double>::output(rows, cols);
    const auto norm = sum.norm.as<double>();
    exact.rms_norm(sum.x.as<double>().view(), norm.norm(), normed.view(), {});
    check([&](auto& call, auto,
              auto seen) { gpu.rms_norm(call(sum.x.view()), call(sum.norm.norm()), seen, {}); },
          normed);
    // A part of it.
    auto row = Matrix<double>::output(1, cols);
    exact.rms_norm(want[0].view().rows_at(1, 1), norm.norm(), row.view(), {});
    check([&](auto& call, auto to,
              auto seen) { gpu.rms_norm(to.rows_at(1, 1), call(sum.norm.norm()), seen, {}); },
          row);
  }
}

TEST_CASE("a norm may be written where what was summed is no longer wanted") {
  Random random{6};
  const Fast gpu;
  const Index cols = 64;
  for (const Index rows : {2, 9, 70}) {
    for (const bool has_norm : {false, true}) {
      for (const Index shift : {0, 1}) {  // rows between x and the norm
        CAPTURE(rows);
        CAPTURE(has_norm);
        CAPTURE(shift);
        const Sum sum(random, rows, cols, 0, has_norm, true);
        const auto want = sum.want();
        const auto on_gpu = [&](const Matrix<float>& m) {
          auto buffer = gpu.allocate<float>((rows + shift) * cols);
          gpu.to_device(m.view().data, buffer.data(), rows * cols);
          return buffer;
        };
        auto h = on_gpu(sum.h), x = on_gpu(sum.x);
        auto inverse = gpu.allocate<float>(rows);
        const View<float> h_(h.data(), rows, cols), x_(x.data(), rows, cols);
        const View<float> y_(x.data() + shift * cols, rows, cols);
        StagedCall<Fast> call(gpu);
        const auto norm = call(sum.norm.norm()), next = call(sum.next.norm());
        if (has_norm) {
          gpu.add_rms_norm(h_, x_, norm, h_, View<float>(inverse.data(), rows, 1));
        } else {
          gpu.add(h_, x_, h_);
        }
        gpu.rms_norm(h_, next, y_, {});
        const auto got = on_host(gpu, y_.data, rows * cols);
        CHECK(relative_error<float>({got.data(), rows, cols}, want[2].view()) <= 2e-5);
      }
    }
  }
}

TEST_CASE("a product, its sum and the norm of that have the bits that they have apart") {
  Random random{7};
  const Fast gpu;
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  {
    const Fast at_once(0, stream);
    for_weights([&](Index rows, Index depth, Index gap, bool transposed, bool narrow) {
      for (Index cols : {8, 100, 131, 768, 4100}) {
        if (cols > 131 && depth != 8) continue;
        for (const bool has_norm : {false, true}) {
          CAPTURE(cols);
          CAPTURE(has_norm);
          const Sum sum(random, rows, cols, gap, has_norm, cols != 100);
          const auto in = Matrix<float>::input(random, rows, depth, gap);
          const StoredWeight<float> w(random, {depth, cols}, transposed, narrow, gap);
          const auto run = [&](const Fast& b, bool apart) {
            auto h = sum.h, x = sum.out, out = sum.out, y = out, inverse = sum.inverse,
                 last = inverse;
            {
              StagedCall<Fast> call(b);
              const View<const float> from = call(in.view());
              const auto weight = call(w.weight());
              const auto first = call(h.view()), product = call(x.view());
              const auto to = sum.in_place ? first : call(out.view());
              const auto result = call(y.view()), of_sum = call(inverse.view());
              const auto of_result = call(last.view());
              const auto post = call(sum.norm.norm()), pre = call(sum.next.norm());
              b.matmul(from, weight, product, Write::Replace);
              if (apart) b.synchronize();
              if (has_norm) {
                b.add_rms_norm(first, product, post, to, of_sum);
              } else {
                b.add(first, product, to);
              }
              if (apart) b.synchronize();
              b.rms_norm(to, pre, result, of_result);
            }
            return results(h, x, out, inverse, y, last);
          };
          const auto got = run(gpu, false);
          CHECK(same_bits(got, run(gpu, true)));
          CHECK(same_bits(got, run(at_once, false)));
          if (rows > few) continue;  // rounded
          auto x = got[1].as<double>(), h = sum.h.as<double>(), y = h;
          exact.matmul(in.as<double>().view(), w.as<double>().weight(), x.view(), Write::Replace);
          if (has_norm) {
            exact.add_rms_norm(h.view(), x.view(), sum.norm.as<double>().norm(), h.view(), {});
          } else {
            exact.add(h.view(), x.view(), h.view());
          }
          exact.rms_norm(h.view(), sum.next.as<double>().norm(), y.view(), {});
          check_near(got[1], x);
          check_near(got[sum.in_place ? 0 : 2], h);
          check_near(got[4], y);
        }
      }
    });
  }
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("a product waits for its sum only, and for no norm that would be in its way") {
  Random random{8};
  const Fast gpu;
  const Index rows = few, width = 40;
  const Sum sum(random, rows, width, 0, true, true);
  const auto in = Matrix<float>::input(random, rows, width);
  const StoredWeight<float> w(random, {width, width}, false, true);
  auto product = Matrix<double>::output(rows, width), twice = product, h = sum.h.as<double>();
  auto y = product;
  exact.matmul(in.as<double>().view(), w.as<double>().weight(), product.view(), Write::Replace);
  exact.matmul(product.view(), w.as<double>().weight(), twice.view(), Write::Replace);
  exact.add(h.view(), product.view(), h.view());
  exact.rms_norm(h.view(), sum.next.as<double>().norm(), y.view(), {});
  const auto on_gpu = [&](const Matrix<float>& m) {
    auto buffer = gpu.allocate<float>(rows * width);
    gpu.to_device(m.view().data, buffer.data(), rows * width);
    return buffer;
  };
  auto x = on_gpu(in), a = on_gpu(in), b = on_gpu(in), stream = on_gpu(sum.h);
  StagedCall<Fast> call(gpu);
  const auto weight = call(w.weight());
  const auto norm = call(sum.next.norm());
  const auto view = [&](auto& buffer) { return View<float>(buffer.data(), rows, width); };
  const auto check = [&](auto& buffer, const Matrix<double>& want) {
    const auto values = on_host(gpu, buffer.data(), rows * width);
    CHECK(relative_error<float>({values.data(), rows, width}, want.view()) <= 2e-5);
  };
  // Another product reads it.
  gpu.matmul(view(x), weight, view(a), Write::Replace);
  gpu.matmul(view(a), weight, view(b), Write::Replace);
  check(a, product);
  check(b, twice);
  // The norm goes where the product reads.
  gpu.matmul(view(x), weight, view(a), Write::Replace);
  gpu.add(view(stream), view(a), view(stream));
  gpu.rms_norm(view(stream), norm, view(x), {});
  check(x, y);
  check(stream, h);
  check(a, product);
  // A sum with something else, and the product added to.
  gpu.to_device(in.view().data, x.data(), rows * width);
  gpu.matmul(view(x), weight, view(a), Write::Replace);
  gpu.add(view(b), view(b), view(b));
  gpu.matmul(view(x), weight, view(a), Write::Add);
  for (auto* each : {&product, &twice}) {
    const auto once = *each;
    exact.add(each->view(), once.view(), each->view());
  }
  check(a, product);
  check(b, twice);
}

TEST_CASE("what is put off is done before its memory is others'") {
  const Fast gpu;
  constexpr Index depth = 64, cols = 4096;
  auto x = gpu.allocate<float>(depth), w = gpu.allocate<float>(depth * cols);
  gpu.fill(1.0f, x.data(), depth);
  gpu.fill(1.0f, w.data(), depth * cols);
  {
    auto y = gpu.allocate<float>(cols);
    gpu.matmul(View<const float>(x.data(), 1, depth), View<const float>(w.data(), depth, cols),
               View<float>(y.data(), 1, cols), Write::Replace);
  }
  auto next = gpu.allocate<float>(cols);  // at the same place, most likely
  const std::vector<float> sevens(cols, 7.0f);
  std::vector<float> got(cols);
  gpu.to_device(sevens.data(), next.data(), cols);
  gpu.to_host(next.data(), got.data(), cols);
  CHECK(got == sevens);
}
