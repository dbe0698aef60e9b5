// SPDX-License-Identifier: MIT
/// \file
/// Sums over columns: gradients of what every row is scaled by.
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
/// out[j] += the parts of its sum.
template <class S>
__global__ void add_parts_kernel(ColumnSums all, const S* part, S* out) {
  const Index j = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= all.cols) return;
  S sum(0);
#pragma unroll 8
  for (Index i = 0; i < all.parts; ++i) sum += part[i * all.cols + j];
  out[j] += sum;
}
template <class S>
void add_parts(cudaStream_t stream, const ColumnSums& all, const S* part, View<S> out) {
  add_parts_kernel<<<grid(blocks_for(all.cols, 128)), 128, 0, stream>>>(all, part, out.data);
}

}  // namespace

template <class S>
Index Launch<S>::column_scratch(Index rows, Index cols) {
  return column_sums(rows, cols).parts * cols * static_cast<Index>(sizeof(S));
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
