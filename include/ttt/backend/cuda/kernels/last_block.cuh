// SPDX-License-Identifier: MIT
/// \file
/// What several blocks made, put together by the last of them: one kernel less to start and to wait
/// for. Which block that is varies; what it does does not.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Whether this is the last of `blocks` blocks to come here; then it sees what the others wrote
/// before. The counter is zero before the first and behind the last. For whole blocks.
template <class = void>  // so that two units of a program may have it
__device__ bool is_last_block(unsigned* counter, unsigned blocks) {
  __shared__ unsigned before[1];
  __syncthreads();
  if (threadIdx.x == 0) {  // what is a fence for one is one for all that wait for it
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before[0])
                 : "l"(counter), "r"(blocks - 1)
                 : "memory");
  }
  __syncthreads();
  return before[0] == blocks - 1;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
