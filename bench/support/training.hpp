// SPDX-License-Identifier: MIT
/// \file
/// What a meta-gradient costs at least: operations, from a model's sizes.
#pragma once

#include <algorithm>

#include <ttt/layers/config.hpp>

namespace ttt::bench {

/// Floating-point operations of one exact meta-gradient of `length` tokens in chunks of `chunk`, by
/// docs/outer_loop.md: everything is run forwards and backwards once; the part that learns, in all
/// chunks but the last, forwards and backwards once more on tangents. Every multiply-add is two;
/// masked or repeated work is not counted; norms, activations and softmax are left out.
inline double training_flops(const Config& c, Index length, Index chunk) {
  const auto real = [](Index x) { return static_cast<double>(x); };
  const double width = real(c.width), heads = real(c.heads * c.head_dim);
  const double keys = real(c.key_heads * c.head_dim), suffix = real(c.suffix_blocks);
  const double tokens = real(length), chunks = real(length / chunk);
  double seen = 0;  // keys that a query sees, on average
  for (Index t = 0; t < length; ++t) seen += real(std::min(t + 1, c.window)) / tokens;
  const double own = (real(std::min(chunk, c.window)) + 1) / 2;  // of its own chunk
  const double cached = seen - own;

  const double projections = 2 * width * (2 * heads + 2 * keys), tile = 2 * heads;
  const double mlp = 2 * 3 * width * real(c.hidden), head = 2 * width * real(c.vocabulary);
  const double attention = projections + 2 * tile * seen;           // forwards
  const double attention_back = 2 * projections + 5 * tile * seen;  // everybody's gradient
  const double lower =
      real(c.prefix_blocks) * (attention + attention_back + 3 * mlp) + attention + attention_back;

  const double learning_attention = suffix - 1;
  const double values = head + suffix * 2 * mlp + learning_attention * attention;
  const double inner = head + suffix * 2 * mlp + (suffix - 1) * mlp + mlp / 3 +
                       learning_attention * (projections + tile * (3 * cached + 5 * own));
  const double tangents = head + suffix * 2 * mlp + (suffix - 1) * mlp + mlp / 3 +
                          learning_attention * (projections + tile * (3 * cached + 5 * own));
  const double tangents_back =
      4 * head + suffix * 3 * mlp + suffix * 4 * mlp - mlp * 2 / 3 +
      learning_attention * (3 * projections + tile * (9 * cached + 12 * own));
  const double last_back = 3 * head + suffix * 4 * mlp + learning_attention * attention_back;
  return tokens * (lower + values + (inner + tangents + tangents_back) * (chunks - 1) / chunks +
                   last_back / chunks);
}

}  // namespace ttt::bench
