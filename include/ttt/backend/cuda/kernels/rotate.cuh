// SPDX-License-Identifier: MIT
/// \file
/// What lies between the projections and attention, in one pass: queries and keys normed and
/// turned, keys and values into the cache. 4 bytes in and 4 or 2 out an element.
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
};

/// A warp a head of a token, four channels a lane: heads of queries, then of keys, then of values.
template <class = void>  // so that two units of a program may have it
__global__ void __launch_bounds__(row_threads) rotate_kernel(RotateWork w) {
  using Four = Pack<float, 4>;
  let_next_begin();
  wait_for_previous();
  const Index d = w.angles.cols, t = blockIdx.x, c = 4 * (threadIdx.x % 32);
  const Index heads = w.q.cols / d, key_heads = w.keys.heads;
  Index h = own_head();
  if (h >= heads + 2 * key_heads) return;
  const bool has_channels = c < d, is_query = h < heads, is_value = h >= heads + key_heads;
  if (!is_query) h -= is_value ? heads + key_heads : heads;
  const View<const float>& from = is_query ? w.q : is_value ? w.v : w.k;
  Four x = {};
  if (has_channels) x = load_pack<float, 4>({from, {}}, t, h * d + c);
  const auto keep = [&](const Cache<bfloat16>& cache) {
    if (!has_channels) return;
    const View<bfloat16> place(cache.at(h, w.place.now() + t), 1, d);
    put_rounded(place, 0, c, x);
  };
  if (is_value) return keep(w.values);

  const Norm<float>& norm = is_query ? w.q_norm : w.k_norm;
  if (norm.eps >= 0) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) sum += x.at[n] * x.at[n];
    const float inverse = inverse_rms(lanes_sum(sum), d, norm.eps);
    const View<float>& to = is_query ? w.q_inverse : w.k_inverse;
    if (!to.empty() && c == 0) to(t, h) = inverse;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (has_channels) x.at[n] *= inverse * scale_at(norm, c + n);
    }
  }
  if (w.layout == RopeLayout::Interleaved) {
    if (has_channels) {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        const Index i = (c + n) / 2;
        const float u = x.at[n], v = x.at[n + 1];
        const float cosine = w.angles(t, i), sine = w.angles(t, d / 2 + i);
        x.at[n] = u * cosine - v * sine;
        x.at[n + 1] = u * sine + v * cosine;
      }
    }
  } else {
    const bool is_first = c < d / 2;
    const int other = static_cast<int>(is_first ? c + d / 2 : c - d / 2) / 4;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float partner = __shfl_sync(0xffffffffu, x.at[n], has_channels ? other : 0);
      if (!has_channels) continue;
      const Index i = is_first ? c + n : c + n - d / 2;
      const float cosine = w.angles(t, i), sine = w.angles(t, d / 2 + i);
      x.at[n] = is_first ? x.at[n] * cosine - partner * sine : partner * sine + x.at[n] * cosine;
    }
  }
  if (!is_query) return keep(w.keys);
  if (has_channels) put_pack(w.y, t, h * d + c, x);
}

}  // namespace

template <class S>
bool Launch<S>::rotate_and_store(Stream stream, View<const S> q, View<const S> k, View<const S> v,
                                 Norm<S> q_norm, Norm<S> k_norm, View<const S> angles,
                                 RopeLayout layout, View<S> y, View<S> q_inverse, View<S> k_inverse,
                                 Cache<bfloat16> keys, Cache<bfloat16> values, Place place) {
  if constexpr (std::is_same_v<S, float>) {
    const Index d = angles.cols;
    const bool fits = d % 8 == 0 && d <= most_head_dim && in_packs(q) && in_packs(k) &&
                      in_packs(v) && in_packs<S>(y) &&
                      reinterpret_cast<std::uintptr_t>(keys.data) % 8 == 0 &&
                      reinterpret_cast<std::uintptr_t>(values.data) % 8 == 0;
    if (!fits || q.rows == 0) return false;
    const dim3 blocks(grid(q.rows), grid(blocks_for(q.cols / d + 2 * keys.heads, heads_a_block)));
    start(stream, rotate_kernel<>, blocks, row_threads,
          RotateWork{q, k, v, q_norm, k_norm, angles, layout, y, q_inverse, k_inverse, keys, values,
                     place});
    return true;
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
