// SPDX-License-Identifier: MIT
/// \file
/// A use of the whole library, for each unit of these tests to instantiate on its own.
#pragma once

#include <string>

#include <ttt/ttt.hpp>

// In an unnamed namespace, so that each unit has one and all that it calls must be merged.
namespace {

/// Nats per byte of a text long enough to be learned from.
[[maybe_unused]] double read_a_line() {
  using Attention = ttt::SlidingWindowAttention<256>;
  using Reader = ttt::LanguageModel<
      ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
      ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
  using Learner = ttt::InnerLoop<ttt::Sgd>;

  ttt::Cpu cpu;
  auto weights = ttt::load<Reader>(TTT_EXAMPLE_MODELS "/books-byte.safetensors", cpu);
  ttt::Session session(weights, Learner{.chunk = 64, .optimizer = {.rate = 1.0f}});
  std::string text;
  while (text.size() < 200) text += "It was the best of times, it was the worst of times. ";
  const auto report = session.read(text);
  return report.inner_steps == 3 ? report.mean_nll() : -1.0;
}

}  // namespace
