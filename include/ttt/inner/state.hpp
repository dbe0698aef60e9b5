// SPDX-License-Identifier: MIT
/// \file
/// Everything a session knows about the document it is reading, as a value.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <ttt/backend/concepts.hpp>
#include <ttt/core/random.hpp>

namespace ttt::inline TTT_ABI {

namespace detail {
inline constexpr Index most_count = Index{1} << 60;  // of tokens or steps
}  // namespace detail

/// What happened since the document began.
struct Counters {
  Index tokens = 0;         // read or generated
  Index inner_steps = 0;    // steps taken
  Index skipped_steps = 0;  // chunks whose gradient was not finite
  Index clipped_steps = 0;
  double gradient_norm = 0;  // of the last chunk with a gradient, before clipping

  friend bool operator==(const Counters&, const Counters&) = default;
};

/// The state of one document: what it has made of the weights, the window of keys and values, the
/// chunk that is filling up, counters and randomness. Forking copies it, resetting assigns a fresh
/// one, saving writes it.
template <class B>
struct SessionState {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  template <class T>
  using Buffer = typename B::template Buffer<T>;

  /// How a pending token will count as a target.
  enum Mark : std::uint8_t { Counted = 1, Frozen = 2 };

  Counters counters;
  std::vector<Token> pending;       // tokens since the last boundary: at most a chunk of inputs
  std::vector<std::uint8_t> marks;  // one for each of them
  Index cache_size = 0;
  Buffer<CacheScalar> cache;
  Index learned_size = 0;  // 0: nothing learned yet, the weights are the model's own
  Buffer<Scalar> learned;  // the weights that learn, then the optimizer's slots
  Random random;

  // Pending inputs whose keys and values are in the cache already, and the logits behind the last
  // one if all are, with the log of the sum of their exponentials. Only a saving of work:
  // forgetting them changes nothing.
  Index evaluated = 0;
  std::vector<Scalar> logits;
  Scalar log_sum = 0;

  /// The position of the first pending token: a multiple of the chunk.
  Index boundary() const { return counters.tokens - static_cast<Index>(pending.size()); }

  /// A copy with memory of its own. Throws Error when memory runs out.
  SessionState clone(const B& backend) const {
    SessionState copy;
    copy.cache = backend.template allocate<CacheScalar>(cache_size);
    if (learned_size > 0) copy.learned = backend.template allocate<Scalar>(learned_size);
    copy.counters = counters;
    copy.pending = pending;
    copy.marks = marks;
    copy.random = random;
    copy.evaluated = evaluated;
    copy.logits = logits;
    copy.log_sum = log_sum;
    copy.cache_size = cache_size;
    copy.learned_size = learned_size;
    backend.copy(cache.data(), copy.cache.data(), cache_size);
    if (learned_size > 0) backend.copy(learned.data(), copy.learned.data(), learned_size);
    return copy;
  }
};

}  // namespace ttt::inline TTT_ABI
