// SPDX-License-Identifier: MIT
// A GPU's rates, with random weights: products, attention, reading with learning, without, and with
// full attention, decoding, meta-gradients and steps of training, in exact float (125m only) and on
// tensor cores; and the yardstick, cuBLAS's product of two 8192 x 8192 matrices in bfloat16, which
// every `share` is of. docs/benchmarks.md has the table.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <cublas_v2.h>

#include "../support/reading.hpp"
#include "../support/training.hpp"
#include "gpu.hpp"
#include <ttt/train.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;
using Learner = InnerLoop<Sgd>;

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
  const auto begin = std::chrono::steady_clock::now();
  double products = 0;
  for (auto _ : state) {
    for (int i = 0; i < 10; ++i) run();
    gpu.synchronize();
    products += 10;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  yardstick = products * 2.0 * n * n * n / seconds.count();
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
  flops(state,
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

// ---- attention ----------------------------------------------------------------------------------

/// A chunk of 1,024 queries behind a full window of 8,192 keys.
struct AttentionWork {
  static constexpr Index rows = 1024, window = 8192, position = 8192;
  Fast gpu;
  AttentionShape shape;
  Index width = shape.heads * shape.head_dim, keys = shape.heads * (position + rows);
  cuda::Buffer<float> q = noise(gpu, rows*width), dout = noise(gpu, rows*width);
  cuda::Buffer<float> tq = noise(gpu, rows*width), tdout = noise(gpu, rows*width);
  cuda::Buffer<float> tk = noise(gpu, rows*width), tv = noise(gpu, rows*width);
  cuda::Buffer<float> o = noise(gpu, rows*width), to = noise(gpu, rows*width);
  cuda::Buffer<float> dq = noise(gpu, rows* width);
  cuda::Buffer<float> lse = noise(gpu, rows*shape.heads), tlse = noise(gpu, rows*shape.heads);
  cuda::Buffer<float> dk = noise(gpu, keys*shape.head_dim), dv = noise(gpu, keys*shape.head_dim);
  cuda::Buffer<bfloat16> cache = gpu.allocate<bfloat16>(2 * keys * shape.head_dim);

  View<float> matrix(cuda::Buffer<float>& b) const { return {b.data(), rows, width}; }
  View<float> sums(cuda::Buffer<float>& b) const { return {b.data(), shape.heads, rows}; }
  View<float> gradient(cuda::Buffer<float>& b) const { return {b.data(), position + rows, width}; }
  Cache<bfloat16> ring(Index which) {
    return {cache.data() + which * keys * shape.head_dim, shape.heads, position + rows,
            shape.head_dim};
  }
  /// Pairs of a query and a key it sees, all of them and those of one chunk; a product is two
  /// operations a channel and pair.
  double pairs() const { return static_cast<double>(rows * window * shape.heads); }
  double own_pairs() const { return static_cast<double>(rows * (rows + 1) / 2 * shape.heads); }
};

enum class Pass : std::uint8_t { Forward, Queries, Backward, Tangent, BackwardTangent };

void attention(benchmark::State& state, Pass pass, Index heads, Index head_dim) {
  AttentionWork w{Fast(), {heads, heads, head_dim, AttentionWork::window, AttentionWork::position}};
  for (Index p = 0; p < w.position + w.rows; p += w.rows) {
    w.gpu.store(w.matrix(p % 2048 == 0 ? w.q : w.tq), w.ring(0), p);
    w.gpu.store(w.matrix(p % 2048 == 0 ? w.tdout : w.dout), w.ring(1), p);
  }
  const auto q = w.matrix(w.q), dout = w.matrix(w.dout), o = w.matrix(w.o), to = w.matrix(w.to);
  const auto lse = w.sums(w.lse), tlse = w.sums(w.tlse), dq = w.matrix(w.dq);
  w.gpu.attention(q, w.ring(0), w.ring(1), w.shape, o, lse);
  const auto backward = [&](View<float> dk, View<float> dv) {
    w.gpu.attention_backward(q, w.ring(0), w.ring(1), w.shape, o, lse, dout, dq, dk, dv, 0);
  };
  const auto run = [&] {
    switch (pass) {
      case Pass::Forward: return w.gpu.attention(q, w.ring(0), w.ring(1), w.shape, o, lse);
      case Pass::Queries: return backward({}, {});
      case Pass::Backward: return backward(w.gradient(w.dk), w.gradient(w.dv));
      case Pass::Tangent:
        return w.gpu.attention_tangent(q, w.matrix(w.tq), w.ring(0), w.ring(1), w.matrix(w.tk),
                                       w.matrix(w.tv), w.shape, o, lse, to, tlse);
      case Pass::BackwardTangent:
        return w.gpu.attention_backward_tangent(
            q, w.matrix(w.tq), w.ring(0), w.ring(1), w.matrix(w.tk), w.matrix(w.tv), w.shape, o, to,
            lse, tlse, dout, w.matrix(w.tdout), dq, w.gradient(w.dk), w.gradient(w.dv), 0);
    }
  };
  run();
  w.gpu.synchronize();
  for (auto _ : state) {
    for (int i = 0; i < 10; ++i) run();
    w.gpu.synchronize();
  }
  // Products a cached key, and more of a chunk's own; docs/backends.md.
  constexpr double products[][2] = {{2, 0}, {3, 0}, {5, 0}, {3, 2}, {10, 5}};
  const auto [each, own] = products[static_cast<int>(pass)];
  flops(state, 10 * 2.0 * static_cast<double>(head_dim) * (each * w.pairs() + own * w.own_pairs()));
}

// ---- sessions -----------------------------------------------------------------------------------

/// Lets a session that has read a full window stand anywhere: its keys are any document's.
template <class SessionType>
void move_to(SessionType& session, Index tokens) {
  auto state = session.state().clone(session.weights().backend());
  state.counters.tokens = tokens + 1;
  session.adopt(std::move(state));
}

constexpr Index chunk = 1024;

template <class Machine, class Model>
auto weights_for(const Machine& gpu, const Preset<Model>& preset) {
  if constexpr (std::is_same_v<Machine, Fast>) {
    return noise_weights(gpu, preset);
  } else {
    return initialise(preset, gpu, 1);
  }
}

template <class Machine, class Model>
auto session_for(const Machine& gpu, const Preset<Model>& preset, const auto& learner,
                 Index ahead = 1) {
  const bool grows = std::is_same_v<Machine, Fast> && !Model::is_windowed;
  return Session(weights_for(gpu, preset), learner,
                 SessionOptions{.max_tokens = grows ? Index{131072} + 2 : 0, .read_ahead = ahead});
}

/// Every slot of the window, however far it looks ahead.
template <class SessionType>
void fill_window(SessionType& session, std::span<const Token> text) {
  session.read(text.first(1));
  for (Index read = 0; read < 18 * chunk; read += std::ssize(text)) session.read(text);
}

/// Chunks behind a full window, at any place of a document: one at a time or, of those that are
/// read ahead, many, as a document's.
template <class Machine, class Model, class Learner>
void read_chunks(benchmark::State& state, const Preset<Model>& preset, const Learner& learner,
                 Index at, Index ahead) {
  const Machine gpu;
  const Index length = ahead > 1 ? 4 * ahead * chunk : chunk;
  const std::vector<Token> text = tokens(length, preset.config.vocabulary);
  auto session = session_for(gpu, preset, learner, ahead);
  fill_window(session, text);
  move_to(session, at);
  for (auto _ : state) session.read(text);
  per_second(state, "tokens/s", static_cast<double>(length));
  Config config = session.weights().config();
  if (std::is_same_v<Learner, NoLearning>) config.prefix_blocks += config.suffix_blocks;
  if (std::is_same_v<Learner, NoLearning>) config.suffix_blocks = 0;
  flops(state, static_cast<double>(length) * bench::reading_flops(config, chunk));
  peak(state, gpu);
}

/// A whole document from its beginning.
template <class Machine, class Model, class Learner>
void read_document(benchmark::State& state, const Preset<Model>& preset, const Learner& learner,
                   Index length, Index ahead) {
  const Machine gpu;
  const std::vector<Token> text = tokens(length + 1, preset.config.vocabulary);
  auto session = session_for(gpu, preset, learner, ahead);
  const Index some = std::min<Index>(length, 2 * chunk) + 1;
  session.read(std::span(text).first(static_cast<std::size_t>(some)));
  for (auto _ : state) {
    session.reset();
    session.read(text);
  }
  per_second(state, "tokens/s", static_cast<double>(length));
  const Config config = session.weights().config();
  const double window = Model::is_windowed ? static_cast<double>(config.window) : 1e18;
  double seen = 0;
  for (Index t = 0; t < length; ++t) {
    seen += std::min(window, static_cast<double>(t + 1)) / static_cast<double>(length);
  }
  flops(state, static_cast<double>(length) * bench::reading_flops(config, chunk, seen));
  peak(state, gpu);
}

template <class Machine, class Model>
void decode(benchmark::State& state, const Preset<Model>& preset, Index at) {
  const Machine gpu;
  auto session = session_for(gpu, preset, Learner{.chunk = chunk});
  fill_window(session, tokens(chunk, preset.config.vocabulary));
  move_to(session, at);
  session.generate(8, Greedy{});
  for (auto _ : state) session.generate(64, Greedy{});
  per_second(state, "tokens/s", 64);
  const Config& config = session.weights().config();
  const double cache =
      4.0 * static_cast<double>(config.window * config.key_heads * config.head_dim *
                                session.weights().model().blocks());
  per_second(state, "bytes/s", 64 * (static_cast<double>(session.weights().bytes()) + cache));
  peak(state, gpu);
}

/// Documents together, each at the same place of its own: decoding, or a chunk of each.
template <class Machine, class Model>
void batch(benchmark::State& state, const Preset<Model>& preset, Index sequences, Index at,
           bool decodes) {
  const Machine gpu;
  const std::vector<Token> text = tokens(chunk, preset.config.vocabulary);
  const auto weights = weights_for(gpu, preset);
  const Learner learner{.chunk = chunk};
  Batch all(weights, learner, sequences);
  {
    Session one(weights, learner);
    if (at > 0) {
      fill_window(one, text);
      move_to(one, at);
    } else {
      one.read(std::span(text).first(1));
    }
    for (Index i = 0; i < sequences; ++i) all.adopt(i, one.state());
  }
  const std::vector<std::span<const Token>> texts(static_cast<std::size_t>(sequences), text);
  const Index length = decodes ? 64 : chunk;
  const auto run = [&] {
    if (decodes) {
      all.generate(length, Greedy{});
    } else {
      all.read(texts);
    }
  };
  run();
  for (auto _ : state) run();
  per_second(state, "tokens/s", static_cast<double>(sequences * length));
  peak(state, gpu);
}

// ---- training -----------------------------------------------------------------------------------

template <class Machine, class Model>
void meta_gradient(benchmark::State& state, const Preset<Model>& preset, Index length, Index batch,
                   MetaOptions options) {
  const Machine gpu;
  const auto weights = weights_for(gpu, preset);
  MetaGradient meta(weights.model(), gpu, Learner{.chunk = chunk}, length, options);
  auto gradient = gpu.template allocate<float>(meta.size());
  const std::vector<Token> text = tokens(batch * (length + 1), preset.config.vocabulary);
  const auto run = [&] {
    meta(weights.parameters(), text, {}, gradient.data());
    gpu.synchronize();
  };
  if (length < 32 * chunk) run();  // what a first time costs is nothing to a long one
  for (auto _ : state) run();
  per_second(state, "tokens/s", static_cast<double>(batch * length));
  flops(state, static_cast<double>(batch) * bench::training_flops(weights.config(), length, chunk));
  using Meta = decltype(meta);
  state.counters["planned_GB"] = static_cast<double>(Meta::required_bytes(
                                     weights.model(), gpu, meta.learner(), length, options)) /
                                 1e9;
  peak(state, gpu);
}

/// Noise for a Trainer.
struct Noise {
  Index words, tokens;
  Index length() const { return tokens; }
  Index size() const { return Index{1} << 40; }
  void sample(Index index, std::span<Token> out) const {
    Random random{static_cast<std::uint64_t>(index)};
    for (Token& t : out) t = static_cast<Token>(random.bits() % static_cast<std::uint64_t>(words));
  }
};

/// A step of training: the meta-gradient with float masters, clipping, decay and AdamW.
template <class Machine, class Model>
void training_step(benchmark::State& state, const Preset<Model>& preset, Index length, Index batch,
                   MetaOptions options) {
  const Machine gpu;
  const Model model(preset.config);
  const Config& config = model.config();
  Trainer trainer(initialise(preset, gpu, 1), Learner{.chunk = chunk}, OuterLoop<AdamW>{},
                  Noise{config.vocabulary, length},
                  TrainerOptions{.length = length, .batch = batch, .meta = options});
  trainer.step();
  for (auto _ : state) trainer.step();  // waits for the loss and the norm
  per_second(state, "tokens/s", static_cast<double>(batch * length));
  flops(state, static_cast<double>(batch) * bench::training_flops(config, length, chunk));
  peak(state, gpu);
}

/// Registers `run` under a name; `once` for what takes seconds.
template <class Run>
void add(const std::string& name, const Run& run, bool once = false) {
  auto* const made = benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime();
  made->Unit(benchmark::kMillisecond);
  if (once) made->Iterations(1);
}

const bool registered = [] {
  using State = benchmark::State;
  constexpr const char* passes[] = {"forward", "backward_dq", "backward", "tangent",
                                    "backward_tangent"};
  for (const auto& [heads, d] : {std::pair<Index, Index>{96, 64}, {32, 80}}) {
    for (int pass = 0; pass < 5; ++pass) {
      add(std::string("attention/") + passes[pass] + "/d:" + std::to_string(d) +
              "/heads:" + std::to_string(heads),
          [=, h = heads, d = d](State& s) { attention(s, static_cast<Pass>(pass), h, d); });
    }
  }
  const auto model = [](const std::string& size, const auto& e2e, const auto& full) {
    const Learner learner{.chunk = chunk};
    const NoLearning none{.chunk = chunk};
    const bool large = size == "3b";
    for (const Index ahead : {1, 8}) {
      const std::string name = "read/" + size + "/ahead:" + std::to_string(ahead);
      add(name + "/empty:8192",
          [=](State& s) { read_document<Fast>(s, e2e, learner, 8192, ahead); });
      for (const auto& [place, at] :
           {std::pair<const char*, Index>{"16K", 16384}, {"128K", 131072}, {"1M", 1048576}}) {
        add(name + "/at:" + place,
            [=, at = at](State& s) { read_chunks<Fast>(s, e2e, learner, at, ahead); });
      }
    }
    add("read/" + size + "/window_only/at:128K",
        [=](State& s) { read_chunks<Fast>(s, e2e, none, 131072, 8); });
    add("prefill/" + size + "/full_attention/empty:8192",
        [=](State& s) { read_document<Fast>(s, full, none, 8192, 8); });
    add(
        "prefill/" + size + "/full_attention/empty:131072",
        [=](State& s) { read_document<Fast>(s, full, none, 131072, 8); }, true);
    add("decode/" + size + "/at:16K", [=](State& s) { decode<Fast>(s, e2e, 16384); });
    add("decode/" + size + "/at:1M", [=](State& s) { decode<Fast>(s, e2e, 1048576); });
    for (const Index sequences : {2, 4, 8, 16}) {
      if (large && sequences > 8) continue;  // states of 8 GB each
      const std::string name = "/at:16K/batch:" + std::to_string(sequences);
      add("decode/" + size + name, [=](State& s) { batch<Fast>(s, e2e, sequences, 16384, true); });
      add("read/" + size + name, [=](State& s) { batch<Fast>(s, e2e, sequences, 16384, false); });
    }
    add("decode/" + size + "/empty/batch:8", [=](State& s) { batch<Fast>(s, e2e, 8, 0, true); });
    add("meta_gradient/" + size + "/length:8192/batch:1",
        [=](State& s) { meta_gradient<Fast>(s, e2e, 8192, 1, {.recompute = large}); });
    if (large) {
      for (const Index keep : {1, 2, 5, 6, 7}) {  // chunks whose values are in memory at a time
        add("meta_gradient/" + size + "/length:8192/batch:1/keep:" + std::to_string(keep),
            [=](State& s) {
              meta_gradient<Fast>(s, e2e, 8192, 1, {.keep = {keep}, .recompute = true});
            });
      }
      const MetaOptions least{.keep = Keep::sqrt(), .recompute = true};
      for (const Index length : {32768, 131072}) {
        add(
            "meta_gradient/" + size + "/length:" + std::to_string(length) + "/batch:1/keep:sqrt",
            [=](State& s) { meta_gradient<Fast>(s, e2e, length, 1, least); }, true);
      }
      return;
    }
    add("training_step/" + size + "/length:8192/batch:4",
        [=](State& s) { training_step<Fast>(s, e2e, 8192, 4, {.stacked = 4}); });
    for (const Index stacked : {1, 2, 4}) {  // one after the other, in pairs, together
      add("meta_gradient/" + size + "/length:8192/batch:4/stacked:" + std::to_string(stacked),
          [=](State& s) { meta_gradient<Fast>(s, e2e, 8192, 4, {.stacked = stacked}); });
    }
    add("read/" + size + "/exact/at:128K",
        [=](State& s) { read_chunks<Cuda>(s, e2e, learner, 131072, 1); });
    add("decode/" + size + "/exact/at:16K", [=](State& s) { decode<Cuda>(s, e2e, 16384); });
    add(
        "meta_gradient/" + size + "/exact/length:8192/batch:1",
        [=](State& s) { meta_gradient<Cuda>(s, e2e, 8192, 1, {}); }, true);
  };
  model("125m", presets::e2e_125m, presets::full_125m);
  model("3b", presets::e2e_3b, presets::full_3b);
  return true;
}();

}  // namespace
