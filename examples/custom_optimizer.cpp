// SPDX-License-Identifier: MIT
// An inner optimizer of one's own: a struct with three members, handed to InnerLoop like those of
// the library. This one is Nesterov's momentum; it reads the same text as plain gradient descent.
#include <cstdio>
#include <exception>
#include <string>

#include <ttt/ttt.hpp>

//! [custom_optimizer]
/// Nesterov's momentum: velocity = decay * velocity + gradient,
/// weights -= rate * (gradient + decay * velocity).
struct Nesterov {
  float rate = 0.7f;
  float decay = 0.5f;

  static constexpr std::size_t slots = 1;  // vectors kept between steps, zero at first
  using MovesByUpdate = Nesterov;          // by u.add and u.add_gradient alone: a GPU need not wait

  template <ttt::Backend B>
  void step(const B& backend, const ttt::Update<typename B::Scalar>& u) const {
    const double pace = static_cast<double>(rate) * u.multiplier;
    auto* const velocity = u.slots[0];
    u.add_gradient(backend, 1.0, decay, velocity);  // velocity = 1 * gradient + decay * velocity
    u.add_gradient(backend, -pace, 1.0, u.weights);
    u.add(backend, -pace * static_cast<double>(decay), velocity, 1.0, u.weights);
  }
};
//! [/custom_optimizer]

using Attention = ttt::SlidingWindowAttention<256>;
using Reader = ttt::LanguageModel<
    ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

/// Bits per byte of the text, learned from with this optimizer.
template <class Optimizer>
static double bits(const ttt::Weights<Reader, ttt::Cpu>& weights, const std::string& text,
                   const Optimizer& optimizer) {
  const ttt::InnerLoop<Optimizer> learner{.chunk = 64, .clip = 1.0f, .optimizer = optimizer};
  return ttt::Session(weights, learner).read(text).bits_per_token();
}

int main() try {
  // A table of the kind that a model of novels has never seen.
  std::string text = "stop;line;platform;departs\n";
  for (int i = 0; i < 60; ++i) {
    text += "harbour gate;line " + std::to_string(3 + i % 4) + ";platform " +
            std::to_string(1 + i % 2) + ";" + std::to_string(8 + i / 4) + "." +
            std::to_string(10 + 15 * (i % 4) % 60) + "\n";
  }
  const ttt::Cpu cpu;
  const auto weights = ttt::load<Reader>(TTT_EXAMPLE_MODELS "/books-byte.safetensors", cpu);
  std::printf("%zu bytes, bits per byte:\n", text.size());
  std::printf("  nothing learned  %.3f\n",
              ttt::Session(weights, ttt::NoLearning{}).read(text).bits_per_token());
  std::printf("  Sgd              %.3f\n", bits(weights, text, ttt::Sgd{.rate = 1.0f}));
  std::printf("  Nesterov         %.3f\n", bits(weights, text, Nesterov{}));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
