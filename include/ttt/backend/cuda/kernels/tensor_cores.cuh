// SPDX-License-Identifier: MIT
/// \file
/// Tensor cores: bfloat16 operands out of shared memory, sums in float (mma.sync, compute
/// capability 8.0).
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// bfloat16s behind a row of a tile in shared memory, so that eight rows lie in different banks.
constexpr int tile_pad = 8;

/// Two floats, rounded; the first in the lower half.
__device__ inline unsigned pack(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// Four 8 x 8 matrices of a tile, two along its rows and two along the depth, as the tensor cores
/// want them: with RowsFirst in the order of a left operand, else of a right one.
template <bool Deep, bool RowsFirst, int pitch>
__device__ void load_matrices(const std::uint16_t* tile, int row, int depth, unsigned (&out)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, which = lane / 8;
  const int i = row + 8 * (RowsFirst ? which % 2 : which / 2);
  const int k = depth + 8 * (RowsFirst ? which / 2 : which % 2);
  const std::uint16_t* const at =
      Deep ? tile + (i + lane % 8) * pitch + k : tile + (k + lane % 8) * pitch + i;
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(at));
  if constexpr (Deep) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
  }
}

/// sum += a · b for 16 x 16 of a and 16 x 8 of b.
__device__ inline void multiply_add(const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    float (&sum)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
