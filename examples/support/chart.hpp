// SPDX-License-Identifier: MIT
/// \file
/// A line chart as SVG text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/io/utf8.hpp>

namespace examples {

/// Curves over one pair of axes, labelled where they end instead of in a legend. The area between
/// the first two is tinted.
struct LineChart {
  struct Point {
    double x = 0;
    double y = 0;
  };
  struct Curve {
    std::string label;
    std::string note;  // below the label
    std::string color;
    std::vector<Point> points;  // left to right, at least one
    bool has_dots = true;       // on its points; without them it is a thin line
  };

  std::string title = {};
  std::string subtitle = {};
  std::string x_title = {};
  std::string y_title = {};
  double x_begin = 0;
  double x_end = 1;
  std::vector<Curve> curves = {};

  std::string svg() const;

 private:
  static constexpr double width = 840, height = 470;
  static constexpr double left = 72, right = 692, top = 108, bottom = 406;

  struct Axis {
    double begin = 0;
    double end = 1;
    double step = 1;
  };

  /// A round step that cuts the length into at most eight pieces.
  static double round_step(double length) {
    const double power = std::pow(10.0, std::floor(std::log10(length / 8)));
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (length / (digit * power) <= 8) return digit * power;
    }
    return 10 * power;
  }

  /// From tick to tick, with all points inside.
  Axis y_axis() const {
    double least = curves.front().points.front().y, most = least;
    for (const Curve& curve : curves) {
      for (const Point& point : curve.points) {
        least = std::min(least, point.y);
        most = std::max(most, point.y);
      }
    }
    const double room = std::max(0.04 * (most - least), 0.02);
    const double step = round_step(most - least + 2 * room);
    return {std::max(0.0, std::floor((least - room) / step) * step),
            std::ceil((most + room) / step) * step, step};
  }

  static std::string number(double value, double step) {
    const int digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
  }

  static std::string escaped(std::string_view text) {
    std::string out;
    const bool valid = ttt::io::find_invalid_utf8(text) == text.size();
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte < 0x20 || byte == 0x7f || (byte >= 0x80 && !valid)) {
        out += '?';
      } else if (c == '&') {
        out += "&amp;";
      } else if (c == '<') {
        out += "&lt;";
      } else {
        out += c;
      }
    }
    return out;
  }

  template <class... Values>
  static void print(std::string& out, const char* format, Values... values) {
    char text[512];
    std::snprintf(text, sizeof text, format, values...);
    out += text;
  }

  static void text(std::string& out, double x, double y, const char* kind, std::string_view words) {
    print(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, kind);
    out += escaped(words) + "</text>\n";
  }
};

inline std::string LineChart::svg() const {
  const Axis y = y_axis();
  const auto to_x = [&](double v) {
    return left + (right - left) * (v - x_begin) / (x_end - x_begin);
  };
  const auto to_y = [&](double v) {
    return bottom - (bottom - top) * (v - y.begin) / (y.end - y.begin);
  };
  std::string out;
  print(out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
        "height=\"%.0f\" font-family=\"Helvetica Neue, Helvetica, Arial, sans-serif\" "
        "font-size=\"13\" fill=\"#57606a\">\n",
        width, height, width, height);
  out +=
      "<style>\n"
      ".title { font-size: 19px; font-weight: bold; fill: #1f2328; }\n"
      ".label { font-size: 15px; font-weight: bold; }\n"
      ".tick-x, .title-x { text-anchor: middle; }\n"
      ".tick-y { text-anchor: end; }\n"
      "</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  text(out, left - 40, 36, "title", title);
  text(out, left - 40, 58, "subtitle", subtitle);
  text(out, left - 40, 88, "title-y", y_title);

  for (int i = 0; y.begin + i * y.step < y.end + y.step / 2; ++i) {
    const double value = y.begin + i * y.step;
    print(out, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"%s\"/>\n", left, to_y(value), right,
          i == 0 ? "#8c959f" : "#e4e8ec");
    text(out, left - 10, to_y(value) + 4.5, "tick-y", number(value, y.step));
  }
  const double x_step = round_step(x_end - x_begin);
  for (double value = std::ceil(x_begin / x_step) * x_step; value < x_end + x_step * 1e-6;
       value += x_step) {
    print(out, "<path d=\"M%.1f %.1fv5\" stroke=\"#8c959f\"/>\n", to_x(value), bottom);
    text(out, to_x(value), bottom + 21, "tick-x", number(value, x_step));
  }
  text(out, (left + right) / 2, height - 20, "title-x", x_title);

  const auto line = [&](const std::vector<Point>& points, bool backwards, char command) {
    std::string path;
    for (std::size_t i = 0; i < points.size(); ++i) {
      const Point& point = points[backwards ? points.size() - 1 - i : i];
      print(path, "%c%.1f %.1f", i == 0 ? command : 'L', to_x(point.x), to_y(point.y));
    }
    return path;
  };
  if (curves.size() > 1) {
    out += "<path d=\"" + line(curves[0].points, false, 'M') + line(curves[1].points, true, 'L') +
           "Z\" fill=\"" + curves[1].color + "\" fill-opacity=\"0.07\"/>\n";
  }
  for (const Curve& curve : curves) {
    out += "<path d=\"" + line(curve.points, false, 'M') + "\" fill=\"none\" stroke=\"" +
           curve.color + "\" stroke-width=\"" + (curve.has_dots ? "2.5" : "1.5") +
           "\" stroke-linejoin=\"round\"/>\n";
    for (const Point& point : curve.points) {
      if (!curve.has_dots) break;
      print(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.2\" fill=\"%s\"/>\n", to_x(point.x),
            to_y(point.y), curve.color.c_str());
    }
  }

  // Labels stand at the height of their curve's end, as far apart as their two lines need.
  constexpr double apart = 44;
  std::vector<std::pair<double, const Curve*>> labels;
  for (const Curve& curve : curves) labels.emplace_back(to_y(curve.points.back().y), &curve);
  std::sort(labels.begin(), labels.end());
  for (std::size_t i = 1; i < labels.size(); ++i) {
    const double missing = apart - (labels[i].first - labels[i - 1].first);
    if (missing <= 0) continue;
    for (std::size_t j = 0; j < i; ++j) labels[j].first -= missing / 2;
    labels[i].first += missing / 2;
  }
  const double below = labels.back().first + 15 - (bottom + 4);  // where the last tick's number is
  if (below > 0) {
    for (auto& label : labels) label.first -= below;
  }
  for (const auto& [at, curve] : labels) {
    const double x = right + 12;
    print(out, "<g fill=\"%s\">", curve->color.c_str());
    text(out, x, at - 2, "label", curve->label);
    text(out, x, at + 15, "note", curve->note);
    out += "</g>\n";
  }
  return out + "</svg>\n";
}

}  // namespace examples
