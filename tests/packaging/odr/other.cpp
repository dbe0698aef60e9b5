// SPDX-License-Identifier: MIT
// The other of two units that include and use everything: a function that is not inline, or a
// variable that is defined in a header, would make the link fail.
#include "../read_a_line.hpp"

double other_unit();
double other_unit() {
  return read_a_line();
}
