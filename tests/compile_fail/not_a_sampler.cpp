// expect: ttt: the sampler lacks Token operator()(std::span<float>, Random&) const
// A sampler chooses one token.
#include <ttt/ttt.hpp>

struct Undecided {
  std::vector<ttt::Token> operator()(std::span<float>, ttt::Random&) const { return {}; }
};

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>>;

int main() {
  const auto weights = ttt::load<Model>("model.safetensors", ttt::Cpu());
  ttt::Session session(weights, ttt::NoLearning{});
  session.read("text");
  session.generate(10, Undecided{});
}
