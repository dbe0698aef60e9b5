// expect: ttt: the optimizer lacks `static constexpr std::size_t slots`
// An optimizer must say how many vectors it keeps between steps.
#include <ttt/inner/inner_loop.hpp>

struct Forgetful {
  template <ttt::Backend B>
  void step(const B&, const ttt::Update<typename B::Scalar>&) const {}
};

int main() {
  ttt::InnerLoop<Forgetful> learner;
  return static_cast<int>(learner.chunk);
}
