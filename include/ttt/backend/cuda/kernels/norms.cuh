// SPDX-License-Identifier: MIT
/// \file
/// Root-mean-square norms, a block a row. A norm moves 4 bytes in and 4 out an element, 8 and 8
/// with the sum before it, its gradient 8 and 4; a rounded copy is 2 more.
#pragma once

#include <ttt/backend/cuda/kernels/column_sums.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// 1 / sqrt(sum / size + eps). In double, but for values in float, for which every thread of a row
/// waits: there in float, by the GPU's guess and, unless that is 0 or infinite, a step of Newton's.
template <class T>
__device__ T inverse_rms(T sum, Index size, double eps) {
  using std::sqrt;
  if constexpr (std::is_same_v<T, float>) {
    const float mean = __fmaf_rn(sum, 1.0f / static_cast<float>(size), static_cast<float>(eps));
    const float guess = rsqrtf(mean);
    if (!(guess > 0) || isinf(guess)) return guess;
    return __fmaf_rn(0.5f * guess, __fmaf_rn(-mean * guess, guess, 1.0f), guess);
  } else {
    return narrow<T>(Wide<T>(1) /
                     sqrt(widen(sum) / Wide<T>(static_cast<double>(size)) + Wide<T>(eps)));
  }
}
/// What every dx loses along x: inverse³ / size * <scale * dy, x>; the first factor is known first.
template <class T>
__device__ Wide<T> pull_factor(T inverse, Index size) {
  const Wide<T> inv = widen(inverse);
  return inv * inv * inv / Wide<T>(static_cast<double>(size));
}
template <class T>
__device__ T norm_pull(T dot, T inverse, Index size) {
  return narrow<T>(pull_factor(inverse, size) * widen(dot));
}

/// h + x * inverse * scale, in float with every operation rounded: kernels that are to agree to the
/// bit must not leave it to the compiler which of them it fuses.
template <class T>
__device__ T add_scaled(T h, T x, T inverse, T scale) {
  if constexpr (std::is_same_v<T, float>) {
    return __fadd_rn(h, __fmul_rn(__fmul_rn(x, inverse), scale));
  } else {
    return h + x * inverse * scale;
  }
}

/// y = [h +] x * inverse * scale; a block a row.
template <class T, int N, class S = ScalarOf<T>>
__global__ void rms_norm_kernel(Operand<S> x, Norm<S> norm, Operand<S> h, Results<S> y,
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
      out.at[n] = add_scaled(out.at[n], v.at[n], inv, T(scale_at(norm, j + n)));
    }
    put_pack(y, t, j, out);
  }
}

/// N neighbours, at once where they lie so.
template <class S, int N, class Stored>
__device__ void load_neighbours(const Stored* from, Index apart, Pack<S, N>& out) {
  using Raw = RawPack<Stored, N>;
  if (apart == 1 && reinterpret_cast<std::uintptr_t>(from) % sizeof(Raw) == 0) {
    const Raw raw = *reinterpret_cast<const Raw*>(from);
#pragma unroll
    for (int n = 0; n < N; ++n) out.at[n] = static_cast<S>(element(&raw.at[n]));
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) out.at[n] = static_cast<S>(element(from + n * apart));
  }
}
/// A norm's factors of channels j to j + N - 1.
template <int N, class S>
__device__ Pack<S, N> load_scales(const Norm<S>& norm, Index j) {
  const Weight<S>& w = norm.scale;
  const Index at = w.transposed ? j * w.stride : j, apart = w.transposed ? w.stride : 1;
  Pack<S, N> out;
#pragma unroll
  for (int n = 0; n < N; ++n) out.at[n] = S(1);
  if (w.narrow) {
    load_neighbours(static_cast<const bfloat16*>(w.data) + at, apart, out);
  } else if (w.data != nullptr) {
    load_neighbours(static_cast<const S*>(w.data) + at, apart, out);
  }
  return out;
}

/// Packs of a row that a thread of a block of row_threads holds, at most.
constexpr int held_packs = 4;

