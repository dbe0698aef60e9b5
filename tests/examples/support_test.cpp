// SPDX-License-Identifier: MIT
#include <cmath>
#include <string>

#include <doctest/doctest.h>

#include "../../examples/support/arguments.hpp"
#include "../../examples/support/chart.hpp"
#include "../../examples/support/windows.hpp"

using examples::Arguments;
using examples::UsageError;
using examples::Windows;

TEST_CASE("windows merge as a document grows, and keep its sums") {
  for (const int size : {1, 2, 7, 8, 9, 31, 32, 33, 1000, 12345}) {
    CAPTURE(size);
    Windows windows(4, 8);
    windows.skip();
    double learning = 0;
    for (int i = 1; i < size; ++i) {
      windows.add(i % 5, 2);
      learning += i % 5;
    }
    const auto all = windows.windows();
    CHECK(all.size() <= 8);
    if (size >= 32) CHECK(all.size() >= 4);
    CHECK(all.front().begin == 0);
    CHECK(all.back().end == size);
    std::int64_t scored = 0;
    double sum = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i > 0) CHECK(all[i].begin == all[i - 1].end);
      const auto width = all.front().end;
      if (i + 1 < all.size()) CHECK(all[i].end - all[i].begin == width);
      if (all.size() > 1) CHECK(2 * (all[i].end - all[i].begin) >= width);
      scored += all[i].scored;
      sum += all[i].learning_nats;
    }
    CHECK(scored == size - 1);
    CHECK(sum == learning);
    CHECK(windows.bytes() == size);
    CHECK(windows.total().scored == size - 1);
    CHECK(windows.total().learning_nats == learning);
  }
}

TEST_CASE("a window's mean is in bits") {
  Windows windows;
  windows.skip();
  CHECK(std::isnan(windows.total().learning()));
  windows.add(std::log(2.0), std::log(8.0));
  windows.add(std::log(8.0), std::log(8.0));
  CHECK(windows.total().learning() == doctest::Approx(2));
  CHECK(windows.total().frozen() == doctest::Approx(3));
  CHECK(windows.total().saved() == doctest::Approx(100.0 / 3));
}

TEST_CASE("command lines") {
  const char* const words[] = {"program", "--size=3", "a", "--name", "-b", "--quiet",
                               "-",       "--size",   "4", "--",     "-c"};
  const Arguments arguments(11, words, {{"--size"}, {"--name"}, {"--quiet", false}, {"--loud"}});
  CHECK(arguments.rest() == std::vector<std::string>{"a", "-", "-c"});
  CHECK(arguments.number("--size", 1, 0, 9) == 4);
  CHECK(arguments.text("--name") == "-b");
  CHECK(arguments.has("--quiet"));
  CHECK_FALSE(arguments.has("--loud"));
  CHECK(arguments.number("--loud", 0.5, 0.0, 1.0) == 0.5);
  CHECK_THROWS_AS(arguments.number("--size", 1, 5, 9), UsageError);
  CHECK_THROWS_AS(arguments.number("--name", 1, 5, 9), UsageError);
  CHECK_THROWS_AS(Arguments(2, words, {{"--name"}}), UsageError);
}

TEST_CASE("a chart stays within its frame, whatever the curves") {
  for (const double end : {1e-3, 0.3, 34.3, 1e7}) {
    for (const double level : {0.0, 1.5, 8.0}) {
      examples::LineChart chart{.title = "a < b & \x1b\xff", .x_end = end};
      chart.curves = {{"frozen", "", "#000000", {{end / 2, level}}},
                      {"learning", "", "#0000ff", {{end / 4, level}, {end, level + 1e-9}}}};
      const std::string svg = chart.svg();
      CAPTURE(svg);
      CHECK(svg.find("a &lt; b &amp; ??") != svg.npos);
      CHECK(svg.find("nan") == svg.npos);
      CHECK(svg.find("inf") == svg.npos);
      CHECK(svg.find("=\"-") == svg.npos);  // left of the frame, or above it
      CHECK(svg.size() < 6000);
      CHECK(svg.size() > 1000);
    }
  }
}
