// SPDX-License-Identifier: MIT
// A program outside the library's tree: says which version it was built with.
#include <cstdio>

#include <ttt/ttt.hpp>

int main() {
  const ttt::bfloat16 third(1.0f / 3.0f);
  std::printf("ttt %d.%d.%d: one third in bfloat16 is %.7f\n", TTT_VERSION_MAJOR, TTT_VERSION_MINOR,
              TTT_VERSION_PATCH, static_cast<double>(third));
}
