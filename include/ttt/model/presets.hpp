// SPDX-License-Identifier: MIT
/// \file
/// The models of the paper, in its five sizes, and the byte-level model of the examples.
#pragma once

#include <ttt/model/language_model.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// A type of model together with the sizes the type leaves open.
template <class ModelType>
struct Preset {
  using Model = ModelType;
  Config config;
};

/// `PrefixBlocks` ordinary blocks, then `SuffixBlocks` with a dynamic MLP, as the paper builds
/// them.
template <std::size_t PrefixBlocks, std::size_t SuffixBlocks, std::size_t Window>
using TttE2e = LanguageModel<
    Stack<PrefixBlocks, Block<SlidingWindowAttention<Window>, SwiGLU>>,
    Stack<SuffixBlocks, Block<SlidingWindowAttention<Window>, DualMLP<SwiGLU, SwiGLU>>>>;

/// The paper's baseline: the same blocks with full attention and wider MLPs.
template <std::size_t Blocks>
using Transformer = LanguageModel<Stack<Blocks, Block<FullAttention<>, SwiGLU>>>;

namespace presets {

namespace detail {
/// What all sizes share (arXiv 2512.23675, table 1): Llama-3's vocabulary, RoPE base 500,000, and
/// chunks of 1,024 tokens. The paper raises the base of full attention when it extends a model:
/// 1M at 16K tokens, 2M at 32K, 5M at 64K, 10M at 128K.
constexpr Config paper(Index width, Index heads, Index hidden) {
  return {.vocabulary = 128256,
          .width = width,
          .heads = heads,
          .hidden = hidden,
          .rope_base = 500000,
          .eps = 1e-6,
          .chunk = 1024};
}
}  // namespace detail

inline constexpr Preset<TttE2e<9, 3, 8192>> e2e_125m{detail::paper(768, 12, 1664)};
inline constexpr Preset<TttE2e<18, 6, 8192>> e2e_350m{detail::paper(1024, 16, 2304)};
inline constexpr Preset<TttE2e<18, 6, 8192>> e2e_760m{detail::paper(1536, 16, 3328)};
inline constexpr Preset<TttE2e<18, 6, 8192>> e2e_1b{detail::paper(2048, 32, 4352)};
inline constexpr Preset<TttE2e<24, 8, 8192>> e2e_3b{detail::paper(2560, 32, 5632)};

inline constexpr Preset<Transformer<12>> full_125m{detail::paper(768, 12, 2048)};
inline constexpr Preset<Transformer<24>> full_350m{detail::paper(1024, 16, 2816)};
inline constexpr Preset<Transformer<24>> full_760m{detail::paper(1536, 16, 4096)};
inline constexpr Preset<Transformer<24>> full_1b{detail::paper(2048, 32, 5376)};
inline constexpr Preset<Transformer<32>> full_3b{detail::paper(2560, 32, 6912)};

/// The bundled byte-level model: examples/models/books-byte.safetensors.
inline constexpr Preset<TttE2e<4, 2, 256>> books_byte{{.vocabulary = 256,
                                                       .width = 256,
                                                       .heads = 4,
                                                       .hidden = 512,
                                                       .rope_base = 10000,
                                                       .eps = 1e-6,
                                                       .chunk = 64}};

}  // namespace presets

/// Fresh parameters for a preset. Throws Error when memory runs out.
template <class Model, Backend B>
Weights<Model, B> initialise(const Preset<Model>& preset, const B& backend, std::uint64_t seed) {
  return initialise<Model>(preset.config, backend, seed);
}

}  // namespace ttt::inline TTT_ABI
