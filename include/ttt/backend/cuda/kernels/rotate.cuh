// SPDX-License-Identifier: MIT
/// \file
/// What lies between the projections and attention, in one pass: queries and keys normed and
/// turned, keys and values into the cache. 4 bytes in and 4 or 2 out an element; a lane has the
/// loads of four heads, or of two, under way at a time. Or by the blocks that attend with them.
#pragma once

#include <ttt/backend/cuda/kernels/overlap.cuh>
#include <ttt/backend/cuda/kernels/rope.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int rotated_at_once = 4;  // heads of a warp

/// A lane's shares of heads normed, where eps is not negative, then turned. Each head's inverse
/// goes to `inverse`.
template <int lanes, int count>
__device__ void norm_and_turn(const LaneHeads<lanes, count>& own, double eps,
                              const Pack<float, 4>& scale, const LaneAngles& angle,
                              Pack<float, 4> (&x)[count], float (&inverse)[count]) {
  if (eps >= 0) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      inverse[i] = 0;
#pragma unroll
      for (int n = 0; n < 4; ++n) inverse[i] += x[i].at[n] * x[i].at[n];
      inverse[i] = lanes_sum(inverse[i], lanes);
    }
    share_out<lanes>(inverse, [&](float sum, int) { return inverse_rms(sum, own.head_dim, eps); });
#pragma unroll
    for (int i = 0; i < count; ++i) {
#pragma unroll
      for (int n = 0; n < 4; ++n) x[i].at[n] *= inverse[i] * scale.at[n];
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) angle.turn<false>(x[i]);
}

/// Queries, keys and values each in a part of the grid of their own.
template <int lanes>
__global__ void __launch_bounds__(row_threads) rotate_kernel(Rotation<float> w) {
  let_next_begin();
  wait_for_previous();
  constexpr int count = rotated_at_once * lanes / 32;
  const Index d = w.angles.cols;
  const bool is_query = blockIdx.y == 0, is_value = blockIdx.y == 2;
  const auto cols = static_cast<unsigned>(is_query ? w.q.cols : w.k.cols);
  const LaneHeads<lanes, count> own(cols / static_cast<unsigned>(d), d);
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

  const Norm<float>& norm = is_query ? w.q_norm : w.k_norm;
  float inverse[count];
  Pack<float, 4> scale = {};
  if (own.has_channels && norm.eps >= 0) scale = load_scales<4>(norm, c);
  norm_and_turn(own, norm.eps, scale, LaneAngles(own, w.angles, w.layout), x, inverse);
  const View<float>& to = is_query ? w.q_inverse : w.k_inverse;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const bool has_inverse = norm.eps >= 0 && !to.empty();
    if (has_inverse && c == 0 && own.exists(i)) to(t, own.head(i)) = inverse[i];
  }
  if (!is_query) return keep(w.keys);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (own.has(i)) put_pack(w.y, t, own.head(i) * d + c, x[i]);
  }
}

/// The query of one head and, in the block that has them, its token's key and value: turned, as
/// they are multiplied. A warp each. One block has places to store them.
struct alignas(16) TurnedToken {
  float query[most_head_dim], key[most_head_dim], value[most_head_dim];
};
template <class = void>  // so that two units of a program may have it
__device__ void turn_and_store(const Rotation<float>& w, Index row, Index head, Index key_head,
                               bool writes_query, bool has_own, bfloat16* key_to,
                               bfloat16* value_to, const Pack<float, 4>& scale, TurnedToken& to) {
  const auto warp = threadIdx.x / 32;
  const bool is_query = warp == 0, is_value = warp == 2;
  if (warp > 2 || !(is_query || has_own)) return;
  const Index d = w.angles.cols;
  const View<const float>& from = is_query ? w.q : is_value ? w.v : w.k;
  const auto which = static_cast<unsigned>(is_query ? head : key_head);
  const LaneHeads<32, 1> own(row, which, which + 1, d);
  Pack<float, 4> x[1] = {};
  if (own.has_channels) x[0] = load_pack<float, 4>({from, {}}, row, which * d + own.channel);
  if (!is_value) {
    const Norm<float>& norm = is_query ? w.q_norm : w.k_norm;
    const View<float>& inverses = is_query ? w.q_inverse : w.k_inverse;
    float inverse[1];
    norm_and_turn(own, norm.eps, scale, LaneAngles(own, w.angles, w.layout), x, inverse);
    const bool keeps =
        norm.eps >= 0 && !inverses.empty() && (is_query ? writes_query : key_to != nullptr);
    if (keeps && own.channel == 0) inverses(row, which) = inverse[0];
  }
  if (!own.has_channels) return;
  if (is_query) {
    put_pack(View<float>(to.query, 1, most_head_dim), 0, own.channel, x[0]);
    if (writes_query) put_pack(w.y, row, which * d + own.channel, x[0]);
    return;
  }
  RawPack<bfloat16, 4> rounded;
  float* const kept = (is_value ? to.value : to.key) + own.channel;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    set(rounded.at[n], x[0].at[n]);
    kept[n] = element(&rounded.at[n]);
  }
  bfloat16* const stored = is_value ? value_to : key_to;
  if (stored != nullptr) *reinterpret_cast<RawPack<bfloat16, 4>*>(stored + own.channel) = rounded;
}

}  // namespace

template <class S>
bool Launch<S>::rotates(const Rotation<S>& w) {
  if constexpr (std::is_same_v<S, float>) {
    return w.q.rows > 0 && heads_in_fours(w.angles) && in_packs(w.q) && in_packs(w.k) &&
           in_packs(w.v) && in_packs<S>(w.y) &&
           reinterpret_cast<std::uintptr_t>(w.keys.data) % 8 == 0 &&
           reinterpret_cast<std::uintptr_t>(w.values.data) % 8 == 0;
  }
  return false;
}

template <class S>
void Launch<S>::rotate_and_store(Stream stream, const Rotation<S>& w) {
  if constexpr (std::is_same_v<S, float>) {
    with_lanes(w.angles.cols, [&](auto lanes) {
      using Heads = LaneHeads<lanes(), rotated_at_once * lanes() / 32>;
      const Index cols = w.q.cols > w.k.cols ? w.q.cols : w.k.cols;
      const dim3 blocks(Heads::blocks(w.q.rows, cols / w.angles.cols), 3);
      start(stream, rotate_kernel<lanes()>, blocks, row_threads, w);
    });
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
