// SPDX-License-Identifier: MIT
/// \file
/// Root-mean-square norms, a block a row, and sums over columns.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// 1 / sqrt(sum / size + eps), in double.
template <class T>
__device__ T inverse_rms(T sum, Index size, double eps) {
  using std::sqrt;
  return narrow<T>(Wide<T>(1) /
                   sqrt(widen(sum) / Wide<T>(static_cast<double>(size)) + Wide<T>(eps)));
}
/// What every dx loses along x: inverse³ / size * <scale * dy, x>.
template <class T>
__device__ T norm_pull(T dot, T inverse, Index size) {
  const Wide<T> inv = widen(inverse);
  return narrow<T>(inv * inv * inv * widen(dot) / Wide<T>(static_cast<double>(size)));
}

/// y = [h +] x * inverse * scale; a block a row.
template <class T, int N, class S = ScalarOf<T>>
__global__ void rms_norm_kernel(Operand<S> x, Norm<S> norm, Operand<S> h, View<S> y,
                                View<S> inverse) {
  const Index t = blockIdx.x, width = x.value.cols, step = N * static_cast<Index>(blockDim.x);
  T sum(0);
  for (Index j = N * static_cast<Index>(threadIdx.x); j < width; j += step) {
    const auto v = load_pack<T, N>(x, t, j);
#pragma unroll
    for (int n = 0; n < N; ++n) sum = sum + v.at[n] * v.at[n];
  }
  const T inv = inverse_rms(block_sum(sum), width, norm.eps);
  if (!inverse.empty() && threadIdx.x == 0) put(inverse(t, 0), inv);
  if (y.empty()) return;
  for (Index j = N * static_cast<Index>(threadIdx.x); j < width; j += step) {
    const auto v = load_pack<T, N>(x, t, j);
    auto out = load_pack<T, N>(h, t, j);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      out.at[n] = out.at[n] + v.at[n] * inv * T(scale_at(norm, j + n));
    }
    put_pack(y, t, j, out);
  }
}

/// dx (+)= inverse * scale * dy - x * pull; dx may be dy.
template <class T, int N, class S = ScalarOf<T>>
__global__ void rms_norm_backward_kernel(Operand<S> x, Norm<S> norm, Operand<S> inverse,
                                         Operand<S> dy, View<S> dx, bool add) {
  const Index t = blockIdx.x, width = x.value.cols, step = N * static_cast<Index>(blockDim.x);
  T dot(0);
  for (Index j = N * static_cast<Index>(threadIdx.x); j < width; j += step) {
    const auto v = load_pack<T, N>(x, t, j), g = load_pack<T, N>(dy, t, j);
#pragma unroll
    for (int n = 0; n < N; ++n) dot = dot + T(scale_at(norm, j + n)) * g.at[n] * v.at[n];
  }
  const T inv = load<T>(inverse, t, 0);
  const T pull = norm_pull(block_sum(dot), inv, width);
  for (Index j = N * static_cast<Index>(threadIdx.x); j < width; j += step) {
    const auto v = load_pack<T, N>(x, t, j), g = load_pack<T, N>(dy, t, j);
    Pack<T, N> out;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      out.at[n] = inv * T(scale_at(norm, j + n)) * g.at[n] - v.at[n] * pull;
    }
    put_pack(dx, t, j, out, add);
  }
}

/// out[j] += sum over rows of term(row, j), for 32 columns a block; a column's rows are taken by 32
/// threads in turn, whose sums are added in order.
template <class T, class Term>
__device__ void add_column_sums(Index rows, Index cols, ScalarOf<T>* out, const Term& term) {
  __shared__ T sums[32][33];
  const Index j = static_cast<Index>(blockIdx.x) * 32 + threadIdx.x;
  T sum(0);
  if (j < cols) {
    for (Index t = threadIdx.y; t < rows; t += 32) sum = sum + term(t, j);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || j >= cols) return;
  for (int i = 1; i < 32; ++i) sum = sum + sums[i][threadIdx.x];
  put(out[j], sum, true);
}

constexpr int column_threads = 32 * 32;

template <class T, class S = ScalarOf<T>>
__global__ void __launch_bounds__(column_threads)
    rms_norm_scale_kernel(Operand<S> x, Operand<S> inverse, Operand<S> dy, View<S> dscale) {
  add_column_sums<T>(x.value.rows, x.value.cols, dscale.data, [&](Index t, Index j) {
    return load<T>(dy, t, j) * load<T>(x, t, j) * load<T>(inverse, t, 0);
  });
}

}  // namespace

template <class S>
void Launch<S>::rms_norm(Stream stream, bool tangents, Operand<S> x, Norm<S> norm, Operand<S> h,
                         View<S> y, View<S> inverse) {
  if (x.value.rows == 0) return;
  const bool aligned = in_packs(x) && in_packs(h) && in_packs<S>(y);
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    rms_norm_kernel<T, N><<<grid(x.value.rows), row_threads, 0, stream>>>(x, norm, h, y, inverse);
  });
}

template <class S>
void Launch<S>::rms_norm_backward(Stream stream, bool tangents, Operand<S> x, Norm<S> norm,
                                  Operand<S> inverse, Operand<S> dy, View<S> dx, Write write,
                                  View<S> dscale) {
  if (x.value.rows == 0) return;
  if (!dscale.empty()) {  // before dx: it may be dy
    with_number<S>(tangents, [&]<class T>() {
      rms_norm_scale_kernel<T>
          <<<grid(blocks_for(x.value.cols, 32)), dim3(32, 32), 0, stream>>>(x, inverse, dy, dscale);
    });
  }
  if (dx.empty()) return;
  const bool aligned = in_packs(x) && in_packs(dy) && in_packs<S>(dx);
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    rms_norm_backward_kernel<T, N><<<grid(x.value.rows), row_threads, 0, stream>>>(
        x, norm, inverse, dy, dx, write == Write::Add);
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
