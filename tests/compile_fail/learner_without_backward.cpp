// expect: ttt: the learner lacks backward(backend, step, gradient), its update's vector-Jacobian
// An exact meta-gradient goes through the learner's update.
#include <ttt/train.hpp>

struct OneWay {
  ttt::Index chunk = 64;
  static constexpr std::size_t slots = 0;
  bool learns(const ttt::ParameterName& name) const { return name.role == ttt::Role::DynamicMlp; }
  bool masks(ttt::Token) const { return false; }
  template <class B>
  ttt::Step update(const B&, const ttt::Update<typename B::Scalar>&) const {
    return {};
  }
};

using Attention = ttt::SlidingWindowAttention<8>;
using Model = ttt::LanguageModel<
    ttt::Stack<1, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<1, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;

int main() {
  const ttt::Cpu cpu;
  const auto weights = ttt::load<Model>("model.safetensors", cpu);
  ttt::MetaGradient gradient_of(weights.model(), cpu, OneWay{}, 128);
  gradient_of(weights.parameters(), {}, {}, nullptr);
}
