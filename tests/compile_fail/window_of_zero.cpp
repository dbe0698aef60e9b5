// expect: ttt: SlidingWindowAttention<W>: a window of 0 sees nothing
// The window counts the token itself.
#include <ttt/layers/block.hpp>

using Block = ttt::Block<ttt::SlidingWindowAttention<0>, ttt::SwiGLU>;

int main() {
  const Block block(ttt::Config{});
  return static_cast<int>(block.attention().sublayer().window());
}
