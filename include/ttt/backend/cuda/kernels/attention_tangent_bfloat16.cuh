// SPDX-License-Identifier: MIT
/// \file
/// The tangent of window attention on tensor cores. With P the probabilities, which the kept log of
/// their sums gives without a running maximum, a prime for tangents and any number c a row,
///
///     A = P∘(S' - c) v + P v',   r = rowsum(P∘(S' - c)),   O' = A - r O,   (log sum)' = r + c.
///
/// c is the mean of a row's S' over one tile: what all keys have in common would otherwise be
/// rounded with the weights and cancel only then. 3 products a pair of a query and a cached key, 5
/// for the block's own keys: 290 TFLOP/s on an H200 for heads of 64, 255 for heads of 80, where
/// these instructions reach 600.
#pragma once

#include <ttt/backend/cuda/kernels/attention_tangent_hopper.cuh>
#include <ttt/backend/cuda/kernels/attention_tiles.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// A block owns 128 queries of a head, 16 a warp, and goes along their keys.
constexpr int tangent_rows = 128, tangent_threads = 256;

template <int D>
__global__ void __launch_bounds__(tangent_threads, D <= 80 ? 2 : 1)
    attention_tangent_bfloat16_kernel(Operand<float> q, Cache<const bfloat16> keys,
                                      Cache<const bfloat16> values, View<const float> tkeys,
                                      View<const float> tvalues, AttentionShape shape,
                                      View<const float> o, View<const float> lse, View<float> to,
                                      View<float> tlse) {
  constexpr int tile = flash_tile<D>;
  extern __shared__ __align__(16) std::uint16_t tiles[];  // keys, values; the next; k', v'
  std::uint16_t* const tkey_tile = tiles + 4 * tile;
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * tangent_rows,
              position = shape.position + first;
  const Index rows = q.value.rows;
  const int count = rows - first < tangent_rows ? static_cast<int>(rows - first) : tangent_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16;
  Rows<D> queries, tqueries;
  {
    const auto bring = [&](const View<const float>& of, std::uint16_t* to_tile) {
      bring_tile<D, tangent_rows, tangent_threads>(
          to_tile, count, rsqrtf(static_cast<float>(D)), [&](int i) -> const float* {
            return of.empty() ? nullptr : of.row(first + i) + head * D;
          });
    };
    bring(q.value, tiles);
    bring(q.tangent, tiles + 2 * tile);
    __syncthreads();
    load_rows<D>(tiles, queries);
    load_rows<D>(tiles + 2 * tile, tqueries);
    __syncthreads();
  }
  // Log sums, in powers of two, and c of the two rows that four lanes share: not in registers.
  __shared__ float4 numbers[tangent_threads / 4];
  float4& number = numbers[threadIdx.x / 4];
  float sum[2] = {};
  Sums<D / 8> out = {};

  // Keys are counted from the first that a query of the block sees.
  const Index begin = shape.first_key(position);
  const bool moves = !tkeys.empty() || !tvalues.empty();
  const Window window(shape);
  __shared__ RingCursor<D, tangent_threads> cursor;
  __shared__ KeyRange range_;
  if (threadIdx.x == 0) {
    range_ = KeyRange::of(shape, begin, position, count, tangent_rows,
                          moves ? shape.position - begin : position + 1);
  }
  cursor.start(keys, key_head, begin);
  __syncthreads();
  const auto send = [&](int j0, int end) {
    std::uint16_t* const to_tile = tiles + (j0 / flash_rows % 2 == 0 ? 0 : 2 * tile);
    cursor.send(keys, values, end - j0, to_tile, to_tile + tile);
    close_copies();
  };
  const auto bring_tangents = [&](const View<const float>& tangents, int j0, int end,
                                  std::uint16_t* to_) {
    const Index from = begin + j0 - shape.position;
    bring_tile<D, flash_rows, tangent_threads>(to_, end - j0, 1.0f, [&](int i) -> const float* {
      return tangents.empty() || from + i < 0 ? nullptr : tangents.row(from + i) + key_head * D;
    });
  };
  /// scores += q kᵀ and tscores += q' kᵀ + q k'ᵀ for 16 keys, the last at an edge.
  const auto add_scores = [&]<bool edge>(std::bool_constant<edge>, const std::uint16_t* key_tile,
                                         int j, Sums<2>& scores, Sums<2>& tscores) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      unsigned b[4];
      load_matrices<true, false, flash_pitch<D>>(key_tile, j, 16 * k, b);
      multiply_add_16(queries[k], b, scores);
      multiply_add_16(tqueries[k], b, tscores);
      if constexpr (edge) {
        load_matrices<true, false, flash_pitch<D>>(tkey_tile, j, 16 * k, b);
        multiply_add_16(queries[k], b, tscores);
      }
    }
  };
  /// 16 keys from j on of a tile; `before`: by how much the warp's first query is behind the first.
  const auto go_along = [&]<bool edge>(std::bool_constant<edge> at_edge,
                                       const std::uint16_t* key_tile, int j, int before) {
    Sums<2> scores = {}, weights = {};
    add_scores(at_edge, key_tile, j, scores, weights);
    const float4 two = number;
    const float log_sums[2] = {two.x, two.y}, centre[2] = {two.z, two.w};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& p = scores[n][e];
        p = power_of_two(fmaf(p, log2_e, -log_sums[e / 2]));
        if (edge && !window.has(before + row_of(e) - 8 * n - col_of(e))) p = 0;
        weights[n][e] = p * (weights[n][e] - centre[e / 2]);
      }
    }
    unsigned rounded[4];
    round_sums(weights, rounded);
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // of the same weights as A, or what the values share would stay
      sum[r] += (low(rounded[r]) + high(rounded[r])) + (low(rounded[r + 2]) + high(rounded[r + 2]));
    }
    add_rows<D>(rounded, key_tile + tile, j, out);
    if constexpr (edge) {
      round_sums(scores, rounded);
      add_rows<D>(rounded, tkey_tile + tile, j, out);
    }
  };

  send(0, range_.end);
  bring_tangents(tkeys, 0, range_.end, tkey_tile);
  wait_for_copies();
  __syncthreads();
  {
    Sums<2> scores = {}, t = {};
#pragma unroll 1
    for (int j = 0; j < flash_rows; j += 16) add_scores(std::true_type(), tiles, j, scores, t);
    float log_sums[2], centre[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = mine + row_of(2 * r);
      log_sums[r] = row < count ? lse(head, first + row) * log2_e : INFINITY;
      centre[r] = quad_sum((t[0][2 * r] + t[0][2 * r + 1]) + (t[1][2 * r] + t[1][2 * r + 1])) /
                  static_cast<float>(range_.end < flash_rows ? range_.end : flash_rows);
    }
    if (threadIdx.x % 4 == 0) number = {log_sums[0], log_sums[1], centre[0], centre[1]};
  }
  const auto at = [&](int j0) { return tiles + (j0 / flash_rows % 2 == 0 ? 0 : 2 * tile); };
  for (int j0 = 0;; j0 += flash_rows) {
    // A loop of its own, with nothing in registers that only the edges need.
    for (; range_.inside(j0); j0 += flash_rows) {
      wait_for_copies();
      __syncthreads();  // this tile has come, and nobody reads the one before any more
#pragma unroll
      for (int j = 0; j < flash_rows; j += 16) {
        go_along(std::false_type(), at(j0), j, 0);
        if (j > 0) continue;
        const int end = range_.end;
        if (j0 + flash_rows < end) send(j0 + flash_rows, end);
      }
    }
    const KeyRange range = range_;
    if (j0 >= range.end) break;
    wait_for_copies();
    __syncthreads();
    if (j0 + flash_rows < range.end) send(j0 + flash_rows, range.end);
    bring_tangents(tkeys, j0, range.end, tkey_tile);
    bring_tangents(tvalues, j0, range.end, tkey_tile + tile);
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < flash_rows; j += 16) {
      const int before = range.here - j0 + mine - j;
      if (!window.reaches(before - 15, before + 15)) continue;
      go_along(std::true_type(), at(j0), j, before);
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float shift = quad_sum(sum[r]);
    const int row = mine + row_of(2 * r);
    if (row >= count) continue;
    const Index t = first + row;
    if (!tlse.empty() && threadIdx.x % 4 == 0)
      tlse(head, t) = shift + (r == 0 ? number.z : number.w);
    if (to.empty()) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const Index c = head * D + 8 * n + col_of(0);
      to(t, c) = out[n][2 * r] - shift * o(t, c);
      to(t, c + 1) = out[n][2 * r + 1] - shift * o(t, c + 1);
    }
  }
}

}  // namespace

