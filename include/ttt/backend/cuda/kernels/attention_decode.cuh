// SPDX-License-Identifier: MIT
/// \file
/// Attention of a few queries, as decoding asks: the window's keys and values are read once, 4 ·
/// head_dim bytes a key and head, and nothing else counts. A head's keys are split among blocks;
/// what each made of its part is put together in order by the last of them. Keys of earlier steps
/// are asked for before the query is there (overlap.cuh).
#pragma once

#include <ttt/backend/cuda/kernels/matvec.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int decode_threads = 128, decode_warps = decode_threads / 32;
constexpr Index most_decode_parts = 64;

/// How many keys a block takes where so many blocks share those that the query at p sees.
__device__ inline Index decode_keys(const AttentionShape& shape, Index p, Index parts) {
  constexpr Index least = 64;
  const Index each = (p + 1 - shape.first_key(p) + parts - 1) / parts;
  return each < least ? least : (each + 31) / 32 * 32;
}

/// What a part of the keys makes of one query: the largest score, the sum of powers below it, and
/// the powers' sum of values.
struct Partial {
  float most, sum;
};

__device__ inline float shrink_to(float most, float now) {
  return most == -INFINITY ? 0.0f : exp2f((most - now) * log2_e);
}

/// Adds one part to another. `lanes` apart in a warp.
__device__ inline void merge_lanes(Partial& mine, float (&out)[8], int lanes) {
  const float most = __shfl_xor_sync(0xffffffffu, mine.most, lanes);
  const float sum = __shfl_xor_sync(0xffffffffu, mine.sum, lanes);
  const float now = fmaxf(mine.most, most);
  const float here = shrink_to(mine.most, now), there = shrink_to(most, now);
  mine = {now, mine.sum * here + sum * there};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    out[c] = out[c] * here + __shfl_xor_sync(0xffffffffu, out[c], lanes) * there;
  }
}

/// One query of one head, whose parts lie one behind the other.
template <class = void>  // so that two units of a program may have it
__device__ void attention_parts(const float* from, const AttentionShape& shape, Index used,
                                Index head, Index row, const View<float>& o,
                                const View<float>& lse) {
  const Index d = shape.head_dim, c = threadIdx.x;
  static_assert(most_head_dim <= decode_threads && most_decode_parts <= decode_threads);
  __shared__ float shares[most_decode_parts];
  const float mine = c < used ? from[c * (d + 2) + d + 1] : -INFINITY;
  const float own_sum = c < used ? from[c * (d + 2) + d] : 0.0f;
  const float most = block_max(mine), share = shrink_to(mine, most);
  if (c < most_decode_parts) shares[c] = share;
  const float sum = block_sum(share * own_sum);  // waits for the shares, too
  float out = 0;
  if (c < d) {
#pragma unroll 16
    for (Index i = 0; i < used; ++i) out += shares[i] * from[i * (d + 2) + c];
  }
  if (c < d) o(row, head * d + c) = out / sum;
  if (c == 0 && !lse.empty()) lse(head, row) = most + logf(sum);
}

/// `lanes` lanes share a key, 8 channels each; a warp takes 32 / lanes keys at a time.
template <int lanes>
__global__ void __launch_bounds__(decode_threads, 6)
    attention_decode_kernel(View<const float> q, Cache<const bfloat16> keys,
                            Cache<const bfloat16> values, AttentionShape shape, Place place,
                            float* partial, unsigned* counters, View<float> o, View<float> lse) {
  let_next_begin();
  constexpr int at_once = 32 / lanes, ahead = 4;
  __shared__ float warp_out[decode_warps][most_head_dim];
  __shared__ Partial warp_part[decode_warps];
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index p = place.now() + blockIdx.z, d = shape.head_dim;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Index channel = 8 * (lane % lanes);
  const bool has_channels = channel < d;
  const Index each = decode_keys(shape, p, gridDim.x), seen = shape.first_key(p);
  const Index begin = seen + static_cast<Index>(blockIdx.x) * each;
  const Index end = begin + each <= p ? begin + each : p + 1;
  const Index start = static_cast<Index>(static_cast<std::uint64_t>(begin) %
                                         static_cast<std::uint64_t>(keys.slots));
  const auto offset_of = [&](Index i) {
    const Index slot = start + i < keys.slots ? start + i : start + i - keys.slots;
    return (key_head * keys.slots + slot) * d;
  };

  Eight<bfloat16> key[ahead], value[ahead];
  const auto ask = [&](int n, Index i) {
    const Index offset = offset_of(i) + channel, count = begin + i < end && has_channels ? 8 : 0;
    key[n] = load_eight<true>(keys.data + offset, count);
    value[n] = load_eight<true>(values.data + offset, count);
  };
  constexpr Index step = decode_warps * at_once * ahead;
  const Index first = warp * at_once * ahead + lane / lanes;
  const auto ask_first = [&] {
#pragma unroll
    for (int n = 0; n < ahead; ++n) ask(n, first + n * at_once);
  };
  const bool are_there = end <= place.now();  // not of this step: it stores the queries' own
  if (are_there) ask_first();
  wait_for_previous();
  if (!are_there) ask_first();
  float query[8] = {};
  const float scale = rsqrtf(static_cast<float>(d));
  if (has_channels) {
#pragma unroll
    for (int c = 0; c < 8; ++c) query[c] = q(blockIdx.z, head * d + channel + c) * scale;
  }
  Partial part = {-INFINITY, 0};
  float out[8] = {};
  for (Index j0 = first; begin + j0 - lane / lanes < end; j0 += step) {
    float score[ahead], eight[8], now = part.most;
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      score[n] = 0;
      key[n].widen(eight);
#pragma unroll
      for (int c = 0; c < 8; ++c) score[n] += query[c] * eight[c];
      score[n] = lanes_sum(score[n], lanes);
      if (begin + j0 + n * at_once >= end) score[n] = -INFINITY;
      now = fmaxf(now, score[n]);
    }
    const float shrink = shrink_to(part.most, now);
    part = {now, part.sum * shrink};
#pragma unroll
    for (int c = 0; c < 8; ++c) out[c] *= shrink;
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      const float power = shrink_to(score[n], now);
      part.sum += power;
      value[n].widen(eight);
#pragma unroll
      for (int c = 0; c < 8; ++c) out[c] += power * eight[c];
      ask(n, j0 + step + n * at_once);
    }
  }
