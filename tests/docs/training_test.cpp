// SPDX-License-Identifier: MIT
// The pieces of code about training that docs/ shows, run.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <support/kernels.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/train.hpp>

namespace {

using Attention = ttt::SlidingWindowAttention<16>;
using Small = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

/// A folder that is gone afterwards.
struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "ttt-docs-XXXXXX";
    path = ::mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
};

}  // namespace

TEST_CASE("docs/outer_loop.md: a meta-gradient") {
  //! [meta_gradient]
  const ttt::Cpu cpu;
  const auto weights = ttt::initialise<Small>(
      {.vocabulary = 256, .width = 32, .heads = 2, .hidden = 64, .rope_base = 10000, .eps = 1e-6},
      cpu, 1);
  const ttt::InnerLoop<ttt::Sgd> learner{.chunk = 16};
  ttt::MetaGradient gradient_of(weights.model(), cpu, learner, 64);  // sequences of 64 predictions

  const std::vector<ttt::Token> batch(2 * 65, 'a');  // two sequences, each with its last target
  std::vector<float> gradient(static_cast<std::size_t>(gradient_of.size()));
  const ttt::BatchLoss loss = gradient_of(weights.parameters(), batch, {}, gradient.data());
  std::printf("%.3f nats a token, %d inner steps\n", loss.loss,
              static_cast<int>(loss.sequences[0].inner_steps));
  //! [/meta_gradient]
  CHECK(loss.sequences[0].inner_steps == 3);
  CHECK(loss.loss > 1);
}

TEST_CASE("docs/outer_loop.md: training") {
  const Folder temporary;
  const std::string books = temporary.path / "books", run = temporary.path / "run";
  const std::string small = temporary.path / "small.safetensors";
  std::filesystem::create_directory(books);
  for (const char* name : {"/one.txt", "/two.txt", "/three.txt"}) {
    std::ofstream text(books + name);
    for (int i = 0; i < 60; ++i) text << "The lamp of " << name << " was lit on day " << i << ". ";
  }
  const ttt::Cpu cpu(1);
  const auto weights = ttt::initialise<Small>(
      {.vocabulary = 256, .width = 16, .heads = 2, .hidden = 16, .rope_base = 1e4, .eps = 1e-6},
      cpu, 1);
  //! [trainer]
  const auto corpus = ttt::io::TextCorpus::open({books}).split(0.1, 1);
  const ttt::InnerLoop<ttt::Sgd> learner{.chunk = 16};
  ttt::Trainer trainer(weights, learner,
                       ttt::OuterLoop<ttt::AdamW, ttt::WarmupCosine>{
                           .schedule = {.peak = 3e-3, .steps = 20, .warmup = 2}},
                       ttt::io::RandomWindows(corpus.train, 64, 1),
                       ttt::TrainerOptions{.length = 64,
                                           .batch = 4,
                                           .steps = 20,
                                           .inner_warmup = {.first = 0.1, .steps = 2},
                                           .folder = run,
                                           .checkpoint_every = 10});
  if (trainer.resume()) std::printf("going on from step %d\n", static_cast<int>(trainer.steps()));
  trainer.run([](const ttt::TrainingStep& step) {
    std::printf("%d: %.3f nats\n", static_cast<int>(step.step), step.loss);
  });

  const std::string_view unseen[] = {corpus.validation.document(0)};
  for (const auto& part : ttt::evaluate_by_position(trainer.weights(), learner, unseen,
                                                    {.length = 512, .bucket = 256})) {
    std::printf("%d to %d: %.3f learning, %.3f frozen\n", static_cast<int>(part.begin),
                static_cast<int>(part.end), part.learning, part.frozen);
  }
  ttt::save(trainer.weights(), small);  // a model that load() reads
  //! [/trainer]
  CHECK(trainer.steps() == 20);
  CHECK(ttt::load<Small>(small, cpu).count() == weights.count());
}
