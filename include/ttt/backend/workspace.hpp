// SPDX-License-Identifier: MIT
/// \file
/// Scratch memory taken once and handed out like a stack, and a backend that only measures it.
#pragma once

#include <algorithm>
#include <cstdint>

#include <ttt/backend/concepts.hpp>

namespace ttt::inline TTT_ABI {

/// Hands out matrices from one buffer, last in first out. Nothing is allocated after construction.
template <class B>
class Workspace {
 public:
  using Scalar = typename B::Scalar;

  /// Takes room for `capacity` scalars from the backend; throws what its allocate throws.
  Workspace(const B& backend, Index capacity)
      : buffer_(backend.template allocate<Scalar>(capacity)), capacity_(capacity) {}

  /// A matrix with rows aligned to nothing and a start aligned to 64 bytes, not initialised.
  View<Scalar> matrix(Index rows, Index cols) {
    const Index size = room(rows * cols);
    if (size > capacity_ - used_)
      detail::fail("out of memory: the workspace has no room for " + to_string(Shape{rows, cols}));
    const View<Scalar> view(buffer_.data() + used_, rows, cols);
    used_ += size;
    peak_ = std::max(peak_, used_);
    return view;
  }

  /// Room for `size` elements of another type.
  template <class T>
  T* vector(Index size) {
    constexpr Index scalar = sizeof(Scalar), other = sizeof(T);
    return reinterpret_cast<T*>(matrix(1, (size * other + scalar - 1) / scalar).data);
  }

  /// What a matrix of so many scalars takes.
  static constexpr Index room(Index size) { return (size + alignment - 1) / alignment * alignment; }

  Index used() const { return used_; }
  Index peak() const { return peak_; }

  /// Gives back everything taken since `used()` was `mark`.
  void release(Index mark) { used_ = mark; }

 private:
  static constexpr Index alignment = 64 / static_cast<Index>(sizeof(Scalar));

  typename B::template Buffer<Scalar> buffer_;
  Index capacity_;
  Index used_ = 0;
  Index peak_ = 0;
};

/// Computes nothing. Running a model on it measures the workspace the model needs: the same code
/// asks for the same matrices, at addresses nobody reads.
template <class Target>
class DryRun {
 public:
  using Scalar = typename Target::Scalar;
  using CacheScalar = typename Target::CacheScalar;
  static constexpr Index most_head_dim = Target::most_head_dim;
  static constexpr bool is_host = Target::is_host;

  template <class T>
  struct Buffer {
    T* data() {
      return reinterpret_cast<T*>(std::uintptr_t{64});  // NOLINT(performance-no-int-to-ptr)
    }
  };

  /// `target` is asked for its scratch sizes only.
  explicit DryRun(const Target& target) : target_(target) {}

  template <class T>
  Buffer<T> allocate(Index) const {
    return {};
  }
  Index cross_entropy_scratch(Index rows, Index vocabulary) const {
    return target_.cross_entropy_scratch(rows, vocabulary);
  }
  Index cross_entropy_tangent_scratch(Index rows, Index vocabulary) const {
    return target_.cross_entropy_tangent_scratch(rows, vocabulary);
  }
  /// What is measured for so many rows must hold fewer too, and few that are not rounded take as
  /// much as twice as many that are.
  bool rounds_factors(Index rows, Index cols) const requires requires(const Target& target) {
    target.rounds_factors(rows, cols);
  }
  { return target_.rounds_factors(rows, cols) && target_.rounds_factors(rows / 2, cols); }
  double dot(const Scalar*, const Scalar*, Index) const { return 0; }
  int threads() const { return 1; }
  template <class Task>
  void run(Index count, const Task& task) const {
    for (Index i = 0; i < count; ++i) task(i);
  }

  void to_device(auto&&...) const {}
  void to_host(auto&&...) const {}
  void copy(auto&&...) const {}
  void fill(auto&&...) const {}
  void widen(auto&&...) const {}
  void matmul(auto&&...) const {}
  void matmul_gradient(auto&&...) const {}
  void embed(auto&&...) const {}
  void embed_backward(auto&&...) const {}
  void rms_norm(auto&&...) const {}
  void rms_norm_backward(auto&&...) const {}
  void rms_norm_tangent(auto&&...) const {}
  void rms_norm_backward_tangent(auto&&...) const {}
  void add(auto&&...) const {}
  void add_rms_norm(auto&&...) const {}
  void rope_angles(auto&&...) const {}
  void head_norm_rope(auto&&...) const {}
  void head_norm_rope_backward(auto&&...) const {}
  void head_norm_rope_tangent(auto&&...) const {}
  void head_norm_rope_backward_tangent(auto&&...) const {}
  void swiglu(auto&&...) const {}
  void swiglu_backward(auto&&...) const {}
  void swiglu_tangent(auto&&...) const {}
  void swiglu_backward_tangent(auto&&...) const {}
  void chunk_conv(auto&&...) const {}
  void chunk_conv_backward(auto&&...) const {}
  void store(auto&&...) const {}
  void attention(auto&&...) const {}
  void attention_backward(auto&&...) const {}
  void attention_tangent(auto&&...) const {}
  void attention_backward_tangent(auto&&...) const {}
  void cross_entropy(auto&&...) const {}
  void cross_entropy_tangent(auto&&...) const {}
  void next_token(auto&&...) const {}
  void axpby(auto&&...) const {}
  void adam(auto&&...) const {}

 private:
  const Target& target_;
};

}  // namespace ttt::inline TTT_ABI
