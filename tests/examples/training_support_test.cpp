// SPDX-License-Identifier: MIT
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include "../../examples/support/process.hpp"
#include "../../examples/support/train_options.hpp"
#include "../../examples/support/training_chart.hpp"
#include "../../examples/support/training_log.hpp"
#include "../io/temporary.hpp"

using examples::TrainingLog;
using examples::TrainingRow;
using ttt_test::contains;
using ttt_test::content_of;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

namespace {

/// Step n of a training, the same whenever it is taken; every fifth is evaluated.
TrainingRow row(std::int64_t n) {
  const auto x = static_cast<double>(n);
  TrainingRow made{.step = n,
                   .loss = 1 + 4 / (x + 1),
                   .gradient_norm = 0.1 * x,
                   .rate = 1e-3 / 3,
                   .inner_steps = 3 * n,
                   .clipped_inner_steps = 2,
                   .skipped_inner_steps = n % 2};
  if (n % 5 == 4) made.learning = made.bits_per_byte() - 0.1, made.frozen = made.bits_per_byte();
  return made;
}

/// Takes the steps from one to before another.
void go_on(const std::string& path, std::int64_t from, std::int64_t to) {
  TrainingLog log(path, from);
  for (std::int64_t n = from; n < to; ++n) log.add(row(n));
}

std::optional<examples::TrainOptions> parsed(std::vector<const char*> words) {
  words.insert(words.begin(), "program");
  return examples::parse_train_options(static_cast<int>(words.size()), words.data());
}

struct Target {
  void request_stop() noexcept { ++requests; }
  std::atomic<int> requests{0};
};

}  // namespace

TEST_CASE("a row of the log is read back as it was") {
  const double infinite = std::numeric_limits<double>::infinity();
  for (TrainingRow written : {row(0), row(4), row(123456789)}) {
    for (const double norm : {0.1, 1e-300, infinite}) {
      written.gradient_norm = norm;
      std::string line = examples::to_csv(written);
      CAPTURE(line);
      CHECK(std::count(line.begin(), line.end(), ',') == 10);
      REQUIRE(line.back() == '\n');
      line.pop_back();
      const auto read = examples::training_row(line);
      REQUIRE(read);
      CHECK(examples::to_csv(*read) == line + "\n");
      CHECK(read->step == written.step);
      CHECK(read->loss == written.loss);
      CHECK(read->gradient_norm == norm);
      CHECK(read->skipped_inner_steps == written.skipped_inner_steps);
      CHECK(read->is_evaluated() == written.is_evaluated());
      if (written.is_evaluated()) CHECK(read->learning == written.learning);
      for (std::size_t end = 0; end + 1 < line.size(); ++end) {
        const auto half = examples::training_row(line.substr(0, end));
        if (half) CHECK(line.substr(end).find(',') == line.npos);  // a digit less may be a number
      }
    }
  }
  CHECK_FALSE(examples::training_row(""));
  CHECK_FALSE(examples::training_row("0,1,2,3,4,5,6,7,8,"));
  CHECK_FALSE(examples::training_row("0,1,2,3,4,5,6,7,8,,x"));
  CHECK_FALSE(examples::training_row("0,1,2,3,4,5,6,7,8,9,10,11"));
  CHECK_FALSE(examples::training_row("0,1,2,3,4,5,6,7,8.5,,"));
  CHECK_FALSE(examples::training_row(" 0,1,2,3,4,5,6,7,8,,"));
}

TEST_CASE("a log that was cut off anywhere becomes that of an undisturbed run") {
  const TemporaryFolder folder;
  const std::string path = folder.path("log.csv");
  go_on(path, 0, 12);
  const std::string whole = content_of(path);
  CHECK(std::count(whole.begin(), whole.end(), '\n') == 13);
  CHECK(whole.starts_with(examples::training_log_header));
  const auto behind = [&](std::int64_t steps) {  // the bytes that hold the rows before
    std::size_t at = 0;
    for (std::int64_t line = 0; line <= steps; ++line) at = whole.find('\n', at) + 1;
    return at;
  };
  // Killed with so much of it written, and resumed from an earlier step's checkpoint.
  for (const std::int64_t steps : {0, 1, 6, 11, 12}) {
    for (std::size_t end = steps == 0 ? 0 : behind(steps); end <= whole.size(); ++end) {
      CAPTURE(steps);
      CAPTURE(end);
      folder.file("log.csv", whole.substr(0, end));
      go_on(path, steps, 12);
      REQUIRE(content_of(path) == whole);
    }
  }
  const TrainingLog log(path, 7);
  REQUIRE(log.rows().size() == 7);
  CHECK(log.rows()[6].loss == row(6).loss);
  CHECK(content_of(path) == whole.substr(0, behind(7)));
}

