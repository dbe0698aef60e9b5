// SPDX-License-Identifier: MIT
/// \file
/// Attention's way back on tensor cores, as attention_backward.cuh has it: one kernel that owns
/// queries, 3 products a pair of tiles, and one that owns keys, 4 products.
#pragma once

#include <ttt/backend/cuda/kernels/attention_backward_hopper.cuh>
#include <ttt/backend/cuda/kernels/attention_bfloat16.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// <dout, o> of a row, by two neighbouring lanes; in both of them. dout is rounded as it is for the
/// products, or dP - D would keep what the rounding and all values have in common.
template <int D>
__device__ float output_along(const View<const float>& dout, const View<const float>& o, Index t,
                              Index head) {
  const Index from = head * D + (threadIdx.x % 2) * (D / 2);
  float sum = 0;
  for (Index c = from; c < from + D / 2; ++c) sum += low(pack(dout(t, c), 0.0f)) * o(t, c);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

template <int D>
__global__ void __launch_bounds__(flash_threads)
    attention_queries_bfloat16_kernel(View<const float> q, Cache<const bfloat16> keys,
                                      Cache<const bfloat16> values, PlacedShape placed,
                                      View<const float> o, View<const float> lse,
                                      View<const float> dout, View<float> dq) {
  const AttentionShape shape = placed.now();
  extern __shared__ __align__(16) std::uint16_t tiles[];  // keys, values; the next of both
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * flash_rows,
              position = shape.position + first;
  const int count = q.rows - first < flash_rows ? static_cast<int>(q.rows - first) : flash_rows;
  const int lane = static_cast<int>(threadIdx.x) % 32,
            mine = static_cast<int>(threadIdx.x) / 32 * 16;
  const float scale = rsqrtf(static_cast<float>(D));
  bring_tile<D>(tiles, count, scale,
                [&](int i) { return q.data + (first + i) * q.stride + head * D; });
  bring_tile<D>(tiles + flash_tile<D>, count, 1.0f,
                [&](int i) { return dout.data + (first + i) * dout.stride + head * D; });
  __syncthreads();
  Rows<D> queries, douts;
  load_rows<D>(tiles, queries);
  load_rows<D>(tiles + flash_tile<D>, douts);
  const int row = mine + lane / 2;
  const float along = output_along<D>(dout, o, first + (row < count ? row : 0), head);
  float alongs[2], log_sums[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    alongs[r] = __shfl_sync(0xffffffffu, along, 2 * row_of(2 * r));
    const int t = mine + row_of(2 * r);
    log_sums[r] = lse(head, first + (t < count ? t : 0));
  }

  Sums<D / 8> out = {};
  const Index begin = shape.first_key(position), end = position + count;
  __shared__ RingCursor<D> cursor;
  cursor.start(keys, key_head, begin);
  const auto send = [&](Index j0, int stage) {
    const int here = end - j0 < flash_rows ? static_cast<int>(end - j0) : flash_rows;
    cursor.send(keys, values, here, tiles + 2 * stage * flash_tile<D>,
                tiles + (2 * stage + 1) * flash_tile<D>);
    close_copies();
  };
  __syncthreads();
  send(begin, 0);
  int stage = 0;
  for (Index j0 = begin; j0 < end; j0 += flash_rows, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile has come, and nobody reads the one before any more
    if (j0 + flash_rows < end) send(j0 + flash_rows, stage ^ 1);
    const std::uint16_t* const key_tile = tiles + 2 * stage * flash_tile<D>;
    Sums<8> s, dweights;
    along_channels<D>(queries, key_tile, s);
    along_channels<D>(douts, key_tile + flash_tile<D>, dweights);
    const bool all = all_seen(shape, position, j0);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Index p = position + mine + row_of(e), j = j0 + 8 * n + col_of(e);
        const bool seen = all || sees(shape, p, j);
        s[n][e] =
            seen ? exp_of(s[n][e] - log_sums[e / 2]) * (dweights[n][e] - alongs[e / 2]) : 0.0f;
      }
    }
    along_rows<D>(s, key_tile, out);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int t = mine + row_of(e);
    if (t >= count) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) dq(first + t, head * D + 8 * n + col_of(e)) = out[n][e] * scale;
  }
}

