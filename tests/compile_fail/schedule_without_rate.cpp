// expect: ttt: the schedule lacks rate(step)
// A schedule must say the learning rate of every step.
#include <ttt/train.hpp>

struct Timeless {};

int main() {
  const ttt::OuterLoop<ttt::AdamW, Timeless> loop;
  return loop.clip > 0 ? 0 : 1;
}
