// SPDX-License-Identifier: MIT
// The pieces of code that docs/hosts.md shows, run.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <io/temporary.hpp>
#include <string>
#include <string_view>
#include <support/kernels.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/train.hpp>

TEST_CASE("docs/hosts.md: reading and training") {
  const ttt_test::TemporaryFolder temporary;
  const std::string folder = std::string(TTT_TEST_DATA) + "/byte_host";
  const std::string books = temporary.path("books"), run = temporary.path("run");
  const std::string targets = temporary.path("targets.safetensors");
  std::filesystem::create_directory(books);
  for (const char* name : {"/one.txt", "/two.txt"}) {
    std::ofstream text(books + name);
    for (int i = 0; i < 60; ++i) text << "The lamp of " << name << " was lit on day " << i << ". ";
  }
  //! [host_type]
  using Host = ttt::Qwen3<ttt::TiedHead, ttt::InPlaceMLP<>>;  // Qwen3-0.6B, 1.7B, 4B
  //! [/host_type]
  //! [host_train]
  const ttt::Cpu cpu;
  const auto host = ttt::load_host<Host>(folder, cpu,
                                         {.in_place = ttt::BlockSet::every(6, 2),  // 0, 6, 12, ...
                                          .in_place_projection = true});
  const ttt::InPlaceLoop learner{.chunk = 16, .rate = 3.0f};
  ttt::Trainer trainer(host, learner,
                       ttt::OuterLoop<ttt::AdamW, ttt::WarmupCosine>{
                           .schedule = {.peak = 1e-2, .steps = 20, .warmup = 2}},
                       ttt::io::RandomWindows(ttt::io::TextCorpus::open({books}), 64, 1),
                       ttt::TrainerOptions{.length = 64,
                                           .batch = 4,
                                           .steps = 20,
                                           .meta = {.trains = ttt::trains_in_place_targets},
                                           .folder = run});
  trainer.run();
  ttt::save_in_place(trainer.weights(), targets);  // the convolutions and projections, no more
  //! [/host_train]
  const std::string book(200, 'a');
  const auto tokens = ttt::io::ByteTokenizer().encode(book);
  //! [host_read]
  const auto weights = ttt::load_host<Host>(folder, cpu, {.in_place_file = targets});
  ttt::Session session(weights, learner, {.max_tokens = 4096});
  const auto report = session.read(tokens);
  const auto more = session.generate(100, ttt::TopP{.p = 0.95f, .temperature = 0.8f});
  //! [/host_read]
  CHECK(report.inner_steps == 12);
  CHECK(session.counters().gradient_norm > 0);
  CHECK(more.size() == 100);
  CHECK(weights.config().in_place == ttt::BlockSet::first(1));
  CHECK(trainer.resume());
  CHECK(trainer.steps() == 20);
}