/// f(i, j) for a thread's i-th pack, which begins at channel j.
template <int N, int held, class F>
__device__ void for_held(Index width, const F& f) {
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const Index j = N * (static_cast<Index>(threadIdx.x) + i * Index{row_threads});
    if (j < width) f(i, j);
  }
}
template <int N, int held, class S>
__device__ S sum_of_squares(Index width, const Pack<S, N> (&x)[held]) {
  S squares(0);
  for_held<N, held>(width, [&](int i, Index) {
#pragma unroll
    for (int n = 0; n < N; ++n) squares = squares + x[i].at[n] * x[i].at[n];
  });
  return squares;
}
/// block_sum over row_threads, to the same bits, with one barrier: no block sums at a place twice,
/// unless it has summed at another since.
template <class T>
__device__ T row_sum(T x, T (&parts)[row_threads / 32]) {
  x = lanes_sum(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = parts[0];
#pragma unroll
  for (unsigned i = 1; i < row_threads / 32; ++i) sum = sum + parts[i];
  return sum;
}
template <int place, class T>
__device__ T row_sum(T x) {
  __shared__ T parts[row_threads / 32];
  return row_sum(x, parts);
}

/// What a thread makes of its packs.
template <int N, class S>
__device__ Pack<S, N> residual_sum(bool has_norm, Pack<S, N> h, const Pack<S, N>& x, S inverse,
                                   const Pack<S, N>& scale) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    S& out = h.at[n];
    out = has_norm ? add_scaled(out, x.at[n], inverse, scale.at[n]) : out + x.at[n];
  }
  return h;
}
template <int N, class S>
__device__ Pack<S, N> scaled(const Pack<S, N>& x, S inverse, const Pack<S, N>& scale) {
  Pack<S, N> out;
#pragma unroll
  for (int n = 0; n < N; ++n) out.at[n] = add_scaled(S(0), x.at[n], inverse, scale.at[n]);
  return out;
}

/// rms_norm_kernel where a thread holds its share of a row: all that is read is asked for at once.
template <int N, int held, class S>
__global__ void __launch_bounds__(row_threads)
    rms_norm_held_kernel(View<const S> x, Norm<S> norm, View<const S> h, Results<S> y,
                         View<S> inverse) {
  const Index t = blockIdx.x, width = x.cols;
  Pack<S, N> v[held], out[held], scale[held];
  for_held<N, held>(width, [&](int i, Index j) {
    v[i] = load_pack<S, N>({x, {}}, t, j);
    out[i] = load_pack<S, N>({h, {}}, t, j);
    scale[i] = load_scales<N>(norm, j);
  });
  const S inv = inverse_rms(row_sum<0>(sum_of_squares(width, v)), width, norm.eps);
  if (!inverse.empty() && threadIdx.x == 0) inverse(t, 0) = inv;
  if (y.empty()) return;
  for_held<N, held>(width, [&](int i, Index j) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      out[i].at[n] = add_scaled(out[i].at[n], v[i].at[n], inv, scale[i].at[n]);
    }
    put_pack(y, t, j, out[i]);
  });
}

