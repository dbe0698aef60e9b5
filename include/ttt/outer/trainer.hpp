// SPDX-License-Identifier: MIT
/// \file
/// Training that can be stopped, killed and continued.
#pragma once

#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ttt/core/function_ref.hpp>
#include <ttt/io/checkpoint_folder.hpp>
#include <ttt/io/hash.hpp>
#include <ttt/io/text_corpus.hpp>
#include <ttt/model/weights.hpp>
#include <ttt/outer/meta_gradient.hpp>
#include <ttt/outer/outer_loop.hpp>
#include <ttt/outer/training_file.hpp>

namespace ttt::inline TTT_ABI {

struct TrainerOptions {
  Index length = 2048;  // of a sequence: predictions, a whole number of the learner's chunks
  Index batch = 8;      // sequences an update averages over; only so many as there are threads, or
                        // MetaOptions::sequences, are in memory at a time, each of them
                        // MetaOptions::stacked
  Index steps = 0;      // of the whole training
  InnerWarmup inner_warmup = {};
  MetaOptions meta = {};

  std::string folder = {};       // of checkpoints; empty: none are written
  Index checkpoint_every = 100;  // steps
  Index keep_checkpoints = 2;
  std::string settings = {};  // anything else that a resumed run must have in common with this one
};

/// One step, as the log has it.
struct TrainingStep {
  Index step = 0;   // this one's number, from 0
  double loss = 0;  // of the batch, before the update, in nats a token
  double gradient_norm = 0;
  double rate = 0;
  double inner_multiplier = 1;
  bool taken = false;  // false: the gradient was not finite, the parameters stayed as they were
  Index inner_steps = 0;
  Index skipped_inner_steps = 0;
  Index clipped_inner_steps = 0;
};

/// Trains a model: samples, meta-gradient, update, checkpoint.
///
/// Step n takes samples [n * batch, (n + 1) * batch) of the source, which is a pure function of its
/// seed and their number, so a run that is continued from a checkpoint goes on to the same bits as
/// one that never stopped, on one kind of machine and with any number of threads.
///
/// Parameters are kept in the backend's scalar. One thread at a time; request_stop() may be called
/// from any thread and from a signal handler.
template <class Model, class B, class LearnerType, class Outer, class Source,
          class Order = SecondOrder>
class Trainer {
  static_assert(io::SampleSource<Source>,
                "ttt: the source lacks sample(index, tokens), length() or size(); see "
                "docs/concepts.md#samplesource");

 public:
  using Scalar = typename B::Scalar;
  using WeightsType = Weights<Model, B>;

  /// Starts from `start`, which is copied. Takes all memory and, with a folder, its lock. Throws
  /// Error when sizes do not fit, memory runs out or another run holds the folder.
  Trainer(const WeightsType& start, LearnerType learner, Outer outer, Source source,
          TrainerOptions options, Order = {})
      : model_(start.model()),
        backend_(start.backend()),
        learner_(std::move(learner)),
        outer_(std::move(outer)),
        source_(std::move(source)),
        options_(checked(std::move(options), source_)),
        gradient_of_(model_, backend_, learner_, options_.length, options_.meta),
        size_(gradient_of_.size()),
        parameters_(backend_.template allocate<Scalar>(size_)),
        gradient_(backend_.template allocate<Scalar>(size_)),
        slots_(backend_.template allocate<Scalar>(slot_size())),
        tree_(flat_tree<Weight<Scalar>>(model_, parameters_.data())),
        tokens_(static_cast<std::size_t>(options_.batch * (options_.length + 1))) {
    copy_from(start);
    backend_.fill(Scalar(0), slots_.data(), slot_size());
    if (!options_.folder.empty()) folder_.emplace(options_.folder, options_.keep_checkpoints);
  }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Goes on from the newest complete checkpoint of the folder; false if there is none. Throws
  /// FormatError when it is damaged or of a run with other settings; then nothing has changed.
  bool resume() {
    const auto latest = io::latest_checkpoint(options_.folder);
    if (!latest) return false;
    const auto weights = detail::read_checkpoint_model<Model>(latest->path, backend_);
    if (io::write_config<Model>(weights.config()).dump() !=
        io::write_config<Model>(model_.config()).dump()) {
      detail::fail<FormatError>(latest->path +
                                ": cannot resume: the model has another "
                                "configuration than this run's");
    }
    auto slots = detail::read_checkpoint_slots(latest->path, backend_, identity(), slot_size());
    copy_from(weights);
    slots_ = std::move(slots);
    step_ = saved_ = latest->step;
    return true;
  }

