// SPDX-License-Identifier: MIT
// A GPU's rates: products, reading with learning, decoding and meta-gradients of the 125m preset
// with random weights, in exact float and with products in bfloat16; and the yardstick, cuBLAS's
// product of two 8192 x 8192 matrices in bfloat16.
#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <cublas_v2.h>

#include "../support/reading.hpp"
#include "../support/training.hpp"
#include <ttt/backend/cuda/backend.hpp>
#include <ttt/train.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;
using Learner = InnerLoop<Sgd>;
void per_second(benchmark::State& state, const char* what, double count) {
  state.counters[what] = benchmark::Counter(count, benchmark::Counter::kIsIterationInvariantRate);
}

std::vector<Token> tokens(Index size, Index vocabulary) {
  Random random{2};
  std::vector<Token> out(static_cast<std::size_t>(size));
  for (Token& t : out) {
    t = static_cast<Token>(random.bits() % static_cast<std::uint64_t>(vocabulary));
  }
  return out;
}

template <class Machine>
cuda::Buffer<float> noise(const Machine& gpu, Index size) {
  Random random{1};
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& x : values) x = static_cast<float>(2 * random.uniform() - 1);
  auto buffer = gpu.template allocate<float>(size);
  gpu.to_device(values.data(), buffer.data(), size);
  return buffer;
}

void cublas_8192(benchmark::State& state) {
  constexpr int n = 8192;
  const Cuda gpu;
  const Index size = Index{n} * n;
  std::vector<bfloat16> values(static_cast<std::size_t>(n) * n);
  Random random{1};
  for (bfloat16& x : values) x = bfloat16(static_cast<float>(2 * random.uniform() - 1));
  auto a = gpu.allocate<bfloat16>(size), b = gpu.allocate<bfloat16>(size);
  auto c = gpu.allocate<bfloat16>(size);
  gpu.to_device(values.data(), a.data(), size);
  gpu.to_device(values.data(), b.data(), size);
  cublasHandle_t handle = nullptr;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return state.SkipWithError("no cuBLAS");
  cublasSetStream(handle, gpu.stream());
  const float one = 1, zero = 0;
  const auto run = [&] {
    cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, a.data(), CUDA_R_16BF, n,
                 b.data(), CUDA_R_16BF, n, &zero, c.data(), CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                 CUBLAS_GEMM_DEFAULT);
  };
  run();
  gpu.synchronize();
  for (auto _ : state) {
    for (int i = 0; i < 10; ++i) run();
    gpu.synchronize();
  }
  per_second(state, "FLOP/s", 10 * 2.0 * n * n * n);
  cublasDestroy(handle);
}
BENCHMARK(cublas_8192)->UseRealTime()->Unit(benchmark::kMillisecond);

/// (rows, depth) · (depth, cols): mode 0 with the weight [in, out], 1 [out, in], 2 the gradient.
template <class Machine>
void product(benchmark::State& state) {
  const Index rows = state.range(0), depth = state.range(1), cols = state.range(2);
  const Machine gpu;
  auto a = noise(gpu, rows * depth), b = noise(gpu, depth * cols), c = noise(gpu, rows * cols);
  const View<const float> x(a.data(), rows, depth), w(b.data(), depth, cols),
      wt(b.data(), cols, depth);
  const auto run = [&] {
    switch (state.range(3)) {
      case 0: return gpu.matmul(x, w, View<float>(c.data(), rows, cols), Write::Replace);
      case 1:
        return gpu.matmul(x, Weight<float>(wt).transpose(), View<float>(c.data(), rows, cols),
                          Write::Replace);
      default:
        return gpu.matmul_gradient(View<const float>(a.data(), depth, rows), w,
                                   View<float>(c.data(), rows, cols), Write::Replace);
    }
  };
  run();
  gpu.synchronize();
  for (auto _ : state) {
    for (int i = 0; i < 10; ++i) run();
    gpu.synchronize();
  }
  per_second(
      state, "FLOP/s",
      20.0 * static_cast<double>(rows) * static_cast<double>(depth) * static_cast<double>(cols));
}
#define PRODUCTS(MACHINE)                           \
  BENCHMARK_TEMPLATE(product, MACHINE)              \
      ->ArgNames({"rows", "depth", "cols", "mode"}) \
      ->Args({8192, 768, 768, 0})                   \
      ->Args({1024, 768, 1664, 0})                  \
      ->Args({1024, 768, 128256, 1})                \
      ->Args({1024, 128256, 768, 0})                \
      ->Args({768, 1024, 1664, 2})                  \
      ->Args({4096, 4096, 4096, 0})                 \
      ->UseRealTime()                               \
      ->Unit(benchmark::kMillisecond)
