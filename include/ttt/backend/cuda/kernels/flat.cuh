// SPDX-License-Identifier: MIT
/// \file
/// Flat vectors: updates, and sums whose order never changes.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr unsigned flat_threads = 256;
inline unsigned flat_blocks(Index size) {
  constexpr Index most = 132 * 16;
  const Index blocks = blocks_for(size, flat_threads);
  return grid(blocks < most ? blocks : most);
}

/// Calls f(i) for every i below size, neighbours on neighbouring threads.
template <class F>
__device__ void each(Index size, const F& f) {
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
    f(i);
  }
}

template <class S>
__global__ void fill_kernel(S value, S* to, Index size) {
  each(size, [&](Index i) { to[i] = value; });
}

/// A product that no sum is contracted with: as on the processor, a step is rounded once before it
/// is taken.
__device__ inline float product(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline double product(double a, double b) {
  return __dmul_rn(a, b);
}

/// With `replace`, y is written and never read.
template <class S>
__global__ void axpby_kernel(S a, const S* x, S b, bool replace, S* y, Index size) {
  each(size, [&](Index i) {
    const S ax = product(a, x[i]);
    y[i] = replace ? ax : b * y[i] + ax;
  });
}

/// The factors of an AdamStep in the weights' own scalar.
template <class S>
struct AdamFactors {
  S scale, beta1, new1, beta2, new2, rate, unbias2, eps;
};

template <class S>
__global__ void adam_kernel(AdamFactors<S> f, const S* gradient, S* m, S* v, S* weights,
                            Index size) {
  each(size, [&](Index i) {
    const S g = f.scale * gradient[i];
    const S mean = f.beta1 * m[i] + f.new1 * g;
    const S square = f.beta2 * v[i] + f.new2 * (g * g);
    m[i] = mean;
    v[i] = square;
    weights[i] -= f.rate * mean / (sqrt(f.unbias2 * square) + f.eps);
  });
}

template <class S>
__global__ void dot_kernel(const S* x, const S* y, Index size, double* partial) {
  double sum = 0;
  each(size, [&](Index i) { sum += static_cast<double>(x[i]) * static_cast<double>(y[i]); });
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class = void>  // so that two units of a program may have it
__global__ void total_kernel(const double* partial, int blocks, double* sum) {
  double mine = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x)) {
    mine += partial[i];
  }
  mine = block_sum(mine);
  if (threadIdx.x == 0) *sum = mine;
}

}  // namespace

template <class S>
void Launch<S>::fill(Stream stream, S value, S* to, Index size) {
  if (size > 0) fill_kernel<<<flat_blocks(size), flat_threads, 0, stream>>>(value, to, size);
}
template <class S>
void Launch<S>::fill(Stream stream, bfloat16 value, bfloat16* to, Index size) {
  if (size > 0) fill_kernel<<<flat_blocks(size), flat_threads, 0, stream>>>(value, to, size);
}

template <class S>
void Launch<S>::axpby(Stream stream, double a, const S* x, double b, S* y, Index size) {
  if (size == 0) return;
  axpby_kernel<<<flat_blocks(size), flat_threads, 0, stream>>>(static_cast<S>(a), x,
                                                               static_cast<S>(b), b == 0, y, size);
}

template <class S>
void Launch<S>::adam(Stream stream, const AdamStep& step, const S* gradient, S* m, S* v, S* weights,
                     Index size) {
  if (size == 0) return;
  const AdamFactors<S> factors{
      static_cast<S>(step.scale),     static_cast<S>(step.beta1),
      static_cast<S>(1 - step.beta1), static_cast<S>(step.beta2),
      static_cast<S>(1 - step.beta2), static_cast<S>(step.rate * step.unbias1),
      static_cast<S>(step.unbias2),   static_cast<S>(step.eps)};
  adam_kernel<<<flat_blocks(size), flat_threads, 0, stream>>>(factors, gradient, m, v, weights,
                                                              size);
}

template <class S>
void Launch<S>::dot(Stream stream, const S* x, const S* y, Index size, double* partial, int blocks,
                    double* sum) {
  dot_kernel<<<static_cast<unsigned>(blocks), flat_threads, 0, stream>>>(x, y, size, partial);
  total_kernel<><<<1, flat_threads, 0, stream>>>(partial, blocks, sum);
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
