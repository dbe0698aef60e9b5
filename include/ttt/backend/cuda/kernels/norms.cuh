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
__global__ void rms_norm_kernel(Operand<S> x, Norm<S> norm, Operand<S> h, View<S> y,
                                View<S> inverse, View<bfloat16> rounded) {
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
    put_rounded(rounded, t, j, out);
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
    const auto* const from = static_cast<const bfloat16*>(w.data) + at;
#pragma unroll
    for (int n = 0; n < N; ++n) out.at[n] = static_cast<S>(element(from + n * apart));
  } else if (w.data != nullptr) {
    const auto* const from = static_cast<const S*>(w.data) + at;
#pragma unroll
    for (int n = 0; n < N; ++n) out.at[n] = element(from + n * apart);
  }
  return out;
}

/// Asks for a norm's factors, which nobody has read for a token, into the L2 cache.
template <class S>
__device__ void prefetch_scales(const Norm<S>& norm) {
  const Index size = norm.scale.narrow ? sizeof(bfloat16) : sizeof(S), line = 128;
  const char* const at = static_cast<const char*>(norm.scale.data) + line * threadIdx.x;
  if (norm.scale.empty() || norm.scale.transposed) return;
  if (line * threadIdx.x < size * norm.scale.cols) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
  }
}

/// Packs of a row that a thread of sum_and_norm holds.
constexpr int held_packs = 4;

/// Row t of out = h + x or h + rms_norm(x), then of y = rms_norm(out); a block a row, every thread
/// holds its share. Nobody waits for memory but once: what is read is asked for before the first
/// sum. Each number is computed as rms_norm_kernel and add_kernel compute it.
template <int N, class S>
__device__ void sum_and_norm(const ResidualSum<S>& sum, const Norm<S>& norm, const View<S>& y,
                             const View<S>& inverse, const View<bfloat16>& rounded, Index t) {
  const Index width = sum.x.cols, first = N * static_cast<Index>(threadIdx.x);
  constexpr Index step = N * static_cast<Index>(row_threads);
  Pack<S, N> x[held_packs], h[held_packs], scale[held_packs], next_scale[held_packs];
#pragma unroll
  for (int i = 0; i < held_packs; ++i) {
    const Index j = first + i * step;
    if (j >= width) break;
    x[i] = load_pack<S, N>({sum.x, {}}, t, j);
    h[i] = load_pack<S, N>({sum.h, {}}, t, j);
    if (sum.has_norm) scale[i] = load_scales<N>(sum.norm, j);
    next_scale[i] = load_scales<N>(norm, j);
  }
  S inv(1);
  if (sum.has_norm) {
    S squares(0);
#pragma unroll
    for (int i = 0; i < held_packs; ++i) {
      if (first + i * step >= width) break;
#pragma unroll
      for (int n = 0; n < N; ++n) squares = squares + x[i].at[n] * x[i].at[n];
    }
    inv = inverse_rms(block_sum(squares), width, sum.norm.eps);
    if (!sum.inverse.empty() && threadIdx.x == 0) sum.inverse(t, 0) = inv;
  }
  S squares(0);
#pragma unroll
  for (int i = 0; i < held_packs; ++i) {
    const Index j = first + i * step;
    if (j >= width) break;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      S& out = h[i].at[n];
      out = sum.has_norm ? add_scaled(out, x[i].at[n], inv, scale[i].at[n]) : out + x[i].at[n];
      squares = squares + out * out;
    }
    put_pack(sum.out, t, j, h[i]);
  }
  inv = inverse_rms(block_sum(squares), width, norm.eps);
  if (!inverse.empty() && threadIdx.x == 0) inverse(t, 0) = inv;
#pragma unroll
  for (int i = 0; i < held_packs; ++i) {
    const Index j = first + i * step;
    if (j >= width) break;
    Pack<S, N> out;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      out.at[n] = add_scaled(S(0), h[i].at[n], inv, next_scale[i].at[n]);
    }
    put_pack(y, t, j, out);
    put_rounded(rounded, t, j, out);
  }
}
template <class S, int N>
__global__ void __launch_bounds__(row_threads)
    sum_and_norm_kernel(ResidualSum<S> sum, Norm<S> norm, View<S> y, View<S> inverse,
                        View<bfloat16> rounded) {
  sum_and_norm<N>(sum, norm, y, inverse, rounded, blockIdx.x);
}
/// Whether there is a kernel for these rows.
template <class S>
bool fits_sum_and_norm(const ResidualSum<S>& sum, const View<S>& y) {
  return in_packs(sum.x) && in_packs(sum.h) && in_packs<S>(sum.out) && in_packs<S>(y) &&
         sum.x.cols <= held_packs * pack_size<S> * Index{row_threads} && sum.x.rows > 0 &&
         !y.empty();
}

/// dx (+)= inverse * scale * dy - x * pull; dx may be dy.
template <class T, int N, class S = ScalarOf<T>>
__global__ void rms_norm_backward_kernel(Operand<S> x, Norm<S> norm, Operand<S> inverse,
                                         Operand<S> dy, View<S> dx, bool add,
                                         View<bfloat16> rounded) {
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
    put_rounded(rounded, t, j, out);
  }
}

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
Index Launch<S>::column_scratch(Index rows, Index cols) {
  return column_sums(rows, cols).parts * cols * static_cast<Index>(sizeof(S));
}

template <class S>
void Launch<S>::rms_norm(Stream stream, bool tangents, Operand<S> x, Norm<S> norm, Operand<S> h,
                         View<S> y, View<S> inverse, View<bfloat16> rounded) {
  if (x.value.rows == 0) return;
  const bool aligned = in_packs(x) && in_packs(h) && in_packs<S>(y);
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    rms_norm_kernel<T, N>
        <<<grid(x.value.rows), row_threads, 0, stream>>>(x, norm, h, y, inverse, rounded);
  });
}

template <class S>
bool Launch<S>::sum_and_norm(Stream stream, const ResidualSum<S>& sum, Norm<S> norm, View<S> y,
                             View<S> inverse, View<bfloat16> rounded) {
  if constexpr (std::is_same_v<S, float>) {
    if (!fits_sum_and_norm(sum, y)) return false;
    sum_and_norm_kernel<S, pack_size<S>>
        <<<grid(sum.x.rows), row_threads, 0, stream>>>(sum, norm, y, inverse, rounded);
    return true;
  }
  return false;
}

template <class S>
void Launch<S>::rms_norm_backward(Stream stream, bool tangents, Operand<S> x, Norm<S> norm,
                                  Operand<S> inverse, Operand<S> dy, View<S> dx, Write write,
                                  View<S> dscale, void* scratch, View<bfloat16> rounded) {
  if (x.value.rows == 0) return;
  if (!dscale.empty()) {  // before dx: it may be dy
    const ColumnSums all = column_sums(x.value.rows, x.value.cols);
    S* const part = static_cast<S*>(scratch);
    with_number<S>(tangents, [&]<class T>() {
      rms_norm_scale_kernel<T>
          <<<column_grid(all), column_threads, 0, stream>>>(all, x, inverse, dy, part);
    });
    add_parts(stream, all, part, dscale);
  }
  if (dx.empty()) return;
  const bool aligned = in_packs(x) && in_packs(dy) && in_packs<S>(dx);
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    rms_norm_backward_kernel<T, N><<<grid(x.value.rows), row_threads, 0, stream>>>(
        x, norm, inverse, dy, dx, write == Write::Add, rounded);
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
