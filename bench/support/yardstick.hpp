// SPDX-License-Identifier: MIT
/// \file
/// What every benchmark shares: inputs, rates, and two yardsticks, one for arithmetic and one for
/// memory, that run beside whatever a program measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <ttt/backend/eigen/backend.hpp>  // and Eigen, without the warnings it draws from GCC
#include <ttt/backend/reference/backend.hpp>
#include <ttt/core/random.hpp>
#include <ttt/core/thread_pool.hpp>

namespace ttt::bench {

/// The backend that a benchmark runs on; one each, so that threads are started once.
template <class B>
const B& machine() {
  static const B backend;
  return backend;
}

/// Uniform in [-1, 1).
inline std::vector<float> numbers(Index size) {
  Random random{1};
  std::vector<float> out(static_cast<std::size_t>(size));
  for (float& x : out) x = static_cast<float>(2 * random.uniform() - 1);
  return out;
}

inline std::vector<Token> tokens(Index size, Index vocabulary) {
  Random random{2};
  std::vector<Token> out(static_cast<std::size_t>(size));
  for (Token& t : out)
    t = static_cast<Token>(random.bits() % static_cast<std::uint64_t>(vocabulary));
  return out;
}

/// Reports how many of something, of which an iteration has `count`, a second has.
inline void rate(benchmark::State& state, const char* unit, double count) {
  state.counters[unit] = benchmark::Counter(count, benchmark::Counter::kIsIterationInvariantRate);
}
inline void flops(benchmark::State& state, double count) {
  rate(state, "FLOP/s", count);
}
inline void bytes(benchmark::State& state, double count) {
  rate(state, "bytes/s", count);
}

/// The yardstick for arithmetic: Eigen's own product of two 1024 x 1024 matrices, on one thread.
inline void eigen_1024(benchmark::State& state) {
  constexpr Eigen::Index n = 1024;
  const Eigen::MatrixXf a = Eigen::MatrixXf::Random(n, n), b = Eigen::MatrixXf::Random(n, n);
  Eigen::MatrixXf c(n, n);
  for (auto _ : state) {
    c.noalias() = a * b;
    benchmark::DoNotOptimize(c.data());
    benchmark::ClobberMemory();
  }
  flops(state, 2.0 * n * n * n);
}
BENCHMARK(eigen_1024)->Name("eigen_1024")->UseRealTime();

/// The yardstick for memory: a vectorised sum over more than the caches hold, on all threads.
inline void sum(benchmark::State& state) {
  constexpr Index size = Index{64} << 20, block = 1 << 18;
  const std::vector<float> memory(static_cast<std::size_t>(size), 1.0f);
  ThreadPool pool;
  std::vector<float> sums(size / block);
  for (auto _ : state) {
    pool.run(size / block, [&](Index i) {
      sums[static_cast<std::size_t>(i)] =
          Eigen::Map<const Eigen::ArrayXf>(memory.data() + i * block, block).sum();
    });
    benchmark::DoNotOptimize(sums.data());
    benchmark::ClobberMemory();
  }
  bytes(state, static_cast<double>(size) * sizeof(float));
}
BENCHMARK(sum)->Name("sum")->UseRealTime();

}  // namespace ttt::bench
