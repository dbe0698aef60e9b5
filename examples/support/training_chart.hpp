// SPDX-License-Identifier: MIT
/// \file
/// The curves of a training.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "chart.hpp"
#include "training_log.hpp"

namespace examples {
namespace training_chart_detail {

using Points = std::vector<LineChart::Point>;

/// Means of the training's bits per byte over pieces of equal length; a last one of less than half
/// of it is left out.
inline Points smoothed(const std::vector<TrainingRow>& rows, std::size_t piece) {
  Points points;
  double sum = 0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    sum += rows[i].bits_per_byte();
    ++count;
    const bool last = i + 1 == rows.size();
    if (count < piece && !(last && (2 * count >= piece || points.empty()))) continue;
    // A row's loss is that before its step; a mean stands at the middle of its rows.
    const double middle =
        static_cast<double>(rows[i].step) + 0.5 - 0.5 * static_cast<double>(count);
    points.push_back({middle, sum / static_cast<double>(count)});
    sum = 0;
    count = 0;
  }
  return points;
}

/// Without the points above `most` that come before all others. If it may, the curve comes in
/// through the upper border instead.
inline Points from_below(const Points& points, double most, bool enters) {
  std::size_t first = 0;
  while (first + 1 < points.size() && points[first].y > most) ++first;
  if (first == 0) return points;
  Points inside(points.begin() + static_cast<std::ptrdiff_t>(first), points.end());
  if (!enters || inside.front().y > most) return inside;
  const auto& [x0, y0] = points[first - 1];
  const auto& [x1, y1] = inside.front();
  inside.insert(inside.begin(), {x0 + (x1 - x0) * (y0 - most) / (y0 - y1), most});
  return inside;
}

inline std::string print(const char* format, double value) {
  char text[96];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace training_chart_detail

/// Draws the rows' bits per byte: of the training text, smoothed, and of the validation text where
/// it was evaluated. What the first tenth of the steps was like, when nearly anything is an
/// improvement, does not decide the scale. At least one row.
inline LineChart training_chart(const std::string& title, const std::vector<TrainingRow>& rows) {
  using namespace training_chart_detail;
  constexpr std::size_t most_points = 60, least_points = 6, enough = 5;
  const std::size_t piece = std::max({std::size_t{1}, (rows.size() + most_points - 1) / most_points,
                                      std::min(enough, rows.size() / least_points)});
  Points training = smoothed(rows, piece), learning, frozen;
  for (const TrainingRow& row : rows) {
    if (!row.is_evaluated()) continue;
    const auto after = static_cast<double>(row.step + 1);
    learning.push_back({after, row.learning});
    frozen.push_back({after, row.frozen});
  }
  const auto begin = static_cast<double>(rows.front().step);
  const auto end = static_cast<double>(rows.back().step + 1);
  double most = 0;
  for (const Points* points : {&training, &learning, &frozen}) {
    for (const auto& point : *points) {
      if (point.x >= begin + 0.1 * (end - begin)) most = std::max(most, point.y);
    }
  }
  LineChart chart{.title = title, .x_title = "step", .y_title = "bits per byte"};
  chart.x_begin = begin;
  chart.x_end = end;
  chart.subtitle = "The training text";
  if (piece > 1) chart.subtitle += print(" (means over %.0f steps)", static_cast<double>(piece));
  if (!learning.empty()) {
    const auto add = [&](const char* label, const Points& points, const char* color) {
      chart.curves.push_back({label, print("validation: %.3f", points.back().y), color,
                              from_below(points, most, false)});
    };
    add("frozen", frozen, "#6e7781");
    add("learning", learning, "#0969da");
    chart.subtitle += " and the validation text, read frozen and while learning";
  }
  chart.curves.push_back({"training", print("last mean: %.3f", training.back().y), "#bc4c00",
                          from_below(training, most, true), false});
  return chart;
}

}  // namespace examples
