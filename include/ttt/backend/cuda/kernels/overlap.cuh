// SPDX-License-Identifier: MIT
/// \file
/// Kernels that begin while the one before them still runs ("programmatic dependent launch", CUDA
/// C++ programming guide; compute capability 9.0). One token's step is some seventy kernels of a
/// few microseconds each, of which two go by before a block has its first weights. A kernel that
/// began early asks for its weights, which nothing before it in its graph writes, and then waits
/// for what is computed. (A step's own update comes last, and the next one's graph behind it.)
#pragma once

#include <utility>

#include <ttt/backend/cuda/kernels/cluster.cuh>
#include <ttt/backend/cuda/stream.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define TTT_CUDA_OVERLAPS 1
#else
#define TTT_CUDA_OVERLAPS 0
#endif

/// The next kernel may begin once all blocks have come here, or have ended.
__device__ inline void let_next_begin() {
#if TTT_CUDA_OVERLAPS
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
/// Everything before this kernel is done and can be seen. For every kernel that may begin early,
/// before it touches anything but weights and what was there before the step: also what it writes
/// may still be read.
__device__ inline void wait_for_previous() {
#if TTT_CUDA_OVERLAPS
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#undef TTT_CUDA_OVERLAPS

/// Whether the code that the running GPU got waits: it may be older than the GPU.
template <class T = void>
__global__ void overlap_probe_kernel() {}
template <class T = void>
bool code_overlaps() {
#if CUDART_VERSION >= 12030  // before, it could not be recorded
  int driver = 0;
  cudaFuncAttributes attributes;
  if (cudaDriverGetVersion(&driver) == cudaSuccess &&
      cudaFuncGetAttributes(&attributes, overlap_probe_kernel<T>) == cudaSuccess) {
    return driver >= 12030 && attributes.ptxVersion >= 90;
  }
  static_cast<void>(cudaGetLastError());
#endif
  return false;
}

/// Blocks of a kernel, of which so many side by side along x are a cluster.
struct Blocks {
  dim3 all;
  unsigned of_cluster;

  Blocks(dim3 all_, unsigned of_cluster_ = 1) : all(all_), of_cluster(of_cluster_) {}
};

/// Puts a kernel on the stream that says wait_for_previous(). False, and nothing done, where a
/// cluster finds no room.
template <class... Parameters, class... Arguments>
bool start(const Stream& stream, void (*kernel)(Parameters...), const Blocks& blocks,
           unsigned threads, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t how = {};
  how.gridDim = blocks.all;
  how.blockDim = dim3(threads);
  how.stream = stream.handle;
  how.attrs = attributes;
  if (stream.overlaps && code_overlaps<>()) {
    cudaLaunchAttribute& early = attributes[how.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (blocks.of_cluster > 1) attributes[how.numAttrs++] = in_clusters(blocks.of_cluster);
  const bool was_right = blocks.of_cluster == 1 || cudaPeekAtLastError() == cudaSuccess;
  const cudaError_t status =
      cudaLaunchKernelEx(&how, kernel, std::forward<Arguments>(arguments)...);
  if (status == cudaSuccess || blocks.of_cluster == 1) return true;
  if (was_right) static_cast<void>(cudaGetLastError());  // what went wrong before is not hidden
  return false;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
