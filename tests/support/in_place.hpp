// SPDX-License-Identifier: MIT
/// \file
/// Small models that learn in place, with targets that teach something.
#pragma once

#include <cstdint>
#include <support/models.hpp>
#include <vector>

#include <ttt/inner/in_place_loop.hpp>
#include <ttt/model/hosts.hpp>

namespace ttt::test {

using InPlaceHost = Llama<TiedHead, InPlaceMLP<FromInput>>;
using InPlaceFromEmbeddings = SlidingQwen3<SeparateHead, InPlaceMLP<FromEmbeddings>>;

inline Config in_place_config(bool projection = true) {
  Config config{.vocabulary = 61,
                .width = 16,
                .heads = 4,
                .key_heads = 2,
                .head_dim = 6,
                .hidden = 24,
                .prefix_blocks = 3,
                .rope_base = 10000,
                .eps = 1e-6};
  config.in_place = BlockSet::every(2, 3);
  config.in_place_projection = projection;
  return config;
}

/// Weights whose updates are felt.
template <class Model = InPlaceHost, class B>
Weights<Model, B> in_place_weights(const B& backend, Config config = in_place_config(),
                                   std::uint64_t seed = 7) {
  if (Model::is_mixed) {
    config.window = 9;
    config.full_attention.add(1);
  }
  const auto fresh = initialise<Model>(config, backend, seed, 0.25);
  using Scalar = typename B::Scalar;
  Random random{seed + 1};
  Model::each(
      [&](const ParameterName& name, const Weight<Scalar>& leaf) {
        if (name.role != Role::InPlaceTarget) return;
        std::vector<Scalar> values(static_cast<std::size_t>(leaf.shape().size()));
        for (Scalar& value : values) value = static_cast<Scalar>(0.2 * random.normal());
        auto* const place = const_cast<Scalar*>(static_cast<const Scalar*>(leaf.data));
        backend.to_device(values.data(), place, leaf.shape().size());
      },
      fresh.parameters());
  return fresh;
}

inline std::vector<Token> some_tokens(Index count, std::uint64_t seed = 3) {
  Random random{seed};
  std::vector<Token> out(static_cast<std::size_t>(count));
  for (Token& token : out) token = static_cast<Token>(random.bits() % 61);
  return out;
}

}  // namespace ttt::test
