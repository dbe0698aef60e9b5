// SPDX-License-Identifier: MIT
/// \file
/// Window attention on tensor cores (after FlashAttention-2, Dao 2023,
/// arXiv 2307.08691): queries, keys, values and probabilities are rounded to bfloat16 where they
/// are multiplied; scores, row statistics, sums and results are float.
///
/// A block is 4 warps that own 64 queries (or 64 keys), 16 each, and goes along tiles of 64 of the
/// other side. Forward: 2 products a pair of tiles.
#pragma once

#include <ttt/backend/cuda/kernels/attention_hopper.cuh>
#include <ttt/backend/cuda/kernels/attention_tiles.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <int D>
__global__ void __launch_bounds__(flash_threads)
    attention_bfloat16_kernel(View<const float> q, Cache<const bfloat16> keys,
                              Cache<const bfloat16> values, PlacedShape placed, View<float> o,
                              View<float> lse, View<bfloat16> rounded) {
  const AttentionShape shape = placed.now();
  extern __shared__ __align__(16) std::uint16_t tiles[];  // keys, values; the next of both
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * flash_rows,
              position = shape.position + first;
  const int count = q.rows - first < flash_rows ? static_cast<int>(q.rows - first) : flash_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16;
  bring_tile<D>(tiles, count, rsqrtf(static_cast<float>(D)),
                [&](int i) { return q.data + (first + i) * q.stride + head * D; });
  __syncthreads();
  Rows<D> queries;
  load_rows<D>(tiles, queries);

  Sums<D / 8> out = {};
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const Index begin = shape.first_key(position), end = position + count;
  const auto keys_at = [&](Index j0) {
    return end - j0 < flash_rows ? static_cast<int>(end - j0) : flash_rows;
  };
  __shared__ RingCursor<D> cursor;
  cursor.start(keys, key_head, begin);
  __syncthreads();
  const auto send = [&](Index j0, int stage) {
    cursor.send(keys, values, keys_at(j0), tiles + 2 * stage * flash_tile<D>,
                tiles + (2 * stage + 1) * flash_tile<D>);
    close_copies();
  };
  send(begin, 0);
  int stage = 0;
  for (Index j0 = begin; j0 < end; j0 += flash_rows, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile has come, and nobody reads the one before any more
    if (j0 + flash_rows < end) send(j0 + flash_rows, stage ^ 1);
    const std::uint16_t* const key_tile = tiles + 2 * stage * flash_tile<D>;
    Sums<8> s;
    along_channels<D>(queries, key_tile, s);
    if (!all_seen(shape, position, j0)) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const Index p = position + mine + row_of(e), j = j0 + 8 * n + col_of(e);
          if (!sees(shape, p, j)) s[n][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = most[r];
#pragma unroll
      for (int n = 0; n < 8; ++n) now = fmaxf(now, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      now = quad_reduce(now, [](float a, float b) { return fmaxf(a, b); });
      const float base = now == -INFINITY ? 0.0f : now;
      const float shrink = exp_of(most[r] - base);
      most[r] = now;
      sum[r] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        out[n][2 * r] *= shrink;
        out[n][2 * r + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          s[n][e] = exp_of(s[n][e] - base);
          sum[r] += s[n][e];
        }
      }
    }
    along_rows<D>(s, key_tile + flash_tile<D>, out);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float total = quad_sum(sum[r]);
    const int row = mine + row_of(2 * r);
    if (row >= count) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const Index column = head * D + 8 * n + col_of(0);
      float* const to = &o(first + row, column);
      to[0] = out[n][2 * r] / total;
      to[1] = out[n][2 * r + 1] / total;
      if (rounded.empty()) continue;
      *reinterpret_cast<unsigned*>(&rounded(first + row, column)) =
          pack(out[n][2 * r] / total, out[n][2 * r + 1] / total);
    }
    if (!lse.empty() && threadIdx.x % 4 == 0) lse(head, first + row) = most[r] + logf(total);
  }
}

}  // namespace

template <class S>
bool Launch<S>::attention_bfloat16(Stream stream, View<const S> q, Cache<const bfloat16> keys,
                                   Cache<const bfloat16> values, PlacedShape shape, View<S> o,
                                   View<S> lse, View<bfloat16> rounded) {
  if constexpr (std::is_same_v<S, float>) {
    if (attention_hopper(stream, q, keys, values, shape, o, lse, rounded)) return true;
    if (q.rows == 0 || !in_sixteens(q)) return false;
    if (!in_eights(keys) || !in_eights(values) || keys.slots != values.slots) return false;
    const dim3 blocks(grid(blocks_for(q.rows, flash_rows)), grid(shape.heads));
    return with_head_dim(shape.head_dim, [&](auto d) {
      start_tiles(attention_bfloat16_kernel<d()>, blocks, flash_threads, 8 * flash_tile<d()>,
                  stream, q, keys, values, shape, o, lse, rounded);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
