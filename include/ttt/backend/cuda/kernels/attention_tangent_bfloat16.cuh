// SPDX-License-Identifier: MIT
/// \file
/// The tangent of window attention on tensor cores. With P the probabilities, which the kept log of
/// their sums gives without a running maximum, a prime for tangents and any number c a row,
///
///     A = P∘(S' - c) v + P v',   r = rowsum(P∘(S' - c)),   O' = A - r O,   (log sum)' = r + c.
///
/// c is the mean of a row's S' over one tile: what all keys have in common would otherwise be
/// rounded with the weights and cancel only then. 3 products a pair of a query and a cached key, 5
/// for the block's own keys.
#pragma once

#include <ttt/backend/cuda/kernels/attention_tiles.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// A block owns 128 queries. Two bands of 16 a warp read each key half as often as one would, where
/// there are registers for it.
constexpr int tangent_rows = 128;
template <int D>
constexpr int tangent_bands = D <= 80 ? 2 : 1;
template <int D>
constexpr int tangent_threads = 32 * (tangent_rows / (16 * tangent_bands<D>));

template <int D>
using Bands = Rows<D>[tangent_bands<D>];
template <int N, int D>
using BandSums = Sums<N>[tangent_bands<D>];

/// scores += q kᵀ and tscores += q' kᵀ + q k'ᵀ for 16 keys, the last where `own`.
template <int D, bool own>
__device__ void add_scores(const Bands<D>& q, const Bands<D>& tq, const std::uint16_t* keys,
                           const std::uint16_t* tkeys, int j, BandSums<2, D>& scores,
                           BandSums<2, D>& tscores) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    unsigned b[4];
    load_matrices<true, false, flash_pitch<D>>(keys, j, 16 * k, b);
#pragma unroll
    for (int m = 0; m < tangent_bands<D>; ++m) {
      multiply_add(q[m][k], b[0], b[1], scores[m][0]);
      multiply_add(q[m][k], b[2], b[3], scores[m][1]);
      multiply_add(tq[m][k], b[0], b[1], tscores[m][0]);
      multiply_add(tq[m][k], b[2], b[3], tscores[m][1]);
    }
    if constexpr (own) {
      load_matrices<true, false, flash_pitch<D>>(tkeys, j, 16 * k, b);
#pragma unroll
      for (int m = 0; m < tangent_bands<D>; ++m) {
        multiply_add(q[m][k], b[0], b[1], tscores[m][0]);
        multiply_add(q[m][k], b[2], b[3], tscores[m][1]);
      }
    }
  }
}

/// sums += weights · values for 16 values.
template <int D>
__device__ void add_values(const unsigned (&weights)[tangent_bands<D>][4],
                           const std::uint16_t* values, int j, BandSums<D / 8, D>& sums) {
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    unsigned b[4];
    load_matrices<false, false, flash_pitch<D>>(values, 16 * c, j, b);
#pragma unroll
    for (int m = 0; m < tangent_bands<D>; ++m) {
      multiply_add(weights[m], b[0], b[1], sums[m][2 * c]);
      multiply_add(weights[m], b[2], b[3], sums[m][2 * c + 1]);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(tangent_threads<D>, tangent_bands<D>)
    attention_tangent_bfloat16_kernel(Operand<float> q, Cache<const bfloat16> keys,
                                      Cache<const bfloat16> values, View<const float> tkeys,
                                      View<const float> tvalues, AttentionShape shape,
                                      View<const float> o, View<const float> lse, View<float> to,
                                      View<float> tlse) {
  constexpr int bands = tangent_bands<D>, threads = tangent_threads<D>, tile = flash_tile<D>;
  extern __shared__ __align__(16) std::uint16_t tiles[];  // keys, values; the next; k', v'
  std::uint16_t* const tkey_tile = tiles + 4 * tile;
  std::uint16_t* const tvalue_tile = tiles + 5 * tile;
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * tangent_rows,
              position = shape.position + first;
  const Index rows = q.value.rows;
  const int count = rows - first < tangent_rows ? static_cast<int>(rows - first) : tangent_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16 * bands;
  Bands<D> queries, tqueries;
  {
    const auto bring = [&](const View<const float>& rows_of, std::uint16_t* to_tile) {
      bring_tile<D, tangent_rows, threads>(
          to_tile, count, rsqrtf(static_cast<float>(D)), [&](int i) -> const float* {
            return rows_of.empty() ? nullptr : rows_of.row(first + i) + head * D;
          });
    };
    bring(q.value, tiles);
    bring(q.tangent, tiles + 2 * tile);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < bands; ++m) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        const int row = mine + 16 * m;
        load_matrices<true, true, flash_pitch<D>>(tiles, row, 16 * k, queries[m][k]);
        load_matrices<true, true, flash_pitch<D>>(tiles + 2 * tile, row, 16 * k, tqueries[m][k]);
      }
    }
    __syncthreads();
  }

  float log_sums[bands][2], centre[bands][2], sum[bands][2] = {}, rounded_sum[bands][2] = {};
