// SPDX-License-Identifier: MIT
/// \file
/// Window attention on tensor cores (after FlashAttention-2, Dao 2023,
/// arXiv 2307.08691): queries, keys, values and probabilities are rounded to bfloat16 where they
/// are multiplied; scores, row statistics, sums and results are float.
///
/// A block is 4 warps that own 64 queries (or 64 keys), 16 each, and goes along tiles of 64 of the
/// other side. Forward: 2 products a pair of tiles.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int flash_rows = 64, flash_threads = 128;

template <int D>
constexpr int flash_pitch = D + tile_pad;
template <int D>
constexpr int flash_tile = flash_rows* flash_pitch<D>;

/// Fragments of 16 rows of a left operand, and sums of 16 x 8 n.
template <int D>
using Rows = unsigned[D / 16][4];
template <int N>
using Sums = float[N][4];

/// This thread's part of a tile, as it lies: fetched before it is needed, rounded when it is kept.
template <int D>
using Part = float4[flash_rows * (D / 4) / flash_threads];

/// `count` rows, zeros behind. `row_at(i)` points to row i's channels.
template <int D, class RowAt>
__device__ void fetch_tile(int count, const RowAt& row_at, Part<D>& part) {
#pragma unroll
  for (int n = 0; n < static_cast<int>(std::extent_v<Part<D>>); ++n) {
    const int e = static_cast<int>(threadIdx.x) + n * flash_threads;
    const int row = e / (D / 4), channel = 4 * (e % (D / 4));
    part[n] = {};
    if (row < count) part[n] = *reinterpret_cast<const float4*>(row_at(row) + channel);
  }
}
template <int D>
__device__ void keep_tile(const Part<D>& part, float factor, std::uint16_t* tile) {
#pragma unroll
  for (int n = 0; n < static_cast<int>(std::extent_v<Part<D>>); ++n) {
    const int e = static_cast<int>(threadIdx.x) + n * flash_threads;
    const float4 v = part[n];
    *reinterpret_cast<uint2*>(tile + e / (D / 4) * flash_pitch<D> + 4 * (e % (D / 4))) =
        make_uint2(pack(v.x * factor, v.y * factor), pack(v.z * factor, v.w * factor));
  }
}
/// Both at once.
template <int D, class RowAt>
__device__ void bring_tile(std::uint16_t* tile, int count, float factor, const RowAt& row_at) {
  Part<D> part;
  fetch_tile<D>(count, row_at, part);
  keep_tile<D>(part, factor, tile);
}

/// Keys or values of one head from position j0 on.
template <int D>
__device__ void fetch_cached(const Cache<const float>& cache, Index head, Index j0, int count,
                             Part<D>& part) {
  const Index start = j0 % cache.slots;
  const float* const first = cache.data + head * cache.slots * D;
  fetch_tile<D>(
      count,
      [&](int i) {
        const Index slot = start + i < cache.slots ? start + i : start + i - cache.slots;
        return first + slot * D;
      },
      part);
}
template <int D>
__device__ void bring_cached(std::uint16_t* tile, const Cache<const float>& cache, Index head,
                             Index j0, int count) {
  Part<D> part;
  fetch_cached<D>(cache, head, j0, count, part);
  keep_tile<D>(part, 1.0f, tile);
}

/// This warp's 16 rows of a tile as a left operand.
template <int D>
__device__ void load_rows(const std::uint16_t* tile, Rows<D>& out) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    load_matrices<true, true, flash_pitch<D>>(tile, 16 * warp, 16 * k, out[k]);
  }
}

/// sums = rows · tileᵀ, 16 x 64, along the channels.
template <int D>
__device__ void along_channels(const Rows<D>& rows, const std::uint16_t* tile, Sums<8>& sums) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
  }
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      unsigned b[4];
      load_matrices<true, false, flash_pitch<D>>(tile, 16 * j, 16 * k, b);
      multiply_add(rows[k], b[0], b[1], sums[2 * j]);
      multiply_add(rows[k], b[2], b[3], sums[2 * j + 1]);
    }
  }
}

/// sums += weights · tile, 16 x D, along the tile's rows; the weights are rounded.
template <int D>
__device__ void along_rows(const Sums<8>& weights, const std::uint16_t* tile, Sums<D / 8>& sums) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const Sums<4>& w = *reinterpret_cast<const Sums<4>*>(&weights[2 * k]);
    const unsigned a[4] = {pack(w[0][0], w[0][1]), pack(w[0][2], w[0][3]), pack(w[1][0], w[1][1]),
                           pack(w[1][2], w[1][3])};
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      unsigned b[4];
      load_matrices<false, false, flash_pitch<D>>(tile, 16 * j, 16 * k, b);
      multiply_add(a, b[0], b[1], sums[2 * j]);
      multiply_add(a, b[2], b[3], sums[2 * j + 1]);
    }
  }
}

