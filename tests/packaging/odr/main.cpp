// SPDX-License-Identifier: MIT
// One of two units that include everything; see other.cpp.
#include <cstdio>

#include <ttt/ttt.hpp>

int other_unit();

int this_unit() {
  try {
    ttt::detail::fail<ttt::ShapeError>("thrown in one unit");
  } catch (const ttt::Error&) {
    return static_cast<int>(ttt::size_of(ttt::dtype_of<ttt::bfloat16>));
  }
}

int main() {
  if (this_unit() != other_unit()) return 1;
  std::puts("two units, one library");
}
