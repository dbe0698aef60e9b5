// SPDX-License-Identifier: MIT
// The peak memory of one meta-gradient: each in a process of its own, whose high-water mark the
// system keeps. "planned_MB" is what MetaGradient::required_bytes says; the difference is the
// program, the model and its gradient. And the plans of large models on a GPU, which need none.
#include <algorithm>
#include <cstdio>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "../support/yardstick.hpp"
#include <ttt/model/presets.hpp>
#include <ttt/outer/meta_gradient.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;

constexpr auto preset = presets::books_byte;
using Model = std::decay_t<decltype(preset)>::Model;
using Meta = MetaGradient<Model, Cpu, InnerLoop<Sgd>>;

void memory(benchmark::State& state, Keep keep, bool recompute) {
  const Index length = state.range(0);
  const InnerLoop<Sgd> learner{.chunk = preset.config.chunk};
  const MetaOptions options{.keep = keep, .recompute = recompute};
  const Index planned =
      Meta::required_bytes(Model(preset.config), Cpu(1), learner, length, options);
  state.counters["planned_MB"] = static_cast<double>(planned) / 1e6;
  const double machine_has =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  if (static_cast<double>(planned) > 0.9 * machine_has) {
    state.SkipWithError("more than this machine has");
    return;
  }
  for (auto _ : state) {
    const ::pid_t child = ::fork();
    if (child == 0) {
      const Cpu cpu;
      const auto weights = initialise(preset, cpu, 1);
      Meta meta(weights.model(), cpu, learner, length, options);
      std::vector<float> gradient(static_cast<std::size_t>(meta.size()));
      meta(weights.parameters(), tokens(length + 1, 256), {}, gradient.data());
      ::_exit(0);
    }
    int status = 0;
    rusage usage = {};
    if (child < 0 || ::wait4(child, &status, 0, &usage) != child || status != 0) {
      state.SkipWithError("the process failed");
      return;
    }
    state.counters["peak_MB"] = static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
  }
  rate(state, "tokens/s", static_cast<double>(length));
}

void lengths(benchmark::internal::Benchmark* b) {
  b->ArgName("tokens")->Arg(2048)->Arg(8192)->Arg(32768)->Arg(131072);
  b->Iterations(1)->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK_CAPTURE(memory, all, Keep::all(), false)->Name("memory/keep_all")->Apply(lengths);
BENCHMARK_CAPTURE(memory, sqrt, Keep::sqrt(), true)->Name("memory/sqrt")->Apply(lengths);

/// What cuda::Products::Bfloat16 asks for, to plan with.
struct Gpu : Cpu {
  using CacheScalar = bfloat16;
  using Cpu::axpby;
  void narrow(const float*, bfloat16*, Index) const {}
  static constexpr bool rounds_factors(Index rows, Index cols) { return rows > 2 && cols % 8 == 0; }
  void axpby(double, const float*, double, float*, Index, bfloat16*) const {}
  static Index cross_entropy_scratch(Index rows, Index vocabulary) {
    return std::min<Index>(rows, (1 << 27) / vocabulary) * vocabulary * 3 / 2;
  }
  static Index cross_entropy_tangent_scratch(Index rows, Index vocabulary) {
    return 2 * cross_entropy_scratch(rows, vocabulary);
  }
};

/// One sequence of chunks of 1,024: what is planned, and all with weights in bfloat16 and float
/// gradients.
template <class Model>
void plan(benchmark::State& state, const Preset<Model>& large, Index length,
          const MetaOptions& options) {
  const Gpu gpu;
  const Model model(large.config);
  Index bytes = 0;
  for (auto _ : state) {
    bytes = MetaGradient<Model, Gpu, InnerLoop<Sgd>>::required_bytes(model, gpu, {.chunk = 1024},
                                                                     length, options);
  }
  state.counters["planned_GB"] = static_cast<double>(bytes) / 1e9;
  state.counters["all_GB"] = static_cast<double>(bytes + 6 * parameter_count(model)) / 1e9;
}

const bool registered = [] {
  const auto add = [](const std::string& name, const auto& large) {
    for (const Index length : {8192, 32768, 131072}) {
      const auto one = [&](const std::string& how, MetaOptions options) {
        const std::string full = "plan/" + name + "/tokens:" + std::to_string(length) + "/" + how;
        benchmark::RegisterBenchmark(full.c_str(), [=](benchmark::State& state) {
          plan(state, large, length, options);
        })->Iterations(1);
      };
      one("keep_all", {});
      one("keep_all_recompute", {.recompute = true});
      one("keep_2_recompute", {.keep = {2}, .recompute = true});
      one("sqrt_recompute", {.keep = Keep::sqrt(), .recompute = true});
    }
  };
  add("125m", presets::e2e_125m);
  add("3b", presets::e2e_3b);
  return true;
}();

}  // namespace
