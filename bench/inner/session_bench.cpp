// SPDX-License-Identifier: MIT
// Reading with learning and decoding, beside the yardstick that bounds each, measured turn by turn
// in the same benchmark: the machine's mood falls on both.
//
//   read/S        a share of threads x Eigen's 1024^3 product on one thread     ("of_eigen")
//   decode/125m   a share of the rate at which all threads can sum a buffer     ("of_sum")
//   batch_*       how many times as fast as its sessions, one after the other   ("of_alone")
#include <chrono>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "../support/reading.hpp"
#include "../support/yardstick.hpp"

namespace {

using namespace ttt;
using namespace ttt::bench;

double seconds(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

template <class Model>
void read(benchmark::State& state, Preset<Model> preset, Index chunks, bool learning = true) {
  const Cpu& cpu = machine<Cpu>();
  const auto weights = initialise(preset, cpu, 1);
  const Index chunk = preset.config.chunk;
  Session session(weights, InnerLoop<Sgd>{.chunk = chunk});
  if (!learning) session.freeze();
  skip_to(session, weights.config().window + chunk);
  const auto text = tokens(chunks * chunk, preset.config.vocabulary);
  constexpr Eigen::Index n = 1024;
  const Eigen::MatrixXf a = Eigen::MatrixXf::Random(n, n), b = Eigen::MatrixXf::Random(n, n);
  Eigen::MatrixXf c(n, n);
  session.read(text);
  double reading = 0, products = 0;
  for (auto _ : state) {
    const double time = seconds([&] { session.read(text); });
    state.SetIterationTime(time);
    reading += time;
    products += seconds([&] {
      c.noalias() = a * b;
      benchmark::DoNotOptimize(c.data());
    });
  }
  const double iterations = static_cast<double>(state.iterations());
  const double length = static_cast<double>(text.size());
  rate(state, "tokens/s", length);
  if (!learning) return;
  const double work = reading_flops(weights.config(), chunk) * length;
  flops(state, work);
  const double eigen = 2.0 * n * n * n * iterations / products;
  state.counters["of_eigen"] = work * iterations / reading / (eigen * cpu.threads());
}

template <class Model>
void decode(benchmark::State& state, Preset<Model> preset) {
  const Cpu& cpu = machine<Cpu>();
  const auto weights = initialise(preset, cpu, 1);
  Session session(weights, InnerLoop<Sgd>{.chunk = preset.config.chunk});
  skip_to(session, weights.config().window + preset.config.chunk);
  const double bytes_read = decoding_bytes(weights);
  const std::vector<float> memory(static_cast<std::size_t>(bytes_read / sizeof(float)), 1.0f);
  ThreadPool pool;
  constexpr Index block = 1 << 18;
  const Index blocks = static_cast<Index>(memory.size()) / block;
  std::vector<float> sums(static_cast<std::size_t>(blocks) + 1);
  const auto sum = [&] {
    pool.run(blocks, [&](Index i) {
      sums[static_cast<std::size_t>(i)] =
          Eigen::Map<const Eigen::ArrayXf>(memory.data() + i * block, block).sum();
    });
    benchmark::DoNotOptimize(sums.data());
  };
  const auto step = [&] {
    benchmark::DoNotOptimize(session.logits().data());
    session.read(std::vector<Token>{7});
  };
  const auto start = session.snapshot();
  Index made = 0;
  step();
  sum();
  double decoding = 0, summing = 0;
  for (auto _ : state) {
    if (++made % (preset.config.chunk - 4) == 0) session.restore(start);  // no chunk completes
    const double time = seconds(step);
    state.SetIterationTime(time);
    decoding += time;
    summing += seconds(sum);
  }
  rate(state, "tokens/s", 1);
  bytes(state, bytes_read);
  state.counters["of_sum"] =
      summing * bytes_read / (decoding * static_cast<double>(blocks * block) * sizeof(float));
}

/// A batch beside as many sessions, one after the other: with a full window, or at the beginning
/// of their documents.
template <class Model, class Work>
void together(benchmark::State& state, Preset<Model> preset, Index sequences, bool full,
              Index tokens, const Work& work) {
  const Index chunk = preset.config.chunk;
  const auto weights = initialise(preset, machine<Cpu>(), 1);
  const InnerLoop<Sgd> learner{.chunk = chunk};
  Batch batch(weights, learner, sequences);
  std::vector<Session<std::decay_t<decltype(weights)>>> alone;
  for (Index i = 0; i < sequences; ++i) {
    alone.emplace_back(weights, learner);
    skip_to(alone.back(), full ? weights.config().window + chunk : 0);
    batch.adopt(i, alone.back().state());
  }
  double ours = 0, theirs = 0;
  const auto run = [&] {
    const double time = seconds([&] { work(batch); });
    ours += time;
    theirs += seconds([&] {
      for (auto& session : alone) work(session);
    });
    return time;
  };
  run();
  ours = theirs = 0;
  for (auto _ : state) state.SetIterationTime(run());
  rate(state, "tokens/s", static_cast<double>(sequences * tokens));
  state.counters["of_alone"] = theirs / ours;
}

template <class Model>
void batch_decode(benchmark::State& state, Preset<Model> preset, Index sequences, bool full) {
  constexpr Index count = 4;
  together(state, preset, sequences, full, count,
           [](auto& reader) { reader.generate(count, Greedy{}); });
}

template <class Model>
void batch_read(benchmark::State& state, Preset<Model> preset, Index sequences) {
  const auto text = tokens(preset.config.chunk, preset.config.vocabulary);
  const std::vector<std::span<const Token>> all(static_cast<std::size_t>(sequences), text);
  together(state, preset, sequences, true, preset.config.chunk, [&](auto& reader) {
    if constexpr (requires { reader.size(); }) {
      reader.read(all);
    } else {
      reader.read(text);
    }
  });
}

BENCHMARK_CAPTURE(read, S, small, 4)->Name("read/S")->UseManualTime();
BENCHMARK_CAPTURE(read, S_frozen, small, 4, false)->Name("read_frozen/S")->UseManualTime();
BENCHMARK_CAPTURE(read, books_byte, presets::books_byte, 4)
    ->Name("read/books_byte")
    ->UseManualTime();
BENCHMARK_CAPTURE(read, e2e_125m, presets::e2e_125m, 1)
    ->Name("read/125m")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(decode, S, small)->Name("decode/S")->UseManualTime();
BENCHMARK_CAPTURE(decode, books_byte, presets::books_byte)
    ->Name("decode/books_byte")
    ->UseManualTime();
BENCHMARK_CAPTURE(decode, e2e_125m, presets::e2e_125m)
    ->Name("decode/125m")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(batch_read, S, small, 8)->Name("batch_read/S/8")->UseManualTime();
BENCHMARK_CAPTURE(batch_decode, S, small, 8, true)->Name("batch_decode/S/8")->UseManualTime();
BENCHMARK_CAPTURE(batch_decode, books_byte, presets::books_byte, 8, true)
    ->Name("batch_decode/books_byte/8")
    ->UseManualTime();
BENCHMARK_CAPTURE(batch_decode, e2e_125m, presets::e2e_125m, 4, false)
    ->Name("batch_decode/125m/4/empty")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
