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
  std::vector<float> q, keys, values, o, lse, dq, dkeys, dvalues, to, tlse;
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
        to(q),
        tlse(lse),
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
  View<float> sums(std::vector<float>& flat) const { return {flat.data(), shape.heads, time}; }
  void forward(const auto& backend) {
    backend.attention(matrix(q), k, v, shape, matrix(o), sums(lse));
  }
  void backward(const auto& backend) {
    backend.attention_backward(matrix(q), k, v, shape, matrix(o), sums(lse), matrix(q), matrix(dq),
                               matrix(dkeys), matrix(dvalues), shape.position);
  }
  /// Everything moves along the queries, which takes as long as anything.
  void tangent(const auto& backend) {
    const View<float> along = matrix(q);
    backend.attention_tangent(along, along, k, v, along, along, shape, matrix(o), sums(lse),
                              matrix(to), sums(tlse));
  }
  /// `before`: how many earlier keys have gradients.
  void backward_tangent(const auto& backend, Index before) {
    const View<float> along = matrix(q);
    const Index rows = before + time;
    dkeys.resize(static_cast<std::size_t>(rows * width()));
    dvalues.resize(dkeys.size());
    backend.attention_backward_tangent(
        along, along, k, v, along, along, shape, matrix(o), matrix(to), sums(lse), sums(tlse),
        along, along, matrix(dq), View<float>(dkeys.data(), rows, width()),
        View<float>(dvalues.data(), rows, width()), shape.position - before);
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

template <class B>
void attention_tangent(benchmark::State& state) {
  Block block(state);
  block.forward(machine<B>());
  for (auto _ : state) {
    block.tangent(machine<B>());
    benchmark::ClobberMemory();
  }
  flops(state, 2 * (3 * block.pairs() + 2 * block.own_pairs()));
  rate(state, "tokens/s", static_cast<double>(block.time));
}

/// All keys of the window have gradients, as in the outer loop, or the block's own only.
template <class B, bool All = true>
void attention_backward_tangent(benchmark::State& state) {
  Block block(state);
  block.forward(machine<B>());
  block.tangent(machine<B>());
  for (auto _ : state) {
    block.backward_tangent(machine<B>(), All ? block.shape.window - 1 : 0);
    benchmark::ClobberMemory();
  }
  flops(state, 2 * (All ? 9 * block.pairs() + 3 * block.own_pairs()
                        : 5 * block.pairs() + 7 * block.own_pairs()));
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
BENCHMARK_TEMPLATE(attention_tangent, Reference)
    ->Name("attention_tangent/reference")
    ->Apply(small_shape);
BENCHMARK_TEMPLATE(attention_tangent, Cpu)->Name("attention_tangent/eigen")->Apply(shapes);
BENCHMARK_TEMPLATE(attention_backward_tangent, Reference)
    ->Name("attention_backward_tangent/reference")
    ->Apply(small_shape);
BENCHMARK_TEMPLATE(attention_backward_tangent, Cpu)
    ->Name("attention_backward_tangent/eigen")
    ->Apply(shapes);
BENCHMARK_TEMPLATE(attention_backward_tangent, Cpu, false)
    ->Name("attention_backward_tangent_own/eigen")
    ->Apply(shapes);

}  // namespace
