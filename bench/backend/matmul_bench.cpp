// SPDX-License-Identifier: MIT
// Matrix products: of a chunk (T rows), of its gradient, and of one or two rows, where the weight
// only streams past and bytes count.

#include <vector>

#include <benchmark/benchmark.h>

#include "../support/yardstick.hpp"
#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;
using Reference = reference::Backend<float>;

/// A weight in one of its four forms.
struct TestWeight {
  std::vector<float> wide;
  std::vector<bfloat16> narrow;
  Weight<float> weight;

  TestWeight(Index in, Index out, bool transposed, bool brief) : wide(numbers(in * out)) {
    const Index rows = transposed ? out : in, cols = transposed ? in : out;
    if (brief) {
      for (float x : wide) narrow.push_back(bfloat16(x));
      wide.clear();
      weight = Weight<float>(View<const bfloat16>(narrow.data(), rows, cols));
    } else {
      weight = Weight<float>(View<const float>(wide.data(), rows, cols));
    }
    if (transposed) weight = weight.transpose();
  }
};

template <class B, bool Transposed = false, bool Narrow = false>
void matmul(benchmark::State& state) {
  const Index time = state.range(0), in = state.range(1), out = state.range(2);
  const auto x = numbers(time * in);
  const TestWeight w(in, out, Transposed, Narrow);
  auto y = numbers(time * out);
  for (auto _ : state) {
    machine<B>().matmul({x.data(), time, in}, w.weight, {y.data(), time, out}, Write::Replace);
    benchmark::ClobberMemory();
  }
  flops(state, 2.0 * static_cast<double>(time * in * out));
  if (time <= 2) bytes(state, static_cast<double>(in * out) * (Narrow ? 2 : 4));
}

template <class B>
void matmul_gradient(benchmark::State& state) {
  const Index time = state.range(0), in = state.range(1), out = state.range(2);
  const auto x = numbers(time * in), dy = numbers(time * out);
  auto dw = numbers(in * out);
  for (auto _ : state) {
    machine<B>().matmul_gradient({x.data(), time, in}, {dy.data(), time, out}, {dw.data(), in, out},
                                 Write::Replace);
    benchmark::ClobberMemory();
  }
  flops(state, 2.0 * static_cast<double>(time * in * out));
}

void chunk_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "in", "out"})->UseRealTime();
  for (auto& [in, out] : {std::pair{256, 256}, {256, 704}, {704, 256}, {768, 768}, {768, 2048}}) {
    b->Args({128, in, out});
  }
}
void thin_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "in", "out"})->UseRealTime();
  for (int time : {1, 2}) {
    for (auto& [in, out] : {std::pair{256, 704}, {768, 2048}, {4096, 4096}}) {
      b->Args({time, in, out});
    }
  }
}
void small_shape(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "in", "out"})->UseRealTime()->Args({128, 256, 256})->Args({1, 256, 704});
}

BENCHMARK_TEMPLATE(matmul, Reference)->Name("matmul/reference")->Apply(small_shape);
BENCHMARK_TEMPLATE(matmul, Cpu)->Name("matmul/eigen")->Apply(chunk_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu, true)->Name("matmul_transposed/eigen")->Apply(chunk_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu, false, true)->Name("matmul_bf16/eigen")->Apply(chunk_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu, true, true)
    ->Name("matmul_bf16_transposed/eigen")
    ->Apply(chunk_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu)->Name("matmul_thin/eigen")->Apply(thin_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu, true)->Name("matmul_thin_transposed/eigen")->Apply(thin_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu, false, true)->Name("matmul_thin_bf16/eigen")->Apply(thin_shapes);
BENCHMARK_TEMPLATE(matmul, Cpu, true, true)
    ->Name("matmul_thin_bf16_transposed/eigen")
    ->Apply(thin_shapes);
BENCHMARK_TEMPLATE(matmul_gradient, Reference)
    ->Name("matmul_gradient/reference")
    ->Apply(small_shape);
BENCHMARK_TEMPLATE(matmul_gradient, Cpu)->Name("matmul_gradient/eigen")->Apply(chunk_shapes);

}  // namespace
