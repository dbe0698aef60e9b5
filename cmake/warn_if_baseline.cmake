# SPDX-License-Identifier: MIT
# Says so when the flags in force give an x86-64 processor nothing beyond SSE2 of the year 2003.
include(CheckCXXSourceCompiles)

unset(TTT_BASELINE_X86 CACHE)  # asked anew each time, for the flags may have changed
set(CMAKE_REQUIRED_QUIET TRUE)
check_cxx_source_compiles("
#if !defined(__x86_64__) || defined(__SSE3__)
#error more than the baseline
#endif
int main() {}" TTT_BASELINE_X86)
unset(CMAKE_REQUIRED_QUIET)

if(TTT_BASELINE_X86)
  message(WARNING
    "ttt: this build uses baseline SSE2 only, several times slower than this machine can be. "
    "For the processor you are on, configure with -DTTT_NATIVE=ON (or a preset); to choose one, "
    "with -DCMAKE_CXX_FLAGS=-march=x86-64-v3. Use the same flags for all of a program.")
endif()
