// SPDX-License-Identifier: MIT
/// \file
/// Rotary positions, with the norm of each head before them; a warp a head.
#pragma once

#include <ttt/backend/cuda/kernels/norms.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <class S>
__global__ void rope_angles_kernel(Place place, Frequencies frequencies, View<S> out) {
  const Index half = out.cols / 2, t = blockIdx.x;
  for (Index i = threadIdx.x; i < half; i += blockDim.x) {
    const double angle = static_cast<double>(place.now() + t) * frequencies.of[i];
    out(t, i) = static_cast<S>(cos(angle));
    out(t, half + i) = static_cast<S>(sin(angle));
  }
}

/// The two channels of a pair.
__device__ inline Index first_of_pair(RopeLayout layout, Index i) {
  return layout == RopeLayout::Interleaved ? 2 * i : i;
}
__device__ inline Index second_of_pair(RopeLayout layout, Index i, Index d) {
  return layout == RopeLayout::Interleaved ? 2 * i + 1 : i + d / 2;
}

/// The head of this warp in a grid of (rows, blocks of heads).
constexpr Index heads_a_block = row_threads / 32;
__device__ inline Index own_head() {
  return blockIdx.y * heads_a_block + threadIdx.x / 32;
}

constexpr int most_pairs = most_head_dim / 2 / 32;  // of a head, on one of 32 lanes

/// Every head normed and turned; a warp a head.
template <class T, class S = ScalarOf<T>>
__global__ void head_norm_rope_kernel(Operand<S> x, Norm<S> norm, View<const S> angles,
                                      RopeLayout layout, View<S> y, View<S> inverse) {
  const Index d = angles.cols, t = blockIdx.x, lane = threadIdx.x % 32, h = own_head();
  if (h * d >= x.value.cols) return;
  T u[most_pairs], v[most_pairs], sum(0);
#pragma unroll
  for (int n = 0; n < most_pairs; ++n) {
    const Index i = lane + 32 * n;
    if (i >= d / 2) continue;
    u[n] = load<T>(x, t, h * d + first_of_pair(layout, i));
    v[n] = load<T>(x, t, h * d + second_of_pair(layout, i, d));
    sum = sum + u[n] * u[n] + v[n] * v[n];
  }
  T inv(1);
  if (norm.eps >= 0) {
    inv = inverse_rms(lanes_sum(sum), d, norm.eps);
    if (!inverse.empty() && lane == 0) put(inverse(t, h), inv);
  }
#pragma unroll
  for (int n = 0; n < most_pairs; ++n) {
    const Index i = lane + 32 * n;
    if (i >= d / 2) continue;
    const Index a = first_of_pair(layout, i), b = second_of_pair(layout, i, d);
    const T first = u[n] * inv * T(scale_at(norm, a)), second = v[n] * inv * T(scale_at(norm, b));
    const T c(angles(t, i)), s(angles(t, d / 2 + i));
    if (y.empty()) continue;
    put(y(t, h * d + a), first * c - second * s);
    put(y(t, h * d + b), first * s + second * c);
  }
}

/// A pair of dy turned back.
template <class T>
struct Turned {
  T first, second;
};
template <class T, class S = ScalarOf<T>>
__device__ Turned<T> turn_back(const Operand<S>& dy, View<const S> angles, RopeLayout layout,
                               Index t, Index h, Index i) {
  const Index d = angles.cols;
  const T u = load<T>(dy, t, h * d + first_of_pair(layout, i));
  const T v = load<T>(dy, t, h * d + second_of_pair(layout, i, d));
  const T c(angles(t, i)), s(angles(t, d / 2 + i));
  return {u * c + v * s, v * c - u * s};
}

