// SPDX-License-Identifier: MIT
/// \file
/// The least types that satisfy the concepts. What is instantiated with them uses nothing that the
/// concepts did not promise; none of it computes anything.
#pragma once

#include <cstddef>
#include <span>

#include <ttt/backend/concepts.hpp>
#include <ttt/core/random.hpp>
#include <ttt/inner/concepts.hpp>
#include <ttt/model/sampler.hpp>

namespace ttt::test::archetype {

/// Memory that can be moved and pointed into, and nothing else.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return nullptr; }
  const T* data() const { return nullptr; }
};

/// A machine. Copyable, for Weights keep one; made from an int, so that nothing makes one up.
struct Backend {
  using Scalar = float;
  using CacheScalar = float;
  template <class T>
  using Buffer = archetype::Buffer<T>;
  using V = View<float>;
  using In = View<const float>;
  using W = Weight<float>;
  using N = Norm<float>;
  static constexpr bool is_host = false;
  static constexpr Index most_head_dim = 64;

  explicit Backend(int) {}

  template <class T>
  Buffer<T> allocate(Index) const {
    return {};
  }
  void to_device(const float*, float*, Index) const {}
  void to_device(const Token*, Token*, Index) const {}
  void to_device(const bfloat16*, bfloat16*, Index) const {}
  void to_host(const float*, float*, Index) const {}
  void to_host(const bfloat16*, bfloat16*, Index) const {}
  void to_host(const Token*, Token*, Index) const {}
  void to_host(const NextToken<float>*, NextToken<float>*, Index) const {}
  void copy(const float*, float*, Index) const {}
  void copy(const Token*, Token*, Index) const {}
  void fill(float, float*, Index) const {}
  void widen(W, V) const {}

  void matmul(In, W, V, Write) const {}
  void matmul_gradient(In, In, V, Write) const {}

  int threads() const { return 1; }
  template <class Task>
  void run(Index count, const Task& task) const {
    for (Index i = 0; i < count; ++i) task(i);
  }

  void embed(W, const Token*, V) const {}
  void embed_backward(const Token*, In, V) const {}
  void rms_norm(In, N, V, V) const {}
  void rms_norm_backward(In, N, In, In, V, Write, V) const {}
  void rms_norm_tangent(In, In, N, In, In, V, V) const {}
  void rms_norm_backward_tangent(In, In, N, In, In, In, In, V, Write, V) const {}
  void add(In, In, V) const {}
  void add_rms_norm(In, In, N, V, V) const {}
  void rope_angles(Index, const double*, V) const {}
  void head_norm_rope(In, N, In, RopeLayout, V, V) const {}
  void head_norm_rope_backward(In, N, In, In, RopeLayout, In, V, V) const {}
  void head_norm_rope_tangent(In, In, N, In, In, RopeLayout, V, V) const {}
  void head_norm_rope_backward_tangent(In, In, N, In, In, In, RopeLayout, In, In, V, V) const {}
  void swiglu(In, In, V) const {}
  void swiglu_backward(In, In, In, V, V) const {}
  void swiglu_tangent(In, In, In, In, V) const {}
  void swiglu_backward_tangent(In, In, In, In, In, In, V, V) const {}

  void chunk_conv(In, W, Index, V) const {}
  void chunk_conv_backward(In, W, Index, In, V, Write, V) const {}

  void store(In, Cache<float>, Index) const {}
  void attention(In, Cache<const float>, Cache<const float>, AttentionShape, V, V) const {}
  using Keys = Cache<const float>;
  void attention_backward(In, Keys, Keys, AttentionShape, In, In, In, V, V, V, Index) const {}
  void attention_tangent(In, In, Keys, Keys, In, In, AttentionShape, In, In, V, V) const {}
  void attention_backward_tangent(In, In, Keys, Keys, In, In, AttentionShape, In, In, In, In, In,
                                  In, V, V, V, Index) const {}

  void next_token(In, NextToken<float>*) const {}
  Index cross_entropy_scratch(Index, Index) const { return 0; }
  void cross_entropy(In, W, const Token*, const float*, float*, V, float*) const {}

  Index cross_entropy_tangent_scratch(Index, Index) const { return 0; }
  void cross_entropy_tangent(In, In, W, const Token*, const float*, double, V, V, float*) const {}

  double dot(const float*, const float*, Index) const { return 0; }
  void axpby(double, const float*, double, float*, Index) const {}
  void adam(const AdamStep&, const float*, float*, float*, float*, Index) const {}
};

/// An optimizer for one backend only, made from an int: nothing may make one up.
struct Optimizer {
  static constexpr int slots = 2;  // converts to a size; need not be one

  explicit Optimizer(int) {}
  int step(const Backend&, const Update<float>&) const { return 0; }
};

/// A learner that can be copied (sessions fork), and no more.
class Learner {
 public:
  const short chunk = 4;  // converts to an Index
  static constexpr int slots = 1;

  explicit Learner(int) {}
  Learner(const Learner&) = default;
  Learner& operator=(const Learner&) = delete;

  bool learns(const ParameterName& name) const { return name.role == Role::DynamicMlp; }
  bool masks(Token) const { return false; }
  Step update(const Backend&, Update<float>) const { return {}; }
};

/// A learner that can be trained through, and copied.
class BackwardLearner {
 public:
  const short chunk = 4;
  static constexpr int slots = 1;

  explicit BackwardLearner(int) {}
  BackwardLearner(const BackwardLearner&) = default;
  BackwardLearner& operator=(const BackwardLearner&) = delete;

  bool learns(const ParameterName& name) const { return name.role == Role::DynamicMlp; }
  bool masks(Token) const { return false; }
  Step update(const Backend&, Update<float>) const { return {}; }
  void backward(const Backend&, const Step&, UpdateGradient<float>) const {}
};

/// A schedule, made from an int, whose rate converts to a double.
class Schedule {
 public:
  explicit Schedule(int) {}
  float rate(Index) const { return 0; }
};

/// Samples of nothing.
class Source {
 public:
  explicit Source(int) {}
  Index size() const { return 0; }
  Index length() const { return 4; }
  void sample(Index, std::span<Token>) const {}
};

/// A sampler that cannot even be copied.
class Sampler {
 public:
  explicit Sampler(int) {}
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  Token operator()(std::span<float>, Random&) const { return 0; }
};

}  // namespace ttt::test::archetype
