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

inline std::string in_words(double seconds) {
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

/// One line on standard error that is written over and over, ten times a second at most; where that
/// is not a terminal, there is none. It goes away when the object does.
class StatusLine {
 public:
  StatusLine() : shows_(::isatty(STDERR_FILENO) != 0) {}
  ~StatusLine() { clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  /// Whether show() would show anything now.
  bool is_due() const { return shows_ && watch_.seconds() - shown_at_ >= 0.1; }

  void show(const std::string& line) {
    if (!is_due()) return;
    shown_at_ = watch_.seconds();
    std::fprintf(stderr, "\r%.79s\033[K", line.c_str());
    std::fflush(stderr);
    is_there_ = true;
  }

  void clear() {
    if (is_there_) std::fputs("\r\033[K", stderr);
    is_there_ = false;
  }

 private:
  bool shows_;
  bool is_there_ = false;
  double shown_at_ = -1;
  Stopwatch watch_;
};

/// Shows tokens done, their rate and the time left.
class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)) {}

  /// `total` is 0 when it is not known.
  void update(std::int64_t done, std::int64_t total) {
    if (!line_.is_due()) return;
    const double rate = static_cast<double>(done) / watch_.seconds();
    char line[128];
    if (total > 0) {
      const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
      std::snprintf(line, sizeof line, "%s %lld of %lld tokens, %.0f tokens/s, %s left",
                    what_.c_str(), static_cast<long long>(done), static_cast<long long>(total),
                    rate, in_words(left).c_str());
    } else {
      std::snprintf(line, sizeof line, "%s %lld tokens, %.0f tokens/s", what_.c_str(),
                    static_cast<long long>(done), rate);
    }
    line_.show(line);
  }

 private:
  std::string what_;
  StatusLine line_;
  Stopwatch watch_;
};

}  // namespace examples