/// Row t of out = h + x or h + rms_norm(x), then of y = rms_norm(out); a block a row, every thread
/// holds its share. Nobody waits for memory but once: what is read is asked for before the first
/// sum. Each number is computed as rms_norm_kernel and add_kernel compute it.
template <int N, int held, class S>
__global__ void __launch_bounds__(row_threads)
    sum_and_norm_kernel(SumAndNorm<S> all, View<bfloat16> rounded) {
  const ResidualSum<S>& sum = all.sum;
  const Index t = blockIdx.x, width = sum.x.cols;
  Pack<S, N> x[held], h[held], scale[held], next_scale[held];
  for_held<N, held>(width, [&](int i, Index j) {
    x[i] = load_pack<S, N>({sum.x, {}}, t, j);
    h[i] = load_pack<S, N>({sum.h, {}}, t, j);
    if (sum.has_norm) scale[i] = load_scales<N>(sum.norm, j);
    next_scale[i] = load_scales<N>(all.norm, j);
  });
  S inv(1);
  if (sum.has_norm) {
    inv = inverse_rms(row_sum<0>(sum_of_squares(width, x)), width, sum.norm.eps);
    if (!sum.inverse.empty() && threadIdx.x == 0) sum.inverse(t, 0) = inv;
  }
  for_held<N, held>(width, [&](int i, Index j) {
    h[i] = residual_sum(sum.has_norm, h[i], x[i], inv, scale[i]);
    put_pack(sum.out, t, j, h[i]);
  });
  inv = inverse_rms(row_sum<1>(sum_of_squares(width, h)), width, all.norm.eps);
  if (!all.inverse.empty() && threadIdx.x == 0) all.inverse(t, 0) = inv;
  for_held<N, held>(width, [&](int i, Index j) {
    const auto out = scaled(h[i], inv, next_scale[i]);
    put_pack(Results<S>(all.y, rounded), t, j, out);
  });
}
/// Whether there is a kernel for these rows.
template <class S>
bool fits_sum_and_norm(const SumAndNorm<S>& all, const View<bfloat16>& rounded = {}) {
  const ResidualSum<S>& sum = all.sum;
  return in_packs(sum.x) && in_packs(sum.h) && in_packs<S>(sum.out) && in_packs<S>(all.y) &&
         sum.x.cols <= held_packs * pack_size<S> * Index{row_threads} && sum.x.rows > 0 &&
         !(all.y.empty() && rounded.empty());
}

/// dx (+)= inverse * scale * dy - x * pull; dx may be dy.
template <class T, int N, class S = ScalarOf<T>>
__global__ void rms_norm_backward_kernel(Operand<S> x, Norm<S> norm, Operand<S> inverse,
                                         Operand<S> dy, Results<S> dx, bool add) {
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

/// The same where a thread holds its share of a row: all that is read is asked for at once. With
/// `sums`, a block takes every gridDim.x-th row and leaves, in its row of `part`, their share of
/// the gradient of scales, for which x and dy were read already.
template <class T, int N, int held, bool sums, class S = ScalarOf<T>>
__global__ void __launch_bounds__(row_threads, sums || !std::is_same_v<T, S> ? 2 : 1)
    rms_norm_backward_held_kernel(Operand<S> x, Norm<S> norm, Operand<S> inverse, Operand<S> dy,
                                  Results<S> dx, bool add, S* part) {
  __shared__ T totals[2][row_threads / 32];
  const Index width = x.value.cols;
  Pack<S, N> scale[held], sum[held] = {};
  for_held<N, held>(width, [&](int i, Index j) { scale[i] = load_scales<N>(norm, j); });
  int turn = 0;
  for (Index t = blockIdx.x; t < x.value.rows; t += gridDim.x, turn ^= 1) {
    Pack<T, N> v[held], g[held];
    Pack<S, N> out[held];
    const T inv = load<T>(inverse, t, 0);
    for_held<N, held>(width, [&](int i, Index j) {
      v[i] = load_pack<T, N>(x, t, j);
      g[i] = load_pack<T, N>(dy, t, j);
      out[i] = load_pack<S, N>({add ? dx.values : View<S>(), {}}, t, j);
    });
    const Wide<T> factor = pull_factor(inv, width);
    T dot(0);
    for_held<N, held>(width, [&](int i, Index) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        dot = dot + T(scale[i].at[n]) * g[i].at[n] * v[i].at[n];
        if (sums) sum[i].at[n] += result_of(g[i].at[n] * v[i].at[n] * inv);
      }
    });
    const T pull = narrow<T>(factor * widen(row_sum(dot, totals[turn])));
    for_held<N, held>(width, [&](int i, Index j) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const S own = result_of(inv * T(scale[i].at[n]) * g[i].at[n] - v[i].at[n] * pull);
        out[i].at[n] = add ? out[i].at[n] + own : own;
      }
      put_pack(dx, t, j, out[i]);
    });
    if (!sums) return;
  }
  if (!sums) return;
  const View<S> parts(part, gridDim.x, width);
  for_held<N, held>(width, [&](int i, Index j) { put_pack(parts, blockIdx.x, j, sum[i]); });
}