PRODUCTS(Cuda);
PRODUCTS(Fast);

struct Size125m {
  static constexpr auto preset = presets::e2e_125m;
};
struct Size3b {
  static constexpr auto preset = presets::e2e_3b;
};

/// Weights in bfloat16: one stretch of noise again and again, and norms of ones.
template <class Machine, class Model>
Weights<Model, Machine> noise_weights(const Machine& gpu, const Preset<Model>& preset) {
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
        leaf = View<const bfloat16>(to, shape.rows, shape.cols);
        if (name.role == Role::Norm) return gpu.to_device(ones.data(), to, shape.size());
        for (Index done = 0; done < shape.size(); done += stretch) {
          if (to + done == noise) continue;
          gpu.copy(noise, to + done, std::min(stretch, shape.size() - done));
        }
      },
      shapes, tree);
  return {std::move(model), gpu, std::move(tree), std::move(memory)};
}
template <class Machine, class Model>
auto weights_for(const Machine& gpu, const Preset<Model>& preset) {
  if constexpr (std::is_same_v<Machine, Fast>) {
    return noise_weights(gpu, preset);
  } else {
    return initialise(preset, gpu, 1);
  }
}

/// A session behind a full window. What is read next ends where chunks end.
template <class Size, class Machine>
auto reader(const Machine& gpu, std::span<const Token> chunk) {
  Session session(weights_for(gpu, Size::preset), Learner{.chunk = 1024});
  session.read(chunk.first(1));
  for (int i = 0; i < 9; ++i) session.read(chunk);
  return session;
}

template <class Machine, class Size>
void read(benchmark::State& state) {
  const Machine gpu;
  const std::vector<Token> text = tokens(1024, Size::preset.config.vocabulary);
  auto session = reader<Size>(gpu, text);
  for (auto _ : state) session.read(text);
  per_second(state, "tokens/s", 1024);
  per_second(state, "FLOP/s", 1024 * bench::reading_flops(session.weights().config(), 1024));
}
#define BOTH(WHAT)                                                                        \
  BENCHMARK_TEMPLATE(WHAT, Cuda, Size125m)->UseRealTime()->Unit(benchmark::kMillisecond); \
  BENCHMARK_TEMPLATE(WHAT, Fast, Size125m)->UseRealTime()->Unit(benchmark::kMillisecond); \
  BENCHMARK_TEMPLATE(WHAT, Fast, Size3b)->UseRealTime()->Unit(benchmark::kMillisecond)
BOTH(read);

template <class Machine, class Size>
void decode(benchmark::State& state) {
  const Machine gpu;
  auto session = reader<Size>(gpu, tokens(1024, Size::preset.config.vocabulary));
  for (auto _ : state) session.generate(32, Greedy{});
  per_second(state, "tokens/s", 32);
}
BOTH(decode);

template <class Machine, class Size>
void meta_gradient(benchmark::State& state) {
  constexpr Index length = 8192;
  const Machine gpu;
  const auto weights = weights_for(gpu, Size::preset);
  MetaGradient meta(weights.model(), gpu, Learner{.chunk = 1024}, length);
  auto gradient = gpu.template allocate<float>(meta.size());
  const std::vector<Token> text = tokens(length + 1, Size::preset.config.vocabulary);
  for (auto _ : state) meta(weights.parameters(), text, {}, gradient.data());
  per_second(state, "tokens/s", static_cast<double>(length));
  per_second(state, "FLOP/s", bench::training_flops(weights.config(), length, 1024));
}
BOTH(meta_gradient);

}  // namespace
