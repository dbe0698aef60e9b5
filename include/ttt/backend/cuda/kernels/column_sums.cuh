// SPDX-License-Identifier: MIT
/// \file
/// Sums over columns: gradients of what every row is scaled by. What is summed is read once, 4
/// bytes an element and operand, or by a kernel that reads it anyway; the parts are some kilobytes.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Sums over columns, in an order that never changes: a block makes those of 32 columns over one
/// of `parts` stretches of the rows, a column's rows taken by 32 threads in turn; then the parts
/// are added in order.
struct ColumnSums {
  Index rows, cols, parts;
};
inline ColumnSums column_sums(Index rows, Index cols) {
  constexpr Index each = 256, most = 64;
  const Index parts = blocks_for(rows, each);
  return {rows, cols, parts < most ? parts : most};
}
/// The same where what reads the rows for something else sums on its way, and each of its blocks
/// makes a part, for all columns: as many blocks as an H200's multiprocessors hold, with as much
/// each.
constexpr Index most_row_parts = 2 * 132;
inline ColumnSums row_sums(Index rows, Index cols, Index blocks) {
  return {rows, cols, blocks_for(blocks, blocks_for(blocks, most_row_parts))};
}
inline dim3 column_grid(const ColumnSums& sums) {
  return {grid(blocks_for(sums.cols, 32)), grid(sums.parts)};
}
constexpr dim3 column_threads(32, 32);

/// part[blockIdx.y][j] = sum of term(row, j).
template <class T, class Term>
__device__ void sum_columns(const ColumnSums& all, ScalarOf<T>* part, const Term& term) {
  __shared__ T sums[32][33];
  const Index j = static_cast<Index>(blockIdx.x) * 32 + threadIdx.x;
  const Index each = (all.rows + all.parts - 1) / all.parts;
  const Index begin = blockIdx.y * each, end = begin + each < all.rows ? begin + each : all.rows;
  T sum(0);
  if (j < all.cols) {
    for (Index t = begin + threadIdx.y; t < end; t += 32) sum = sum + term(t, j);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || j >= all.cols) return;
  for (int i = 1; i < 32; ++i) sum = sum + sums[i][threadIdx.x];
  put(part[blockIdx.y * all.cols + j], sum);
}
/// The sums over a block of what its lanes have for their four channels of d go to its row of
/// `part`; a head is on 16 or 32 lanes.
template <int lanes>
__device__ void put_channel_sums(const Pack<float, 4>& own, Index d, float* part) {
  __shared__ float sums[row_threads / 32][most_head_dim];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float sum = lanes == 32 ? own.at[n] : own.at[n] + shuffle_xor(own.at[n], 16);
    if (lane < lanes) sums[warp][4 * lane + static_cast<unsigned>(n)] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= d) return;
  float sum = 0;
#pragma unroll
  for (unsigned i = 0; i < row_threads / 32; ++i) sum += sums[i][threadIdx.x];
  part[blockIdx.x * d + threadIdx.x] = sum;
}

/// out[j] += the parts of its sum: a block's 32 columns, 16 threads each in turn.
constexpr dim3 part_threads(32, 16);
template <class S>
__global__ void add_parts_kernel(ColumnSums all, const S* part, S* out) {
  __shared__ S sums[part_threads.y][part_threads.x];
  const Index j = static_cast<Index>(blockIdx.x) * part_threads.x + threadIdx.x;
  S sum(0);
  if (j < all.cols) {
#pragma unroll 8
    for (Index i = threadIdx.y; i < all.parts; i += part_threads.y) sum += part[i * all.cols + j];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || j >= all.cols) return;
  for (unsigned i = 1; i < part_threads.y; ++i) sum += sums[i][threadIdx.x];
  out[j] += sum;
}
template <class S>
void add_parts(cudaStream_t stream, const ColumnSums& all, const S* part, View<S> out) {
  add_parts_kernel<<<grid(blocks_for(all.cols, part_threads.x)), part_threads, 0, stream>>>(
      all, part, out.data);
}

}  // namespace

template <class S>
Index Launch<S>::column_scratch(Index rows, Index cols) {
  const Index parts = rows < most_row_parts ? rows : most_row_parts;  // and never more otherwise
  return parts * cols * static_cast<Index>(sizeof(S));
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
