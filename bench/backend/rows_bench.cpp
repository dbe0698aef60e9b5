// SPDX-License-Identifier: MIT
// What works row by row, and on flat vectors. All of it is bound by memory, so bytes count: each
// operand once in, each result once out.

#include <vector>

#include <benchmark/benchmark.h>

#include "../support/yardstick.hpp"
#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;
using Reference = reference::Backend<float>;

/// Matrices of T rows and C columns, and what a norm needs.
struct Rows {
  Index time, width;
  std::vector<std::vector<float>> flats;
  std::vector<float> scale, inverse, dscale;

  Rows(const benchmark::State& state, int matrices)
      : time(state.range(0)),
        width(state.range(1)),
        flats(static_cast<std::size_t>(matrices), numbers(time * width)),
        scale(numbers(width)),
        inverse(numbers(time * width)),
        dscale(scale) {}

  View<float> operator[](std::size_t i) { return {flats[i].data(), time, width}; }
  Norm<float> norm(Index size) const { return {View<const float>(scale.data(), 1, size), 1e-6}; }
  View<float> inverses(Index heads) { return {inverse.data(), time, heads}; }
};

/// Times call(), which reads and writes `matrices` matrices.
void measure(benchmark::State& state, int matrices, const auto& call) {
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  bytes(state, 4.0 * matrices * static_cast<double>(state.range(0) * state.range(1)));
}

template <class B>
void rms_norm(benchmark::State& state) {
  Rows m(state, 2);
  measure(state, 2, [&] { machine<B>().rms_norm(m[0], m.norm(m.width), m[1], m.inverses(1)); });
}

template <class B>
void add_rms_norm(benchmark::State& state) {
  Rows m(state, 2);
  measure(state, 3,
          [&] { machine<B>().add_rms_norm(m[0], m[1], m.norm(m.width), m[0], m.inverses(1)); });
}

template <class B>
void rms_norm_backward(benchmark::State& state) {
  Rows m(state, 3);
  const View<float> dscale(m.dscale.data(), 1, m.width);
  measure(state, 3, [&] {
    machine<B>().rms_norm_backward(m[0], m.norm(m.width), m.inverses(1), m[1], m[2], Write::Replace,
                                   dscale);
  });
}

template <class B>
void rms_norm_tangent(benchmark::State& state) {
  Rows m(state, 3);
  auto tinverse = m.inverse;
  measure(state, 3, [&] {
    machine<B>().rms_norm_tangent(m[0], m[1], m.norm(m.width), m.inverses(1), {}, m[2],
                                  View<float>(tinverse.data(), m.time, 1));
  });
}

template <class B>
void rms_norm_backward_tangent(benchmark::State& state) {
  Rows m(state, 5);
  const View<float> dscale(m.dscale.data(), 1, m.width);
  measure(state, 5, [&] {
    machine<B>().rms_norm_backward_tangent(m[0], m[1], m.norm(m.width), m.inverses(1),
                                           m.inverses(1), m[2], m[3], m[4], Write::Replace, dscale);
  });
}

template <class B>
void swiglu(benchmark::State& state) {
  Rows m(state, 3);
  measure(state, 3, [&] { machine<B>().swiglu(m[0], m[1], m[2]); });
}

template <class B>
void swiglu_backward(benchmark::State& state) {
  Rows m(state, 5);
  measure(state, 5, [&] { machine<B>().swiglu_backward(m[0], m[1], m[2], m[3], m[4]); });
}

template <class B>
void swiglu_tangent(benchmark::State& state) {
  Rows m(state, 5);
  measure(state, 5, [&] { machine<B>().swiglu_tangent(m[0], m[1], m[2], m[3], m[4]); });
}

template <class B>
void swiglu_backward_tangent(benchmark::State& state) {
  Rows m(state, 8);
  measure(state, 8, [&] {
    machine<B>().swiglu_backward_tangent(m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]);
  });
}

template <class B, RopeLayout Layout>
void head_norm_rope(benchmark::State& state) {
  constexpr Index d = 64;
  Rows m(state, 2);
  const auto angles = numbers(m.time * d);
  measure(state, 2, [&] {
    machine<B>().head_norm_rope(m[0], m.norm(d), View<const float>(angles.data(), m.time, d),
                                Layout, m[1], m.inverses(m.width / d));
  });
}

template <class B, RopeLayout Layout>
void head_norm_rope_backward(benchmark::State& state) {
  constexpr Index d = 64;
  Rows m(state, 3);
  const auto angles = numbers(m.time * d);
  const View<float> dscale(m.dscale.data(), 1, d);
  measure(state, 3, [&] {
    machine<B>().head_norm_rope_backward(m[0], m.norm(d), m.inverses(m.width / d),
                                         View<const float>(angles.data(), m.time, d), Layout, m[1],
                                         m[2], dscale);
  });
}

template <class B, RopeLayout Layout>
void head_norm_rope_tangent(benchmark::State& state) {
  constexpr Index d = 64;
  Rows m(state, 3);
  const auto angles = numbers(m.time * d);
  auto tinverse = m.inverse;
  measure(state, 3, [&] {
    machine<B>().head_norm_rope_tangent(m[0], m[1], m.norm(d), m.inverses(m.width / d),
                                        View<const float>(angles.data(), m.time, d), Layout, m[2],
                                        View<float>(tinverse.data(), m.time, m.width / d));
  });
}

