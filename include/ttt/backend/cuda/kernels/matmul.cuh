// SPDX-License-Identifier: MIT
/// \file
/// Products in the scalar's own precision, operands in any layout, on the float units: 12 to 18
/// TFLOP/s of an H200's 67. For parity; what is fast multiplies on tensor cores.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// An operand: element (i, j) is data[i * row + j * col].
template <class Element>
struct Strided {
  const Element* data;
  Index row, col;
};

constexpr int product_tile = 64;
constexpr int product_depth = 16;

/// Brings rows [i0, i0 + 64) and columns [k0, k0 + 16) into `tile`, [k][i], zeros outside; threads
/// run along whichever of the two lies contiguous.
template <class S, class Element>
__device__ void bring(const Strided<Element>& x, Index i0, Index rows, Index k0, Index depth,
                      S (&tile)[product_depth][product_tile + 4]) {
  for (int e = static_cast<int>(threadIdx.x); e < product_tile * product_depth; e += 256) {
    const int i = x.col == 1 ? e / product_depth : e % product_tile;
    const int k = x.col == 1 ? e % product_depth : e / product_tile;
    const bool inside = i0 + i < rows && k0 + k < depth;
    tile[k][i] =
        inside ? static_cast<S>(element(x.data + (i0 + i) * x.row + (k0 + k) * x.col)) : S(0);
  }
}

/// c (+)= a · b; 64 x 64 of c a block, 4 x 4 a thread, through shared memory.
template <class S, class Element>
__global__ void __launch_bounds__(256)
    matmul_kernel(Strided<S> a, Strided<Element> b_transposed, Index depth, View<S> c, bool add) {
  __shared__ S left[product_depth][product_tile + 4];
  __shared__ S right[product_depth][product_tile + 4];
  const Index i0 = static_cast<Index>(blockIdx.x) * product_tile;
  const Index j0 = static_cast<Index>(blockIdx.y) * product_tile;
  const int ti = static_cast<int>(threadIdx.x) / 16 * 4, tj = static_cast<int>(threadIdx.x) % 16;
  S sum[4][4] = {};
  for (Index k0 = 0; k0 < depth; k0 += product_depth) {
    bring(a, i0, c.rows, k0, depth, left);
    bring(b_transposed, j0, c.cols, k0, depth, right);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < product_depth; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += left[k][ti + i] * right[k][tj + 16 * j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const Index row = i0 + ti + i, col = j0 + tj + 16 * j;
      if (row < c.rows && col < c.cols) put(c(row, col), sum[i][j], add);
    }
  }
}

/// out(i, j) = w(i, j).
template <class S>
__global__ void widen_kernel(Weight<S> w, View<S> out) {
  for (Index i = blockIdx.x; i < out.rows; i += gridDim.x) {
    for (Index j = threadIdx.x; j < out.cols; j += blockDim.x) out(i, j) = load(w, i, j);
  }
}

}  // namespace

template <class S>
void Launch<S>::matmul(Stream stream, View<const S> a, bool a_transposed, Weight<S> b, View<S> c,
                       Write write) {
  if (c.rows == 0 || c.cols == 0) return;
  const dim3 blocks(grid(blocks_for(c.rows, product_tile)), grid(blocks_for(c.cols, product_tile)));
  const Strided<S> left =
      a_transposed ? Strided<S>{a.data, 1, a.stride} : Strided<S>{a.data, a.stride, 1};
  const Index row = b.transposed ? b.stride : 1, col = b.transposed ? 1 : b.stride;
  if (b.narrow) {
    const Strided<bfloat16> right{static_cast<const bfloat16*>(b.data), row, col};
    matmul_kernel<<<blocks, 256, 0, stream>>>(left, right, b.rows, c, write == Write::Add);
  } else {
    const Strided<S> right{static_cast<const S*>(b.data), row, col};
    matmul_kernel<<<blocks, 256, 0, stream>>>(left, right, b.rows, c, write == Write::Add);
  }
}

template <class S>
void Launch<S>::widen(Stream stream, Weight<S> w, View<S> out) {
  if (out.rows == 0 || out.cols == 0) return;
  widen_kernel<<<grid(out.rows < 65535 ? out.rows : 65535), 256, 0, stream>>>(w, out);
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
