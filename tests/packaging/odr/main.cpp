// SPDX-License-Identifier: MIT
// One of two units that include and use everything; see other.cpp.
#include <cstdio>

#include "../read_a_line.hpp"

double other_unit();

int main() {
  const double one = read_a_line();
  const double two = other_unit();
  std::printf("one unit: %f nats per byte, the other: %f\n", one, two);
  return one == two && one > 0.0 && one < 4.0 ? 0 : 1;
}
