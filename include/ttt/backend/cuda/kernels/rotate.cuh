// SPDX-License-Identifier: MIT
/// \file
/// What lies between the projections and attention, in one pass: queries and keys normed and
/// turned, keys and values into the cache. 4 bytes in and 4 or 2 out an element; a lane has the
/// loads of four heads, or of two, under way at a time.
#pragma once

#include <ttt/backend/cuda/kernels/overlap.cuh>
#include <ttt/backend/cuda/kernels/rope.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

struct RotateWork {
  View<const float> q, k, v;
  Norm<float> q_norm, k_norm;
  View<const float> angles;
  RopeLayout layout;
  View<float> y, q_inverse, k_inverse;
  Cache<bfloat16> keys, values;
  Place place;
  unsigned heads, key_heads;
};

constexpr int rotated_at_once = 4;  // heads of a warp

/// Queries, keys and values each in a part of the grid of their own.
template <int lanes>
__global__ void __launch_bounds__(row_threads) rotate_kernel(RotateWork w) {
  let_next_begin();
  wait_for_previous();
  constexpr int count = rotated_at_once * lanes / 32;
  const Index d = w.angles.cols;
  const bool is_query = blockIdx.y == 0, is_value = blockIdx.y == 2;
  const LaneHeads<lanes, count> own(is_query ? w.heads : w.key_heads, d);
  const Index t = own.row, c = own.channel;
  if (t >= w.q.rows) return;
  const View<const float>& from = is_query ? w.q : is_value ? w.v : w.k;
  Pack<float, 4> x[count] = {};
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (own.has(i)) x[i] = load_pack<float, 4>({from, {}}, t, own.head(i) * d + c);
  }
  const auto keep = [&](const Cache<bfloat16>& cache) {
    const Index position = w.place.now() + t;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (!own.has(i)) continue;
      put_rounded(View<bfloat16>(cache.at(own.head(i), position), 1, d), 0, c, x[i]);
    }
  };
  if (is_value) return keep(w.values);

  const LaneAngles angle(own, w.angles, w.layout);
  const Norm<float>& norm = is_query ? w.q_norm : w.k_norm;
  if (norm.eps >= 0) {
    Pack<float, 4> scale = {};
    if (own.has_channels) scale = load_scales<4>(norm, c);
    float inverse[count] = {};
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
      for (int n = 0; n < 4; ++n) inverse[i] += x[i].at[n] * x[i].at[n];
      inverse[i] = lanes_sum(inverse[i], lanes);
    }
    share_out<lanes>(inverse, [&](float sum, int) { return inverse_rms(sum, d, norm.eps); });
    const View<float>& to = is_query ? w.q_inverse : w.k_inverse;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (!to.empty() && c == 0 && own.exists(i)) to(t, own.head(i)) = inverse[i];
#pragma unroll
      for (int n = 0; n < 4; ++n) x[i].at[n] *= inverse[i] * scale.at[n];
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) angle.turn<false>(x[i]);
  if (!is_query) return keep(w.keys);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (own.has(i)) put_pack(w.y, t, own.head(i) * d + c, x[i]);
  }
}

}  // namespace

template <class S>
bool Launch<S>::rotate_and_store(Stream stream, View<const S> q, View<const S> k, View<const S> v,
                                 Norm<S> q_norm, Norm<S> k_norm, View<const S> angles,
                                 RopeLayout layout, View<S> y, View<S> q_inverse, View<S> k_inverse,
                                 Cache<bfloat16> keys, Cache<bfloat16> values, Place place) {
  if constexpr (std::is_same_v<S, float>) {
    const bool fits = heads_in_fours(angles) && in_packs(q) && in_packs(k) && in_packs(v) &&
                      in_packs<S>(y) && reinterpret_cast<std::uintptr_t>(keys.data) % 8 == 0 &&
                      reinterpret_cast<std::uintptr_t>(values.data) % 8 == 0;
    if (!fits || q.rows == 0) return false;
    const unsigned heads = grid(q.cols / angles.cols), key_heads = grid(keys.heads);
    with_lanes(angles.cols, [&](auto lanes) {
      using Heads = LaneHeads<lanes(), rotated_at_once * lanes() / 32>;
      const dim3 blocks(Heads::blocks(q.rows, heads > key_heads ? heads : key_heads), 3);
      start(stream, rotate_kernel<lanes()>, blocks, row_threads,
            RotateWork{q, k, v, q_norm, k_norm, angles, layout, y, q_inverse, k_inverse, keys,
                       values, place, heads, key_heads});
    });
    return true;
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
