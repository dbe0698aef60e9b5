// SPDX-License-Identifier: MIT
// The peak memory of one meta-gradient: each in a process of its own, whose high-water mark the
// system keeps. "planned_MB" is what MetaGradient::required_bytes says; the difference is the
// program, the model and its gradient.
#include <cstdio>
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

}  // namespace