template <class B, RopeLayout Layout>
void head_norm_rope_backward_tangent(benchmark::State& state) {
  constexpr Index d = 64;
  Rows m(state, 5);
  const auto angles = numbers(m.time * d);
  const View<float> dscale(m.dscale.data(), 1, d), inverses = m.inverses(m.width / d);
  measure(state, 5, [&] {
    machine<B>().head_norm_rope_backward_tangent(m[0], m[1], m.norm(d), inverses, inverses,
                                                 View<const float>(angles.data(), m.time, d),
                                                 Layout, m[2], m[3], m[4], dscale);
  });
}

template <class B>
void rope_angles(benchmark::State& state) {
  Rows m(state, 1);
  const std::vector<double> frequencies(static_cast<std::size_t>(m.width / 2), 0.01);
  measure(state, 1, [&] { machine<B>().rope_angles(1000, frequencies.data(), m[0]); });
}

template <class B>
void embed(benchmark::State& state) {
  Rows m(state, 1);
  const auto table = numbers(1024 * m.width);
  const auto ids = bench::tokens(m.time, 1024);
  measure(state, 2, [&] {
    machine<B>().embed(View<const float>(table.data(), 1024, m.width), ids.data(), m[0]);
  });
}

template <class B>
void embed_backward(benchmark::State& state) {
  Rows m(state, 1);
  auto table = numbers(1024 * m.width);
  const auto ids = bench::tokens(m.time, 1024);
  measure(state, 3, [&] {
    machine<B>().embed_backward(ids.data(), m[0], View<float>(table.data(), 1024, m.width));
  });
}

template <class B>
void dot(benchmark::State& state) {
  const auto x = numbers(state.range(0));
  for (auto _ : state)
    benchmark::DoNotOptimize(machine<B>().dot(x.data(), x.data(), state.range(0)));
  bytes(state, 4.0 * static_cast<double>(state.range(0)));
}

template <class B>
void axpby(benchmark::State& state) {
  const auto x = numbers(state.range(0));
  auto y = x;
  for (auto _ : state) {
    machine<B>().axpby(-0.1, x.data(), 0.9, y.data(), state.range(0));
    benchmark::ClobberMemory();
  }
  bytes(state, 12.0 * static_cast<double>(state.range(0)));
}

template <class B>
void adam(benchmark::State& state) {
  const auto gradient = numbers(state.range(0));
  auto m = gradient, v = gradient, weights = gradient;
  for (float& x : v) x *= x;
  const AdamStep step{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .rate = 1e-3};
  for (auto _ : state) {
    machine<B>().adam(step, gradient.data(), m.data(), v.data(), weights.data(), state.range(0));
    benchmark::ClobberMemory();
  }
  bytes(state, 28.0 * static_cast<double>(state.range(0)));
}

void small(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "C"})->UseRealTime()->Args({128, 256});
}
void all(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "C"})->UseRealTime()->Args({1, 768})->Args({128, 256})->Args({128, 2048});
}
void angle_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "C"})->UseRealTime()->Args({128, 64});
}
void flat_small(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N"})->UseRealTime()->Arg(1 << 16);
}
void flat_all(benchmark::internal::Benchmark* b) {
  b->ArgNames({"N"})->UseRealTime()->Arg(1 << 16)->Arg(1 << 20)->Arg(1 << 26);
}

#define TTT_BOTH(name, reference_shapes, eigen_shapes)                                    \
  BENCHMARK_TEMPLATE(name, Reference)->Name(#name "/reference")->Apply(reference_shapes); \
  BENCHMARK_TEMPLATE(name, Cpu)->Name(#name "/eigen")->Apply(eigen_shapes)

TTT_BOTH(rms_norm, small, all);
TTT_BOTH(add_rms_norm, small, all);
TTT_BOTH(rms_norm_backward, small, all);
TTT_BOTH(rms_norm_tangent, small, all);
TTT_BOTH(rms_norm_backward_tangent, small, all);
TTT_BOTH(swiglu, small, all);
TTT_BOTH(swiglu_backward, small, all);
TTT_BOTH(swiglu_tangent, small, all);
TTT_BOTH(swiglu_backward_tangent, small, all);
TTT_BOTH(embed, small, all);
TTT_BOTH(embed_backward, small, all);
TTT_BOTH(rope_angles, angle_shapes, angle_shapes);
TTT_BOTH(dot, flat_small, flat_all);
TTT_BOTH(axpby, flat_small, flat_all);
TTT_BOTH(adam, flat_small, flat_all);

#define TTT_BOTH_LAYOUTS(name)                                 \
  BENCHMARK_TEMPLATE(name, Reference, RopeLayout::Interleaved) \
      ->Name(#name "_interleaved/reference")                   \
      ->Apply(small);                                          \
  BENCHMARK_TEMPLATE(name, Cpu, RopeLayout::Interleaved)       \
      ->Name(#name "_interleaved/eigen")                       \
      ->Apply(all);                                            \
  BENCHMARK_TEMPLATE(name, Reference, RopeLayout::HalfSplit)   \
      ->Name(#name "_half_split/reference")                    \
      ->Apply(small);                                          \
  BENCHMARK_TEMPLATE(name, Cpu, RopeLayout::HalfSplit)->Name(#name "_half_split/eigen")->Apply(all)

TTT_BOTH_LAYOUTS(head_norm_rope);
TTT_BOTH_LAYOUTS(head_norm_rope_backward);
TTT_BOTH_LAYOUTS(head_norm_rope_tangent);
TTT_BOTH_LAYOUTS(head_norm_rope_backward_tangent);

}  // namespace