/// Calls f with how many packs of a row of floats a thread is to hold. False, and nothing done,
/// where they are too many or another scalar's.
template <class S, class F>
bool with_held(Index width, const F& f) {
  if constexpr (std::is_same_v<S, float>) {
    const Index packs = blocks_for(width, pack_size<S> * Index{row_threads});
    if (packs > held_packs) return false;
    if (packs <= 1) {
      f(std::integral_constant<int, 1>());
    } else if (packs <= 3) {
      f(std::integral_constant<int, 3>());
    } else {
      f(std::integral_constant<int, held_packs>());
    }
    return true;
  }
  return false;
}

template <class T, class S = ScalarOf<T>>
__global__ void __launch_bounds__(1024)
    rms_norm_scale_kernel(ColumnSums all, Operand<S> x, Operand<S> inverse, Operand<S> dy,
                          S* part) {
  sum_columns<T>(all, part, [&](Index t, Index j) {
    return load<T>(dy, t, j) * load<T>(x, t, j) * load<T>(inverse, t, 0);
  });
}

}  // namespace

template <class S>
void Launch<S>::rms_norm(Stream stream, bool tangents, Operand<S> x, Norm<S> norm, Operand<S> h,
                         Results<S> y, View<S> inverse) {
  if (x.value.rows == 0) return;
  const bool aligned = in_packs(x) && in_packs(h) && in_packs<S>(y.values);
  const auto hold = [&](auto held) {
    rms_norm_held_kernel<pack_size<S>, held()>
        <<<grid(x.value.rows), row_threads, 0, stream>>>(x.value, norm, h.value, y, inverse);
  };
  if (aligned && !tangents && with_held<S>(x.value.cols, hold)) return;
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    rms_norm_kernel<T, N><<<grid(x.value.rows), row_threads, 0, stream>>>(x, norm, h, y, inverse);
  });
}

template <class S>
bool Launch<S>::sum_and_norm(Stream stream, const SumAndNorm<S>& all, View<bfloat16> rounded) {
  if constexpr (std::is_same_v<S, float>) {
    return fits_sum_and_norm(all, rounded) && with_held<S>(all.sum.x.cols, [&](auto held) {
             sum_and_norm_kernel<pack_size<S>, held()>
                 <<<grid(all.sum.x.rows), row_threads, 0, stream>>>(all, rounded);
           });
  }
  return false;
}

template <class S>
void Launch<S>::rms_norm_backward(Stream stream, bool tangents, Operand<S> x, Norm<S> norm,
                                  Operand<S> inverse, Operand<S> dy, Results<S> dx, Write write,
                                  View<S> dscale, void* scratch) {
  const Index rows = x.value.rows, width = x.value.cols;
  if (rows == 0) return;
  S* const part = static_cast<S*>(scratch);
  const bool add = write == Write::Add, sums = !dscale.empty();
  const bool aligned = in_packs(x) && in_packs(dy) && in_packs<S>(dx.values);
  const auto hold = [&](auto held) {
    with_number<S>(tangents, [&]<class T>() {
      const auto kernel = sums ? rms_norm_backward_held_kernel<T, pack_size<S>, held(), true>
                               : rms_norm_backward_held_kernel<T, pack_size<S>, held(), false>;
      const ColumnSums all = row_sums(rows, width, rows);
      kernel<<<grid(sums ? all.parts : rows), row_threads, 0, stream>>>(x, norm, inverse, dy, dx,
                                                                        add, part);
      if (sums) add_parts(stream, all, part, dscale);
    });
  };
  if (aligned && !dx.empty() && with_held<S>(width, hold)) return;
  if (sums) {  // before dx: it may be dy
    const ColumnSums all = column_sums(rows, width);
    with_number<S>(tangents, [&]<class T>() {
      rms_norm_scale_kernel<T>
          <<<column_grid(all), column_threads, 0, stream>>>(all, x, inverse, dy, part);
    });
    add_parts(stream, all, part, dscale);
  }
  if (dx.empty()) return;
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    rms_norm_backward_kernel<T, N>
        <<<grid(rows), row_threads, 0, stream>>>(x, norm, inverse, dy, dx, add);
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
