// SPDX-License-Identifier: MIT
/// \file
/// Mean scores along a document of any length, in constant memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

namespace examples {

/// The scores of two readings of one document, in a few windows of equal width.
///
/// Nobody need know how long the document is: whenever there are `most` windows, neighbours merge,
/// so a long document always has between half as many and `most`.
class Windows {
 public:
  struct Window {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    std::int64_t scored = 0;
    double learning_nats = 0;
    double frozen_nats = 0;

    /// Mean bits per scored byte; NaN where none was scored.
    double learning() const { return mean(learning_nats); }
    double frozen() const { return mean(frozen_nats); }
    /// The share of the frozen reading's bits that learning saved, in percent.
    double saved() const { return frozen_nats > 0 ? 100 * (1 - learning_nats / frozen_nats) : 0; }

    void append(const Window& next) {
      end = next.end;
      scored += next.scored;
      learning_nats += next.learning_nats;
      frozen_nats += next.frozen_nats;
    }

   private:
    double mean(double nats) const {
      if (scored == 0) return std::numeric_limits<double>::quiet_NaN();
      return nats / static_cast<double>(scored) / std::numbers::ln2;
    }
  };

  /// `most` must be even.
  explicit Windows(std::int64_t first_width = 256, std::size_t most = 20)
      : width_(first_width), most_(most) {}

  /// The scores of the next byte, in nats.
  void add(double learning, double frozen) { add({0, 1, 1, learning, frozen}); }
  /// A byte that is there but has no score.
  void skip() { add({0, 1, 0, 0, 0}); }

  /// A last window of less than half the width is part of the one before.
  std::vector<Window> windows() const {
    std::vector<Window> result = windows_;
    if (result.size() > 1 && 2 * (result.back().end - result.back().begin) < width_) {
      const Window last = result.back();
      result.pop_back();
      result.back().append(last);
    }
    return result;
  }

  /// Bytes added so far.
  std::int64_t bytes() const { return windows_.empty() ? 0 : windows_.back().end; }

  /// All of it as one window.
  Window total() const {
    Window all;
    for (const Window& window : windows_) all.append(window);
    return all;
  }

 private:
  void add(Window byte) {
    byte.begin = windows_.empty() ? 0 : windows_.back().end;
    byte.end = byte.begin + 1;
    if (!windows_.empty() && byte.begin - windows_.back().begin < width_) {
      windows_.back().append(byte);
      return;
    }
    if (windows_.size() == most_) merge();
    windows_.push_back(byte);
  }

  void merge() {
    for (std::size_t i = 0; i < most_ / 2; ++i) {
      windows_[i] = windows_[2 * i];
      windows_[i].append(windows_[2 * i + 1]);
    }
    windows_.resize(most_ / 2);
    width_ *= 2;
  }

  std::int64_t width_;
  std::size_t most_;
  std::vector<Window> windows_;
};

}  // namespace examples
