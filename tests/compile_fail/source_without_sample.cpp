// expect: ttt: the source lacks sample(index, tokens), length() or size()
// A source must have samples.
#include <ttt/train.hpp>

struct Empty {
  static ttt::Index size() { return 0; }
  static ttt::Index length() { return 128; }
};

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

int main() {
  const auto weights = ttt::load<Model>("model.safetensors", ttt::Cpu());
  ttt::Trainer trainer(weights, ttt::InnerLoop<ttt::Sgd>{.chunk = 64}, ttt::OuterLoop<>{}, Empty{},
                       ttt::TrainerOptions{.length = 128});
  trainer.step();
}
