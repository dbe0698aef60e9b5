// SPDX-License-Identifier: MIT
// One meta-gradient beside reading the same tokens with learning, and beside Eigen's product, turn
// by turn in the same benchmark: the machine's mood falls on all three.
//
//   meta_gradient/S    "of_reading": times a reading; "of_eigen": share of threads x Eigen's 1024^3
//   stacked/S          two sequences together; "of_apart": times the same two, each on its threads
#include <chrono>
#include <vector>

#include "../support/reading.hpp"
#include "../support/training.hpp"
#include "../support/yardstick.hpp"
#include <ttt/outer/meta_gradient.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;

double seconds(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

template <class Model, class Order>
void meta_gradient(benchmark::State& state, Preset<Model> preset, Index length, Order,
                   MetaOptions options = {}) {
  const Cpu& cpu = machine<Cpu>();
  const auto weights = initialise(preset, cpu, 1);
  const Index chunk = preset.config.chunk;
  const InnerLoop<Sgd> learner{.chunk = chunk};
  Session session(weights, learner);
  MetaGradient<Model, Cpu, InnerLoop<Sgd>, Order> meta(weights.model(), cpu, learner, length,
                                                       options);
  std::vector<float> gradient(static_cast<std::size_t>(meta.size()));
  const auto text = tokens(length + 1, preset.config.vocabulary);
  constexpr Eigen::Index n = 1024;
  const Eigen::MatrixXf a = Eigen::MatrixXf::Random(n, n), b = Eigen::MatrixXf::Random(n, n);
  Eigen::MatrixXf c(n, n);
  const auto read = [&] {
    session.reset();
    session.read(text);
  };
  const auto differentiate = [&] { meta(weights.parameters(), text, {}, gradient.data()); };
  read();
  differentiate();
  double training = 0, reading = 0, products = 0;
  for (auto _ : state) {
    const double time = seconds(differentiate);
    state.SetIterationTime(time);
    training += time;
    reading += seconds(read);
    products += seconds([&] {
      c.noalias() = a * b;
      benchmark::DoNotOptimize(c.data());
    });
  }
  const double iterations = static_cast<double>(state.iterations());
  rate(state, "tokens/s", static_cast<double>(length));
  state.counters["of_reading"] = training / reading;
  if (!Order::exact) return;
  const double work = training_flops(weights.config(), length, chunk);
  flops(state, work);
  const double eigen = 2.0 * n * n * n * iterations / products;
  state.counters["of_eigen"] = work * iterations / training / (eigen * cpu.threads());
}

template <class Model>
void stacked(benchmark::State& state, Preset<Model> preset, Index length) {
  constexpr Index batch = 2;
  const Cpu& cpu = machine<Cpu>();
  const auto weights = initialise(preset, cpu, 1);
  const InnerLoop<Sgd> learner{.chunk = preset.config.chunk};
  MetaGradient apart(weights.model(), cpu, learner, length);
  MetaGradient together(weights.model(), cpu, learner, length, {.sequences = 1, .stacked = batch});
  std::vector<float> gradient(static_cast<std::size_t>(apart.size()));
  const auto text = tokens(batch * (length + 1), preset.config.vocabulary);
  const auto differentiate = [&](auto& meta) {
    return seconds([&] { meta(weights.parameters(), text, {}, gradient.data()); });
  };
  differentiate(apart);
  differentiate(together);
  double with = 0, without = 0;
  for (auto _ : state) {
    const double time = differentiate(together);
    state.SetIterationTime(time);
    with += time;
    without += differentiate(apart);
  }
  rate(state, "tokens/s", static_cast<double>(batch * length));
  state.counters["of_apart"] = with / without;
}

BENCHMARK_CAPTURE(meta_gradient, S, small, 2048, SecondOrder{})
    ->Name("meta_gradient/S")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(meta_gradient, S_sqrt, small, 2048, SecondOrder{},
                  MetaOptions{.keep = Keep::sqrt(), .recompute = true})
    ->Name("meta_gradient/S/sqrt")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(meta_gradient, S_first, small, 2048, FirstOrder{})
    ->Name("first_order/S")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(meta_gradient, books_byte, presets::books_byte, 2048, SecondOrder{})
    ->Name("meta_gradient/books_byte")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(stacked, S, small, 2048)
    ->Name("stacked/S")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(stacked, books_byte, presets::books_byte, 2048)
    ->Name("stacked/books_byte")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
