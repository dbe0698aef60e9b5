// SPDX-License-Identifier: MIT
/// \file
/// Results as the Markdown table that docs/benchmarks.md has.
#pragma once

#include <cmath>
#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

namespace ttt::bench {

/// A line a benchmark, written as each ends. What a benchmark does not count stays empty.
class MarkdownTable : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override {
    PrintBasicContext(&GetErrorStream(), context);
    GetOutputStream() << "| | tokens/s | ms a chunk | TFLOP/s | of cuBLAS | TB/s | peak, GB |\n"
                         "|---|--:|--:|--:|--:|--:|--:|\n";
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      std::ostream& out = GetOutputStream();
      out << "| " << run.benchmark_name() << " | ";
      if (run.error_occurred) {
        out << run.error_message << " | | | | | |\n";
        continue;
      }
      const double rate = of(run, "tokens/s");
      const bool is_reading = run.benchmark_name().find("read") != std::string::npos ||
                              run.benchmark_name().find("prefill") != std::string::npos;
      out << digits(rate) << " | " << digits(is_reading ? 1024e3 / rate : 0) << " | "
          << digits(of(run, "FLOP/s") / 1e12) << " | " << share(of(run, "share")) << " | "
          << digits(of(run, "bytes/s") / 1e12) << " | " << digits(of(run, "peak_GB")) << " |"
          << std::endl;
    }
  }

 private:
  /// 0 if it was not counted.
  static double of(const Run& run, const char* counter) {
    const auto found = run.counters.find(counter);
    return found == run.counters.end() ? 0 : found->second.value;
  }
  static std::string print(const char* format, double value) {
    char text[32];
    std::snprintf(text, sizeof text, format, value);
    return text;
  }
  static std::string share(double value) {
    return value > 0 ? print("%.0f %%", 100 * value) : std::string();
  }
  /// Three digits that count, thousands apart.
  static std::string digits(double value) {
    if (!(value > 0) || !std::isfinite(value)) return {};
    const double unit = std::pow(10, std::floor(std::log10(value)) - 2);
    const double rounded = std::round(value / unit) * unit;
    if (rounded < 100) return print(rounded < 10 ? "%.2f" : "%.1f", rounded);
    const std::string all = print("%.0f", rounded);
    std::string text;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i > 0 && (all.size() - i) % 3 == 0) text += ',';
      text += all[i];
    }
    return text;
  }
};

}  // namespace ttt::bench
