// SPDX-License-Identifier: MIT
// One text, one model, two machines: what is read on the processor is read again on a GPU, and only
// the machine's name differs. Usage: both_machines [MODEL [FILE]]
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>

#include <ttt/backend/cuda/backend.hpp>
#include <ttt/ttt.hpp>

using Attention = ttt::SlidingWindowAttention<256>;
using Reader = ttt::LanguageModel<
    ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
using Learner = ttt::InnerLoop<ttt::Sgd>;

//! [any_machine]
template <ttt::Backend Machine>
double bits_per_byte(const Machine& machine, const std::string& model, const std::string& text) {
  auto weights = ttt::load<Reader>(model, machine);
  ttt::Session session(weights, Learner{.chunk = 64, .clip = 1.0f, .optimizer = {.rate = 1.0f}});
  return session.read(text).bits_per_token();
}
//! [/any_machine]

template <ttt::Backend Machine>
static void report(const char* name, const Machine& machine, const std::string& model,
                   const std::string& text) {
  const auto start = std::chrono::steady_clock::now();
  const double bits = bits_per_byte(machine, model, text);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  std::printf("%-6s %.4f bits per byte, %8.0f bytes/s, loading included\n", name, bits,
              static_cast<double>(text.size()) / time.count());
}

int main(int argc, char** argv) try {
  const std::string model = argc > 1 ? argv[1] : TTT_EXAMPLE_MODELS "/books-byte.safetensors";
  std::string text;
  if (argc > 2) {
    std::ifstream file(argv[2], std::ios::binary);
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  for (int i = 1; argc <= 2 && i <= 80; ++i) {
    text += "On day " + std::to_string(i) + " the keeper lit the lamp on the pier at dusk. ";
  }
  //! [both_machines]
  const ttt::Cpu cpu;   // all processors
  const ttt::Cuda gpu;  // the first GPU; ttt::Cuda{1} is the second
  report("CPU", cpu, model, text);
  report("GPU", gpu, model, text);
  //! [/both_machines]
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