#pragma unroll
  for (int apart = lanes; apart < 32; apart *= 2) merge_lanes(part, out, apart);
  if (lane < lanes && has_channels) {
#pragma unroll
    for (int c = 0; c < 8; ++c) warp_out[warp][channel + c] = out[c];
  }
  if (lane == 0) warp_part[warp] = part;
  __syncthreads();
  float most = -INFINITY;
  for (const Partial& w : warp_part) most = fmaxf(most, w.most);
  const Index which = static_cast<Index>(blockIdx.z) * shape.heads + head;
  float* const all = partial + which * gridDim.x * (d + 2);
  float* const to = all + blockIdx.x * (d + 2);
  for (Index c = threadIdx.x; c < d + 2; c += decode_threads) {
    float total = 0;
    for (int w = 0; w < decode_warps; ++w) {
      const float share = shrink_to(warp_part[w].most, most);
      total += share * (c < d ? warp_out[w][c] : warp_part[w].sum);
    }
    to[c] = c == d + 1 ? most : total;
  }
  if (!is_last_block(counters + which, gridDim.x)) return;
  attention_parts(all, shape, (p - seen) / each + 1, head, blockIdx.z, o, lse);
}

/// Among how many blocks the keys of a query and head are split: six blocks fit an SM, of which an
/// H200 has 132. Where the query stands does not matter, which only the GPU may know; some blocks
/// may have no keys.
inline Index decode_parts(const AttentionShape& shape, Index slots, Index rows) {
  constexpr Index blocks = 6 * 132;
  Index parts = blocks / (shape.heads * rows);
  const Index most = blocks_for(slots < shape.window ? slots : shape.window, 64);
  if (parts > most) parts = most;
  if (parts > most_decode_parts) parts = most_decode_parts;
  return parts < 1 ? 1 : parts;
}

}  // namespace

template <class S>
Index Launch<S>::attention_decode_scratch(AttentionShape shape, Index slots, Index rows) {
  return rows * shape.heads * decode_parts(shape, slots, rows) * (shape.head_dim + 2) *
         static_cast<Index>(sizeof(float));
}

template <class S>
bool Launch<S>::attention_decode(Stream stream, View<const S> q, Cache<const bfloat16> keys,
                                 Cache<const bfloat16> values, AttentionShape shape, Place place,
                                 View<S> o, View<S> lse, void* scratch, unsigned* counters) {
  if constexpr (std::is_same_v<S, float>) {
    if (q.rows == 0 || shape.head_dim % 8 != 0 ||
        reinterpret_cast<std::uintptr_t>(keys.data) % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(values.data) % 16 != 0) {
      return false;
    }
    const Index parts = decode_parts(shape, keys.slots, q.rows);
    const dim3 blocks(grid(parts), grid(shape.heads), grid(q.rows));
    const auto kernel =
        shape.head_dim <= 64 ? attention_decode_kernel<8> : attention_decode_kernel<16>;
    float* const partial = static_cast<float*>(scratch);
    start(stream, kernel, blocks, decode_threads, q, keys, values, shape, place, partial, counters,
          o, lse);
    return true;
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
