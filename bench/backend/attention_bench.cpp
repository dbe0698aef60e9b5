// SPDX-License-Identifier: MIT
// Window attention of a block of T queries of 4 heads, at a position where the window is full.

#include <algorithm>
#include <vector>

#include <benchmark/benchmark.h>

#include "../support/yardstick.hpp"
#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;
using Reference = reference::Backend<float>;

struct Block {
  Index time;
  AttentionShape shape;
  std::vector<float> q, keys, values, o, lse, dq, dkeys, dvalues;
  Cache<const float> k, v;

  explicit Block(const benchmark::State& state)
      : time(state.range(1)),
        shape{.heads = 4,
              .key_heads = 4,
              .head_dim = state.range(2),
              .window = state.range(0),
              .position = 10 * state.range(0)},
        q(numbers(time * width())),
        keys(numbers(slots() * width())),
        values(keys),
        o(q),
        lse(numbers(shape.heads * time)),
        dq(q),
        dkeys(q),
        dvalues(q),
        k{keys.data(), shape.key_heads, slots(), shape.head_dim},
        v{values.data(), shape.key_heads, slots(), shape.head_dim} {}

  Index width() const { return shape.heads * shape.head_dim; }
  Index slots() const { return shape.window + time; }
  /// Multiplications of one product over all pairs of a query and a key that it sees, and over
  /// those whose key is the block's own.
  double pairs() const { return static_cast<double>(time * shape.window * width()); }
  double own_pairs() const {
    Index pairs = 0;
    for (Index t = 0; t < time; ++t) pairs += std::min(t + 1, shape.window);
    return static_cast<double>(pairs * width());
  }

  View<float> matrix(std::vector<float>& flat) const { return {flat.data(), time, width()}; }
  void forward(const auto& backend) {
    backend.attention(matrix(q), k, v, shape, matrix(o), {lse.data(), shape.heads, time});
  }
  void backward(const auto& backend) {
    backend.attention_backward(matrix(q), k, v, shape, matrix(o),
                               View<float>(lse.data(), shape.heads, time), matrix(q), matrix(dq),
                               matrix(dkeys), matrix(dvalues));
  }
};

template <class B>
void attention(benchmark::State& state) {
  Block block(state);
  for (auto _ : state) {
    block.forward(machine<B>());
    benchmark::ClobberMemory();
  }
  flops(state, 2 * 2 * block.pairs());
  rate(state, "tokens/s", static_cast<double>(block.time));
}

template <class B>
void attention_backward(benchmark::State& state) {
  Block block(state);
  block.forward(machine<B>());
  for (auto _ : state) {
    block.backward(machine<B>());
    benchmark::ClobberMemory();
  }
  flops(state, 2 * (3 * block.pairs() + 2 * block.own_pairs()));
  rate(state, "tokens/s", static_cast<double>(block.time));
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"W", "T", "D"})->UseRealTime();
  for (int window : {128, 512, 2048}) b->Args({window, 128, 64});
  b->Args({512, 128, 16})->Args({512, 128, 128})->Args({512, 1024, 64});
}
void thin_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"W", "T", "D"})->UseRealTime()->Args({512, 1, 64})->Args({8192, 1, 64});
}
void small_shape(benchmark::internal::Benchmark* b) {
  b->ArgNames({"W", "T", "D"})->UseRealTime()->Args({128, 128, 64});
}

BENCHMARK_TEMPLATE(attention, Reference)->Name("attention/reference")->Apply(small_shape);
BENCHMARK_TEMPLATE(attention, Cpu)->Name("attention/eigen")->Apply(shapes)->Apply(thin_shapes);
BENCHMARK_TEMPLATE(attention_backward, Reference)
    ->Name("attention_backward/reference")
    ->Apply(small_shape);
BENCHMARK_TEMPLATE(attention_backward, Cpu)->Name("attention_backward/eigen")->Apply(shapes);

}  // namespace
