// SPDX-License-Identifier: MIT
/// \file
/// Products of a few rows: the weights are read once, and nothing else counts.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

__device__ inline void widen_eight(uint4 raw, float (&out)[8]) {
  const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ inline void load_eight(const bfloat16* at, float (&out)[8]) {
  widen_eight(*reinterpret_cast<const uint4*>(at), out);
}
__device__ inline void load_eight(const float* at, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 raw = *reinterpret_cast<const float4*>(at + i);
    out[i] = raw.x;
    out[i + 1] = raw.y;
    out[i + 2] = raw.z;
    out[i + 3] = raw.w;
  }
}
/// The same one by one, zeros from `count` on.
template <class Element>
__device__ void load_some(const Element* at, Index count, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = i < count ? element(at + i) : 0.0f;
}

constexpr int matvec_threads = 256, matvec_warps = matvec_threads / 32;
constexpr int matvec_columns = 32, matvec_lines = matvec_threads / 4;

/// Weights stored [in, out]: a block makes 32 columns of one row of y. Four threads side by side
/// have 8 columns each; 64 such lines share the depth.
template <class Element, bool aligned>
__global__ void __launch_bounds__(matvec_threads)
    matvec_kernel(View<const float> x, View<const Element> w, View<float> y, bool add) {
  __shared__ float sums[matvec_warps][matvec_columns];
  const Index row = blockIdx.y, first = static_cast<Index>(blockIdx.x) * matvec_columns;
  const int line = static_cast<int>(threadIdx.x) / 4, part = static_cast<int>(threadIdx.x) % 4;
  const Index col = first + 8 * part;
  const bool whole = aligned && col + 8 <= w.cols;
  float sum[8] = {};
#pragma unroll 8
  for (Index k = line; k < w.rows; k += matvec_lines) {
    float weights[8];
    const Element* const at = w.data + k * w.stride + col;
    if (whole) {
      load_eight(at, weights);
    } else {
      load_some(at, w.cols - col, weights);
    }
    const float factor = x(row, k);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += factor * weights[j];
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    for (int apart = 4; apart < 32; apart *= 2) sum[j] += shuffle_xor(sum[j], apart);
    if (threadIdx.x % 32 < 4) sums[threadIdx.x / 32][8 * part + j] = sum[j];
  }
  __syncthreads();
  const int j = static_cast<int>(threadIdx.x);
  if (j >= matvec_columns || first + j >= w.cols) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < matvec_warps; ++i) total += sums[i][j];
  put(y(row, first + j), total, add);
}

/// Weights stored [out, in]: a warp a column.
template <class Element, bool aligned>
__global__ void __launch_bounds__(matvec_threads)
    matvec_transposed_kernel(View<const float> x, View<const Element> w, View<float> y, bool add) {
  const Index row = blockIdx.y, lane = threadIdx.x % 32;
  const Index col = static_cast<Index>(blockIdx.x) * matvec_warps + threadIdx.x / 32;
  if (col >= w.rows) return;
  const Element* const from = w.data + col * w.stride;
  const float* const in = x.row(row);
  float sum = 0;
#pragma unroll 4
  for (Index k = 8 * lane; k < w.cols; k += 256) {
    float weights[8], factors[8];
    if (aligned && k + 8 <= w.cols) {
      load_eight(from + k, weights);
      load_eight(in + k, factors);
    } else {
      load_some(from + k, w.cols - k, weights);
      load_some(in + k, w.cols - k, factors);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += factors[j] * weights[j];
  }
  sum = lanes_sum(sum);
  if (lane == 0) put(y(row, col), sum, add);
}

}  // namespace

template <class S>
void Launch<S>::matvec(Stream stream, View<const S> x, Weight<S> w, View<S> y, Write write) {
  if constexpr (std::is_same_v<S, float>) {
    if (y.rows == 0 || y.cols == 0) return;
    const bool add = write == Write::Add;
    const Index each = w.transposed ? matvec_warps : matvec_columns;
    const dim3 blocks(grid(blocks_for(y.cols, each)), grid(y.rows));
    w.visit([&]<class Element>(View<const Element> stored) {
      const bool aligned = in_sixteens(stored) && in_sixteens(x);
      const auto kernel =
          w.transposed ? (aligned ? matvec_transposed_kernel<Element, true>
                                  : matvec_transposed_kernel<Element, false>)
                       : (aligned ? matvec_kernel<Element, true> : matvec_kernel<Element, false>);
      kernel<<<blocks, matvec_threads, 0, stream>>>(x, stored, y, add);
    });
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
