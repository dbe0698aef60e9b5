// SPDX-License-Identifier: MIT
// The head and the cross-entropy of T tokens, C channels, V words: the score alone, with dh, and
// the tangents of dh and of the head's gradient.

#include <vector>

#include <benchmark/benchmark.h>

#include "../support/yardstick.hpp"
#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;
using Reference = reference::Backend<float>;

template <class B, bool Gradient>
void cross_entropy(benchmark::State& state) {
  const Index time = state.range(0), width = state.range(1), words = state.range(2);
  const B& backend = machine<B>();
  const auto h = numbers(time * width), head = numbers(width * words), weights = numbers(time);
  const auto targets = bench::tokens(time, words);
  auto nll = weights, dh = h;
  std::vector<float> scratch(static_cast<std::size_t>(backend.cross_entropy_scratch(time, words)));
  for (auto _ : state) {
    backend.cross_entropy({h.data(), time, width}, View<const float>(head.data(), width, words),
                          targets.data(), weights.data(), nll.data(),
                          Gradient ? View<float>(dh.data(), time, width) : View<float>(),
                          scratch.data());
    benchmark::ClobberMemory();
  }
  flops(state, (Gradient ? 4.0 : 2.0) * static_cast<double>(time * width * words));
  rate(state, "tokens/s", static_cast<double>(time));
}

/// With h moving, or with nothing moving but the weights of the rows.
template <class B, bool Moving>
void cross_entropy_tangent(benchmark::State& state) {
  const Index time = state.range(0), width = state.range(1), words = state.range(2);
  const B& backend = machine<B>();
  const auto h = numbers(time * width), head = numbers(width * words), weights = numbers(time);
  const auto targets = bench::tokens(time, words);
  auto tdh = h, tdhead = head;
  std::vector<float> scratch(
      static_cast<std::size_t>(backend.cross_entropy_tangent_scratch(time, words)));
  const View<const float> x(h.data(), time, width);
  for (auto _ : state) {
    backend.cross_entropy_tangent(x, Moving ? x : View<const float>(),
                                  View<const float>(head.data(), width, words), targets.data(),
                                  weights.data(), 0.5, {tdh.data(), time, width},
                                  {tdhead.data(), width, words}, scratch.data());
    benchmark::ClobberMemory();
  }
  flops(state, (Moving ? 10.0 : 6.0) * static_cast<double>(time * width * words));
  rate(state, "tokens/s", static_cast<double>(time));
}

void small(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "C", "V"})->UseRealTime()->Args({128, 256, 256});
}
void all(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "C", "V"})->UseRealTime();
  b->Args({1, 256, 256})->Args({128, 256, 256})->Args({128, 256, 32000})->Args({128, 768, 32000});
}

BENCHMARK_TEMPLATE(cross_entropy, Reference, false)->Name("cross_entropy/reference")->Apply(small);
BENCHMARK_TEMPLATE(cross_entropy, Cpu, false)->Name("cross_entropy/eigen")->Apply(all);
BENCHMARK_TEMPLATE(cross_entropy, Reference, true)
    ->Name("cross_entropy_gradient/reference")
    ->Apply(small);
BENCHMARK_TEMPLATE(cross_entropy, Cpu, true)->Name("cross_entropy_gradient/eigen")->Apply(all);
BENCHMARK_TEMPLATE(cross_entropy_tangent, Reference, true)
    ->Name("cross_entropy_tangent/reference")
    ->Apply(small);
BENCHMARK_TEMPLATE(cross_entropy_tangent, Cpu, true)
    ->Name("cross_entropy_tangent/eigen")
    ->Apply(all);
BENCHMARK_TEMPLATE(cross_entropy_tangent, Cpu, false)
    ->Name("cross_entropy_tangent_still/eigen")
    ->Apply(all);

}  // namespace
