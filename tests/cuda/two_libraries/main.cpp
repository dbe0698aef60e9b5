// SPDX-License-Identifier: MIT
// Two libraries with kernels of their own in one process: each uses its own, and says so when they
// are not for this GPU. (Built for 8.0 and 9.0 alone, one of the two works on either.)
#include <cstdio>

extern "C" double ttt_test_first(int count);
extern "C" double ttt_test_second(int count);

int main() {
  const double first = ttt_test_first(100), second = ttt_test_second(1000);
  std::printf("%g %g\n", first, second);
  const bool first_works = first == 5050, second_works = second == 500500;
  return (first_works && second < 0) || (second_works && first < 0) || (first_works && second_works)
             ? 0
             : 1;
}