/// Of element e of a 16 x 8 sum: its row and its column.
__device__ inline int row_of(int e) {
  return static_cast<int>(threadIdx.x) % 32 / 4 + 8 * (e / 2);
}
__device__ inline int col_of(int e) {
  return 2 * (static_cast<int>(threadIdx.x) % 4) + e % 2;
}

__device__ inline float exp_of(float x) {
  return exp2f(x * 1.44269504f);
}
template <class F>
__device__ float quad_reduce(float x, const F& f) {
  x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// Whether every query at [p, p + 64) sees every key at [j, j + 64).
__device__ inline bool all_seen(const AttentionShape& shape, Index p, Index j) {
  return j + flash_rows - 1 <= p && j >= shape.first_key(p + flash_rows - 1);
}

template <int D>
__global__ void __launch_bounds__(flash_threads)
    attention_bfloat16_kernel(View<const float> q, Cache<const float> keys,
                              Cache<const float> values, AttentionShape shape, View<float> o,
                              View<float> lse) {
  __shared__ __align__(16) std::uint16_t key_tile[flash_tile<D>], value_tile[flash_tile<D>];
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * flash_rows,
              position = shape.position + first;
  const int count = q.rows - first < flash_rows ? static_cast<int>(q.rows - first) : flash_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16;
  bring_tile<D>(key_tile, count, rsqrtf(static_cast<float>(D)),
                [&](int i) { return q.data + (first + i) * q.stride + head * D; });
  __syncthreads();
  Rows<D> queries;
  load_rows<D>(key_tile, queries);

  Sums<D / 8> out = {};
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const Index begin = shape.first_key(position), end = position + count;
  const auto keys_at = [&](Index j0) {
    return end - j0 < flash_rows ? static_cast<int>(end - j0) : flash_rows;
  };
  Part<D> next_keys, next_values;
  const auto fetch = [&](Index j0) {
    fetch_cached<D>(keys, key_head, j0, keys_at(j0), next_keys);
    fetch_cached<D>(values, key_head, j0, keys_at(j0), next_values);
  };
  constexpr bool ahead = D < 128;  // there are registers to fetch the next tile meanwhile
  if (ahead) fetch(begin);
  for (Index j0 = begin; j0 < end; j0 += flash_rows) {
    if (!ahead) fetch(j0);
    __syncthreads();
    keep_tile<D>(next_keys, 1.0f, key_tile);
    keep_tile<D>(next_values, 1.0f, value_tile);
    __syncthreads();
    if (ahead && j0 + flash_rows < end) fetch(j0 + flash_rows);
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
    along_rows<D>(s, value_tile, out);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float total = quad_reduce(sum[r], [](float a, float b) { return a + b; });
    const int row = mine + row_of(2 * r);
    if (row >= count) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      float* const to = &o(first + row, head * D + 8 * n + col_of(0));
      to[0] = out[n][2 * r] / total;
      to[1] = out[n][2 * r + 1] / total;
    }
    if (!lse.empty() && threadIdx.x % 4 == 0) lse(head, first + row) = most[r] + logf(total);
  }
}

/// Rows that can be read four floats at a time.
inline bool in_fours(const View<const float>& v) {
  return reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && v.stride % 4 == 0;
}

/// Calls f with the head size as a type, if there is a kernel for it; says whether there is.
template <class F>
bool with_head_dim(Index d, const F& f) {
  switch (d) {
    case 64: f(std::integral_constant<int, 64>()); return true;
    case 80: f(std::integral_constant<int, 80>()); return true;
    case 96: f(std::integral_constant<int, 96>()); return true;
    case 128: f(std::integral_constant<int, 128>()); return true;
    default: return false;
  }
}

}  // namespace

template <class S>
bool Launch<S>::attention_bfloat16(Stream stream, View<const S> q, Cache<const S> keys,
                                   Cache<const S> values, AttentionShape shape, View<S> o,
                                   View<S> lse) {
  if constexpr (std::is_same_v<S, float>) {
    if (q.rows == 0 || !in_fours(q)) return false;
    const dim3 blocks(grid(blocks_for(q.rows, flash_rows)), grid(shape.heads));
    return with_head_dim(shape.head_dim, [&](auto d) {
      attention_bfloat16_kernel<d()>
          <<<blocks, flash_threads, 0, stream>>>(q, keys, values, shape, o, lse);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
