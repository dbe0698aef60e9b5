// SPDX-License-Identifier: MIT
/// \file
/// Multi-head attention: over a sliding window, over everything so far, or some blocks each way.
#pragma once

#include <limits>
#include <vector>

#include <ttt/layers/config.hpp>
#include <ttt/layers/parameters.hpp>
#include <ttt/ops/attention.hpp>
#include <ttt/ops/linear.hpp>
#include <ttt/ops/rms_norm.hpp>

namespace ttt::inline TTT_ABI {

/// Policies: RMSNorm of every head's queries and keys, before RoPE, or none.
struct QkNorm {
  static constexpr bool enabled = true;
};
struct NoQkNorm {
  static constexpr bool enabled = false;
};

/// Policies: which channels RoPE pairs.
struct InterleavedRope {
  static constexpr RopeLayout layout = RopeLayout::Interleaved;
};
struct HalfSplitRope {
  static constexpr RopeLayout layout = RopeLayout::HalfSplit;
};

/// Where a block of tokens stands in its document, and the angles that follow.
template <class Scalar>
struct Positions {
  Index first = 0;
  View<Scalar> angles;  // (tokens, head_dim)
};

namespace detail {

/// Reach says which keys are seen: `window()`, or everything.
template <class Reach, class Qk, class Rope>
class Attention {
 public:
  static constexpr bool takes_factors = true;
  static constexpr bool has_qk_norm = Qk::enabled;
  static constexpr RopeLayout rope_layout = Rope::layout;

  template <class T>
  struct Parameters {
    T wq{};      // (width, heads * head_dim)
    T wk{};      // (width, key_heads * head_dim)
    T wv{};      // (width, key_heads * head_dim)
    T wo{};      // (heads * head_dim, width)
    T q_norm{};  // (1, head_dim), with QkNorm
    T k_norm{};  // (1, head_dim), with QkNorm
  };

  template <class F, class... Trees>
  static void each(const ParameterName& name, F&& f, Trees&... trees) {
    f(name.of("wq"), trees.wq...);
    f(name.of("wk"), trees.wk...);
    f(name.of("wv"), trees.wv...);
    f(name.of("wo"), trees.wo...);
    if constexpr (Qk::enabled) {
      f(name.norm("q_norm"), trees.q_norm...);
      f(name.norm("k_norm"), trees.k_norm...);
    }
  }

  template <class Tensor>
  struct Saved {
    FactorOf<Tensor> x;
    Tensor q, k, v;  // before norm and RoPE
    ops::Normed<Tensor> rotated_q, rotated_k;
    ops::Attended<Tensor> attended;
  };

  explicit Attention(const Config& config)
      : reach_(config),
        width_(config.width),
        heads_(config.heads),
        key_heads_(config.key_heads),
        head_dim_(config.head_dim),
        eps_(config.eps) {}

  /// Keys a token sees, itself included; a very large number when it sees all.
  Index window() const { return reach_.window(); }

  Parameters<Shape> shapes() const {
    const Index q = heads_ * head_dim_, k = key_heads_ * head_dim_;
    return {{width_, q}, {width_, k}, {width_, k}, {q, width_}, {1, head_dim_}, {1, head_dim_}};
  }

  template <class C, class Tensor, class Leaf, class Scalar, class CacheScalar>
  Tensor forward(C& c, const Parameters<Leaf>& p, FactorOf<Tensor> x, Saved<Tensor>& saved,
                 const Positions<Scalar>& at,
                 const ops::KeyValues<Scalar, CacheScalar>& cache) const {
    saved.x = x;
    const auto [q, k, v] = ops::linears(c, x, p.wq, p.wk, p.wv);
    saved.q = q;
    saved.k = k;
    saved.v = v;
    const auto heads =
        ops::attend(c, saved.q, saved.k, saved.v, norm<Scalar>(p.q_norm), norm<Scalar>(p.k_norm),
                    at.angles, Rope::layout, cache, shape(at.first));
    saved.rotated_q = heads.rotated_q;
    saved.rotated_k = heads.rotated_k;
    saved.attended = heads.attended;
    return ops::linear(c, saved.attended.o, p.wo);
  }

