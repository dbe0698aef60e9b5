// SPDX-License-Identifier: MIT
/// \file
/// How well a model predicts documents, by position: learning as it reads, and frozen.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <vector>

#include <ttt/inner/session.hpp>

namespace ttt::inline TTT_ABI {

/// Mean losses, in nats, of the tokens at positions [begin, end) of all documents.
struct PositionLoss {
  Index begin = 0;
  Index end = 0;
  Index tokens = 0;
  double learning = 0;
  double frozen = 0;
};

struct EvaluationOptions {
  Index length = 32768;  // of each document that is read; shorter ones end earlier
  Index bucket = 2048;   // positions a mean is taken over
};

/// Reads the beginning of every document twice, learning and frozen, at the learner's full rate.
/// Costs two readings of each. Buckets that no document reaches are left out. Throws as
/// Session::read does, and Error when there is nothing to score.
template <class WeightsType, class LearnerType>
std::vector<PositionLoss> evaluate_by_position(const WeightsType& weights,
                                               const LearnerType& learner,
                                               std::span<const std::string_view> documents,
                                               const EvaluationOptions& options = {}) {
  using Scalar = typename WeightsType::Scalar;
  if (options.length < 2 || options.bucket < 1) {
    detail::fail("evaluation: the length must be at least 2 and the bucket at least 1");
  }
  const SessionOptions session{.max_tokens = options.length};
  Session learning(weights, learner, session);
  Session frozen(weights, NoLearning{.chunk = learner.chunk}, session);
  std::vector<PositionLoss> buckets(
      static_cast<std::size_t>((options.length + options.bucket - 1) / options.bucket));
  for (const std::string_view document : documents) {
    const std::string_view text = document.substr(0, static_cast<std::size_t>(options.length));
    std::vector<Scalar> learned(text.size()), plain(text.size());
    learning.reset();
    frozen.reset();
    learning.read(text, {.nll = learned});
    frozen.read(text, {.nll = plain});
    for (std::size_t i = 1; i < text.size(); ++i) {
      PositionLoss& bucket = buckets[i / static_cast<std::size_t>(options.bucket)];
      bucket.learning += static_cast<double>(learned[i]);
      bucket.frozen += static_cast<double>(plain[i]);
      ++bucket.tokens;
    }
  }
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    PositionLoss& bucket = buckets[i];
    bucket.begin = static_cast<Index>(i) * options.bucket;
    bucket.end = std::min(options.length, bucket.begin + options.bucket);
    if (bucket.tokens == 0) continue;
    bucket.learning /= static_cast<double>(bucket.tokens);
    bucket.frozen /= static_cast<double>(bucket.tokens);
  }
  std::erase_if(buckets, [](const PositionLoss& bucket) { return bucket.tokens == 0; });
  if (buckets.empty()) detail::fail("evaluation: no document has a token to score");
  return buckets;
}

}  // namespace ttt::inline TTT_ABI
