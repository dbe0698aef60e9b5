// SPDX-License-Identifier: MIT
/// \file
/// Files of tests/golden: what the authors' program was given, and what it answered.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ttt/inner/inner_loop.hpp>
#include <ttt/io/config.hpp>
#include <ttt/io/load.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/language_model.hpp>

namespace ttt::test {

/// The types of model that the golden files hold. Depths and windows come from the file.
using Windowed = Block<SlidingWindowAttention<>, SwiGLU>;
using Learning = Block<SlidingWindowAttention<>, DualMLP<SwiGLU, SwiGLU>>;
using PlainAttention = SlidingWindowAttention<dynamic, NoQkNorm>;
using PlainBlock = Block<PlainAttention, SwiGLU, PreNorm>;

using GoldenReader = LanguageModel<Stack<dynamic, Windowed>, Stack<dynamic, Learning>>;
using GoldenUntied =
    LanguageModel<Stack<dynamic, Windowed>, Stack<dynamic, Learning>, SeparateHead>;
using GoldenPlain = LanguageModel<Stack<dynamic, PlainBlock>, Stack<dynamic, PlainBlock>>;
using GoldenWindowed = LanguageModel<Stack<dynamic, Windowed>>;
using GoldenFull = LanguageModel<Stack<dynamic, Block<FullAttention<>, SwiGLU>>>;

/// One file: weights, tokens, settings, and the numbers they led to.
class Golden {
 public:
  /// `name` is the file's, without folder and ending.
  explicit Golden(const std::string& name)
      : file_(io::SafeTensors::open(std::string(TTT_TEST_DATA) + "/" + name + ".safetensors")),
        json_(io::Json::parse(file_->metadata().at("config"), name)) {}

  const io::Json& settings() const { return json_; }
  const io::Json& model() const { return json_.at("model"); }
  const io::Json& training() const { return json_.at("training"); }
  const io::SafeTensors& file() const { return *file_; }

  /// A tensor's values; floats may be asked for as doubles.
  template <class T>
  std::vector<T> values(const std::string& name) const {
    const io::TensorInfo& info = file_->at(name);
    std::vector<T> out(info.size());
    file_->copy_to<T>(info, out);
    return out;
  }

  /// One sequence's part of a tensor whose first axis is the batch.
  template <class T>
  std::vector<T> values(const std::string& name, Index sequence) const {
    const std::vector<T> all = values<T>(name);
    const auto each = static_cast<std::ptrdiff_t>(all.size()) / file_->at(name).shape.at(0);
    return {all.begin() + sequence * each, all.begin() + (sequence + 1) * each};
  }

  Index sequences() const { return file_->at("tokens").shape.at(0); }
  /// A sequence, first input and last target included.
  std::vector<Token> tokens(Index sequence = 0) const { return values<Token>("tokens", sequence); }
  Index chunk() const { return model().at("mini_batch_size").integer(); }

  template <class Model>
  Config config() const {
    return io::read_config<Model>(model(), file_->path() + ": config");
  }
  template <class Model, Backend B>
  Weights<Model, B> weights(const B& backend) const {
    return io::load_weights<Model>(file_, config<Model>(), backend, "params.");
  }

  /// The inner loop as it was set, its warm-up included.
  InnerLoop<Sgd> learner() const {
    const io::Json& optimizer = training().at("optimizer_inner");
    const double rate = optimizer.at("lr").number();
    InnerLoop<Sgd> learner{.chunk = chunk(),
                           .clip = static_cast<float>(optimizer.at("clip_gradient").number()),
                           .optimizer = {.rate = static_cast<float>(rate)}};
    if (!model().at("prime").boolean()) learner.what = Learns::SuffixMlps;
    if (const std::int64_t steps = training().at("ilr_warmup_steps").integer(); steps > 0) {
      const io::Json& step = training().at("step");  // of training; its first, if it is not said
      const double part = static_cast<double>((step.is_null() ? 0 : step.integer()) + 1) /
                          static_cast<double>(steps);
      const double first = training().at("ilr_init").number();
      const double now = first + (rate - first) * std::min(1.0, part);
      learner.rate_multiplier = static_cast<float>(now / rate);
    }
    return learner;
  }

 private:
  std::shared_ptr<const io::SafeTensors> file_;
  io::Json json_;
};

}  // namespace ttt::test
