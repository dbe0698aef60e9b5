// expect: ttt: the learner lacks a member that Learner asks for: chunk, slots, learns(name), masks
// A learner must say what happens when a chunk completes.
#include <ttt/ttt.hpp>

struct Listless {
  ttt::Index chunk = 64;
  static constexpr std::size_t slots = 0;
  bool learns(const ttt::ParameterName&) const { return true; }
  bool masks(ttt::Token) const { return false; }
};

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

int main() {
  const auto weights = ttt::load<Model>("model.safetensors", ttt::Cpu());
  ttt::Session session(weights, Listless{});
  session.read("text");
}
