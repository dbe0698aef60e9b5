// expect: ttt: the optimizer lacks step(backend, update)
// An optimizer must be able to take a step.
#include <ttt/ttt.hpp>

struct Stubborn {
  static constexpr std::size_t slots = 0;
};

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

int main() {
  const auto weights = ttt::load<Model>("model.safetensors", ttt::Cpu());
  ttt::Session session(weights, ttt::InnerLoop<Stubborn>{.chunk = 64});
  session.read("text");
}
