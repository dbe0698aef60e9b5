// SPDX-License-Identifier: MIT
/// \file
/// What comes of a pass over a chunk of one document or of several: scores, and the steps behind
/// it.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include <ttt/backend/concepts.hpp>
#include <ttt/core/function_ref.hpp>

namespace ttt::inline TTT_ABI {

/// Steps to be put behind the gradients of a pass, by its backend or another for the same memory:
/// `take` is given all scores, (1, rows), and a place for what it finds of each document. `memory`
/// is what they move, and whatever else may differ from one pass to the next.
template <class B>
struct StepsBehind {
  using Scalar = typename B::Scalar;

  FunctionRef<void(const B&, View<const Scalar> scores, GradientScale* found)> take = {};
  std::span<const void* const> memory = {};
};

namespace detail {

/// Scores and what steps found, in the backend's memory: found first, so that one copy brings both.
template <class B>
class PassResults {
 public:
  using Scalar = typename B::Scalar;

  /// Of so many documents, of so many rows in all. Throws Error when memory runs out.
  PassResults(const B& backend, Index documents, Index rows)
      : backend_(backend),
        before_(documents * found_scalars),
        memory_(backend.template allocate<Scalar>(before_ + rows)),
        host_(static_cast<std::size_t>(before_ + rows)) {}

  static Index bytes(Index documents, Index rows) {
    return (documents * found_scalars + rows) * Index{sizeof(Scalar)};
  }

  Scalar* scores() { return memory_.data() + before_; }
  GradientScale* found() { return reinterpret_cast<GradientScale*>(memory_.data()); }

  /// Waits for the scores, and for what was found of as many documents as there is room for.
  void bring(std::span<Scalar> scores, std::span<GradientScale> found = {}) {
    const Index rows = std::ssize(scores);
    if (found.empty()) return backend_.to_host(this->scores(), scores.data(), rows);
    backend_.to_host(memory_.data(), host_.data(), before_ + rows);
    std::memcpy(static_cast<void*>(found.data()), host_.data(), found.size_bytes());
    std::copy_n(host_.data() + before_, rows, scores.data());
  }

 private:
  static constexpr Index found_bytes = 32;  // so that scores begin where vectors may
  static constexpr Index found_scalars = found_bytes / Index{sizeof(Scalar)};
  static_assert(sizeof(GradientScale) <= found_bytes);

  const B& backend_;
  Index before_;
  typename B::template Buffer<Scalar> memory_;
  std::vector<Scalar> host_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
