// SPDX-License-Identifier: MIT
// A program outside the library's tree. A tiny model with random weights, made here so that no file
// is needed, reads one sentence over and over and learns it.
#include <cstdio>
#include <exception>
#include <string>

#include <ttt/ttt.hpp>

int main() try {
  using Attention = ttt::SlidingWindowAttention<32>;
  using Model = ttt::LanguageModel<
      ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
      ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

  const ttt::Cpu cpu(1);
  const ttt::Config sizes{
      .vocabulary = 256, .width = 32, .heads = 2, .hidden = 64, .rope_base = 10000, .eps = 1e-6};
  const auto weights = ttt::initialise<Model>(sizes, cpu, 1, 0.2);
  ttt::Session session(weights, ttt::InnerLoop<ttt::Sgd>{.chunk = 16, .optimizer = {.rate = 1.0f}});

  const std::string sentence = "the quick brown fox jumps over the lazy dog; ";
  const double first = session.read(sentence).bits_per_token();
  for (int i = 0; i < 40; ++i) session.read(sentence);
  const double last = session.read(sentence).bits_per_token();
  std::printf("bits per byte: %.2f at first, %.2f after %lld inner steps\n", first, last,
              static_cast<long long>(session.counters().inner_steps));
  return last < first ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
