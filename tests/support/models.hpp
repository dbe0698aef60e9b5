// SPDX-License-Identifier: MIT
/// \file
/// Models that tests read with, and what to ask of the sessions that do.
#pragma once

#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <support/kernels.hpp>
#include <support/random.hpp>
#include <vector>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/io/load.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::test {

/// The model in examples/models.
using DemoAttention = SlidingWindowAttention<256>;
using DemoReader = LanguageModel<Stack<4, Block<DemoAttention, SwiGLU>>,
                                 Stack<2, Block<DemoAttention, DualMLP<SwiGLU, SwiGLU>>>>;

template <class B>
Weights<DemoReader, B> load_demo(const B& backend) {
  return load<DemoReader>(std::string(TTT_EXAMPLE_MODELS) + "/books-byte.safetensors", backend);
}

/// A model small enough to do anything with: 61 tokens, width 16, a window of 12 in the file's
/// place.
using TinyBlock = Block<SlidingWindowAttention<>, SwiGLU>;
using TinyLearning = Block<SlidingWindowAttention<>, DualMLP<SwiGLU, SwiGLU>>;
using TinyReader = LanguageModel<Stack<1, TinyBlock>, Stack<2, TinyLearning>>;

inline Config tiny_config() {
  return {.vocabulary = 61,
          .width = 16,
          .heads = 2,
          .hidden = 24,
          .window = 12,
          .rope_base = 10000,
          .eps = 1e-6};
}

/// Weights large enough that a step is felt.
template <class Model = TinyReader, class B>
Weights<Model, B> tiny_weights(const B& backend, Config config = tiny_config(),
                               std::uint64_t seed = 7) {
  return initialise<Model>(config, backend, seed, 0.25);
}

/// Calls f(name, values) for every parameter, to change it: only for weights that initialise() has
/// just made, whose memory is nobody else's.
template <class Model, class B, class F>
void change(const Weights<Model, B>& weights, const F& f) {
  using Scalar = typename B::Scalar;
  Model::each(
      [&](const ParameterName& name, const Weight<Scalar>& leaf) {
        f(name, std::span<Scalar>(const_cast<Scalar*>(static_cast<const Scalar*>(leaf.data)),
                                  static_cast<std::size_t>(leaf.shape().size())));
      },
      weights.parameters());
}

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return same_bits(std::span<const T>(a), std::span<const T>(b));
}

/// What a session has learned, optimizer included; empty before its first step.
template <class Session>
std::span<const typename Session::Scalar> learned(const Session& session) {
  return {session.state().learned.data(), static_cast<std::size_t>(session.state().learned_size)};
}

/// The keys and values that tokens to come can see of completed chunks: what remains of a
/// document.
template <class Session>
std::vector<typename Session::Scalar> window(const Session& session) {
  using Scalar = typename Session::Scalar;
  const auto& model = session.weights().model();
  const auto& config = model.config();
  const auto& state = session.state();
  const Index blocks = model.blocks(), heads = config.key_heads, d = config.head_dim;
  const Index slots = state.cache_size / (2 * blocks * heads * d);
  const Index end = state.boundary();
  const Index begin = std::max<Index>(0, end - model.window() + 1);
  std::vector<Scalar> out;
  for (Index half = 0; half < 2 * blocks * heads; ++half) {
    for (Index p = begin; p < end; ++p) {
      const Scalar* at = state.cache.data() + (half * slots + p % slots) * d;
      out.insert(out.end(), at, at + d);
    }
  }
  return out;
}

/// Whether two sessions stand at the same point with the same bits. Keys of the unfinished chunk
/// and what was computed from them may differ in rounding, so they do not count.
template <class Session>
bool same_state(const Session& a, const Session& b) {
  return a.counters() == b.counters() && a.state().pending == b.state().pending &&
         a.state().marks == b.state().marks && a.state().random == b.state().random &&
         same_bits(learned(a), learned(b)) && same_bits(window(a), window(b));
}

/// The largest difference of two scores; infinite if one is not a number where the other is.
template <class A, class B>
double furthest(const A& a, const B& b) {
  if (std::size(a) != std::size(b)) return INFINITY;
  double most = 0;
  for (std::size_t i = 0; i < std::size(a); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (std::isnan(x) && std::isnan(y)) continue;
    const double distance = std::abs(x - y);
    if (!(distance <= most)) most = std::isnan(distance) ? INFINITY : distance;
  }
  return most;
}

/// -log softmax(logits)[token].
template <class Logits>
double nll_of(const Logits& logits, Token token) {
  double most = -INFINITY, sum = 0;
  for (const auto logit : logits) most = std::max(most, static_cast<double>(logit));
  for (const auto logit : logits) sum += std::exp(static_cast<double>(logit) - most);
  return std::log(sum) + most - static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

}  // namespace ttt::test
