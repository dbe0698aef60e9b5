// SPDX-License-Identifier: MIT
/// \file
/// Existing models as types, Llama and Qwen3, and the shapes of their releases.
#pragma once

#include <ttt/model/presets.hpp>

namespace ttt::inline TTT_ABI {

/// Pre-norm blocks of one kind, as many as the file has: what most published models are.
template <class Attention, class Head, class Mlp = SwiGLU>
using HostModel = LanguageModel<Stack<dynamic, Block<Attention, Mlp, PreNorm>>,
                                Stack<0, Block<Attention, SwiGLU, PreNorm>>, Head>;

/// Llama 3, 3.1 and 3.2 (text). The small ones tie their heads, the large ones do not.
template <class Head, class Mlp = SwiGLU>
using Llama = HostModel<FullAttention<NoQkNorm, HalfSplitRope>, Head, Mlp>;

/// Qwen3, dense. The releases up to 4B tie their heads, the others do not.
template <class Head, class Mlp = SwiGLU>
using Qwen3 = HostModel<FullAttention<QkNorm, HalfSplitRope>, Head, Mlp>;

/// Qwen3 with a sliding window in some of its blocks; the file says which.
template <class Head, class Mlp = SwiGLU>
using SlidingQwen3 = HostModel<MixedAttention<QkNorm, HalfSplitRope>, Head, Mlp>;

namespace presets {

namespace detail {
/// Llama 3.1's stretch of RoPE, by `factor` over 8,192 positions.
constexpr RopeScaling llama_rope(double factor) {
  return {.factor = factor, .low = 1, .high = 4, .positions = 8192};
}
constexpr Config qwen3(Index blocks, Index width, Index heads, Index hidden) {
  return {.vocabulary = 151936,
          .width = width,
          .heads = heads,
          .key_heads = 8,
          .head_dim = 128,
          .hidden = hidden,
          .prefix_blocks = blocks,
          .rope_base = 1000000,
          .eps = 1e-6};
}
}  // namespace detail

inline constexpr Preset<Llama<TiedHead>> llama_3_2_1b{{.vocabulary = 128256,
                                                       .width = 2048,
                                                       .heads = 32,
                                                       .key_heads = 8,
                                                       .head_dim = 64,
                                                       .hidden = 8192,
                                                       .prefix_blocks = 16,
                                                       .rope_base = 500000,
                                                       .eps = 1e-5,
                                                       .rope_scaling = detail::llama_rope(32)}};
inline constexpr Preset<Llama<SeparateHead>> llama_3_1_8b{{.vocabulary = 128256,
                                                           .width = 4096,
                                                           .heads = 32,
                                                           .key_heads = 8,
                                                           .head_dim = 128,
                                                           .hidden = 14336,
                                                           .prefix_blocks = 32,
                                                           .rope_base = 500000,
                                                           .eps = 1e-5,
                                                           .rope_scaling = detail::llama_rope(8)}};
inline constexpr Preset<Qwen3<TiedHead>> qwen3_0_6b{detail::qwen3(28, 1024, 16, 3072)};
inline constexpr Preset<Qwen3<TiedHead>> qwen3_1_7b{detail::qwen3(28, 2048, 16, 6144)};
inline constexpr Preset<Qwen3<TiedHead>> qwen3_4b{detail::qwen3(36, 2560, 32, 9728)};
inline constexpr Preset<Qwen3<SeparateHead>> qwen3_8b{detail::qwen3(36, 4096, 32, 12288)};

}  // namespace presets
}  // namespace ttt::inline TTT_ABI
