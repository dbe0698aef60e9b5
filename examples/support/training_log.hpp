// SPDX-License-Identifier: MIT
/// \file
/// The log of a training as CSV, which goes on where a killed run left it.
#pragma once

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <limits>
#include <numbers>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace examples {

inline constexpr double not_evaluated = std::numeric_limits<double>::quiet_NaN();

/// One step of a training: a row of its log. No times, so that two runs can be compared.
struct TrainingRow {
  std::int64_t step = 0;  // its number, from 0
  double loss = 0;        // nats a token, before the update
  double gradient_norm = 0;
  double rate = 0;
  double inner_multiplier = 1;
  std::int64_t inner_steps = 0;
  std::int64_t clipped_inner_steps = 0;
  std::int64_t skipped_inner_steps = 0;
  // Bits a byte of the validation text after the update, read learning and frozen.
  double learning = not_evaluated;
  double frozen = not_evaluated;

  double bits_per_byte() const { return loss / std::numbers::ln2; }
  bool is_evaluated() const { return !std::isnan(learning); }
};

inline constexpr std::string_view training_log_header =
    "step,loss,bits_per_byte,gradient_norm,rate,inner_multiplier,inner_steps,"
    "clipped_inner_steps,skipped_inner_steps,validation_learning,validation_frozen\n";

/// A line of the log, its end included. Doubles have 17 digits, so that reading gives them back;
/// the last two columns are empty where nothing was evaluated.
inline std::string to_csv(const TrainingRow& row) {
  char text[512];
  std::snprintf(text, sizeof text, "%lld,%.17g,%.17g,%.17g,%.17g,%.17g,%lld,%lld,%lld",
                static_cast<long long>(row.step), row.loss, row.bits_per_byte(), row.gradient_norm,
                row.rate, row.inner_multiplier, static_cast<long long>(row.inner_steps),
                static_cast<long long>(row.clipped_inner_steps),
                static_cast<long long>(row.skipped_inner_steps));
  std::string line = text;
  line += ",,\n";
  if (row.is_evaluated()) {
    std::snprintf(text, sizeof text, ",%.17g,%.17g\n", row.learning, row.frozen);
    line.replace(line.size() - 3, 3, text);
  }
  return line;
}

/// The row that is this line, its end not included; nothing if it is none.
inline std::optional<TrainingRow> training_row(std::string_view line) {
  TrainingRow row;
  double bits = 0;
  bool good = true;
  const auto next = [&](auto& value) {
    const std::size_t comma = line.find(',');
    const std::string_view field = line.substr(0, comma);
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
    good = good && error == std::errc() && end == field.data() + field.size();
    line = comma == line.npos ? std::string_view() : line.substr(comma + 1);
  };
  next(row.step);
  next(row.loss);
  next(bits);
  next(row.gradient_norm);
  next(row.rate);
  next(row.inner_multiplier);
  next(row.inner_steps);
  next(row.clipped_inner_steps);
  next(row.skipped_inner_steps);
  if (line != ",") {
    next(row.learning);
    next(row.frozen);
    good = good && line.empty();
  }
  if (!good) return std::nullopt;
  return row;
}

/// The rows of a training, in memory and, if it has a path, in a CSV file, where each is as soon as
/// it is made. Throws std::runtime_error, one sentence, when the file cannot be read or written.
///
/// A training that goes on behind `steps` steps keeps their rows and drops later ones, which it
/// will make again: the file of a run that was killed at any moment becomes that of an undisturbed
/// one. Cutting a file short is one operation of the system, so a kill meanwhile does no harm.
class TrainingLog {
 public:
  /// `steps`: taken before; 0 begins anew.
  TrainingLog(std::string path, std::int64_t steps) : path_(std::move(path)) {
    if (path_.empty()) return;
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
    if (file_ < 0 && (errno == EACCES || errno == EINVAL)) {  // a pipe, say
      file_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    }
    if (file_ < 0) fail("write", errno);
    try {
      begin(steps);
    } catch (...) {
      ::close(file_);
      throw;
    }
  }
  ~TrainingLog() {
    if (file_ >= 0) ::close(file_);
  }
  TrainingLog(const TrainingLog&) = delete;
  TrainingLog& operator=(const TrainingLog&) = delete;

  const std::vector<TrainingRow>& rows() const { return rows_; }

  void add(const TrainingRow& row) {
    rows_.push_back(row);
    if (file_ >= 0) write(to_csv(row));
  }

  /// Returns once the rows would survive a power cut: for the moment before a checkpoint is written
  /// that relies on them.
  void sync() const {
    while (file_ >= 0 && ::fdatasync(file_) != 0) {
      if (errno == EINVAL || errno == EROFS) return;  // not a kind of file that can be synced
      if (errno != EINTR) fail("write", errno);
    }
  }

 private:
  [[noreturn]] void fail(const char* what, int code) const {
    throw std::runtime_error(std::string("cannot ") + what + " " + path_ + ": " +
                             std::strerror(code));
  }

  void begin(std::int64_t steps) {
    struct stat status = {};
    if (::fstat(file_, &status) != 0) fail("write", errno);
    std::size_t kept = 0;
    if (S_ISREG(status.st_mode)) {
      if (steps > 0) kept = keep(read(), steps);
      if (::ftruncate(file_, static_cast<off_t>(kept)) != 0 || ::lseek(file_, 0, SEEK_END) < 0) {
        fail("write", errno);
      }
    }
    if (kept == 0) write(training_log_header);
  }

  /// Takes in the rows before a step; returns how many bytes of the text hold them.
  std::size_t keep(std::string_view text, std::int64_t steps) {
    const auto reject = [this](const std::string& why) {
      throw std::runtime_error("cannot go on with " + path_ + ": " + why +
                               "; choose another name for the log");
    };
    const std::string_view header = training_log_header;
    if (text.size() < header.size() && header.starts_with(text)) return 0;  // killed at once
    if (!text.starts_with(header)) reject("it is no log of a training");
    std::size_t at = header.size();
    for (;;) {
      const std::size_t end = text.find('\n', at);
      if (end == text.npos) break;  // nothing, or a row that was cut off
      const auto row = training_row(text.substr(at, end - at));
      if (!row || (!rows_.empty() && row->step != rows_.back().step + 1)) {
        reject("line " + std::to_string(rows_.size() + 2) + " is not the next step's");
      }
      if (row->step >= steps) break;
      rows_.push_back(*row);
      at = end + 1;
    }
    if (!rows_.empty() && rows_.back().step + 1 != steps) {
      reject("it ends behind step " + std::to_string(rows_.back().step) +
             ", but the training goes on with step " + std::to_string(steps));
    }
    return at;
  }

  std::string read() const {
    std::string text;
    char piece[1 << 16];
    for (;;) {
      const ssize_t got = ::pread(file_, piece, sizeof piece, static_cast<off_t>(text.size()));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("read", errno);
      if (got == 0) return text;
      text.append(piece, static_cast<std::size_t>(got));
    }
  }

  void write(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t written = ::write(file_, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("write", errno);
      text.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  std::string path_;
  int file_ = -1;
  std::vector<TrainingRow> rows_;
};

}  // namespace examples
