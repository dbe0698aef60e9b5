// SPDX-License-Identifier: MIT
/// \file
/// Learning rates as functions of the training step.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <numbers>

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// rate(step) is the learning rate of the update after `step` updates.
template <class S>
concept Schedule = requires(const S& schedule, Index step) {
  { schedule.rate(step) } -> std::convertible_to<double>;
};

/// The same rate at every step.
///
/// Use it as the template for your own schedule.
struct ConstantRate {
  double peak = 1e-3;
  double rate(Index) const { return peak; }
};

/// Up along a line from `first`, then down along half a cosine to `last`, where it stays (the
/// paper's: warm-up over a tenth of the steps, from 0, and down to 1e-5).
struct WarmupCosine {
  double peak = 1e-3;
  Index steps = 0;   // of the whole, warm-up included
  Index warmup = 0;  // of which
  double first = 0;
  double last = 1e-5;

  double rate(Index step) const {
    if (step < warmup) {
      return first + (peak - first) * static_cast<double>(step) / static_cast<double>(warmup);
    }
    const double down = static_cast<double>(std::max<Index>(1, steps - warmup));
    const double part = std::min(1.0, static_cast<double>(step - warmup) / down);
    return last + (peak - last) * 0.5 * (1 + std::cos(std::numbers::pi * part));
  }
};

/// The inner learning rate while training begins: from `first` along a line to the learner's own
/// over `steps` updates (the paper: from 0.1, over a tenth of pre-training; none when extending).
struct InnerWarmup {
  double first = 0.1;
  Index steps = 0;  // 0: none

  /// What the learner's rate is multiplied by.
  double multiplier(Index step, double rate) const {
    if (steps <= 0 || rate == 0) return 1;
    const double part = std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(steps));
    return (first + (rate - first) * part) / rate;
  }
};

}  // namespace ttt::inline TTT_ABI