template <class T, class S = ScalarOf<T>>
__global__ void head_norm_rope_backward_kernel(Operand<S> x, Norm<S> norm, Operand<S> inverse,
                                               View<const S> angles, RopeLayout layout,
                                               Operand<S> dy, View<S> dx) {
  const Index d = angles.cols, t = blockIdx.x, lane = threadIdx.x % 32, h = own_head();
  if (h * d >= x.value.cols) return;
  Turned<T> g[most_pairs];
  T dot(0);
#pragma unroll
  for (int n = 0; n < most_pairs; ++n) {
    const Index i = lane + 32 * n;
    if (i >= d / 2) continue;
    g[n] = turn_back<T>(dy, angles, layout, t, h, i);
    if (norm.eps < 0) continue;
    const Index a = first_of_pair(layout, i), b = second_of_pair(layout, i, d);
    dot = dot + T(scale_at(norm, a)) * g[n].first * load<T>(x, t, h * d + a) +
          T(scale_at(norm, b)) * g[n].second * load<T>(x, t, h * d + b);
  }
  T inv(1), pull(0);
  if (norm.eps >= 0) {
    inv = load<T>(inverse, t, h);
    pull = norm_pull(lanes_sum(dot), inv, d);
  }
#pragma unroll
  for (int n = 0; n < most_pairs; ++n) {
    const Index i = lane + 32 * n;
    if (i >= d / 2) continue;
    const Index a = first_of_pair(layout, i), b = second_of_pair(layout, i, d);
    T first = g[n].first, second = g[n].second;
    if (norm.eps >= 0) {
      first = inv * T(scale_at(norm, a)) * first - load<T>(x, t, h * d + a) * pull;
      second = inv * T(scale_at(norm, b)) * second - load<T>(x, t, h * d + b) * pull;
    }
    put(dx(t, h * d + a), first);
    put(dx(t, h * d + b), second);
  }
}

/// Rows are (token, head).
template <class T, class S = ScalarOf<T>>
__global__ void __launch_bounds__(1024)
    head_norm_scale_kernel(ColumnSums all, Operand<S> x, Operand<S> inverse, View<const S> angles,
                           RopeLayout layout, Operand<S> dy, S* part) {
  const Index d = angles.cols, heads = x.value.cols / d;
  sum_columns<T>(all, part, [&](Index row, Index j) {
    const Index t = row / heads, h = row % heads;
    const bool interleaved = layout == RopeLayout::Interleaved;
    const Index i = interleaved ? j / 2 : j % (d / 2);
    const bool is_first = interleaved ? j % 2 == 0 : j < d / 2;
    const Turned<T> g = turn_back<T>(dy, angles, layout, t, h, i);
    return (is_first ? g.first : g.second) * load<T>(x, t, h * d + j) * load<T>(inverse, t, h);
  });
}

template <class S>
dim3 head_grid(const View<const S>& x, const View<const S>& angles) {
  return {grid(x.rows), grid(blocks_for(x.cols / angles.cols, heads_a_block))};
}

}  // namespace

template <class S>
void Launch<S>::rope_angles(Stream stream, Place place, const Frequencies& frequencies,
                            View<S> out) {
  if (out.rows == 0) return;
  rope_angles_kernel<<<grid(out.rows), 64, 0, stream>>>(place, frequencies, out);
}

template <class S>
void Launch<S>::head_norm_rope(Stream stream, bool tangents, Operand<S> x, Norm<S> norm,
                               View<const S> angles, RopeLayout layout, View<S> y,
                               View<S> inverse) {
  if (x.value.rows == 0) return;
  with_number<S>(tangents, [&]<class T>() {
    head_norm_rope_kernel<T><<<head_grid(x.value, angles), row_threads, 0, stream>>>(
        x, norm, angles, layout, y, inverse);
  });
}

template <class S>
void Launch<S>::head_norm_rope_backward(Stream stream, bool tangents, Operand<S> x, Norm<S> norm,
                                        Operand<S> inverse, View<const S> angles, RopeLayout layout,
                                        Operand<S> dy, View<S> dx, View<S> dscale, void* scratch) {
  if (x.value.rows == 0) return;
  const bool wants_scale = !dscale.empty() && norm.eps >= 0;
  const ColumnSums all = column_sums(x.value.rows * x.value.cols / angles.cols, angles.cols);
  S* const part = static_cast<S*>(scratch);
  with_number<S>(tangents, [&]<class T>() {
    if (wants_scale) {
      head_norm_scale_kernel<T><<<column_grid(all), column_threads, 0, stream>>>(
          all, x, inverse, angles, layout, dy, part);
    }
    if (dx.empty()) return;
    head_norm_rope_backward_kernel<T><<<head_grid(x.value, angles), row_threads, 0, stream>>>(
        x, norm, inverse, angles, layout, dy, dx);
  });
  if (wants_scale) add_parts(stream, all, part, dscale);
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
