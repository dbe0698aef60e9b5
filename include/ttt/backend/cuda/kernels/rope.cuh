// SPDX-License-Identifier: MIT
/// \file
/// Rotary positions, with the norm of each head before them. Forwards a warp a head, 4 bytes in and
/// 4 out an element; backwards four heads a warp, 8 bytes in and 4 out, and 2 for a rounded copy.
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

/// The heads of a lane that has four channels of each. A warp has `count` heads of a token, whose
/// loads are under way together, or twice as many where a head needs but half of the lanes.
template <int lanes, int count>
struct LaneHeads {
  static constexpr unsigned sharing = 32 / lanes, of_warp = count * sharing;
  unsigned row, first, heads;
  Index head_dim, channel;
  bool has_channels;

  __device__ LaneHeads(unsigned heads_, Index d, unsigned block = blockIdx.x)
      : LaneHeads(0, 0, heads_, d) {
    const unsigned warp = block * (row_threads / 32) + threadIdx.x / 32;
    const unsigned warps = (heads + of_warp - 1) / of_warp;
    row = warp / warps;
    first = warp % warps * of_warp + threadIdx.x % 32 / lanes;
  }
  /// Those of a warp that is told which.
  __device__ LaneHeads(unsigned row_, unsigned first_, unsigned heads_, Index d)
      : row(row_),
        first(first_ + threadIdx.x % 32 / lanes),
        heads(heads_),
        head_dim(d),
        channel(4 * (threadIdx.x % lanes)),
        has_channels(channel < d) {}
  __device__ unsigned head(int i) const { return first + static_cast<unsigned>(i) * sharing; }
  __device__ bool exists(int i) const { return head(i) < heads; }
  __device__ bool has(int i) const { return has_channels && exists(i); }

  /// Blocks for so many rows.
  static unsigned blocks(Index rows, Index heads) {
    return grid(blocks_for(rows * blocks_for(heads, of_warp), row_threads / 32));
  }
};
/// Calls f with the lanes that a head needs: 16 or 32.
template <class F>
void with_lanes(Index d, const F& f) {
  if (d <= 64) {
    f(std::integral_constant<int, 16>());
  } else {
    f(std::integral_constant<int, 32>());
  }
}
/// Whether heads can be taken in fours of channels, and halves of heads too.
template <class S>
bool heads_in_fours(const View<const S>& angles) {
  return angles.cols % 8 == 0 && angles.cols <= most_head_dim && in_packs(angles);
}

/// x of another lane.
template <class T>
__device__ T from_lane(T x, unsigned lane) {
  if constexpr (std::is_same_v<T, ScalarOf<T>>) {
    return __shfl_sync(0xffffffffu, x, static_cast<int>(lane));
  } else {
    return {__shfl_sync(0xffffffffu, x.value, static_cast<int>(lane)),
            __shfl_sync(0xffffffffu, x.tangent, static_cast<int>(lane))};
  }
}
/// x[i] = f(x[i], i) of numbers that all lanes of a head have: each lane computes one of them. In
/// double, where every lane computed all, that would take as long as moving the heads.
template <int lanes, int count, class T, class F>
__device__ void share_out(T (&x)[count], const F& f) {
  const int own = static_cast<int>(threadIdx.x) % count;
  T mine = x[0];
#pragma unroll
  for (int i = 1; i < count; ++i) {
    if (own == i) mine = x[i];
  }
  mine = f(mine, own);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    x[i] = from_lane(mine, threadIdx.x % 32 / lanes * lanes + static_cast<unsigned>(i));
  }
}

/// How a lane's four channels are turned.
struct LaneAngles {
  bool interleaved, is_first;  // of two halves
  unsigned other;              // the lane with the other half
  Pack<float, 4> cosine = {}, sine = {};

  template <int lanes, int count>
  __device__ LaneAngles(const LaneHeads<lanes, count>& own, View<const float> angles,
                        RopeLayout layout)
      : interleaved(layout == RopeLayout::Interleaved) {
    const Index half = angles.cols / 2, c = own.channel;
    is_first = c < half;
    const Index others = own.has_channels ? (is_first ? c + half : c - half) / 4 : 0;
    other = threadIdx.x % 32 / lanes * lanes + static_cast<unsigned>(others);
    if (!own.has_channels) return;
    if (interleaved) {
      const auto a = load_pack<float, 2>({angles, {}}, own.row, c / 2);
      const auto b = load_pack<float, 2>({angles, {}}, own.row, half + c / 2);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        cosine.at[n] = a.at[n / 2];
        sine.at[n] = b.at[n / 2];
      }
    } else {
      const Index at = is_first ? c : c - half;
      cosine = load_pack<float, 4>({angles, {}}, own.row, at);
      sine = load_pack<float, 4>({angles, {}}, own.row, half + at);
    }
  }

  /// Forwards, or back; every lane of a warp calls it.
  template <bool back, class T>
  __device__ void turn(Pack<T, 4>& x) const {
    if (interleaved) {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        const T u = x.at[n], v = x.at[n + 1], c(cosine.at[n]), s(sine.at[n]);
        x.at[n] = back ? u * c + v * s : u * c - v * s;
        x.at[n + 1] = back ? v * c - u * s : u * s + v * c;
      }
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const T own = x.at[n], partner = from_lane(own, other), c(cosine.at[n]), s(sine.at[n]);
        const bool minus = is_first != back;
        x.at[n] = minus ? own * c - partner * s : partner * s + own * c;
      }
    }
  }
};

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
                                               Operand<S> dy, Results<S> dx) {
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
    put_pack(dx, t, h * d + a, Pack<T, 1>{first});
    put_pack(dx, t, h * d + b, Pack<T, 1>{second});
  }
}

