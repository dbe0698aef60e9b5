// SPDX-License-Identifier: MIT
// Part of gpu_bench: an existing model of the shape of Qwen3-8B, random weights in bfloat16, with
// every sixth block learning in place. What learning costs while reading, and what decoding makes
// of the memory ("bytes/s", of the weights).
#include <span>
#include <vector>

#include <benchmark/benchmark.h>

#include "gpu.hpp"

namespace {

using namespace ttt;
using namespace ttt::bench;

constexpr Index chunk = 1024, longest = 32768;

auto weights_on(const Fast& gpu) {
  Config config = presets::qwen3_8b.config;
  config.in_place = BlockSet::every(6, config.prefix_blocks);
  return noise_weights(gpu, Preset<Qwen3<SeparateHead, InPlaceMLP<>>>{config}, true);
}
/// Random weights teach nothing: the rate is small, so that nothing overflows either.
constexpr InPlaceLoop learner{.chunk = chunk, .rate = 1e-6f};

void read(benchmark::State& state, bool learns) {
  const Fast gpu;
  Session session(weights_on(gpu), learner, {.max_tokens = longest + 1});
  if (!learns) session.freeze();
  const std::vector<Token> text = tokens(longest + 1, session.weights().config().vocabulary);
  session.read(std::span(text).first(2 * chunk + 1));
  for (auto _ : state) {
    session.reset();
    session.read(text);
  }
  per_second(state, "tokens/s", static_cast<double>(longest));
  peak(state, gpu);
}

void decode(benchmark::State& state) {
  const Fast gpu;
  Session session(weights_on(gpu), NoLearning{.chunk = chunk}, {.max_tokens = longest});
  session.read(tokens(chunk + 1, session.weights().config().vocabulary));
  session.generate(8, Greedy{});
  constexpr Index count = 64;
  const auto start = session.snapshot();
  for (auto _ : state) {
    session.generate(count, Greedy{});
    if (session.counters().tokens + 2 * count < longest) continue;
    state.PauseTiming();
    session.restore(start);
    state.ResumeTiming();
  }
  per_second(state, "tokens/s", static_cast<double>(count));
  per_second(state, "bytes/s", static_cast<double>(count * session.weights().bytes()));
  peak(state, gpu);
}

BENCHMARK_CAPTURE(read, learns, true)
    ->Name("host/qwen3_8b/read/in_place:1/length:32768")
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(2);
BENCHMARK_CAPTURE(read, frozen, false)
    ->Name("host/qwen3_8b/read/in_place:0/length:32768")
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(2);
BENCHMARK(decode)->Name("host/qwen3_8b/decode")->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
