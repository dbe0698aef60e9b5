// SPDX-License-Identifier: MIT
/// \file
/// Depthwise convolutions along a chunk's tokens: 4 bytes in and 4 out an element, 2 operations a
/// tap.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// y(t, c) (+)= sum over k of taps(c, k) * x(t + sign * (k - half), c), over the rows of t's chunk.
template <int Sign, class S>
__global__ void chunk_conv_kernel(View<const S> x, Weight<S> taps, Index chunk, View<S> y,
                                  bool add) {
  const Index t = blockIdx.x, half = taps.cols / 2;
  const Index first = t / chunk * chunk, last = first + chunk < x.rows ? first + chunk : x.rows;
  for (Index j = threadIdx.x; j < x.cols; j += blockDim.x) {
    S sum(0);
    for (Index k = 0; k < taps.cols; ++k) {
      const Index from = t + Sign * (k - half);
      if (from >= first && from < last) sum += load(taps, j, k) * x(from, j);
    }
    put(y(t, j), sum, add);
  }
}

/// dtaps(c, k) += sum over rows of dy(t, c) * x(t + k - half, c); a warp a channel and tap, whose
/// lanes take rows in turn and are added in order.
template <class S>
__global__ void chunk_conv_taps_kernel(View<const S> x, Index chunk, View<const S> dy,
                                       View<S> dtaps) {
  const Index c = blockIdx.x, k = threadIdx.y, shift = k - dtaps.cols / 2;
  S sum(0);
  for (Index t = threadIdx.x; t < x.rows; t += 32) {
    const Index from = t + shift;
    if (from >= 0 && from < x.rows && from / chunk == t / chunk) sum += dy(t, c) * x(from, c);
  }
  sum = lanes_sum(sum);
  if (threadIdx.x == 0) dtaps(c, k) += sum;
}

}  // namespace

template <class S>
void Launch<S>::chunk_conv(Stream stream, View<const S> x, Weight<S> taps, Index chunk, View<S> y) {
  if (x.rows == 0) return;
  chunk_conv_kernel<1><<<grid(x.rows), row_threads, 0, stream>>>(x, taps, chunk, y, false);
}

template <class S>
void Launch<S>::chunk_conv_backward(Stream stream, View<const S> x, Weight<S> taps, Index chunk,
                                    View<const S> dy, View<S> dx, Write write, View<S> dtaps) {
  if (x.rows == 0) return;
  if (dtaps.data != nullptr) {
    const dim3 threads(32, static_cast<unsigned>(dtaps.cols));
    chunk_conv_taps_kernel<<<grid(x.cols), threads, 0, stream>>>(x, chunk, dy, dtaps);
  }
  if (dx.data != nullptr) {
    chunk_conv_kernel<-1>
        <<<grid(x.rows), row_threads, 0, stream>>>(dy, taps, chunk, dx, write == Write::Add);
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
