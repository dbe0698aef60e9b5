// SPDX-License-Identifier: MIT
// The other of two units that include everything: a function that is not inline, or a variable
// that is defined in a header, would make the link fail.
#include <ttt/ttt.hpp>

int other_unit() {
  try {
    ttt::detail::fail<ttt::ShapeError>("thrown in the other unit");
  } catch (const ttt::Error&) {
    return static_cast<int>(ttt::size_of(ttt::dtype_of<ttt::bfloat16>));
  }
}
