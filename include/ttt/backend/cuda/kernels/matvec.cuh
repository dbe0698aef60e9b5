// SPDX-License-Identifier: MIT
/// \file
/// Products of a few rows: the weights are read once, and nothing else counts.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Eight neighbouring elements as they lie, and as floats.
template <class Element>
struct Eight;
template <>
struct Eight<bfloat16> {
  uint4 raw;
  __device__ void widen(float (&out)[8]) const {
    const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};
template <>
struct Eight<float> {
  float4 low, high;
  __device__ void widen(float (&out)[8]) const {
    const float all[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = all[i];
  }
};

/// Those at `at`, zeros from `count` on.
template <bool aligned, class Element>
__device__ Eight<Element> load_eight(const Element* at, Index count) {
  if (aligned && count >= 8) return *reinterpret_cast<const Eight<Element>*>(at);
  Eight<Element> out = {};
  auto* const each = reinterpret_cast<Element*>(&out);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) each[i] = at[i];
  }
  return out;
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
  constexpr int ahead = sizeof(Element) > 2 ? 4 : 8;  // loads in flight
  float sum[8] = {};
  for (Index k0 = line; k0 < w.rows; k0 += ahead * matvec_lines) {
    Eight<Element> weights[ahead];
    float factors[ahead];
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      const Index k = k0 + n * matvec_lines;
      weights[n] = load_eight<aligned>(w.data + k * w.stride + col, k < w.rows ? w.cols - col : 0);
      factors[n] = k < w.rows ? x(row, k) : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      float each[8];
      weights[n].widen(each);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += factors[n] * each[j];
    }
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
    load_eight<aligned>(from + k, w.cols - k).widen(weights);
    load_eight<aligned>(in + k, w.cols - k).widen(factors);
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
