// SPDX-License-Identifier: MIT
/// \file
/// What the benchmarks of a GPU share: rates, and models with random weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <ttt/backend/cuda/backend.hpp>
#include <ttt/ttt.hpp>

namespace ttt::bench {

using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;
inline double yardstick = 0;  // FLOP/s

inline void per_second(benchmark::State& state, const char* what, double count) {
  state.counters[what] = benchmark::Counter(count, benchmark::Counter::kIsIterationInvariantRate);
}
/// Work an iteration: its rate, and that as a share of the yardstick, if it ran before.
inline void flops(benchmark::State& state, double count) {
  per_second(state, "FLOP/s", count);
  if (yardstick > 0) per_second(state, "share", count / yardstick);
}
template <class Machine>
void peak(benchmark::State& state, const Machine& gpu) {
  state.counters["peak_GB"] = static_cast<double>(gpu.peak_bytes()) / 1e9;
}

inline std::vector<Token> tokens(Index size, Index vocabulary) {
  Random random{2};
  std::vector<Token> out(static_cast<std::size_t>(size));
  for (Token& t : out) {
    t = static_cast<Token>(random.bits() % static_cast<std::uint64_t>(vocabulary));
  }
  return out;
}

/// Weights in bfloat16: one stretch of noise again and again, and norms of ones. `transposed`: as
/// Hugging Face stores them, [out, in].
template <class Machine, class Model>
Weights<Model, Machine> noise_weights(const Machine& gpu, const Preset<Model>& preset,
                                      bool transposed = false) {
  Model model(preset.config);
  constexpr Index stretch = Index{1} << 22;
  Random random{1};
  std::vector<bfloat16> values(stretch), ones(static_cast<std::size_t>(model.config().width));
  for (bfloat16& x : values) x = bfloat16(static_cast<float>(0.02 * random.normal()));
  for (bfloat16& x : ones) x = bfloat16(1.0f);
  typename Weights<Model, Machine>::Memory memory;
  memory.buffers.push_back(gpu.template allocate<float>(parameter_count(model) / 2 + 1));
  auto* at = reinterpret_cast<bfloat16*>(memory.buffers.back().data());
  gpu.to_device(values.data(), at, std::min(stretch, parameter_count(model)));
  const bfloat16* const noise = at;
  auto tree = model.template tree<Weight<float>>();
  auto shapes = model.shapes();
  Index place = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape, Weight<float>& leaf) {
        bfloat16* const to = at + place;
        place += shape.size();
        const bool turned = transposed && name.role != Role::Norm && name.role != Role::Embedding;
        leaf = turned ? Weight<float>(View<const bfloat16>(to, shape.cols, shape.rows)).transpose()
                      : Weight<float>(View<const bfloat16>(to, shape.rows, shape.cols));
        if (name.role == Role::Norm) return gpu.to_device(ones.data(), to, shape.size());
        for (Index done = 0; done < shape.size(); done += stretch) {
          if (to + done == noise) continue;
          gpu.copy(noise, to + done, std::min(stretch, shape.size() - done));
        }
      },
      shapes, tree);
  return {std::move(model), gpu, std::move(tree), std::move(memory)};
}

}  // namespace ttt::bench
