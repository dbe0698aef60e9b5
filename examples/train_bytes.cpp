// SPDX-License-Identifier: MIT
// Trains a byte-level model that learns while it reads on text files, on this machine's processor.
// It can be stopped, killed and resumed at any time, and ends with the same bits.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <numbers>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "support/process.hpp"
#include "support/progress.hpp"
#include "support/train_options.hpp"
#include "support/training_chart.hpp"
#include "support/training_log.hpp"
#include <ttt/io/hash.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/text_corpus.hpp>
#include <ttt/train.hpp>

using examples::TrainOptions;
using ttt::Index;

// Depths and sizes are options. The last blocks learn while they read.
using Attention = ttt::SlidingWindowAttention<>;
using Model = ttt::LanguageModel<
    ttt::Stack<ttt::dynamic, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<ttt::dynamic, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
using Weights = ttt::Weights<Model, ttt::Cpu>;
using InnerLoop = ttt::InnerLoop<ttt::Sgd>;

/// Samples from anywhere, or side by side.
class Samples {
 public:
  Samples(const TrainOptions& options, ttt::io::TextCorpus text)
      : source_(make(options, std::move(text))) {}

  Index size() const {
    return std::visit([](const auto& source) { return source.size(); }, source_);
  }
  Index length() const {
    return std::visit([](const auto& source) { return source.length(); }, source_);
  }
  void sample(Index index, std::span<ttt::Token> out) const {
    std::visit([&](const auto& source) { source.sample(index, out); }, source_);
  }

 private:
  using Source = std::variant<ttt::io::RandomWindows, ttt::io::FixedSlices>;

  static Source make(const TrainOptions& options, ttt::io::TextCorpus text) {
    if (options.slices) {
      return ttt::io::FixedSlices(std::move(text), options.length, options.seed);
    }
    return ttt::io::RandomWindows(std::move(text), options.length, options.seed);
  }

  Source source_;
};

/// What the options name, found and checked.
struct Job {
  TrainOptions options;
  ttt::Cpu cpu;
  ttt::Config config;
  std::optional<Weights> from;
  ttt::io::CorpusSplit text;
  InnerLoop learner;  // of evaluations, and of training unless it is --plain
  std::string settings;

  Index total_tokens() const { return options.steps * options.batch * options.length; }
};

/// A line to standard output, at once, so that a pipe's reader sees it.
template <class... Values>
static void say(const char* format, Values... values) {
  std::printf(format, values...);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("cannot write to standard output");
  }
}
static void say(const char* text) {
  say("%s", text);
}

static double megabytes(double bytes) {
  return bytes / 1e6;
}
static long long number(Index value) {
  return static_cast<long long>(value);
}

static std::uint64_t hash_of(const ttt::io::TextCorpus& train, const ttt::io::TextCorpus& test) {
  ttt::io::Hash64 hash;
  for (const auto* corpus : {&train, &test}) {
    for (Index i = 0; i < corpus->documents(); ++i) hash.update(corpus->document(i));
  }
  return hash.value();
}

static std::uint64_t hash_of(const std::string& path) {
  const ttt::io::MappedFile file(path, ttt::io::Read::Map);
  ttt::io::Hash64 hash;
  hash.update(file.bytes());
  return hash.value();
}

static Job prepare(const TrainOptions& options) {
  Job job{.options = options, .cpu = ttt::Cpu(options.threads)};
  if (options.from.empty()) {
    job.config = examples::new_config(options);
  } else {
    job.from = ttt::load<Model>(options.from, job.cpu);
    job.config = job.from->config();
    examples::check_sizes(options, job.config);
    if (job.config.vocabulary != 256) {
      throw std::runtime_error(options.from + " is a model of " +
                               std::to_string(job.config.vocabulary) + " tokens, not of bytes");
    }
    if (job.config.chunk == 0) job.config.chunk = options.chunk.value_or(32);
  }
  if (options.length % job.config.chunk != 0) {
    throw examples::UsageError("--length " + std::to_string(options.length) +
                               " is not a multiple of the chunk, " +
                               std::to_string(job.config.chunk));
  }
  for (const std::string& path : {options.out, options.log, options.chart}) {
    if (!path.empty()) examples::check_writable(path);
  }
  job.text = ttt::io::TextCorpus::open(options.texts).split(options.validation, options.seed);
  job.learner = {.chunk = job.config.chunk,
                 .clip = options.inner_clip,
                 .optimizer = {.rate = options.inner_rate}};
  job.settings = examples::training_settings(options, hash_of(job.text.train, job.text.validation),
                                             options.from.empty() ? 0 : hash_of(options.from));
  return job;
}

