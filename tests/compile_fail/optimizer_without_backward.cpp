// expect: ttt: the optimizer lacks backward(backend, gradient), its vector-Jacobian product
// An exact meta-gradient goes through the optimizer's step.
#include <ttt/train.hpp>

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

int main() {
  const ttt::Cpu cpu;
  const auto weights = ttt::load<Model>("model.safetensors", cpu);
  ttt::MetaGradient gradient_of(weights.model(), cpu, ttt::InnerLoop<ttt::AdamW>{.chunk = 64},
                                128);
  gradient_of(weights.parameters(), {}, {}, nullptr);
}
