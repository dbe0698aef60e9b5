// SPDX-License-Identifier: MIT
/// \file
/// What train_bytes says on the way: log, evaluations, curves, a line now and then.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "process.hpp"
#include "progress.hpp"
#include "train_job.hpp"
#include "training_chart.hpp"
#include "training_log.hpp"
#include <ttt/outer/evaluation.hpp>

namespace examples {

/// Pieces of the validation text, spread evenly over it, with about so many bytes in all.
inline std::vector<std::string_view> validation_pieces(const TrainJob& job, Index bytes) {
  const auto length = static_cast<std::size_t>(job.options.evaluate_length);
  std::vector<std::string_view> whole, shorter;
  for (Index i = 0; i < job.text.validation.documents(); ++i) {
    std::string_view rest = job.text.validation.document(i);
    for (; rest.size() >= length; rest.remove_prefix(length)) {
      whole.push_back(rest.substr(0, length));
    }
    if (rest.size() > 1) shorter.push_back(rest);
  }
  const auto& all = whole.empty() ? shorter : whole;
  const std::size_t wanted = std::max<std::size_t>(1, static_cast<std::size_t>(bytes) / length);
  const std::size_t count = std::min(wanted, all.size());
  std::vector<std::string_view> pieces;
  for (std::size_t i = 0; i < count; ++i) pieces.push_back(all[i * all.size() / count]);
  return pieces;
}

/// In bits a byte, in so many buckets.
inline std::vector<ttt::PositionLoss> evaluate_pieces(const TrainJob& job,
                                                      const TrainedWeights& weights,
                                                      std::span<const std::string_view> pieces,
                                                      Index buckets) {
  const Index length = job.options.evaluate_length;
  std::vector<ttt::PositionLoss> losses = ttt::evaluate_by_position(
      weights, job.learner, pieces,
      {.length = length, .bucket = std::max<Index>(1, (length + buckets - 1) / buckets)});
  for (ttt::PositionLoss& loss : losses) {
    loss.learning /= std::numbers::ln2;
    loss.frozen /= std::numbers::ln2;
  }
  return losses;
}

inline double percent_saved(const ttt::PositionLoss& loss) {
  return loss.frozen > 0 ? 100 * (1 - loss.learning / loss.frozen) : 0;
}

inline void print_positions(const TrainJob& job, const TrainedWeights& weights) {
  const auto pieces = validation_pieces(job, 4 * job.options.evaluate_bytes);
  const auto buckets = evaluate_pieces(job, weights, pieces, 8);
  say("\nBits per byte of %zu pieces of the validation text, by position\n\n%19s  %10s %10s %10s\n",
      pieces.size(), "byte", "learning", "frozen", "saved");
  ttt::PositionLoss all;
  for (const ttt::PositionLoss& bucket : buckets) {
    say("%8td - %8td  %10.3f %10.3f %8.1f %%\n", bucket.begin, bucket.end, bucket.learning,
        bucket.frozen, percent_saved(bucket));
    const auto share = static_cast<double>(bucket.tokens);
    all.tokens += bucket.tokens;
    all.learning += bucket.learning * share;
    all.frozen += bucket.frozen * share;
  }
  all.learning /= static_cast<double>(all.tokens);
  all.frozen /= static_cast<double>(all.tokens);
  say("%19s  %10.3f %10.3f %8.1f %%\n", "all", all.learning, all.frozen, percent_saved(all));
}

/// Logs, evaluates, draws and says how it goes.
class TrainReporter {
 public:
  /// `steps`: taken before, by the run that is resumed.
  TrainReporter(const TrainJob& job, Index steps)
      : job_(job),
        log_(job.options.log, steps),
        first_(steps),
        pieces_(validation_pieces(job, job.options.evaluate_bytes)) {}

  /// `weights` makes a copy of them behind the step.
  template <class MakeWeights>
  void step(const ttt::TrainingStep& step, const MakeWeights& weights) {
    const TrainOptions& options = job_.options;
    TrainingRow row{.step = step.step,
                    .loss = step.loss,
                    .gradient_norm = step.gradient_norm,
                    .rate = step.rate,
                    .inner_multiplier = step.inner_multiplier,
                    .inner_steps = step.inner_steps,
                    .clipped_inner_steps = step.clipped_inner_steps,
                    .skipped_inner_steps = step.skipped_inner_steps};
    const Index done = step.step + 1;
    const bool is_due = done % options.evaluate_every == 0 || done == options.steps;
    if (is_due && !pieces_.empty()) {
      const Stopwatch watch;
      const auto losses = evaluate_pieces(job_, weights(), pieces_, 1);
      row.learning = losses.front().learning;
      row.frozen = losses.front().frozen;
      evaluating_ += watch.seconds();
    }
    log_.add(row);
    if (done % options.checkpoint_every == 0 || done == options.steps) log_.sync();
    if (is_due) {
      status_.clear();
      print(row);
      draw();
    }
    show(row);
    if (!step.taken) ++not_taken_;
  }

  void draw() const {
    if (job_.options.chart.empty() || log_.rows().empty()) return;
    write_file(job_.options.chart, training_chart("Training on " + text_name(), log_.rows()).svg());
  }

  /// At the end: the log is safe, and what went wrong is said.
  void finish() {
    status_.clear();
    log_.sync();
    if (not_taken_ > 0) {
      say("%td updates were left out, because the gradient was not finite\n", not_taken_);
    }
  }

 private:
  std::string text_name() const {
    const auto& texts = job_.options.texts;
    if (texts.size() > 1) return std::to_string(job_.text.train.documents()) + " texts";
    const std::filesystem::path path(texts.front());
    return (path.has_filename() ? path : path.parent_path()).filename().string();
  }

  double bytes_per_second(Index done) const {
    const auto bytes =
        static_cast<double>((done - first_) * job_.options.batch * job_.options.length);
    return bytes / std::max(1e-9, watch_.seconds() - evaluating_);
  }

  void print(const TrainingRow& row) const {
    const auto& rows = log_.rows();
    const auto every = static_cast<std::size_t>(job_.options.evaluate_every);
    const std::size_t count = std::min(every, rows.size());
    double sum = 0;
    for (std::size_t i = rows.size() - count; i < rows.size(); ++i) sum += rows[i].bits_per_byte();
    say("step %td of %td: %.3f bits per byte", row.step + 1, job_.options.steps,
        sum / static_cast<double>(count));
    if (row.is_evaluated()) {
      say("; validation: %.3f learning, %.3f frozen", row.learning, row.frozen);
    }
    say("; %.0f bytes/s\n", bytes_per_second(row.step + 1));
  }

  void show(const TrainingRow& row) {
    if (!status_.is_due()) return;
    const Index done = row.step + 1;
    const double each = watch_.seconds() / static_cast<double>(done - first_);
    char line[160];
    std::snprintf(line, sizeof line,
                  "step %td of %td, loss %.3f, %.3f bits/byte, %.0f bytes/s, %s left", done,
                  job_.options.steps, row.loss, row.bits_per_byte(), bytes_per_second(done),
                  in_words(each * static_cast<double>(job_.options.steps - done)).c_str());
    status_.show(line);
  }

  const TrainJob& job_;
  TrainingLog log_;
  Index first_;
  std::vector<std::string_view> pieces_;
  StatusLine status_;
  Stopwatch watch_;
  double evaluating_ = 0;  // seconds
  Index not_taken_ = 0;
};

}  // namespace examples
