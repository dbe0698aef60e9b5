// SPDX-License-Identifier: MIT
// Trains a byte-level model that learns while it reads on text files, on this machine's processor.
// It can be stopped, killed and resumed at any time, and ends with the same bits.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

#include "support/process.hpp"
#include "support/train_job.hpp"
#include "support/train_options.hpp"
#include "support/train_report.hpp"
#include <ttt/train.hpp>

using examples::say;
using examples::TrainJob;
using examples::TrainOptions;
using ttt::Index;
using Model = examples::TrainedModel;

/// A number of bytes with three digits.
static std::string size_in_words(double bytes) {
  const char* unit = "bytes";
  for (const char* larger : {"KB", "MB", "GB", "TB"}) {
    if (bytes < 999.5) break;
    bytes /= 1000;
    unit = larger;
  }
  char text[64];
  std::snprintf(text, sizeof text, "%.3g %s", bytes, unit);
  return text;
}
static std::string size_in_words(Index bytes) {
  return size_in_words(static_cast<double>(bytes));
}

/// Says what will be done, when a meta-gradient takes so many bytes for each sequence at a time.
/// Throws unless the machine has the memory for it, or it is forced.
static void announce(const TrainJob& job, Index gradient_bytes) {
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

  say("model     %td parameters; blocks: %td fixed, %td learning; width %td, heads %td, hidden "
      "%td,\n"
      "          window %td%s%s\n",
      count, config.prefix_blocks, config.suffix_blocks, config.width, config.heads, config.hidden,
      config.window, from ? "; begins as " : "", options.from.c_str());
  say("text      %s to train on, %s for validation (documents: %td and %td)\n",
      size_in_words(text.train.bytes()).c_str(), size_in_words(text.validation.bytes()).c_str(),
      text.train.documents(), text.validation.documents());
  say("training  %td steps on %td sequences of %td bytes: %td bytes a step, %.1f times the text;\n",
      options.steps, options.batch, options.length, options.batch * options.length,
      static_cast<double>(job.total_tokens()) / static_cast<double>(text.train.bytes()));
  if (options.plain) {
    say("          plain, without the inner loop\n");
  } else {
    say("          the inner loop steps every %td bytes%s\n", config.chunk,
        options.first_order ? ", and its steps are taken for constants" : "");
  }
  say("memory    %s: %s for sequences, %.0f at a time; %s for parameters and optimizer\n\n",
      size_in_words(moving + fixed).c_str(), size_in_words(moving).c_str(), at_once,
      size_in_words(fixed).c_str());
  if (has > 0 && moving + fixed > has && !options.force) {
    throw std::runtime_error("this takes " + size_in_words(moving + fixed) +
                             " of memory and the machine has " + size_in_words(has) +
                             ": --keep-chunks sqrt, --recompute and fewer --sequences at a time "
                             "take less, --force tries anyway");
  }
}

static examples::TrainedWeights starting_weights(const TrainJob& job) {
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

static ttt::TrainerOptions trainer_options(const TrainJob& job) {
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
static bool train(const TrainJob& job, const Learner& learner) {
  using Trainer =
      ttt::Trainer<Model, ttt::Cpu, Learner, ttt::OuterLoop<>, examples::TextSamples, Order>;
  using Gradient = ttt::MetaGradient<Model, ttt::Cpu, Learner, Order>;
  const TrainOptions& options = job.options;
  announce(job, Gradient::required_bytes(Model(job.config), job.cpu, learner, options.length,
                                         options.meta));
  Trainer trainer(starting_weights(job), learner, outer_loop(options),
                  examples::TextSamples(options, job.text.train), trainer_options(job));
  bool finished = false;
  {
    const examples::StopOnSignal stop(trainer);
    if (options.resume && trainer.resume()) {
      say("going on behind step %td\n", trainer.steps());
    }
    examples::TrainReporter reporter(job, trainer.steps());
    const auto weights = [&] { return trainer.weights(); };
    finished = trainer.run([&](const ttt::TrainingStep& step) { reporter.step(step, weights); });
    reporter.finish();
    reporter.draw();
  }
  if (!finished) {
    say("stopped behind step %td of %td", trainer.steps(), options.steps);
    say(options.checkpoints.empty() ? "; without --checkpoints, it cannot be resumed\n"
                                    : "; the same command with --resume goes on\n");
  }
  if (!options.out.empty() && (finished || options.checkpoints.empty())) {
    ttt::save(trainer.weights(), options.out);
  }
  if (finished && job.text.validation.bytes() > 1)
    examples::print_positions(job, trainer.weights());
  return finished;
}

static int run(const TrainOptions& options) {
  const TrainJob job = examples::prepare_training(options);
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
