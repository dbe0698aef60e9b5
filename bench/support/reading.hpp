// SPDX-License-Identifier: MIT
/// \file
/// What reading and decoding cost at least: operations and bytes, from a model's sizes.
#pragma once

#include <ttt/ttt.hpp>

namespace ttt::bench {

/// Model S of docs/benchmarks.md: 8 blocks, the last 2 learn.
using SmallModel = TttE2e<6, 2, 512>;
inline constexpr Preset<SmallModel> small{{.vocabulary = 256,
                                           .width = 256,
                                           .heads = 4,
                                           .hidden = 512,
                                           .rope_base = 500000,
                                           .eps = 1e-6,
                                           .chunk = 128}};

/// Floating-point operations of reading one token with learning that sees `keys` keys, the whole
/// window if none are named. Every multiply-add is two; masked or repeated work is not counted;
/// norms, activations and softmax are left out. docs/benchmarks.md derives it.
inline double reading_flops(const Config& c, Index chunk, double seen = 0) {
  const auto real = [](Index x) { return static_cast<double>(x); };
  const double width = real(c.width), hidden = real(c.hidden), words = real(c.vocabulary);
  const double heads = real(c.heads * c.head_dim), keys = real(c.key_heads * c.head_dim);
  const double window = seen > 0 ? seen : real(c.window), blocks = real(c.prefix_blocks + c.suffix_blocks);
  const double suffix = real(c.suffix_blocks);
  const double projections = 2 * width * (2 * heads + 2 * keys);
  const double mlp = 2 * 3 * width * hidden;

  const double forward = blocks * (projections + mlp + 4 * heads * window) + suffix * mlp;
  const double head = 2 * (2 * width * words);  // logits, and the gradient of the hidden state
  if (suffix == 0) return forward + head / 2;
  // Every suffix block: static MLP dx, dynamic MLP dw; all but the first: dynamic dx and attention,
  // three products a cached key and five a key of the chunk itself. The first needs w2's dx only.
  const double attention = projections + 2 * heads * (3 * window + 2 * (real(chunk) + 1) / 2);
  const double backward = suffix * 2 * mlp + (suffix - 1) * (mlp + attention) + mlp / 3;
  const double update = 4 * suffix * mlp / 2 / real(chunk);
  return forward + head + backward + update;
}

/// Bytes that decoding one token has to read at a full window: every weight once, every cached key
/// and value once.
template <class WeightsType>
double decoding_bytes(const WeightsType& weights) {
  const Config& c = weights.config();
  const double scalar = sizeof(typename WeightsType::Scalar);
  const double cache = 2.0 * static_cast<double>(c.prefix_blocks + c.suffix_blocks) *
                       static_cast<double>(c.window * c.key_heads * c.head_dim) * scalar;
  return static_cast<double>(weights.bytes()) + cache;
}

/// A session as it is after `tokens` tokens, without having read them: a full window of noise.
template <class SessionType>
void skip_to(SessionType& session, Index tokens) {
  auto state = session.state().clone(session.weights().backend());
  const Index chunk = session.learner().chunk;
  Random random{3};
  for (Index i = 0; i < state.cache_size; ++i) {
    state.cache.data()[i] = static_cast<typename SessionType::Scalar>(random.uniform() - 0.5);
  }
  state.counters.tokens = tokens / chunk * chunk + 1;
  state.pending.assign(1, 0);
  state.marks.assign(1, 1);
  state.evaluated = 0;
  state.logits.clear();
  session.adopt(std::move(state));
}

}  // namespace ttt::bench
