// SPDX-License-Identifier: MIT
/// \file
/// What a read is told, and what it answers.
#pragma once

#include <cstdint>
#include <numbers>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/core/function_ref.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// A read that failed after some of its tokens had been consumed. The session stands where reading
/// just these would have left it: at a chunk boundary, unless all were read and only the last call
/// of `progress` failed. The failure itself is the nested exception.
class ReadError : public Error {
 public:
  ReadError(const std::string& what, Index consumed_) : Error(what), consumed(consumed_) {}
  Index consumed;  // tokens of this call that the session holds
};

/// Options of one read. Everything referred to must outlive the call, nothing longer.
template <class Scalar>
struct ReadOptions {
  std::span<const std::uint8_t> loss_mask = {};  // one a token: 0 leaves it out of the loss
  std::span<Scalar> nll = {};                    // scores go here instead of into the report
  FunctionRef<void(Index done, Index total)> progress = {};  // after every chunk; may throw
  std::stop_token stop = {};                                 // checked before every chunk
};

/// The scores of a read.
template <class Scalar>
struct ReadReport {
  std::vector<Scalar>
      nll;               // nll[i] belongs to tokens[i], in nats; empty if the caller gave a buffer
  Index tokens = 0;      // consumed: all of them, unless stopped
  Index scored = 0;      // of these, with a score that counts
  double total_nll = 0;  // of the scored
  Index inner_steps = 0;
  Index skipped_steps = 0;  // chunks whose gradient was not finite

  /// Mean loss in nats; 0 when nothing was scored.
  double mean_nll() const { return scored > 0 ? total_nll / static_cast<double>(scored) : 0.0; }
  double bits_per_token() const { return mean_nll() / std::numbers::ln2; }
};

/// Options of one generation.
struct GenerateOptions {
  std::span<const Token> stop_tokens = {};  // consumed, not returned
  float repetition_penalty = 1.0f;          // divides positive logits of what this call produced
                                            // already, multiplies negative ones (arXiv 1909.05858)
  std::optional<std::uint64_t> seed = {};   // restarts the session's random numbers
  FunctionRef<void(Token)> on_token = {};   // after each token that is returned, once consumed
  std::stop_token stop = {};
};

}  // namespace ttt::inline TTT_ABI
