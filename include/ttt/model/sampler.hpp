// SPDX-License-Identifier: MIT
/// \file
/// From logits to a token.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/core/random.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// Chooses a token; may use `logits` as scratch.
template <class T>
concept Sampler = requires(const T& sampler, std::span<float> logits, Random& random) {
  { sampler(logits, random) } -> std::same_as<Token>;
};

/// The likeliest token, the first of several. Use it as the template for your own.
struct Greedy {
  Token operator()(std::span<float> logits, Random&) const {
    return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
};

namespace detail {

/// Token indices, likeliest first, as far as `count` of them.
inline std::vector<Token> likeliest(std::span<const float> logits, Index count) {
  std::vector<Token> order(logits.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<Token>(i);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](Token a, Token b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

/// Draws from softmax(logits / temperature) restricted to the shortest head of `order` that holds
/// `mass` of its probability.
inline Token draw(std::span<const float> logits, const std::vector<Token>& order,
                  double temperature, double mass, Random& random) {
  const auto logit = [&](std::size_t i) {
    return static_cast<double>(logits[static_cast<std::size_t>(order[i])]);
  };
  std::vector<double> weights(order.size());
  double sum = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    sum += weights[i] = std::exp((logit(i) - logit(0)) / temperature);
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < mass * sum)) kept += weights[count++];
  double point = random.uniform() * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    if ((point -= weights[i]) < 0) return order[i];
  }
  return order[count - 1];
}

inline void check_temperature(float temperature) {
  if (!(temperature > 0) || !std::isfinite(temperature)) {
    fail("sampler: the temperature must be positive (Greedy takes the likeliest token)");
  }
}

}  // namespace detail

/// Draws from softmax(logits / temperature).
struct Temperature {
  float temperature = 1.0f;

  Token operator()(std::span<float> logits, Random& random) const {
    detail::check_temperature(temperature);
    const auto order = detail::likeliest(logits, static_cast<Index>(logits.size()));
    return detail::draw(logits, order, temperature, 1.0, random);
  }
};

/// Draws from the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833).
struct TopK {
  Index k = 40;
  float temperature = 1.0f;

  Token operator()(std::span<float> logits, Random& random) const {
    detail::check_temperature(temperature);
    if (k < 1) detail::fail("TopK: k must be at least 1");
    const auto order = detail::likeliest(logits, std::min(k, static_cast<Index>(logits.size())));
    return detail::draw(logits, order, temperature, 1.0, random);
  }
};

/// Draws from the fewest tokens that hold p of the probability (Holtzman et al. 2019,
/// arXiv 1904.09751).
struct TopP {
  float p = 0.95f;
  float temperature = 1.0f;

  Token operator()(std::span<float> logits, Random& random) const {
    detail::check_temperature(temperature);
    if (!(p > 0 && p <= 1)) detail::fail("TopP: p must be above 0 and at most 1");
    const auto order = detail::likeliest(logits, static_cast<Index>(logits.size()));
    return detail::draw(logits, order, temperature, p, random);
  }
};

}  // namespace ttt::inline TTT_ABI