  /// Takes one step. Throws NonFiniteError when the loss is not finite; then nothing has changed.
  TrainingStep step() {
    const Index each = options_.length + 1;
    for (Index i = 0; i < options_.batch; ++i) {
      source_.sample(step_ * options_.batch + i,
                     std::span(tokens_).subspan(static_cast<std::size_t>(i * each),
                                                static_cast<std::size_t>(each)));
    }
    TrainingStep report{.step = step_};
    LearnerType learner = learner_;
    if constexpr (requires { learner.rate_multiplier *= 1.0f, learner.optimizer.rate; }) {
      report.inner_multiplier =
          options_.inner_warmup.multiplier(step_, static_cast<double>(learner.optimizer.rate));
      learner.rate_multiplier *= static_cast<float>(report.inner_multiplier);
    }
    const BatchLoss loss = gradient_of_(tree_, tokens_, {}, gradient_.data(), learner);
    report.loss = loss.loss;
    for (const SequenceLoss& sequence : loss.sequences) {
      report.inner_steps += sequence.inner_steps;
      report.skipped_inner_steps += sequence.skipped_steps;
      report.clipped_inner_steps += sequence.clipped_steps;
    }
    Scalar* slots[Outer::slots + 1] = {};
    for (std::size_t i = 0; i < Outer::slots; ++i) {
      slots[i] = slots_.data() + static_cast<Index>(i) * size_;
    }
    const OuterStep update = outer_.update(model_, backend_,
                                           Update<Scalar>{.gradient = gradient_.data(),
                                                          .step = step_,
                                                          .slots = slots,
                                                          .weights = parameters_.data(),
                                                          .size = size_},
                                           options_.meta.trains);
    report.gradient_norm = update.gradient_norm;
    report.rate = update.rate;
    report.taken = update.taken;
    ++step_;
    return report;
  }

  /// Takes the steps that are left, calls on_step after each, and writes checkpoints. Returns true
  /// when all are taken, false when it was asked to stop; either way the last step is saved. Throws
  /// Error when the folder holds checkpoints that were not resumed from; what step(), on_step and
  /// save() throw comes out.
  bool run(FunctionRef<void(const TrainingStep&)> on_step = {}) {
    if (folder_ && saved_ < 0 && folder_->latest()) {
      detail::fail("training: " + options_.folder +
                   " holds checkpoints of an earlier run: resume it, or choose another folder");
    }
    while (step_ < options_.steps && !stop_.load(std::memory_order_relaxed)) {
      const TrainingStep report = step();
      if (on_step) on_step(report);
      if (folder_ && step_ % options_.checkpoint_every == 0) save();
    }
    if (folder_ && saved_ != step_) save();
    return step_ >= options_.steps;
  }

  /// Lets run() finish its step, save and return. Only sets a lock-free flag.
  void request_stop() noexcept { stop_.store(true, std::memory_order_relaxed); }

  /// Writes a checkpoint of this moment to the folder. Throws Error when it cannot; then the
  /// earlier ones are still there.
  void save() {
    if (!folder_)
      detail::fail("training: TrainerOptions::folder is empty, there is none to save to");
    folder_->write(step_, [this](const std::string& folder) {
      detail::write_checkpoint(folder, view(), slots_.data(), slot_size(), identity());
    });
    saved_ = step_;
  }

  /// Steps taken so far, those of the run that was resumed included.
  Index steps() const { return step_; }

  /// A copy of the parameters as they are now, to evaluate or to save.
  WeightsType weights() const {
    typename WeightsType::Memory memory;
    memory.buffers.push_back(backend_.template allocate<Scalar>(size_));
    Scalar* const copy = memory.buffers.back().data();
    backend_.copy(parameters_.data(), copy, size_);
    return {model_, backend_, flat_tree<Weight<Scalar>>(model_, copy), std::move(memory)};
  }

 private:
  static_assert(std::atomic<bool>::is_always_lock_free);

  static TrainerOptions checked(TrainerOptions options, const Source& source) {
    if (source.length() != options.length) {
      detail::fail("training: the source's samples are of " + std::to_string(source.length()) +
                   " tokens, TrainerOptions::length is " + std::to_string(options.length));
    }
    if (options.batch < 1) detail::fail("training: the batch must hold at least one sequence");
    if (options.checkpoint_every < 1 || options.keep_checkpoints < 1) {
      detail::fail("training: checkpoint_every and keep_checkpoints must be positive");
    }
    return options;
  }
  Index slot_size() const { return size_ * static_cast<Index>(Outer::slots); }

  /// The parameters where they lie, for as long as nobody steps.
  WeightsType view() const { return {model_, backend_, tree_, {}}; }

  void copy_from(const WeightsType& weights) {
    auto places = flat_tree<View<Scalar>>(model_, parameters_.data());
    Model::each([this](const ParameterName&, const Weight<Scalar>& from,
                       const View<Scalar>& to) { backend_.widen(from, to); },
                weights.parameters(), places);
  }

  /// What a run that goes on from a checkpoint must have in common with the one that wrote it.
  std::string identity() const {
    using io::Json;
    std::vector<Json::Member> members = {{"length", options_.length},
                                         {"batch", options_.batch},
                                         {"chunk", static_cast<Index>(learner_.chunk)},
                                         {"samples", source_.size()},
                                         {"settings", options_.settings}};
    if (options_.meta.trains != nullptr) {
      io::Hash64 names;
      Model::each(
          [&](const ParameterName& name, const Weight<Scalar>&) {
            if (options_.meta.trains(name)) names.update(to_string(name));
          },
          tree_);
      members.emplace_back("trains", static_cast<std::int64_t>(names.value() >> 1));
    }
    return Json(Json::Object(std::move(members))).dump();
  }

  Model model_;
  B backend_;
  LearnerType learner_;
  Outer outer_;
  Source source_;
  TrainerOptions options_;
  MetaGradient<Model, B, LearnerType, Order> gradient_of_;
  Index size_;
  typename B::template Buffer<Scalar> parameters_, gradient_, slots_;
  typename Model::template Parameters<Weight<Scalar>> tree_;
  std::vector<Token> tokens_;
  std::optional<io::CheckpointFolder> folder_;
  Index step_ = 0;
  Index saved_ = -1;
  std::atomic<bool> stop_{false};
};

}  // namespace ttt::inline TTT_ABI
