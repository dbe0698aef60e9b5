// SPDX-License-Identifier: MIT
/// \file
/// bfloat16 out of float, and products of a few rows with weights in it: both move memory, 6 bytes
/// an element and 2 bytes a weight.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Eight neighbours a thread.
template <bool aligned>
__global__ void __launch_bounds__(256) round_kernel(View<const float> from, View<bfloat16> to) {
  const Index parts = (from.cols + 7) / 8;
  const Index at = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= from.rows * parts) return;
  const Index row = at / parts, col = 8 * (at - row * parts);
  const float* const in = from.data + row * from.stride + col;
  bfloat16* const out = to.data + row * to.stride + col;
  if (aligned && col + 8 <= from.cols) {
    const float4 low = *reinterpret_cast<const float4*>(in);
    const float4 high = *reinterpret_cast<const float4*>(in + 4);
    *reinterpret_cast<uint4*>(out) = make_uint4(pack(low.x, low.y), pack(low.z, low.w),
                                                pack(high.x, high.y), pack(high.z, high.w));
    return;
  }
  for (Index j = 0; j < 8 && col + j < from.cols; ++j) {
    set(out[j], in[j]);
  }
}

/// Rows that can be read (or written) sixteen bytes at a time.
template <class T>
bool in_sixteens(const View<T>& v) {
  constexpr Index each = 16 / static_cast<Index>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && v.stride % each == 0;
}

__device__ inline void widen_eight(uint4 raw, float (&out)[8]) {
  const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

/// y (+)= x · w for weights stored [in, out]: a block makes 32 columns of one row of x, 4 threads
/// side by side of 8 columns each, and its 64 lines of threads share the depth.
constexpr int matvec_threads = 256, matvec_columns = 32, matvec_lines = 64;

template <bool aligned>
__global__ void __launch_bounds__(matvec_threads)
    matvec_kernel(View<const float> x, View<const bfloat16> w, View<float> y, bool add) {
  __shared__ float sums[matvec_lines][matvec_columns + 1];
  const Index row = blockIdx.y, first = static_cast<Index>(blockIdx.x) * matvec_columns;
  const int line = static_cast<int>(threadIdx.x) / 4, part = static_cast<int>(threadIdx.x) % 4;
  const Index col = first + 8 * part;
  float sum[8] = {};
  if (aligned && col + 8 <= w.cols) {
#pragma unroll 4
    for (Index k = line; k < w.rows; k += matvec_lines) {
      float eight[8];
      widen_eight(*reinterpret_cast<const uint4*>(w.data + k * w.stride + col), eight);
      const float factor = x(row, k);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += factor * eight[j];
    }
  } else {
    for (Index k = line; k < w.rows; k += matvec_lines) {
      for (int j = 0; j < 8; ++j) {
        if (col + j < w.cols) sum[j] += x(row, k) * element(w.data + k * w.stride + col + j);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) sums[line][8 * part + j] = sum[j];
  for (int half = matvec_lines / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < half * matvec_columns; e += matvec_threads) {
      sums[e / matvec_columns][e % matvec_columns] +=
          sums[e / matvec_columns + half][e % matvec_columns];
    }
  }
  __syncthreads();
  const int j = static_cast<int>(threadIdx.x);
  if (j < matvec_columns && first + j < w.cols) put(y(row, first + j), sums[0][j], add);
}

/// The same for weights stored [out, in]: a warp a column.
template <bool aligned>
__global__ void __launch_bounds__(matvec_threads)
    matvec_transposed_kernel(View<const float> x, View<const bfloat16> w, View<float> y, bool add) {
  const Index row = blockIdx.y, lane = threadIdx.x % 32;
  const Index col = static_cast<Index>(blockIdx.x) * (matvec_threads / 32) + threadIdx.x / 32;
  if (col >= w.rows) return;
  const bfloat16* const weights = w.data + col * w.stride;
  const float* const in = x.data + row * x.stride;
  float sum = 0;
  Index k = 8 * lane;
  if (aligned) {
#pragma unroll 2
    for (; k + 8 <= w.cols; k += 256) {
      float eight[8];
      widen_eight(*reinterpret_cast<const uint4*>(weights + k), eight);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += in[k + j] * eight[j];
    }
  }
  for (; k < w.cols; k += 256) {
    for (Index j = k; j < k + 8 && j < w.cols; ++j) sum += in[j] * element(weights + j);
  }
  sum = lanes_sum(sum);
  if (lane == 0) put(y(row, col), sum, add);
}

}  // namespace

template <class S>
void Launch<S>::round(Stream stream, View<const S> from, View<bfloat16> to) {
  if constexpr (std::is_same_v<S, float>) {
    const Index parts = from.rows * ((from.cols + 7) / 8);
    if (parts == 0) return;
    const auto kernel =
        in_sixteens(from) && in_sixteens(to) ? round_kernel<true> : round_kernel<false>;
    kernel<<<grid(blocks_for(parts, 256)), 256, 0, stream>>>(from, to);
  }
}

template <class S>
void Launch<S>::matvec_bfloat16(Stream stream, View<const S> x, Weight<S> w, View<S> y,
                                Write write) {
  if constexpr (std::is_same_v<S, float>) {
    if (y.rows == 0 || y.cols == 0) return;
    const auto stored = w.template stored<bfloat16>();
    const bool aligned = in_sixteens(stored), add = write == Write::Add;
    const auto columns = w.transposed ? Index{matvec_threads / 32} : Index{matvec_columns};
    const auto kernel =
        w.transposed ? (aligned ? matvec_transposed_kernel<true> : matvec_transposed_kernel<false>)
                     : (aligned ? matvec_kernel<true> : matvec_kernel<false>);
    const dim3 blocks(grid(blocks_for(y.cols, columns)), grid(y.rows));
    kernel<<<blocks, matvec_threads, 0, stream>>>(x, stored, y, add);
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