  template <class C, class Tensor, class Leaf, class Gradient, class Scalar, class CacheScalar>
  void backward(C& c, const Parameters<Leaf>& p, const Saved<Tensor>& saved, FactorOf<Tensor> dy,
                Tensor dx, const Parameters<Gradient>& d, const Positions<Scalar>& at,
                const ops::KeyValues<Scalar, CacheScalar>& cache) const {
    const Tensor dout = c.adjoint(saved.attended.o);
    ops::linear_backward(c, saved.attended.o, p.wo, dy, d.wo, dout);
    const auto inner = ops::attention_backward(c, saved.rotated_q.y, saved.rotated_k.y, saved.v,
                                               cache, shape(at.first), saved.attended, dout);
    const FactorOf<Tensor> dq =
        ops::head_norm_rope_backward(c, saved.q, norm<Scalar>(p.q_norm), saved.rotated_q.inverse,
                                     at.angles, Rope::layout, inner.q, d.q_norm);
    const FactorOf<Tensor> dk =
        ops::head_norm_rope_backward(c, saved.k, norm<Scalar>(p.k_norm), saved.rotated_k.inverse,
                                     at.angles, Rope::layout, inner.k, d.k_norm);
    ops::linear_backward(c, saved.x, p.wq, dq, d.wq, dx);
    ops::linear_backward(c, saved.x, p.wk, dk, d.wk, dx, Write::Add);
    ops::linear_backward(c, saved.x, p.wv, inner.v, d.wv, dx, Write::Add);
  }

 private:
  AttentionShape shape(Index position) const {
    return {heads_, key_heads_, head_dim_, reach_.window(), position};
  }
  template <class Scalar, class Leaf>
  Norm<Scalar> norm(const Leaf& scale) const {
    return {scale, Qk::enabled ? eps_ : -1.0};
  }

  [[no_unique_address]] Reach reach_;
  Index width_, heads_, key_heads_, head_dim_;
  double eps_;
};

template <std::size_t Window>
struct WindowReach : Extent<Window> {
  explicit WindowReach(const Config& config)
      : Extent<Window>(resolve_extent<Window>("window", config.window)) {
    check_positive("window", static_cast<double>(this->value()));
  }
  Index window() const { return this->value(); }
};

struct FullReach {
  explicit FullReach(const Config&) {}
  static constexpr Index window() { return std::numeric_limits<Index>::max() / 2; }
};

/// Of one block: its Config has a window, or 0 for none.
struct MixedReach {
  explicit MixedReach(const Config& config)
      : window_(config.window > 0 ? config.window : FullReach::window()) {}
  Index window() const { return window_; }

 private:
  Index window_;
};

}  // namespace detail

/// Attention in which query i sees key j iff j <= i and i < j + Window.
///
/// The window counts the token itself. With `ttt::dynamic` it comes from the Config. Grouped
/// queries when the Config has fewer key_heads than heads. Angles belong to absolute positions and
/// are reduced in double, so keys are rotated once, exactly, at any length.
template <std::size_t Window = dynamic, class Qk = QkNorm, class Rope = InterleavedRope>
struct SlidingWindowAttention : detail::Attention<detail::WindowReach<Window>, Qk, Rope> {
  static_assert(Window > 0, "ttt: SlidingWindowAttention<W>: a window of 0 sees nothing");
  static constexpr bool is_windowed = true;
  static constexpr bool is_mixed = false;
  static constexpr std::size_t fixed_window = Window;
  using detail::Attention<detail::WindowReach<Window>, Qk, Rope>::Attention;
};

/// Attention to every token so far. Its cache grows with the text, so a Session needs to know the
/// longest text it will be given (SessionOptions::max_tokens).
template <class Qk = QkNorm, class Rope = InterleavedRope>
struct FullAttention : detail::Attention<detail::FullReach, Qk, Rope> {
  static constexpr bool is_windowed = false;
  static constexpr bool is_mixed = false;
  using detail::Attention<detail::FullReach, Qk, Rope>::Attention;
};

/// Attention to every token so far in the blocks of Config::full_attention, and over a sliding
/// window in the others: one type, so that any pattern of the two is a stack. All blocks' caches
/// have the size of full attention's.
template <class Qk = QkNorm, class Rope = InterleavedRope>
struct MixedAttention : detail::Attention<detail::MixedReach, Qk, Rope> {
  static constexpr bool is_windowed = false;
  static constexpr bool is_mixed = true;
  static constexpr std::size_t fixed_window = dynamic;
  using detail::Attention<detail::MixedReach, Qk, Rope>::Attention;
};

}  // namespace ttt::inline TTT_ABI
