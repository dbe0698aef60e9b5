// expect: ttt: the learner lacks a member that Learner asks for
// An optimizer is not a learner: InnerLoop makes one of it.
#include <ttt/ttt.hpp>

struct Empty {};

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

int main() {
  const auto weights = ttt::load<Model>("model.safetensors", ttt::Cpu());
  ttt::Session session(weights, Empty{});
  session.read("text");
}
