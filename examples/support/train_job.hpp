// SPDX-License-Identifier: MIT
/// \file
/// What train_bytes trains, on what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <variant>

#include "process.hpp"
#include "train_options.hpp"
#include <ttt/io/checkpoint_folder.hpp>
#include <ttt/io/hash.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/text_corpus.hpp>
#include <ttt/train.hpp>

namespace examples {

using ttt::Index;

/// Depths and sizes are options. The last blocks learn while they read.
using TrainedAttention = ttt::SlidingWindowAttention<>;
using TrainedModel = ttt::LanguageModel<
    ttt::Stack<ttt::dynamic, ttt::Block<TrainedAttention, ttt::SwiGLU>>,
    ttt::Stack<ttt::dynamic, ttt::Block<TrainedAttention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
using TrainedWeights = ttt::Weights<TrainedModel, ttt::Cpu>;
using TrainedLearner = ttt::InnerLoop<ttt::Sgd>;

/// Samples from anywhere, or side by side.
class TextSamples {
 public:
  TextSamples(const TrainOptions& options, ttt::io::TextCorpus text)
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
struct TrainJob {
  TrainOptions options = {};
  ttt::Cpu cpu{};
  ttt::Config config = {};
  std::optional<TrainedWeights> from = {};
  ttt::io::CorpusSplit text = {};
  TrainedLearner learner = {};  // of evaluations, and of training unless it is --plain
  std::string settings = {};

  Index total_tokens() const { return options.steps * options.batch * options.length; }
};

/// Throws UsageError for something to write that would become text to read, or the other way round.
inline void check_apart(const TrainOptions& options) {
  const auto real = [](const std::string& path) {
    std::error_code ignored;
    return std::filesystem::weakly_canonical(std::filesystem::absolute(path), ignored);
  };
  for (const auto& [name, path] : {std::pair<const char*, const std::string&>{"--out", options.out},
                                   {"--checkpoints", options.checkpoints},
                                   {"--log", options.log},
                                   {"--chart", options.chart}}) {
    if (path.empty()) continue;
    for (const std::string& text : options.texts) {
      const auto inside = real(path), outside = real(text);
      if (std::mismatch(outside.begin(), outside.end(), inside.begin(), inside.end()).first ==
          outside.end()) {
        throw UsageError(std::string(name) + " " + path + " would be part of the text " + text);
      }
    }
  }
}

/// Throws std::runtime_error unless the run can begin there, or go on.
inline void check_outputs(const TrainOptions& options) {
  for (const std::string& path : {options.out, options.log, options.chart}) {
    if (!path.empty()) check_writable(path);
  }
  if (options.checkpoints.empty() || options.resume) return;
  if (const auto latest = ttt::io::latest_checkpoint(options.checkpoints)) {
    throw std::runtime_error(options.checkpoints + " holds a checkpoint of step " +
                             std::to_string(latest->step) +
                             ": --resume goes on with it; or choose another folder");
  }
}

inline std::uint64_t hash_of(const ttt::io::TextCorpus& train, const ttt::io::TextCorpus& test) {
  ttt::io::Hash64 hash;
  for (const auto* corpus : {&train, &test}) {
    for (Index i = 0; i < corpus->documents(); ++i) hash.update(corpus->document(i));
  }
  return hash.value();
}

inline std::uint64_t hash_of(const std::string& path) {
  const ttt::io::MappedFile file(path, ttt::io::Read::Map);
  ttt::io::Hash64 hash;
  hash.update(file.bytes());
  return hash.value();
}

/// Finds and checks what the options name. Throws UsageError or std::exception, one sentence.
inline TrainJob prepare_training(const TrainOptions& options) {
  check_apart(options);
  TrainJob job{.options = options, .cpu = ttt::Cpu(options.threads)};
  if (options.from.empty()) {
    job.config = new_config(options);
  } else {
    job.from = ttt::load<TrainedModel>(options.from, job.cpu);
    job.config = job.from->config();
    check_sizes(options, job.config);
    if (job.config.vocabulary != 256) {
      throw std::runtime_error(options.from + " is a model of " +
                               std::to_string(job.config.vocabulary) + " tokens, not of bytes");
    }
    if (job.config.chunk == 0) job.config.chunk = options.chunk.value_or(32);
  }
  if (options.length % job.config.chunk != 0) {
    throw UsageError("--length " + std::to_string(options.length) +
                     " is not a multiple of the chunk, " + std::to_string(job.config.chunk));
  }
  check_outputs(options);
  job.text = ttt::io::TextCorpus::open(options.texts).split(options.validation, options.seed);
  job.learner = {.chunk = job.config.chunk,
                 .clip = options.inner_clip,
                 .optimizer = {.rate = options.inner_rate}};
  job.settings = training_settings(options, hash_of(job.text.train, job.text.validation),
                                   options.from.empty() ? 0 : hash_of(options.from));
  return job;
}

}  // namespace examples
