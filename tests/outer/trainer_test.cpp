// SPDX-License-Identifier: MIT
// A run that is stopped, killed or refused, and one that goes on from what is left.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <support/kernels.hpp>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../io/limits.hpp"
#include "../io/temporary.hpp"
#include <ttt/backend/eigen/backend.hpp>
#include <ttt/outer/evaluation.hpp>
#include <ttt/outer/trainer.hpp>

namespace {

using namespace ttt;
using Attention = SlidingWindowAttention<8>;
using Tiny = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                           Stack<1, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
constexpr Config config{.vocabulary = 256,
                        .width = 8,
                        .heads = 2,
                        .hidden = 8,
                        .rope_base = 1000,
                        .eps = 1e-6,
                        .chunk = 4};

/// Sample i is a pure function of i, as it has to be; every fourth repeats a byte.
struct Pattern {
  Index each = 16;
  std::uint64_t seed = 1;

  Index size() const { return 0; }
  Index length() const { return each; }
  void sample(Index index, std::span<Token> out) const {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = static_cast<Token>(
          i % 4 == 3 ? 7 : Random::at(seed, static_cast<std::uint64_t>(index) * 100 + i) % 32);
    }
  }
};

using Outer = OuterLoop<AdamW, WarmupCosine>;
using TinyTrainer = Trainer<Tiny, Cpu, InnerLoop<Momentum>, Outer, Pattern>;

TrainerOptions options(const std::string& folder = {}, Index steps = 12) {
  return {.length = 16,
          .batch = 3,
          .steps = steps,
          .inner_warmup = {.first = 0.1, .steps = 5},
          .folder = folder,
          .checkpoint_every = 2};
}

std::unique_ptr<TinyTrainer> make(const TrainerOptions& o, int threads = 1) {
  return std::make_unique<TinyTrainer>(initialise<Tiny>(config, Cpu(threads), 3, 0.2),
                                       InnerLoop<Momentum>{.chunk = 4, .optimizer = {.rate = 0.5f}},
                                       Outer{.schedule = {.peak = 1e-2, .steps = 12, .warmup = 3}},
                                       Pattern{}, o);
}

/// One line a step, every bit of it.
std::string line(const TrainingStep& step) {
  char text[256];
  std::snprintf(text, sizeof text, "%lld %a %a %a %a %lld %lld\n",
                static_cast<long long>(step.step), step.loss, step.gradient_norm, step.rate,
                step.inner_multiplier, static_cast<long long>(step.inner_steps),
                static_cast<long long>(step.clipped_inner_steps));
  return text;
}

std::string run_all(TinyTrainer& trainer) {
  std::string log;
  CHECK(trainer.run([&](const TrainingStep& step) { log += line(step); }));
  return log;
}

std::vector<float> parameters(const TinyTrainer& trainer) {
  std::vector<float> all;
  const auto weights = trainer.weights();
  Tiny::each(
      [&](const ParameterName&, const Weight<float>& leaf) {
        const auto stored = leaf.stored<float>();
        all.insert(all.end(), stored.data, stored.data + leaf.shape().size());
      },
      weights.parameters());
  return all;
}

std::string message(const auto& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string text; std::getline(file, text);) lines.push_back(text + "\n");
  return lines;
}

}  // namespace

TEST_CASE("Trainer: any number of threads, the same bits; the loss falls") {
  auto one = make(options()), three = make(options(), 3);
  const std::string log = run_all(*one);
  CHECK(run_all(*three) == log);
  CHECK(parameters(*one) == parameters(*three));
  CHECK(one->steps() == 12);
  CHECK(std::count(log.begin(), log.end(), '\n') == 12);
  double first = 0, last = 0;
  std::sscanf(log.c_str(), "%*d %la", &first);
  std::sscanf(log.c_str() + log.rfind('\n', log.size() - 2) + 1, "%*d %la", &last);
  CHECK(last < first - 0.1);
}

