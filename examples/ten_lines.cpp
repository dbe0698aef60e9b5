// SPDX-License-Identifier: MIT
// The whole of it in ten lines: load a model, read a text while learning from it, continue the
// text, and go back. Usage: ten_lines [MODEL [FILE]]
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>

#include <ttt/ttt.hpp>

static const std::string text_at_hand =
    "The lamp on the pier is lit at dusk. The keeper of the lamp on the pier fills it with oil at "
    "dusk, trims the wick of the lamp, and writes in the book of the pier that the lamp is lit. "
    "At dawn the keeper puts out the lamp on the pier, and writes in the book of the pier that "
    "the lamp is out. When the wind is high, the keeper of the lamp stays on the pier from dusk "
    "to dawn, and writes in the book of the pier that the wind is high and the lamp is lit. ";

int main(int argc, char** argv) try {
  const std::string model = argc > 1 ? argv[1] : TTT_EXAMPLE_MODELS "/books-byte.safetensors";
  std::string bytes = text_at_hand;
  if (argc > 2) {
    std::ifstream file(argv[2], std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }

  //! [ten_lines]
  // 6 blocks; the last 2 learn while reading.
  using Attention = ttt::SlidingWindowAttention<256>;
  using Reader = ttt::LanguageModel<
      ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
      ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
  using Learner = ttt::InnerLoop<ttt::Sgd>;

  ttt::Cpu cpu;
  auto weights = ttt::load<Reader>(model, cpu);  // shared by all sessions
  ttt::Session session(weights, Learner{.chunk = 64, .clip = 1.0f, .optimizer = {.rate = 1.0f}});

  auto report = session.read(bytes);  // scores each chunk, then learns from it
  auto before = session.snapshot();
  auto text = session.generate(200, ttt::TopP{.p = 0.95f, .temperature = 0.8f});
  session.restore(before);  // as if nothing had been generated
  //! [/ten_lines]

  std::printf("%s\n\n%zu bytes, %lld inner steps, %.3f bits per byte\n",
              ttt::io::ByteTokenizer{}.decode(text).c_str(), bytes.size(),
              static_cast<long long>(report.inner_steps), report.bits_per_token());
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
