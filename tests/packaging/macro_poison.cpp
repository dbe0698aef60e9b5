// SPDX-License-Identifier: MIT
// Names that <complex.h>, <termios.h> and <windows.h> define as macros, before our first include.
#define I ttt_poisoned_by_complex_h
#define B0 ttt_poisoned_by_termios_h
#define small ttt_poisoned_by_rpcndr_h
#define min(a, b) ttt_poisoned_by_windef_h
#define max(a, b) ttt_poisoned_by_windef_h

#include "read_a_line.hpp"

int main() {
  return read_a_line() > 0.0 ? 0 : 1;
}