TEST_CASE("a log that does not lead to the step is refused, and stays as it was") {
  const TemporaryFolder folder;
  const auto refused = [&](std::int64_t steps, const std::string& text) {
    const std::string path = folder.file("log.csv", text);
    const auto why = thrown<std::runtime_error>([&] { const TrainingLog log(path, steps); });
    CHECK(content_of(path) == text);
    CHECK(contains(why, path));
    return why;
  };
  const std::string header(examples::training_log_header);
  const std::string rows = examples::to_csv(row(0)) + examples::to_csv(row(1));
  CHECK(contains(refused(3, header + rows), "it ends behind step 1"));
  CHECK(contains(refused(2, "Chapter 1\n" + rows), "no log of a training"));
  CHECK(contains(refused(2, header + rows + "\n"), "line 4"));
  CHECK(contains(refused(9, header + rows + examples::to_csv(row(3))), "line 4"));
  CHECK(contains(refused(2, header + "x" + rows), "line 2"));

  // A log that begins where the training was resumed is one too.
  const std::string path = folder.path("later.csv");
  go_on(path, 5, 8);
  go_on(path, 7, 9);
  CHECK(content_of(path) == header + examples::to_csv(row(5)) + examples::to_csv(row(6)) +
                                examples::to_csv(row(7)) + examples::to_csv(row(8)));

  CHECK(contains(thrown<std::runtime_error>([] { const TrainingLog log("/dev/full", 0); }),
                 "cannot write /dev/full: No space left"));
  CHECK(
      contains(thrown<std::runtime_error>([&] { const TrainingLog log(folder.path("no/log"), 0); }),
               "No such file"));
  TrainingLog in_memory("", 3);
  in_memory.add(row(3));
  in_memory.sync();
  CHECK(in_memory.rows().size() == 1);
}

TEST_CASE("a training's curves stay within their frame") {
  for (const int steps : {1, 2, 5, 30, 1000}) {
    for (const bool evaluated : {false, true}) {
      std::vector<TrainingRow> rows;
      for (int n = 0; n < steps; ++n) {
        rows.push_back(row(n + 100));
        if (!evaluated) rows.back().learning = rows.back().frozen = examples::not_evaluated;
      }
      rows.front().loss = 50;
      const auto chart = examples::training_chart("a book", rows);
      const std::string svg = chart.svg();
      CAPTURE(svg);
      CHECK(chart.curves.size() == (evaluated && steps >= 5 ? 3 : 1));
      CHECK(chart.x_begin == 100);
      CHECK(chart.x_end == 100 + steps);
      for (const auto& curve : chart.curves) {
        for (const auto& point : curve.points) {
          CHECK(point.x >= chart.x_begin);
          CHECK(point.x <= chart.x_end);
          if (steps == 1000) CHECK(point.y < 3);  // the first steps do not decide the scale
        }
      }
      CHECK(svg.find("nan") == svg.npos);
      CHECK(svg.find("inf") == svg.npos);
      CHECK(svg.find("=\"-") == svg.npos);
    }
  }
}

