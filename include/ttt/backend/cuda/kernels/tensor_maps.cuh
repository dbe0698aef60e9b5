// SPDX-License-Identifier: MIT
/// \file
/// Hopper's copy engine (TMA): one thread brings a box of a matrix into shared memory, into that of
/// every block of a cluster if need be, or takes one out of it.
#pragma once

#include <cuda.h>

#include <ttt/backend/cuda/kernels/hopper_rings.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

// ---- by the host --------------------------------------------------------------------------------

/// The driver's function, or null where it has none.
template <class = void>
auto tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  const bool there = status == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(there ? function : nullptr);
}

/// Describes a matrix whose boxes of `rows` x 128 bytes are blocks of a Tile. What lies outside the
/// matrix is brought as zeros and not written. False where it cannot be: rows that do not lie in
/// sixteens of bytes.
template <class Element>
bool describe_boxes(const View<Element>& matrix, int rows, CUtensorMap& map) {
  static const auto encode = tensor_map_encoder();
  constexpr Index size = sizeof(Element);
  if (encode == nullptr || reinterpret_cast<std::uintptr_t>(matrix.data) % 16 != 0 ||
      matrix.stride * size % 16 != 0) {
    return false;
  }
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(matrix.cols),
                              static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t stride_bytes[] = {static_cast<cuuint64_t>(matrix.stride * size)};
  const cuuint32_t box[] = {128 / size, static_cast<cuuint32_t>(rows)}, steps[] = {1, 1};
  const auto type = size == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  return encode(&map, type, 2, const_cast<std::remove_const_t<Element>*>(matrix.data), sizes,
                stride_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// ---- copies -------------------------------------------------------------------------------------

/// Arrives at the barrier that lies at the same place in another block of the cluster.
__device__ inline void arrive_in_cluster(std::uint64_t* barrier, unsigned block) {
  asm volatile(
      "{\n.reg .u32 at;\n"
      "mapa.shared::cluster.u32 at, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [at];\n}" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}

/// Brings the box whose first element is at (row, column) to this block.
__device__ inline void bring_box(const CUtensorMap& map, int row, int column, unsigned tile,
                                 std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(tile),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
/// The same to the same place of all blocks whose bits are set, and tells each one's barrier.
__device__ inline void bring_box_to_all(const CUtensorMap& map, int row, int column, unsigned tile,
                                        std::uint64_t* barrier, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(tile),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}
/// Takes a box out, of what was written before show_copies and a barrier.
__device__ inline void take_box(const CUtensorMap& map, int row, int column, unsigned tile) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
      "r"(column), "r"(row), "r"(tile)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// The same, of floats, added to what is there.
__device__ inline void add_box(const CUtensorMap& map, int row, int column, unsigned tile) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%1, %2}], [%3];" ::
          "l"(&map),
      "r"(column), "r"(row), "r"(tile)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Until at most the last `left` boxes this thread took may still be read.
template <int left>
__device__ void await_taken() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(left) : "memory");
}
__device__ inline void await_written() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
