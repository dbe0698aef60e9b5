// SPDX-License-Identifier: MIT
/// \file
/// Logits of a block of rows in scratch, and where their gradient goes. Any host compiler reads
/// this.
#pragma once

#include <algorithm>
#include <type_traits>

#include <ttt/backend/cuda/launch.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// Logits of some rows and, over them or `beside` them in bfloat16, their gradient.
template <class S, bool beside>
class Logits {
  using Gradient = std::conditional_t<beside, bfloat16, S>;

 public:
  View<S> value;

  Logits() = default;
  Logits(S* memory, Index rows, Index words) : value(memory, rows, words) {
    if constexpr (beside) {
      gradient_ = {reinterpret_cast<bfloat16*>(memory + in_whole_eights(rows * words)), rows, words,
                   in_whole_eights(words)};
    }
  }

  /// Good behind loss().
  Weight<S> gradient() const {
    if constexpr (beside) {
      return View<const bfloat16>(gradient_);
    } else {
      return value;
    }
  }

  /// Scores, and the gradient where it is wanted; see Launch::softmax_loss. `tangents` may be
  /// empty.
  void loss(cudaStream_t stream, const Logits& tangents, const Token* targets, const S* weights,
            double seed, S* nll, bool want_gradient) const {
    if constexpr (beside) {
      Launch<S>::softmax_loss_bfloat16(stream, value, tangents.value, targets, weights, seed, nll,
                                       want_gradient ? gradient_ : View<Gradient>(),
                                       tangents.gradient_);
    } else {
      Launch<S>::softmax_loss(stream, !tangents.value.empty(), value, tangents.value, targets,
                              weights, seed, nll, want_gradient);
    }
  }

  /// Scalars of scratch.
  static Index size(Index rows, Index words) {
    return in_whole_eights(rows * words) +
           (beside ? in_whole_eights(rows * in_whole_eights(words) / 2) : 0);
  }

  /// How many rows exist at a time: as many as make large products, in bounded memory, and whole
  /// pairs of their tiles where they are several.
  static Index rows_at_once(Index rows, Index words) {
    constexpr Index most = Index{1} << (beside ? 27 : 25), pair = 256;
    const Index some = std::max<Index>(16, most / words);
    return std::min(rows, some < pair ? some : some / pair * pair);
  }
  template <class F>
  static void for_blocks(Index rows, Index words, const F& f) {
    const Index block = rows_at_once(rows, words);
    for (Index first = 0; first < rows; first += block) f(first, std::min(block, rows - first));
  }

 private:
  View<Gradient> gradient_;
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
