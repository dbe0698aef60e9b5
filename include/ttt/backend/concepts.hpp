// SPDX-License-Identifier: MIT
/// \file
/// What a machine must offer: memory, and a short list of primitives cut where kernels fuse.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include <ttt/core/view.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// How RoPE pairs the channels of a head: (2i, 2i+1), or (i, i + d/2). The two differ by a
/// permutation of channels, and mixing them up costs about two nats without any error.
enum class RopeLayout : std::uint8_t { Interleaved, HalfSplit };

/// Whether a primitive replaces its output or adds to it.
enum class Write : std::uint8_t { Replace, Add };

/// One norm over the last axis: y = x / sqrt(mean(x²) + eps) * scale.
template <class Scalar>
struct Norm {
  Weight<Scalar> scale;  // (1, width); without data: all ones
  double eps = 0;        // below zero: no norm at all (head_norm_rope only)
};

/// Keys or values of one block, by position: position p lies in slot p % slots of every head.
///
/// A head's slots are contiguous, so that a tile of keys is one stretch of memory.
template <class T>
struct Cache {
  T* data = nullptr;
  Index heads = 0;
  Index slots = 0;
  Index head_dim = 0;

  constexpr operator Cache<const T>() const requires(!std::is_const_v<T>) {
    return {data, heads, slots, head_dim};
  }
  constexpr Index size() const { return heads * slots * head_dim; }
  /// The key of `head` at `position`; the ones after it follow until the ring ends.
  TTT_HD constexpr T* at(Index head, Index position) const {
    return data + (head * slots + position % slots) * head_dim;
  }
};

/// Which keys a block of queries sees: query i is at `position + i`, and sees key j iff j <= i and
/// i < j + window. Query head h reads key head h / (heads / key_heads).
struct AttentionShape {
  Index heads = 0;
  Index key_heads = 0;
  Index head_dim = 0;
  Index window = 0;
  Index position = 0;

  /// The first key that a query at p sees.
  TTT_HD constexpr Index first_key(Index p) const { return p < window ? 0 : p - window + 1; }
};

/// What logits say of a token. The sum is a finite number if and only if every logit is.
template <class S>
struct NextToken {
  S log_sum = 0;        // the log of the sum of the logits' exponentials
  S most = 0;           // the largest logit
  Token likeliest = 0;  // where it first is
};

/// The most taps of a convolution.
inline constexpr Index most_taps = 15;

/// Whether the gradient of a head lies as (words, width), as an embedding does: its shape tells; a
/// square one lies as the head lies.
template <class Scalar>
constexpr bool is_embedding(View<Scalar> dhead, const Weight<std::remove_const_t<Scalar>>& head) {
  return dhead.rows == dhead.cols ? head.transposed : dhead.rows == head.cols;
}

/// One step of Adam (Kingma and Ba 2015, arXiv 1412.6980) as numbers: with g = scale * gradient,
///
///     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g²,
///     weights -= rate * (m * unbias1) / (sqrt(v * unbias2) + eps)
struct AdamStep {
  double scale = 1, beta1 = 0, beta2 = 0, eps = 0, rate = 0, unbias1 = 1, unbias2 = 1;
};

/// What a step along a gradient comes to, found where the gradient lies.
struct GradientScale {
  double norm = 0;   // of the gradient
  double scale = 1;  // min(1, clip / norm); not a number where no step is to be taken
  double taken = 1;  // likewise
};

