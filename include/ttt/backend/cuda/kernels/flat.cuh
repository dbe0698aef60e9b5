// SPDX-License-Identifier: MIT
/// \file
/// Flat vectors: updates, and sums whose order never changes. They move bytes and nothing else: a
/// gradient's norm 4 a weight, a step along it 12 and 2 for the rounded copy, Adam's 28. At the 3b
/// preset's 346 million weights that learn an H200 moves some 3.6 TB/s in a step, of 4.5 that a
/// plain sum gets. A thread has 8 loads of 16 bytes under way; more than 40 registers cost a block
/// of six, and much of that speed.
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

/// Packs that a thread has on their way at a time, and the numbers that a block then has.
constexpr int flat_packs = 4;
template <class S>
constexpr Index flat_tile = Index{flat_threads} * flat_packs* pack_size<S>;

/// A thread's numbers of the tile of a vector that begins at `first`: the same ones whether the
/// tile is `whole`, and lies so that packs can be moved at once, or not.
template <class S>
struct FlatShare {
  static constexpr int each = pack_size<S>;
  RawPack<S, each> packs[flat_packs];

  static __device__ Index place(Index first, int p) {
    return first + (static_cast<Index>(p) * flat_threads + threadIdx.x) * each;
  }
  /// Zeros behind the end.
  __device__ void load(const S* from, Index first, Index size, bool whole) {
    if (whole) {
#pragma unroll
      for (int p = 0; p < flat_packs; ++p) {
        packs[p] = *reinterpret_cast<const RawPack<S, each>*>(from + place(first, p));
      }
      return;
    }
#pragma unroll
    for (int p = 0; p < flat_packs; ++p) {
#pragma unroll
      for (int n = 0; n < each; ++n) {
        const Index i = place(first, p) + n;
        packs[p].at[n] = i < size ? from[i] : S(0);
      }
    }
  }
  /// As they are, or rounded.
  template <class To>
  __device__ void store(To* to, Index first, Index size, bool whole) const {
#pragma unroll
    for (int p = 0; p < flat_packs; ++p) {
      const Index at = place(first, p);
      RawPack<To, each> out;
#pragma unroll
      for (int n = 0; n < each; ++n) set(out.at[n], packs[p].at[n]);
      if (whole) {
        *reinterpret_cast<RawPack<To, each>*>(to + at) = out;
        continue;
      }
#pragma unroll
      for (int n = 0; n < each; ++n) {
        if (at + n < size) to[at + n] = out.at[n];
      }
    }
  }
};

/// With `replace`, y is written and never read. A copy of it in bfloat16 goes where one is wanted.
/// With `times`, a is the factor times that, and y stays where that is not a number.
template <class S>
__global__ void __launch_bounds__(flat_threads)
    axpby_kernel(double factor, const double* times, const S* x, S b, bool replace, S* y,
                 bfloat16* copy, Index size, bool aligned) {
  const Index first = static_cast<Index>(blockIdx.x) * flat_tile<S>;
  const bool whole = aligned && first + flat_tile<S> <= size;
  FlatShare<S> in, out;
  const auto copy_out = [&] {
    if constexpr (std::is_same_v<S, float>) {
      if (copy != nullptr) out.store(copy, first, size, whole);
    }
  };
  if (times != nullptr) {
    factor *= *times;
    if (isnan(factor)) {
      out.load(y, first, size, whole);
      return copy_out();
    }
  }
  const S a = static_cast<S>(factor);
  in.load(x, first, size, whole);
  if (!replace) out.load(y, first, size, whole);
#pragma unroll
  for (int p = 0; p < flat_packs; ++p) {
#pragma unroll
    for (int n = 0; n < FlatShare<S>::each; ++n) {
      const S ax = product(a, in.packs[p].at[n]);
      out.packs[p].at[n] = replace ? ax : b * out.packs[p].at[n] + ax;
    }
  }
  out.store(y, first, size, whole);
  copy_out();
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
__global__ void __launch_bounds__(flat_threads)
    dot_kernel(const S* x, const S* y, Index size, double* partial, bool aligned) {
  double sum = 0;
  const Index step = static_cast<Index>(gridDim.x) * flat_tile<S>;
  for (Index first = static_cast<Index>(blockIdx.x) * flat_tile<S>; first < size; first += step) {
    const bool whole = aligned && first + flat_tile<S> <= size;
    FlatShare<S> left, right;
    left.load(x, first, size, whole);
    if (x == y) {
      right = left;
    } else {
      right.load(y, first, size, whole);
    }
#pragma unroll
    for (int p = 0; p < flat_packs; ++p) {
#pragma unroll
      for (int n = 0; n < FlatShare<S>::each; ++n) {
        sum += widen(left.packs[p].at[n]) * widen(right.packs[p].at[n]);
      }
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/// By a whole block; in its first thread.
__device__ inline double total_of(const double* partial, int blocks) {
  double mine = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x)) {
    mine += partial[i];
  }
  return block_sum(mine);
}

template <class = void>  // so that two units of a program may have it
__global__ void total_kernel(const double* partial, int blocks, double* sum) {
  const double total = total_of(partial, blocks);
  if (threadIdx.x == 0) *sum = total;
}

/// `partial` are the sums of a gradient's squares.
template <class S>
__global__ void gradient_scale_kernel(const double* partial, int blocks, double clip,
                                      View<const S> scores, GradientScale* found) {
  const double norm = sqrt(total_of(partial, blocks));
  bool finite = true;
  for (Index i = threadIdx.x; i < scores.cols; i += blockDim.x) {
    finite = finite && isfinite(scores(0, i));
  }
  finite = __syncthreads_and(finite);
  if (threadIdx.x > 0) return;
  const double taken = finite && isfinite(norm) ? 1.0 : static_cast<double>(NAN);
  *found = {norm, taken * (clip > 0 && norm > clip ? clip / norm : 1.0), taken};
}

/// Whether vectors begin where packs can be moved at once.
template <class... T>
bool lie_in_packs(const T*... vectors) {
  return ((reinterpret_cast<std::uintptr_t>(vectors) % 16 == 0) && ...);
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
void Launch<S>::axpby(Stream stream, double a, const S* x, double b, S* y, Index size,
                      bfloat16* copy, const double* times) {
  if (size == 0) return;
  axpby_kernel<<<grid(blocks_for(size, flat_tile<S>)), flat_threads, 0, stream>>>(
      a, times, x, static_cast<S>(b), b == 0, y, copy, size, lie_in_packs(x, y, copy));
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
  dot_kernel<<<static_cast<unsigned>(blocks), flat_threads, 0, stream>>>(x, y, size, partial,
                                                                         lie_in_packs(x, y));
  total_kernel<><<<1, flat_threads, 0, stream>>>(partial, blocks, sum);
}

template <class S>
void Launch<S>::gradient_scale(Stream stream, const S* gradient, Index size, double clip,
                               View<const S> scores, double* partial, int blocks,
                               GradientScale* found) {
  dot_kernel<<<static_cast<unsigned>(blocks), flat_threads, 0, stream>>>(
      gradient, gradient, size, partial, lie_in_packs(gradient));
  gradient_scale_kernel<<<1, flat_threads, 0, stream>>>(partial, blocks, clip, scores, found);
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