/// dkeys and dvalues, added to, which begin `first` behind the first query, for the keys that begin
/// `from` behind it.
template <int D>
__global__ void __launch_bounds__(flash_threads)
    attention_keys_bfloat16_kernel(View<const float> q, Cache<const bfloat16> keys,
                                   Cache<const bfloat16> values, PlacedShape placed,
                                   View<const float> o, View<const float> lse,
                                   View<const float> dout, View<float> dkeys, View<float> dvalues,
                                   Index first, Index from) {
  const AttentionShape shape = placed.now();
  __shared__ __align__(16) std::uint16_t query_tile[flash_tile<D>], dout_tile[flash_tile<D>];
  __shared__ float alongs[flash_rows], log_sums[flash_rows];
  const Index key_head = blockIdx.y, group = shape.heads / shape.key_heads;
  const Index key_end = shape.position + q.rows;
  const Index j0 = shape.position + from + static_cast<Index>(blockIdx.x) * flash_rows;
  const int count = key_end - j0 < flash_rows ? static_cast<int>(key_end - j0) : flash_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16;
  __shared__ RingCursor<D> cursor;
  cursor.start(keys, key_head, j0);
  __syncthreads();
  cursor.send(keys, values, count, query_tile, dout_tile);
  close_copies();
  wait_for_copies();
  __syncthreads();
  Rows<D> own_keys, own_values;
  load_rows<D>(query_tile, own_keys);
  load_rows<D>(dout_tile, own_values);

  Sums<D / 8> dkey = {}, dvalue = {};
  const Index begin = j0 > shape.position ? j0 - shape.position : 0;
  const Index reach = j0 + count - 1 + (shape.window < key_end ? shape.window : key_end);
  const Index end = reach < key_end ? reach - shape.position : q.rows;
  for (Index head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (Index t0 = begin; t0 < end; t0 += flash_rows) {
      const int here = end - t0 < flash_rows ? static_cast<int>(end - t0) : flash_rows;
      __syncthreads();
      bring_tile<D>(query_tile, here, rsqrtf(static_cast<float>(D)),
                    [&](int i) { return q.data + (t0 + i) * q.stride + head * D; });
      bring_tile<D>(dout_tile, here, 1.0f,
                    [&](int i) { return dout.data + (t0 + i) * dout.stride + head * D; });
      const int row = static_cast<int>(threadIdx.x) / 2;
      const Index t = t0 + (row < here ? row : 0);
      const float along = output_along<D>(dout, o, t, head);
      if (threadIdx.x % 2 == 0) {
        alongs[row] = along;
        log_sums[row] = lse(head, t);
      }
      __syncthreads();
      Sums<8> weights, dscores;
      along_channels<D>(own_keys, query_tile, weights);
      along_channels<D>(own_values, dout_tile, dscores);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = 8 * n + col_of(e);
          const Index p = shape.position + t0 + i, j = j0 + mine + row_of(e);
          const bool seen = i < here && sees(shape, p, j);
          weights[n][e] = seen ? exp_of(weights[n][e] - log_sums[i]) : 0.0f;
          dscores[n][e] = seen ? weights[n][e] * (dscores[n][e] - alongs[i]) : 0.0f;
        }
      }
      along_rows<D>(weights, dout_tile, dvalue);
      along_rows<D>(dscores, query_tile, dkey);
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int i = mine + row_of(e);
    if (i >= count) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const Index row = j0 + i - shape.position - first, c = key_head * D + 8 * n + col_of(e);
      dkeys(row, c) += dkey[n][e];
      dvalues(row, c) += dvalue[n][e];
    }
  }
}

}  // namespace

template <class S>
Index Launch<S>::attention_backward_scratch(AttentionShape shape, Index rows) {
  return attention_backward_hopper_scratch(shape, rows);
}

template <class S>
bool Launch<S>::attention_backward_bfloat16(Stream stream, View<const S> q,
                                            Cache<const bfloat16> keys,
                                            Cache<const bfloat16> values, PlacedShape shape,
                                            View<const S> o, View<const S> lse, View<const S> dout,
                                            View<S> dq, View<S> dkeys, View<S> dvalues, Index first,
                                            void* scratch) {
  if constexpr (std::is_same_v<S, float>) {
    if (attention_backward_hopper(stream, q, keys, values, shape, o, lse, dout, dq, dkeys, dvalues,
                                  first, scratch)) {
      return true;
    }
    if (q.rows == 0 || !in_sixteens(q) || !in_sixteens(dout) || dq.empty()) return false;
    if (!in_eights(keys) || !in_eights(values) || keys.slots != values.slots) return false;
    if (dkeys.empty() != dvalues.empty()) return false;
    const Index from = shape.first_seen(first), end = q.rows;
    return with_head_dim(shape.head_dim, [&](auto d) {
      const dim3 blocks(grid(blocks_for(q.rows, flash_rows)), grid(shape.heads));
      start_tiles(attention_queries_bfloat16_kernel<d()>, blocks, flash_threads,
                  8 * flash_tile<d()>, stream, q, keys, values, shape, o, lse, dout, dq);
      if (dkeys.empty() || from >= end) return;
      const dim3 key_blocks(grid(blocks_for(end - from, flash_rows)), grid(shape.key_heads));
      attention_keys_bfloat16_kernel<d()><<<key_blocks, flash_threads, 0, stream>>>(
          q, keys, values, shape, o, lse, dout, dkeys, dvalues, first, from);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