TEST_CASE("Trainer: stopped anywhere and resumed, it goes on to the same bits") {
  auto undisturbed = make(options());
  const std::string want = run_all(*undisturbed);
  for (const Index stop_at : {1, 2, 5, 11}) {
    CAPTURE(stop_at);
    const ttt_test::TemporaryFolder temporary;
    const std::string folder = temporary.path("run");
    std::string log;
    {
      auto trainer = make(options(folder));
      CHECK(!trainer->resume());
      CHECK(!trainer->run([&](const TrainingStep& step) {
        log += line(step);
        if (step.step + 1 == stop_at) trainer->request_stop();
      }));
      CHECK(trainer->steps() == stop_at);
    }
    auto trainer = make(options(folder), 2);
    CHECK(trainer->resume());
    CHECK(trainer->steps() == stop_at);
    log += run_all(*trainer);
    CHECK(log == want);
    CHECK(parameters(*trainer) == parameters(*undisturbed));
    CHECK(io::list_checkpoints(folder).size() <= 2);
    // What a checkpoint holds is a model that anybody can load.
    const auto latest = io::latest_checkpoint(folder);
    REQUIRE(latest);
    CHECK(latest->step == 12);
    CHECK(load<Tiny>(latest->path + "/model.safetensors", Cpu(1)).count() ==
          trainer->weights().count());
  }
}

TEST_CASE("Trainer: how many sequences go together is a matter of speed, also when resuming") {
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = temporary.path("run");
  auto undisturbed = make(options());
  run_all(*undisturbed);
  {
    auto first = make(options(folder));
    first->run([&](const TrainingStep& step) {
      if (step.step + 1 == 6) first->request_stop();
    });
  }
  TrainerOptions together = options(folder);
  together.meta.stacked = 2;  // of a batch of three
  auto rest = make(together);
  CHECK(rest->resume());
  CHECK(rest->steps() == 6);
  run_all(*rest);
  const auto got = parameters(*rest), want = parameters(*undisturbed);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
    size += std::pow(static_cast<double>(want[i]), 2);
  }
  CHECK(std::sqrt(error / size) <= 1e-5);
}

TEST_CASE("Trainer: killed at ten random moments, the log is that of an undisturbed run") {
  auto undisturbed = make(options({}, 40));
  std::vector<std::string> want;
  CHECK(undisturbed->run([&](const TrainingStep& step) { want.push_back(line(step)); }));
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = temporary.path("run");
  const std::string log = temporary.path("log"), checkpoints = folder;
  Random random{static_cast<std::uint64_t>(::getpid())};
  int killed = 0;
  for (int attempt = 0; attempt < 500; ++attempt) {
    const bool kill = killed < 10;
    const ::pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      // Rows of steps that will be taken again go; then a row a step, written at once.
      int status = 1;
      try {
        auto trainer = make(options(checkpoints, 40));
        trainer->resume();
        auto rows = lines_of(log);
        rows.resize(std::min(rows.size(), static_cast<std::size_t>(trainer->steps())));
        std::ofstream(log + ".new", std::ios::trunc)
            << std::accumulate(rows.begin(), rows.end(), std::string());
        std::filesystem::rename(log + ".new", log);
        std::ofstream out(log, std::ios::app);
        status = trainer->run([&](const TrainingStep& step) { out << line(step) << std::flush; })
                     ? 0
                     : 2;
      } catch (...) {
        status = 3;
      }
      ::_exit(status);
    }
    if (kill) {
      std::this_thread::sleep_for(std::chrono::microseconds(500 + random.bits() % 30000));
      ::kill(child, SIGKILL);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) {
      ++killed;
      // No moment leaves a checkpoint that does not load.
      for (const auto& checkpoint : io::list_checkpoints(checkpoints)) {
        CHECK_NOTHROW(load<Tiny>(checkpoint.path + "/model.safetensors", Cpu(1)));
      }
      continue;
    }
    REQUIRE(WEXITSTATUS(status) == 0);
    if (killed >= 10) break;
    // It was done before it could be killed: from the beginning, with what is there.
    std::filesystem::remove_all(checkpoints);
    std::filesystem::remove(log);
  }
  CHECK(killed == 10);
  CHECK(lines_of(log) == want);
}

TEST_CASE("Trainer: what it refuses, and that it says why") {
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = temporary.path("run");
  {
    auto trainer = make(options(folder, 4));
    (void)run_all(*trainer);
    CHECK(message([&] { make(options(folder, 4)); }).find("another run") != std::string::npos);
  }
  CHECK(message([&] { make(options(folder, 6))->run(); }) ==
        "ttt: training: " + folder +
            " holds checkpoints of an earlier run: resume it, or choose another folder");
  auto other = options(folder, 6);
  other.settings = "something else";
  CHECK(message([&] { make(other)->resume(); }).find("cannot resume: it is of a run with") !=
        std::string::npos);
  auto longer = options();
  longer.length = 20;
  CHECK(message([&] { make(longer); }) ==
        "ttt: training: the source's samples are of 16 tokens, TrainerOptions::length is 20");
  auto empty = options();
  empty.batch = 0;
  CHECK(message([&] { make(empty); }) ==
        "ttt: training: the batch must hold at least one sequence");
  CHECK(message([&] { make(options())->save(); }).find("there is none to save to") !=
        std::string::npos);
}