/// The same in float where heads lie in fours of channels; with `sums` and a norm also a part of
/// the gradient of its scales from each block.
template <class T, int lanes, int count, bool sums>
__global__ void __launch_bounds__(row_threads, (std::is_same_v<T, float> ? 4 : 3) - sums)
    head_norm_rope_backward_fours_kernel(Operand<float> x, Norm<float> norm, Operand<float> inverse,
                                         View<const float> angles, RopeLayout layout,
                                         Operand<float> dy, Results<float> dx, unsigned heads,
                                         unsigned blocks, float* part) {
  const Index d = angles.cols;
  const bool has_norm = norm.eps >= 0;
  Pack<float, 4> sum = {};
  for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x) {
    const LaneHeads<lanes, count> own(heads, d, block);
    const Index t = own.row, c = own.channel;
    if (t >= dy.value.rows) continue;
    Pack<T, 4> g[count] = {}, v[count] = {};
    T inv[count] = {}, pull[count] = {};
    Pack<float, 4> scale = {};
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (own.has(i)) g[i] = load_pack<T, 4>(dy, t, own.head(i) * d + c);
      if (has_norm && own.has(i)) v[i] = load_pack<T, 4>(x, t, own.head(i) * d + c);
      if (has_norm && own.exists(i)) inv[i] = load<T>(inverse, t, own.head(i));
    }
    if (has_norm && own.has_channels) scale = load_scales<4>(norm, c);
    const LaneAngles angle(own, angles, layout);
#pragma unroll
    for (int i = 0; i < count; ++i) angle.turn<true>(g[i]);
    if (has_norm) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          pull[i] = pull[i] + T(scale.at[n]) * g[i].at[n] * v[i].at[n];
          if (sums) sum.at[n] += result_of(g[i].at[n] * v[i].at[n] * inv[i]);
        }
        pull[i] = lanes_sum(pull[i], lanes);
      }
      share_out<lanes>(pull, [&](T dot, int own_head) {
        T of_head = inv[0];
#pragma unroll
        for (int i = 1; i < count; ++i) {
          if (own_head == i) of_head = inv[i];
        }
        return norm_pull(dot, of_head, d);
      });
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (!own.has(i)) continue;
      if (has_norm) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          g[i].at[n] = inv[i] * T(scale.at[n]) * g[i].at[n] - v[i].at[n] * pull[i];
        }
      }
      put_pack(dx, t, own.head(i) * d + c, g[i]);
    }
    if (!sums) return;
  }
  if (sums) put_channel_sums<lanes>(sum, d, part);
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
                                        Operand<S> dy, Results<S> dx, View<S> dscale,
                                        void* scratch) {
  const Index d = angles.cols, rows = x.value.rows, heads = x.value.cols / d;
  if (rows == 0) return;
  const bool sums = !dscale.empty() && norm.eps >= 0;
  S* const part = static_cast<S*>(scratch);
  with_number<S>(tangents, [&]<class T>() {
    if constexpr (std::is_same_v<S, float>) {
      const bool aligned = in_packs(x) && in_packs(dy) && in_packs<S>(dx.values);
      if (heads_in_fours(angles) && aligned && !dx.empty()) {
        return with_lanes(d, [&](auto lanes) {
          constexpr int count = (std::is_same_v<T, S> ? 4 : 2) * lanes() / 32;
          const auto kernel = sums ? head_norm_rope_backward_fours_kernel<T, lanes(), count, true>
                                   : head_norm_rope_backward_fours_kernel<T, lanes(), count, false>;
          const unsigned blocks = LaneHeads<lanes(), count>::blocks(rows, heads);
          const ColumnSums all = row_sums(rows * heads, d, blocks);
          kernel<<<sums ? grid(all.parts) : blocks, row_threads, 0, stream>>>(
              x, norm, inverse, angles, layout, dy, dx, grid(heads), blocks, part);
          if (sums) add_parts(stream, all, part, dscale);
        });
      }
    }
    if (sums) {
      const ColumnSums all = column_sums(rows * heads, d);
      head_norm_scale_kernel<T><<<column_grid(all), column_threads, 0, stream>>>(
          all, x, inverse, angles, layout, dy, part);
      add_parts(stream, all, part, dscale);
    }
    if (dx.empty()) return;
    head_norm_rope_backward_kernel<T><<<head_grid(x.value, angles), row_threads, 0, stream>>>(
        x, norm, inverse, angles, layout, dy, dx);
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