/// A backend owns memory and computes on it. Matrices are row-major, one row a token; operands must
/// not overlap unless a primitive says so. Primitives neither allocate nor throw, and none reads
/// the memory of an absent (`empty()`) operand; an absent output is not computed. Scratch comes
/// from the caller. All are callable from several threads at once.
///
/// Each differentiable primitive comes in up to four forms: forwards, backwards, and the tangent of
/// either: what changes in the results, `t` + name, when the inputs move along theirs. A tangent
/// form is given the values, which somebody computed before, and computes tangents only.
///
/// See docs/concepts.md#backend for what each primitive computes.
template <class B>
concept Backend = requires(const B& b, View<typename B::Scalar> out,
                           View<const typename B::Scalar> in, Weight<typename B::Scalar> weight,
                           Norm<typename B::Scalar> norm, Write write, const Token* tokens,
                           Cache<typename B::CacheScalar> cache,
                           Cache<const typename B::CacheScalar> read_cache, AttentionShape shape,
                           RopeLayout layout, Index n, double x, const double* frequencies,
                           const typename B::Scalar* flat, typename B::Scalar* flat_out,
                           Token* tokens_out, const NextToken<typename B::Scalar>* next,
                           NextToken<typename B::Scalar>* next_out, const bfloat16* narrow,
                           bfloat16* narrow_out, void (*task)(Index)) {
  typename B::Scalar;
  typename B::CacheScalar;
  typename B::template Buffer<Token>;
  // The machine.
  { b.threads() } -> std::convertible_to<int>;
  b.run(n, task);
  // Memory.
  { B::is_host } -> std::convertible_to<bool>;
  { B::most_head_dim } -> std::convertible_to<Index>;
  { b.template allocate<typename B::Scalar>(n).data() } -> std::same_as<typename B::Scalar*>;
  { b.template allocate<Token>(n).data() } -> std::same_as<Token*>;
  { b.template allocate<bfloat16>(n).data() } -> std::same_as<bfloat16*>;
  b.to_device(flat, flat_out, n);
  b.to_device(tokens, tokens_out, n);
  b.to_device(narrow, narrow_out, n);
  b.to_host(flat, flat_out, n);
  b.to_host(tokens, tokens_out, n);
  b.to_host(next, next_out, n);
  b.to_host(narrow, narrow_out, n);
  b.copy(flat, flat_out, n);
  b.copy(tokens, tokens_out, n);
  b.fill(typename B::Scalar{}, flat_out, n);
  b.fill(typename B::CacheScalar{}, cache.data, n);
  b.widen(weight, out);
  // Products.
  b.matmul(in, weight, out, write);
  b.matmul_gradient(in, in, out, write);
  // Rows.
  b.embed(weight, tokens, out);
  b.embed_backward(tokens, in, out);
  b.rms_norm(in, norm, out, out);
  b.rms_norm_backward(in, norm, in, in, out, write, out);
  b.rms_norm_tangent(in, in, norm, in, in, out, out);
  b.rms_norm_backward_tangent(in, in, norm, in, in, in, in, out, write, out);
  b.add(in, in, out);
  b.add_rms_norm(in, in, norm, out, out);
  b.rope_angles(n, frequencies, out);
  b.head_norm_rope(in, norm, in, layout, out, out);
  b.head_norm_rope_backward(in, norm, in, in, layout, in, out, out);
  b.head_norm_rope_tangent(in, in, norm, in, in, layout, out, out);
  b.head_norm_rope_backward_tangent(in, in, norm, in, in, in, layout, in, in, out, out);
  b.swiglu(in, in, out);
  b.swiglu_backward(in, in, in, out, out);
  b.swiglu_tangent(in, in, in, in, out);
  b.swiglu_backward_tangent(in, in, in, in, in, in, out, out);
  b.chunk_conv(in, weight, n, out);
  b.chunk_conv_backward(in, weight, n, in, out, write, out);
  // Attention.
  b.store(in, cache, n);
  b.attention(in, read_cache, read_cache, shape, out, out);
  b.attention_backward(in, read_cache, read_cache, shape, in, in, in, out, out, out, n);
  b.attention_tangent(in, in, read_cache, read_cache, in, in, shape, in, in, out, out);
  b.attention_backward_tangent(in, in, read_cache, read_cache, in, in, shape, in, in, in, in, in,
                               in, out, out, out, n);
  // The loss.
  { b.cross_entropy_scratch(n, n) } -> std::convertible_to<Index>;
  b.cross_entropy(in, weight, tokens, flat, flat_out, out, flat_out);
  { b.cross_entropy_tangent_scratch(n, n) } -> std::convertible_to<Index>;
  b.cross_entropy_tangent(in, in, weight, tokens, flat, x, out, out, flat_out);
  b.next_token(in, next_out);
  // Flat vectors.
  { b.dot(flat, flat, n) } -> std::convertible_to<double>;
  b.axpby(x, flat, x, flat_out, n);
  b.adam(AdamStep{}, flat, flat_out, flat_out, flat_out, n);
};

namespace detail {

/// A backend that multiplies in bfloat16 may have weights that learn in it too, beside those it
/// adds to, rounded once a step and not in every product: alone, or by the axpby that makes them.
template <class B>
inline constexpr bool narrows = requires(const B& backend, const typename B::Scalar* from,
                                         typename B::Scalar* weights, bfloat16* to) {
  backend.narrow(from, to, Index{0});
  backend.axpby(1.0, from, 1.0, weights, Index{0}, to);
};

/// A backend for whose results the host would wait may keep what it finds of a gradient, and scale
/// by it later: axpby times a number in its memory, where y stays if that is not a number, and is
/// copied if a copy is wanted.
template <class B>
inline constexpr bool finds_scales = requires(const B& backend, const typename B::Scalar* from,
                                              typename B::Scalar* weights, bfloat16* to,
                                              GradientScale* found, const double* times) {
  backend.gradient_scale(from, Index{0}, 1.0, View<const typename B::Scalar>(), found);
  backend.axpby(1.0, from, 1.0, weights, Index{0}, to, times);
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
