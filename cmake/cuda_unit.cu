// SPDX-License-Identifier: MIT
// The kernels of a program that links ttt::cuda, compiled once and for its architectures.
#include <ttt/backend/cuda/instantiate.cuh>
