// SPDX-License-Identifier: MIT
/// \file
/// Where kernels are put. Any host compiler reads this.
#pragma once

#include <cuda_runtime_api.h>

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// A stream of CUDA's, and whether kernels on it may overlap: kernels/overlap.cuh. That is for a
/// stream on which nothing that comes behind a write of weights asks for them early.
struct Stream {
  cudaStream_t handle;
  bool overlaps = false;

  Stream(cudaStream_t handle_, bool overlaps_ = false) : handle(handle_), overlaps(overlaps_) {}
  operator cudaStream_t() const { return handle; }
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
