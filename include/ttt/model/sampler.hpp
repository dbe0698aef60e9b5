// SPDX-License-Identifier: MIT
/// \file
/// From logits to a token.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <iterator>
#include <numeric>
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

/// Draws from softmax(logits / temperature) restricted to its fewest tokens that hold `mass`, of
/// the `most` likeliest. Few are put in order, as a rule: a vocabulary is large, and all but some
/// hundred tokens weigh nothing.
inline Token draw(std::span<const float> logits, double temperature, double mass, Index most,
                  Random& random) {
  const double largest = static_cast<double>(*std::ranges::max_element(logits));
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - largest) / temperature);
  };
  const double uniform = random.uniform();
  Index size = most < std::ssize(logits) ? most : std::min<Index>(256, most);
  double total = 0;
  if (size < most) {
    for (const float logit : logits) total += weight(logit);
  }
  for (;; size = std::min(8 * size, most)) {
    const bool whole = size == most;
    const std::vector<Token> order = likeliest(logits, size);
    std::vector<double> weights;
    for (const Token t : order) weights.push_back(weight(logits[static_cast<std::size_t>(t)]));
    if (whole) total = std::accumulate(weights.begin(), weights.end(), 0.0);
    double kept = 0;
    std::size_t count = 0;
    while (count < weights.size() && (count == 0 || kept < mass * total)) kept += weights[count++];
    if (!whole && mass < 1 && kept < mass * total) continue;
    double point = uniform * (whole || mass < 1 ? kept : total);
    for (std::size_t i = 0; i < count; ++i) {
      if ((point -= weights[i]) < 0) return order[i];
    }
    if (whole) return order[count - 1];
  }
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
    return detail::draw(logits, temperature, 1.0, std::ssize(logits), random);
  }
};

/// Draws from the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833).
struct TopK {
  Index k = 40;
  float temperature = 1.0f;

  Token operator()(std::span<float> logits, Random& random) const {
    detail::check_temperature(temperature);
    if (k < 1) detail::fail("TopK: k must be at least 1");
    return detail::draw(logits, temperature, 1.0, std::min(k, std::ssize(logits)), random);
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
    return detail::draw(logits, temperature, p, std::ssize(logits), random);
  }
};

}  // namespace ttt::inline TTT_ABI