TEST_CASE("Trainer: a damaged checkpoint is one clear error and changes nothing") {
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = temporary.path("run");
  { (void)run_all(*make(options(folder, 4))); }
  const auto latest = io::latest_checkpoint(folder);
  REQUIRE(latest);
  for (const char* name : {"/model.safetensors", "/optimizer.safetensors"}) {
    CAPTURE(name);
    const std::string path = latest->path + name, kept = path + ".kept";
    std::filesystem::copy_file(path, kept);
    const auto size = std::filesystem::file_size(path);
    for (const auto length : {std::uintmax_t{0}, std::uintmax_t{7}, size / 2, size - 1}) {
      std::filesystem::resize_file(path, length);
      auto trainer = make(options(folder, 6));
      const auto before = parameters(*trainer);
      CHECK(message([&] { trainer->resume(); }).find(path) != std::string::npos);
      CHECK(trainer->steps() == 0);
      CHECK(parameters(*trainer) == before);
      std::filesystem::copy_file(kept, path, std::filesystem::copy_options::overwrite_existing);
    }
    std::filesystem::remove(kept);
  }
  CHECK(make(options(folder, 6))->resume());
}

TEST_CASE("Trainer: a full disk ends the run with one sentence, and costs no earlier checkpoint") {
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = temporary.path("run");
  auto trainer = make(options(folder, 12));
  const std::string why = message([&] {
    std::optional<ttt_test::FileSizeLimit> full;
    trainer->run([&](const TrainingStep& step) {
      if (step.step == 5) full.emplace(1000);
    });
  });
  CHECK(why.find("ttt: cannot write the checkpoint " + folder + "/step-0000000006") == 0);
  const auto latest = io::latest_checkpoint(folder);
  REQUIRE(latest);
  CHECK(latest->step == 4);
  trainer.reset();
  auto again = make(options(folder, 12));
  CHECK(again->resume());
  (void)run_all(*again);
  auto undisturbed = make(options());
  (void)run_all(*undisturbed);
  CHECK(parameters(*again) == parameters(*undisturbed));
}

TEST_CASE("Trainer: a loss that is not finite ends the run, and nothing has changed") {
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = temporary.path("run");
  auto weights = initialise<Tiny>(config, Cpu(1), 3, 0.2);
  auto* first = const_cast<float*>(weights.parameters().embedding.stored<float>().data);
  first[7 * 8] = std::numeric_limits<float>::infinity();
  TinyTrainer trainer(weights, InnerLoop<Momentum>{.chunk = 4}, Outer{}, Pattern{},
                      options(folder));
  const auto before = parameters(trainer);
  CHECK_THROWS_AS(trainer.run(), NonFiniteError);
  CHECK(trainer.steps() == 0);
  CHECK(parameters(trainer) == before);
}

TEST_CASE("evaluate_by_position: means over positions, of sessions that learn and that do not") {
  const auto weights = initialise<Tiny>(config, Cpu(1), 3, 0.2);
  const InnerLoop<Sgd> learner{.chunk = 4};
  const std::string a = "the first of two documents, read to the end", b = "and the second";
  const std::vector<std::string_view> documents = {a, b};
  const auto buckets =
      evaluate_by_position(weights, learner, documents, {.length = 24, .bucket = 10});
  REQUIRE(buckets.size() == 3);
  Session learning(weights, learner), frozen(weights, learner);
  frozen.freeze();
  const auto read = [&](auto& session, const std::string& text) {
    session.reset();
    return session.read(std::string_view(text).substr(0, 24)).nll;
  };
  double sums[2] = {};
  for (const auto* text : {&a, &b}) {
    const auto l = read(learning, *text), f = read(frozen, *text);
    for (std::size_t i = 10; i < std::min<std::size_t>(20, text->size()); ++i) {
      sums[0] += static_cast<double>(l[i]);
      sums[1] += static_cast<double>(f[i]);
    }
  }
  CHECK(buckets[0].tokens == 18);
  CHECK(buckets[1].tokens == 14);
  CHECK(buckets[2].tokens == 4);
  CHECK((buckets[2].begin == 20 && buckets[2].end == 24));
  CHECK(buckets[1].learning == doctest::Approx(sums[0] / 14));
  CHECK(buckets[1].frozen == doctest::Approx(sums[1] / 14));
  CHECK(message([&] { evaluate_by_position(weights, learner, {}); }) ==
        "ttt: evaluation: no document has a token to score");
}