// ---- evaluation ---------------------------------------------------------------------------------

/// Pieces of the validation text, spread evenly over it, with about so many bytes in all.
static std::vector<std::string_view> validation_pieces(const Job& job, Index bytes) {
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
static std::vector<ttt::PositionLoss> evaluate(const Job& job, const Weights& weights,
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

static double saved(const ttt::PositionLoss& loss) {
  return loss.frozen > 0 ? 100 * (1 - loss.learning / loss.frozen) : 0;
}

static void print_table(const Job& job, const Weights& weights) {
  const auto pieces = validation_pieces(job, 4 * job.options.evaluate_bytes);
  const auto buckets = evaluate(job, weights, pieces, 8);
  say("\nBits per byte of %zu pieces of the validation text, by position\n\n%19s  %10s %10s %10s\n",
      pieces.size(), "byte", "learning", "frozen", "saved");
  ttt::PositionLoss all;
  for (const ttt::PositionLoss& bucket : buckets) {
    say("%8lld - %8lld  %10.3f %10.3f %8.1f %%\n", number(bucket.begin), number(bucket.end),
        bucket.learning, bucket.frozen, saved(bucket));
    const auto share = static_cast<double>(bucket.tokens);
    all.tokens += bucket.tokens;
    all.learning += bucket.learning * share;
    all.frozen += bucket.frozen * share;
  }
  all.learning /= static_cast<double>(all.tokens);
  all.frozen /= static_cast<double>(all.tokens);
  say("%19s  %10.3f %10.3f %8.1f %%\n", "all", all.learning, all.frozen, saved(all));
}

// ---- before -------------------------------------------------------------------------------------

/// Says what will be done, when a meta-gradient takes so many bytes for each sequence at a time.
/// Throws unless the machine has the memory for it, or it is forced.
static void announce(const Job& job, Index gradient_bytes) {
  const auto& [options, cpu, config, from, text, learner, settings] = job;
  const Index count = ttt::parameter_count(Model(config));
  const Index sequences = options.meta.sequences > 0 ? options.meta.sequences : cpu.threads();
  const auto at_once = static_cast<double>(std::min(sequences, options.batch));
  const double each = static_cast<double>(count) * sizeof(float);
  // Each sequence has a gradient of its own. Parameters, gradient, two means of the optimizer; and
  // a checkpoint being written, which is larger than the copy to evaluate.
  const double moving = at_once * (static_cast<double>(gradient_bytes) + each);
  const double fixed = (4 + 2) * each;
  const auto has = static_cast<double>(examples::physical_memory_bytes());

  say("model     %lld parameters: %lld blocks, the last %lld of which learn, width %lld, %lld "
      "heads,\n"
      "          hidden %lld, window %lld%s%s\n",
      number(count), number(config.prefix_blocks + config.suffix_blocks),
      number(config.suffix_blocks), number(config.width), number(config.heads),
      number(config.hidden), number(config.window), from ? ", from " : "", options.from.c_str());
  say("text      %.2f MB of %lld documents, and %.2f MB of %lld for validation\n",
      megabytes(static_cast<double>(text.train.bytes())), number(text.train.documents()),
      megabytes(static_cast<double>(text.validation.bytes())), number(text.validation.documents()));
  say("training  %lld steps on %lld sequences of %lld bytes: %lld bytes a step, %.1f times the "
      "text;\n",
      number(options.steps), number(options.batch), number(options.length),
      number(options.batch * options.length),
      static_cast<double>(job.total_tokens()) / static_cast<double>(text.train.bytes()));
  if (options.plain) {
    say("          plain, without the inner loop\n");
  } else {
    say("          the inner loop steps every %lld bytes%s\n", number(config.chunk),
        options.first_order ? ", its steps taken for constants" : "");
  }
  say("memory    %.0f MB: %.0f for %.0f sequences at a time, %.0f for parameters and optimizer\n\n",
      megabytes(moving + fixed), megabytes(moving), at_once, megabytes(fixed));
  if (has > 0 && moving + fixed > has && !options.force) {
    char sentence[256];
    std::snprintf(sentence, sizeof sentence,
                  "this takes %.1f GB of memory and the machine has %.1f: --keep-chunks sqrt, "
                  "--recompute and fewer --sequences at a time take less, --force tries anyway",
                  (moving + fixed) / 1e9, has / 1e9);
    throw std::runtime_error(sentence);
  }
}

// ---- on the way ---------------------------------------------------------------------------------

/// Logs, evaluates, draws and says how it goes.
class Reporter {
 public:
  /// `steps`: taken before, by the run that is resumed.
  Reporter(const Job& job, Index steps)
      : job_(job),
        log_(job.options.log, steps),
        first_(steps),
        pieces_(validation_pieces(job, job.options.evaluate_bytes)) {}

  /// `weights` makes a copy of them behind the step.
  template <class MakeWeights>
  void step(const ttt::TrainingStep& step, const MakeWeights& weights) {
    const TrainOptions& options = job_.options;
    examples::TrainingRow row{.step = step.step,
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
      const examples::Stopwatch watch;
      const auto losses = evaluate(job_, weights(), pieces_, 1);
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
    const auto& texts = job_.options.texts;
    const std::string what = texts.size() == 1
                                 ? std::filesystem::path(texts.front()).filename().string()
                                 : std::to_string(job_.text.train.documents()) + " texts";
    examples::write_file(job_.options.chart,
                         examples::training_chart("Training on " + what, log_.rows()).svg());
  }

  /// At the end: the log is safe, and what went wrong is said.
  void finish() {
    status_.clear();
    log_.sync();
    if (not_taken_ > 0) {
      say("%lld updates were left out, because the gradient was not finite\n", number(not_taken_));
    }
  }

 private:
  double bytes_per_second(Index done) const {
    const auto bytes =
        static_cast<double>((done - first_) * job_.options.batch * job_.options.length);
    return bytes / std::max(1e-9, watch_.seconds() - evaluating_);
  }

  void print(const examples::TrainingRow& row) const {
    const auto& rows = log_.rows();
    const auto every = static_cast<std::size_t>(job_.options.evaluate_every);
    const std::size_t count = std::min(every, rows.size());
    double sum = 0;
    for (std::size_t i = rows.size() - count; i < rows.size(); ++i) sum += rows[i].bits_per_byte();
    say("step %lld of %lld: %.3f bits per byte", number(row.step + 1), number(job_.options.steps),
        sum / static_cast<double>(count));
    if (row.is_evaluated()) {
      say("; validation: %.3f learning, %.3f frozen", row.learning, row.frozen);
    }
    say("; %.0f bytes/s\n", bytes_per_second(row.step + 1));
  }

  void show(const examples::TrainingRow& row) {
    if (!status_.is_due()) return;
    const Index done = row.step + 1;
    const double each = watch_.seconds() / static_cast<double>(done - first_);
    char line[160];
    std::snprintf(
        line, sizeof line,
        "step %lld of %lld, loss %.3f, %.3f bits per byte, %.0f bytes/s, %s left", number(done),
        number(job_.options.steps), row.loss, row.bits_per_byte(), bytes_per_second(done),
        examples::in_words(each * static_cast<double>(job_.options.steps - done)).c_str());
    status_.show(line);
  }

  const Job& job_;
  examples::TrainingLog log_;
  Index first_;
  std::vector<std::string_view> pieces_;
  examples::StatusLine status_;
  examples::Stopwatch watch_;
  double evaluating_ = 0;  // seconds
  Index not_taken_ = 0;
};

static Weights starting_weights(const Job& job) {
  if (job.from) return *job.from;
  return ttt::initialise<Model>(job.config, job.cpu, job.options.seed);
}

static ttt::OuterLoop<> outer_loop(const TrainOptions& options) {
  return {.optimizer = {.decay = options.decay},
          .schedule = {.peak = options.rate,
                       .steps = options.steps,
                       .warmup = options.warmup,
                       .last = options.rate / 100},
          .clip = options.clip};
}

static ttt::TrainerOptions trainer_options(const Job& job) {
  const TrainOptions& options = job.options;
  return {.length = options.length,
          .batch = options.batch,
          .steps = options.steps,
          .inner_warmup = {.first = 0.1 * static_cast<double>(options.inner_rate),
                           .steps = options.inner_warmup},
          .meta = options.meta,
          .folder = options.checkpoints,
          .checkpoint_every = options.checkpoint_every,
          .keep_checkpoints = options.keep,
          .settings = job.settings};
}

/// Trains, with a learner that may be none, and returns whether it came to the end.
template <class Order, class Learner>
static bool train(const Job& job, const Learner& learner) {
  using Trainer = ttt::Trainer<Model, ttt::Cpu, Learner, ttt::OuterLoop<>, Samples, Order>;
  using Gradient = ttt::MetaGradient<Model, ttt::Cpu, Learner, Order>;
  const TrainOptions& options = job.options;
  announce(job, Gradient::required_bytes(Model(job.config), job.cpu, learner, options.length,
                                         options.meta));
  Trainer trainer(starting_weights(job), learner, outer_loop(options),
                  Samples(options, job.text.train), trainer_options(job));
  bool finished = false;
  {
    const examples::StopOnSignal stop(trainer);
    if (options.resume && trainer.resume()) {
      say("going on behind step %lld\n", number(trainer.steps()));
    }
    Reporter reporter(job, trainer.steps());
    const auto weights = [&] { return trainer.weights(); };
    finished = trainer.run([&](const ttt::TrainingStep& step) { reporter.step(step, weights); });
    reporter.finish();
    reporter.draw();
  }
  if (!finished) {
    say("stopped behind step %lld of %lld", number(trainer.steps()), number(options.steps));
    say(options.checkpoints.empty() ? "; without --checkpoints, it cannot be resumed\n"
                                    : "; the same command with --resume goes on\n");
  }
  if (!options.out.empty() && (finished || options.checkpoints.empty())) {
    ttt::save(trainer.weights(), options.out);
  }
  if (finished && job.text.validation.bytes() > 1) print_table(job, trainer.weights());
  return finished;
}

static int run(const TrainOptions& options) {
  const Job job = prepare(options);
  if (options.plain) {
    train<ttt::SecondOrder>(job, ttt::NoLearning{.chunk = job.config.chunk});
  } else if (options.first_order) {
    train<ttt::FirstOrder>(job, job.learner);
  } else {
    train<ttt::SecondOrder>(job, job.learner);
  }
  return 0;
}

int main(int argc, char** argv) {
  try {
    const auto options = examples::parse_train_options(argc, argv);
    if (options) return run(*options);
    say("%s\n%s", examples::train_usage, examples::train_help);
    return 0;
  } catch (const examples::UsageError& error) {
    std::fprintf(stderr, "train_bytes: %s\n%s (--help says more)\n", error.what(),
                 examples::train_usage);
    return 2;
  } catch (const std::exception& error) {
    std::string_view what = error.what();
    if (what.starts_with("ttt: ")) what.remove_prefix(5);
    std::fprintf(stderr, "train_bytes: %.*s\n", static_cast<int>(what.size()), what.data());
    return 1;
  }
}