TEST_CASE("options of a training") {
  const auto plain = parsed({"book"});
  REQUIRE(plain);
  CHECK(plain->warmup == plain->steps / 10);
  CHECK(plain->inner_warmup == plain->steps / 10);
  CHECK(plain->evaluate_length == 4 * plain->length);
  CHECK_FALSE(parsed({"--help"}));
  CHECK(parsed({"--from", "m", "book"})->inner_warmup == 0);
  CHECK(parsed({"--from", "m", "book"})->rate < plain->rate);
  CHECK(parsed({"--from", "m", "--inner-warmup", "7", "book"})->inner_warmup == 7);
  CHECK(parsed({"--keep-chunks", "sqrt", "book"})->meta.keep.chunks == 0);
  CHECK(parsed({"--keep-chunks", "3", "book"})->meta.keep.chunks == 3);

  using Bad = std::vector<const char*>;
  for (const Bad& bad : {Bad{}, Bad{"--keep-chunks", "some", "book"},
                         Bad{"--keep-chunks", "0", "book"}, Bad{"--resume", "book"},
                         Bad{"--plain", "--first-order", "book"}, Bad{"--rate", "x", "book"},
                         Bad{"--steps", "0", "book"}, Bad{"--validation", "1", "book"}}) {
    CHECK_THROWS_AS(parsed(bad), examples::UsageError);
  }
  CHECK_THROWS_AS(
      examples::new_config(*parsed({"--blocks", "2", "--learning-blocks", "3", "book"})),
      examples::UsageError);
  CHECK_THROWS_AS(examples::new_config(*parsed({"--width", "12", "--heads", "4", "book"})),
                  examples::UsageError);
  const auto config = examples::new_config(*plain);
  examples::check_sizes(*plain, config);
  CHECK_THROWS_AS(examples::check_sizes(*parsed({"--width", "12", "book"}), config),
                  examples::UsageError);
}

TEST_CASE("settings differ exactly when results may") {
  const auto settings = [](std::vector<const char*> words) {
    words.push_back("book");
    return examples::training_settings(*parsed(words), 1, 2);
  };
  const std::string usual = settings({});
  using Words = std::vector<const char*>;
  for (const Words& words :
       {Words{"--threads", "3"}, Words{"--sequences", "2"}, Words{"--keep-chunks", "sqrt"},
        Words{"--recompute"}, Words{"--force"}, Words{"--out", "a"}, Words{"--log", "a"},
        Words{"--checkpoints", "a", "--resume", "--checkpoint-every", "7", "--keep", "9"}}) {
    CAPTURE(words[0]);
    CHECK(settings(words) == usual);
  }
  for (const Words& words :
       {Words{"--steps", "7"}, Words{"--rate", "0.5"}, Words{"--warmup", "7"},
        Words{"--decay", "0.5"}, Words{"--clip", "7"}, Words{"--inner-rate", "7"},
        Words{"--inner-warmup", "7"}, Words{"--inner-clip", "7"}, Words{"--plain"},
        Words{"--first-order"}, Words{"--slices"}, Words{"--seed", "7"}, Words{"--from", "a"},
        Words{"--validation", "0.5"}, Words{"--evaluate-every", "7"},
        Words{"--evaluate-length", "7"}, Words{"--evaluate-bytes", "7"}}) {
    CAPTURE(words[0]);
    CHECK(settings(words) != usual);
  }
  CHECK(examples::training_settings(*parsed({"book"}), 3, 2) != usual);
}

TEST_CASE("the first signal asks to stop, and only while somebody listens") {
  const auto handler = [] {
    struct sigaction now = {};
    REQUIRE(::sigaction(SIGTERM, nullptr, &now) == 0);
    return now.sa_handler;
  };
  const auto usual = handler();
  Target target;
  {
    const examples::StopOnSignal stop(target);
    std::raise(SIGTERM);
    std::raise(SIGTERM);  // at once: the same request
    std::raise(SIGINT);
    CHECK(target.requests == 1);
  }
  const auto before = std::signal(SIGINT, SIG_IGN);
  {
    const examples::StopOnSignal stop(target);
    std::raise(SIGINT);  // still ignored
    CHECK(target.requests == 1);
    std::raise(SIGTERM);
    CHECK(target.requests == 2);
  }
  std::raise(SIGINT);
  std::signal(SIGINT, before);
  CHECK((handler() == usual));
}

TEST_CASE("a later signal ends the process") {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    Target target;
    const examples::StopOnSignal stop(target);
    std::raise(SIGINT);
    struct timespec rest = {1, 100'000'000};
    while (::nanosleep(&rest, &rest) != 0) continue;
    std::raise(SIGTERM);
    ::_exit(target.requests);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGTERM);
}
