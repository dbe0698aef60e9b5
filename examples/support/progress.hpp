// SPDX-License-Identifier: MIT
/// \file
/// One line on a terminal that says how far the work is.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <unistd.h>
#include <utility>

namespace examples {

/// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Shows tokens done, their rate and the time left on standard error, ten times a second at most;
/// where that is not a terminal, shows nothing. The line goes away when the object does.
class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)), shows_(::isatty(STDERR_FILENO)) {}
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `total` is 0 when it is not known.
  void update(std::int64_t done, std::int64_t total) {
    if (!shows_) return;
    const double now = watch_.seconds();
    if (now - shown_at_ < 0.1) return;
    shown_at_ = now;
    const double rate = static_cast<double>(done) / now;
    char line[128];
    if (total > 0) {
      const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
      std::snprintf(line, sizeof line, "%s %lld of %lld tokens, %.0f tokens/s, %s left",
                    what_.c_str(), static_cast<long long>(done), static_cast<long long>(total),
                    rate, duration(left).c_str());
    } else {
      std::snprintf(line, sizeof line, "%s %lld tokens, %.0f tokens/s", what_.c_str(),
                    static_cast<long long>(done), rate);
    }
    std::fprintf(stderr, "\r%.79s\033[K", line);
    std::fflush(stderr);
    is_there_ = true;
  }

  void clear() {
    if (is_there_) std::fputs("\r\033[K", stderr);
    is_there_ = false;
  }

 private:
  static std::string duration(double seconds) {
    char text[32];
    const long long whole = static_cast<long long>(seconds + 0.5);
    if (whole < 60) {
      std::snprintf(text, sizeof text, "%lld s", whole);
    } else if (whole < 3600) {
      std::snprintf(text, sizeof text, "%lld min %02lld s", whole / 60, whole % 60);
    } else {
      std::snprintf(text, sizeof text, "%lld h %02lld min", whole / 3600, whole / 60 % 60);
    }
    return text;
  }

  std::string what_;
  bool shows_;
  bool is_there_ = false;
  double shown_at_ = -1;
  Stopwatch watch_;
};

}  // namespace examples
