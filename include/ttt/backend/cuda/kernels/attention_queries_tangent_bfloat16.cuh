// SPDX-License-Identifier: MIT
/// \file
/// The tangent of attention's way back on tensor cores, for the queries: 5 products a pair, 8 for
/// the block's own keys; see attention_backward_tangent_bfloat16.cuh.
#pragma once

#include <ttt/backend/cuda/kernels/attention_rounding.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// 16 rows of a left operand out of the memory of the device: rows at(0) and at(8) of this lane.
template <int D>
__device__ void read_rows(const bfloat16* row, const bfloat16* row8, Rows<D>& out) {
  const int c = col_of(0);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    out[k][0] = *reinterpret_cast<const unsigned*>(row + 16 * k + c);
    out[k][1] = *reinterpret_cast<const unsigned*>(row8 + 16 * k + c);
    out[k][2] = *reinterpret_cast<const unsigned*>(row + 16 * k + c + 8);
    out[k][3] = *reinterpret_cast<const unsigned*>(row8 + 16 * k + c + 8);
  }
}

/// dq': a block owns 64 queries of a head and goes along their keys.
template <int D>
__global__ void __launch_bounds__(flash_threads, 2)
    attention_queries_tangent_bfloat16_kernel(Rounded in, Cache<const bfloat16> keys,
                                              Cache<const bfloat16> values, bool moves,
                                              AttentionShape shape, View<float> tdq) {
  constexpr int tile = flash_tile<D>;
  extern __shared__ __align__(16) std::uint16_t tiles[];  // keys, values; the next; k', v'
  std::uint16_t* const tkey_tile = tiles + 4 * tile;
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * flash_rows,
              position = shape.position + first;
  const int count = tdq.rows - first < flash_rows ? static_cast<int>(tdq.rows - first) : flash_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16;
  Rows<D> q, tq, dout, tdout;
  float log_sum[2], tlog_sum[2], along[2], talong[2];
  {
    const Index row = head * in.rows + first + mine + row_of(0);
    const auto read = [&](const bfloat16* rows, Rows<D>& out) {
      read_rows<D>(rows + row * D, rows + (row + 8) * D, out);
    };
    read(in.q, q);
    read(in.tq, tq);
    read(in.dout, dout);
    read(in.tdout, tdout);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const QueryNumbers n = in.numbers[row + 8 * r];
      log_sum[r] = n.log_sum;
      tlog_sum[r] = n.tlog_sum;
      along[r] = n.along;
      talong[r] = n.talong;
    }
  }
  Sums<D / 8> out = {};

  // Keys are counted from the first that a query of the block sees.
  const Index begin = shape.first_key(position);
  const Window window(shape);
  __shared__ RingCursor<D> cursor;
  __shared__ KeyRange range_;
  if (threadIdx.x == 0) {
    range_ = KeyRange::of(shape, begin, position, count, flash_rows,
                          moves ? shape.position - begin : position + 1);
  }
  cursor.start(keys, key_head, begin);
  __syncthreads();
  const auto send = [&](int j0, int end) {
    std::uint16_t* const to = tiles + (j0 / flash_rows % 2 == 0 ? 0 : 2 * tile);
    cursor.send(keys, values, end - j0, to, to + tile);
    close_copies();
  };
  const auto send_tangents = [&](int j0, int end) {
    const TilePart<D> part;
    const Index row = begin + j0 + part.row() - shape.position;
    const bool moved = row >= 0 && j0 + part.row() < end;
    const Index from = (key_head * in.rows + (moved ? row : 0)) * D + part.channel();
    part.send(in.tkeys + from, moved, tkey_tile);
    part.send(in.tvalues + from, moved, tkey_tile + tile);
    close_copies();
  };
  /// 16 keys from j on of a tile; `before`: by how much the warp's first query is behind the first.
  const auto go_along = [&]<bool edge>(std::bool_constant<edge>, const std::uint16_t* key_tile,
                                       int j, int before) {
    Sums<2> s = {}, ts, dp, tdp;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        ts[n][e] = -tlog_sum[e / 2];
        dp[n][e] = -along[e / 2];
        tdp[n][e] = -talong[e / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      unsigned b[4];
      load_matrices<true, false, flash_pitch<D>>(key_tile, j, 16 * k, b);
      multiply_add_16(q[k], b, s);
      multiply_add_16(tq[k], b, ts);
      load_matrices<true, false, flash_pitch<D>>(key_tile + tile, j, 16 * k, b);
      multiply_add_16(dout[k], b, dp);
      multiply_add_16(tdout[k], b, tdp);
      if constexpr (edge) {
        load_matrices<true, false, flash_pitch<D>>(tkey_tile, j, 16 * k, b);
        multiply_add_16(q[k], b, ts);
        load_matrices<true, false, flash_pitch<D>>(tkey_tile + tile, j, 16 * k, b);
        multiply_add_16(dout[k], b, tdp);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float p = power_of_two(fmaf(s[n][e], log2_e, -log_sum[e / 2]));
        if (edge && !window.has(before + row_of(e) - 8 * n - col_of(e))) p = 0;
        tdp[n][e] = p * fmaf(ts[n][e], dp[n][e], tdp[n][e]);
        if (edge) dp[n][e] *= p;
      }
    }
    unsigned rounded[4];
    round_sums(tdp, rounded);
    add_rows<D>(rounded, key_tile, j, out);
    if constexpr (edge) {
      round_sums(dp, rounded);
      add_rows<D>(rounded, tkey_tile, j, out);
    }
  };

  send(0, range_.end);
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
    send_tangents(j0, range.end);
    if (j0 + flash_rows < range.end) {
      send(j0 + flash_rows, range.end);
      wait_for_copies<1>();
    } else {
      wait_for_copies();
    }
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < flash_rows; j += 16) {
      const int before = range.here - j0 + mine - j;
      if (!window.reaches(before - 15, before + 15)) continue;
      go_along(std::true_type(), at(j0), j, before);
    }
  }
  const float scale = rsqrtf(static_cast<float>(D));
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int t = mine + row_of(e);
    if (t >= count) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      tdq(first + t, head * D + 8 * n + col_of(e)) = out[n][e] * scale;
    }
  }
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