#pragma unroll
  for (int m = 0; m < bands; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = mine + 16 * m + row_of(2 * r);
      log_sums[m][r] = row < count ? lse(head, first + row) * log2_e : INFINITY;
    }
  }
  BandSums<D / 8, D> out = {};

  // Keys are counted from the first that a query of the block sees.
  const Index begin = shape.first_key(position);
  const int here = static_cast<int>(position - begin), end = here + count;
  const int own = begin < shape.position ? static_cast<int>(shape.position - begin) : 0;
  const bool moves = !tkeys.empty() || !tvalues.empty();
  const Window window(shape);
  RingCursor cursor(keys, begin);
  const auto send = [&](int j0, int stage) {
    const int size = end - j0 < flash_rows ? end - j0 : flash_rows;
    cursor.send<D, threads>(keys, key_head, size, tiles + 2 * stage * tile);
    cursor.send<D, threads>(values, key_head, size, tiles + (2 * stage + 1) * tile);
    close_copies();
    cursor.advance();
  };
  const auto bring_tangents = [&](const View<const float>& tangents, int j0, std::uint16_t* to_) {
    const Index from = begin + j0 - shape.position;
    bring_tile<D, flash_rows, threads>(to_, end - j0, 1.0f, [&](int i) -> const float* {
      return tangents.empty() || from + i < 0 ? nullptr : tangents.row(from + i) + key_head * D;
    });
  };
  /// 16 keys from j on of a tile; `before`: by how much the warp's first query is behind the first.
  const auto go_along = [&]<bool edge>(std::bool_constant<edge>, const std::uint16_t* key_tile,
                                       int j, int before) {
    BandSums<2, D> scores = {}, weights;
#pragma unroll
    for (int m = 0; m < bands; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) weights[m][n][e] = -centre[m][e / 2];
      }
    }
    add_scores<D, edge>(queries, tqueries, key_tile, tkey_tile, j, scores, weights);
    unsigned rounded[bands][4];
#pragma unroll
    for (int m = 0; m < bands; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& p = scores[m][n][e];
          p = power_of_two(fmaf(p, log2_e, -log_sums[m][e / 2]));
          if (edge && !window.has(before + 16 * m + row_of(e) - 8 * n - col_of(e))) p = 0;
          weights[m][n][e] *= p;
          sum[m][e / 2] += weights[m][n][e];
        }
      }
      round_sums(weights[m], rounded[m]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        rounded_sum[m][r] += (low(rounded[m][r]) + high(rounded[m][r])) +
                             (low(rounded[m][r + 2]) + high(rounded[m][r + 2]));
      }
    }
    add_values<D>(rounded, key_tile + tile, j, out);
    if constexpr (edge) {
#pragma unroll
      for (int m = 0; m < bands; ++m) round_sums(scores[m], rounded[m]);
      add_values<D>(rounded, tvalue_tile, j, out);
    }
  };

  send(0, 0);
  bring_tangents(tkeys, 0, tkey_tile);
  wait_for_copies();
  __syncthreads();
  {
    BandSums<2, D> scores = {}, tscores = {};
#pragma unroll 1
    for (int j = 0; j < flash_rows; j += 16) {
      add_scores<D, true>(queries, tqueries, tiles, tkey_tile, j, scores, tscores);
    }
#pragma unroll
    for (int m = 0; m < bands; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float(&t)[2][4] = tscores[m];
        centre[m][r] = quad_sum((t[0][2 * r] + t[0][2 * r + 1]) + (t[1][2 * r] + t[1][2 * r + 1])) /
                       static_cast<float>(end < flash_rows ? end : flash_rows);
      }
    }
  }
  int stage = 0;
  for (int j0 = 0; j0 < end; j0 += flash_rows, stage ^= 1) {
    const bool edge = j0 + flash_rows > here + 1 || !window.has(here + tangent_rows - 1 - j0) ||
                      (moves && j0 + flash_rows > own);
    wait_for_copies();
    __syncthreads();  // this tile has come, and nobody reads the one before any more
    if (j0 + flash_rows < end) send(j0 + flash_rows, stage ^ 1);
    const std::uint16_t* const key_tile = tiles + 2 * stage * tile;
    if (edge) {
      bring_tangents(tkeys, j0, tkey_tile);
      bring_tangents(tvalues, j0, tvalue_tile);
      __syncthreads();
#pragma unroll 1
      for (int j = 0; j < flash_rows; j += 16) {
        const int before = here - j0 + mine - j;
        if (!window.reaches(before - 15, before + 16 * bands - 1)) continue;
        go_along(std::bool_constant<true>(), key_tile, j, before);
      }
    } else {
#pragma unroll
      for (int j = 0; j < flash_rows; j += 16) {
        go_along(std::bool_constant<false>(), key_tile, j, 0);
      }
    }
  }

#pragma unroll
  for (int m = 0; m < bands; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shift = quad_sum(rounded_sum[m][r]), total = quad_sum(sum[m][r]);
      const int row = mine + 16 * m + row_of(2 * r);
      if (row >= count) continue;
      const Index t = first + row;
      if (!tlse.empty() && threadIdx.x % 4 == 0) tlse(head, t) = total + centre[m][r];
      if (to.empty()) continue;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const Index c = head * D + 8 * n + col_of(0);
        to(t, c) = out[m][n][2 * r] - shift * o(t, c);
        to(t, c + 1) = out[m][n][2 * r + 1] - shift * o(t, c + 1);
      }
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
    if (q.value.rows == 0 || !in_fours(q.value) || !in_fours(q.tangent)) return false;
    if (!in_fours(tkeys) || !in_fours(tvalues)) return false;
    if (!in_eights(keys) || !in_eights(values) || keys.slots != values.slots) return false;
    const dim3 blocks(grid(blocks_for(q.value.rows, tangent_rows)), grid(shape.heads));
    return with_head_dim(shape.head_dim, [&](auto d) {
      start_tiles(attention_tangent_bfloat16_kernel<d()>, blocks, tangent_threads<d()>,
                  12 * flash_tile<d()>, stream, q, keys, values, tkeys, tvalues, shape, o, lse, to,
                  tlse);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
