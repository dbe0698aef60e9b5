// SPDX-License-Identifier: MIT
// expect: ttt: Eigen loses its vector instructions under nvcc; include <ttt/ttt.hpp> from .cpp files
#include <ttt/ttt.hpp>
