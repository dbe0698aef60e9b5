// SPDX-License-Identifier: MIT
// Built twice, as two libraries with kernels for other architectures.
#include <cstdio>
#include <vector>

#include <ttt/backend/cuda/backend.hpp>

/// The sum of 1 .. count, added up on the GPU; below zero if it refuses.
extern "C" double TTT_TEST_FUNCTION(int count) try {
  const ttt::Cuda cuda;
  std::vector<float> numbers;
  for (int i = 1; i <= count; ++i) numbers.push_back(static_cast<float>(i));
  auto on_gpu = cuda.allocate<float>(count), ones = cuda.allocate<float>(count);
  cuda.to_device(numbers.data(), on_gpu.data(), count);
  cuda.fill(1.0f, ones.data(), count);
  return cuda.dot(on_gpu.data(), ones.data(), count);
} catch (const ttt::cuda::Error& error) {
  std::printf("%s\n", error.what());
  return -1;
}