template <class S>
bool Launch<S>::attention_tangent_bfloat16(Stream stream, Operand<S> q, Cache<const bfloat16> keys,
                                           Cache<const bfloat16> values, View<const S> tkeys,
                                           View<const S> tvalues, AttentionShape shape,
                                           View<const S> o, View<const S> lse, View<S> to,
                                           View<S> tlse) {
  if constexpr (std::is_same_v<S, float>) {
    if (attention_tangent_hopper(stream, q, keys, values, tkeys, tvalues, shape, o, lse, to,
                                 tlse)) {
      return true;
    }
    if (q.value.rows == 0 || !in_sixteens(q.value) || !in_sixteens(q.tangent)) return false;
    if (!in_sixteens(tkeys) || !in_sixteens(tvalues)) return false;
    if (!in_eights(keys) || !in_eights(values) || keys.slots != values.slots) return false;
    const dim3 blocks(grid(blocks_for(q.value.rows, tangent_rows)), grid(shape.heads));
    return with_head_dim(shape.head_dim, [&](auto d) {
      start_tiles(attention_tangent_bfloat16_kernel<d()>, blocks, tangent_threads,
                  12 * flash_tile<d()>, stream, q, keys, values, tkeys, tvalues, shape, o, lse, to,
                  tlse);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
