// SPDX-License-Identifier: MIT
/// \file
/// Attention's way back, two kernels: one owns queries, one owns keys, so that every sum has one
/// owner and one order. On dual numbers it is the form that meta-learning needs. 6 and 8 · head_dim
/// operations a query, head and visible key, three times as many on dual numbers; for parity, too.
#pragma once

#include <ttt/backend/cuda/kernels/attention.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// <dout, o> of a row, by its lanes.
template <class T, class S = ScalarOf<T>>
__device__ T output_along(const Operand<S>& dout, const Operand<S>& o, Index t, Index head, Index d,
                          Index lane) {
  T sum(0);
  for (Index c = lane; c < d; c += row_lanes) {
    sum = sum + load<T>(dout, t, head * d + c) * load<T>(o, t, head * d + c);
  }
  return lanes_sum(sum, row_lanes);
}

/// dq: a block owns 16 queries of a head and goes along their keys.
template <class T, class C, class S = ScalarOf<T>>
__global__ void __launch_bounds__(attention_threads)
    attention_queries_kernel(Operand<S> q, KeysAndValues<S, C> cache, PlacedShape placed,
                             Operand<S> o, Operand<S> lse, Operand<S> dout, View<S> dq) {
  const AttentionShape shape = placed.now();
  using std::exp, std::sqrt;
  constexpr int tile = streamed_rows<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Index d = shape.head_dim, rows = q.value.rows;
  T* const queries = reinterpret_cast<T*>(memory);
  T* const douts = queries + owned_rows * (d + 1);
  T* const keys = douts + owned_rows * (d + 1);
  T* const values = keys + tile * (d + 1);
  T* const dscores = values + tile * (d + 1);  // (owned_rows, tile + 1)
  const auto [head, key_head, first, count, row, lane, p, begin, end] = owned_queries(shape, rows);
  const T scale(S(1) / sqrt(static_cast<S>(d)));
  bring_rows(queries, owned_rows, count, d,
             [&](Index i, Index c) { return load<T>(q, first + i, head * d + c) * scale; });
  bring_rows(douts, owned_rows, count, d,
             [&](Index i, Index c) { return load<T>(dout, first + i, head * d + c); });
  const Index t = row < count ? first + row : first;
  const T along = output_along<T>(dout, o, t, head, d, lane);
  const T log_sum = load<T>(lse, head, t);

  T out[lane_channels];
  for (T& x : out) x = T(0);
  for (Index j0 = begin; j0 < end; j0 += tile) {
    const Index here = end - j0 < tile ? end - j0 : tile;
    __syncthreads();
    bring_keys(cache, key_head, shape.position, tile, j0, here, keys, values);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < tile / row_lanes; ++n) {
      const Index i = lane + row_lanes * n;
      T dscore(0);
      if (row < count && i < here && sees(shape, p, j0 + i)) {
        const T score = dot_rows(queries + row * (d + 1), keys + i * (d + 1), d);
        const T dweight = dot_rows(douts + row * (d + 1), values + i * (d + 1), d);
        dscore = exp(score - log_sum) * (dweight - along) * scale;
      }
      dscores[row * (tile + 1) + i] = dscore;
    }
    __syncwarp();
    for (Index i = 0; i < here; ++i) {
      const T dscore = dscores[row * (tile + 1) + i];
#pragma unroll
      for (int n = 0; n < lane_channels; ++n) {
        const Index c = lane + row_lanes * n;
        if (c < d) out[n] = out[n] + dscore * keys[i * (d + 1) + c];
      }
    }
  }
  if (row >= count) return;
#pragma unroll
  for (int n = 0; n < lane_channels; ++n) {
    const Index c = lane + row_lanes * n;
    if (c < d) put(dq(first + row, head * d + c), out[n]);
  }
}

/// dkeys and dvalues, added to: a block owns 16 keys of a key head and goes along the queries that
/// see them, one query head of the group after the other. Gradients begin `first` behind the first
/// query, keys `from`.
template <class T, class C, class S = ScalarOf<T>>
__global__ void __launch_bounds__(attention_threads)
    attention_keys_kernel(Operand<S> q, KeysAndValues<S, C> cache, PlacedShape placed, Operand<S> o,
                          Operand<S> lse, Operand<S> dout, View<S> dkeys, View<S> dvalues,
                          Index first, Index from) {
  const AttentionShape shape = placed.now();
  using std::exp, std::sqrt;
  constexpr int tile = 16;
  extern __shared__ __align__(16) unsigned char memory[];
  const Index d = shape.head_dim, rows = q.value.rows;
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + owned_rows * (d + 1);
  T* const queries = values + owned_rows * (d + 1);
  T* const douts = queries + tile * (d + 1);
  T* const weights = douts + tile * (d + 1);  // (owned_rows, tile + 1)
  T* const dscores = weights + owned_rows * (tile + 1);
  T* const alongs = dscores + owned_rows * (tile + 1);  // of a tile of queries
  T* const log_sums = alongs + tile;
  const Index key_head = blockIdx.y, group = shape.heads / shape.key_heads;
  const Index key_end = shape.position + rows;
  const Index j0 = shape.position + from + static_cast<Index>(blockIdx.x) * owned_rows;
  const Index count = key_end - j0 < owned_rows ? key_end - j0 : owned_rows;
  const Index row = threadIdx.x / row_lanes, lane = threadIdx.x % row_lanes;
  const Index j = j0 + row;
  const T scale(S(1) / sqrt(static_cast<S>(d)));
  bring_keys(cache, key_head, shape.position, owned_rows, j0, count, keys, values);

  T dkey[lane_channels], dvalue[lane_channels];
  for (T& x : dkey) x = T(0);
  for (T& x : dvalue) x = T(0);
  const Index begin = j0 > shape.position ? j0 - shape.position : 0;
  const Index reach = j0 + count - 1 + (shape.window < key_end ? shape.window : key_end);
  const Index end = reach < key_end ? reach - shape.position : rows;
  for (Index head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (Index t0 = begin; t0 < end; t0 += tile) {
      const Index here = end - t0 < tile ? end - t0 : tile;
      __syncthreads();
      bring_rows(queries, tile, here, d,
                 [&](Index i, Index c) { return load<T>(q, t0 + i, head * d + c) * scale; });
      bring_rows(douts, tile, here, d,
                 [&](Index i, Index c) { return load<T>(dout, t0 + i, head * d + c); });
      const Index t = row < here ? t0 + row : t0;
      const T along = output_along<T>(dout, o, t, head, d, lane);
      if (lane == 0) {
        alongs[row] = along;
        log_sums[row] = load<T>(lse, head, t);
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < tile / row_lanes; ++n) {
        const Index i = lane + row_lanes * n;
        T weight(0), dscore(0);
        if (row < count && i < here && sees(shape, shape.position + t0 + i, j)) {
          const T score = dot_rows(queries + i * (d + 1), keys + row * (d + 1), d);
          const T dweight = dot_rows(douts + i * (d + 1), values + row * (d + 1), d);
          weight = exp(score - log_sums[i]);
          dscore = weight * (dweight - alongs[i]);  // the queries hold the scale
        }
        weights[row * (tile + 1) + i] = weight;
        dscores[row * (tile + 1) + i] = dscore;
      }
      __syncwarp();
      for (Index i = 0; i < here; ++i) {
        const T weight = weights[row * (tile + 1) + i], dscore = dscores[row * (tile + 1) + i];
#pragma unroll
        for (int n = 0; n < lane_channels; ++n) {
          const Index c = lane + row_lanes * n;
          if (c >= d) continue;
          dkey[n] = dkey[n] + dscore * queries[i * (d + 1) + c];
          dvalue[n] = dvalue[n] + weight * douts[i * (d + 1) + c];
        }
      }
    }
  }
  if (row >= count) return;
  const Index row_of_gradient = j - shape.position - first;
#pragma unroll
  for (int n = 0; n < lane_channels; ++n) {
    const Index c = lane + row_lanes * n;
    if (c >= d) continue;
    if (!dkeys.empty()) put(dkeys(row_of_gradient, key_head * d + c), dkey[n], true);
    if (!dvalues.empty()) put(dvalues(row_of_gradient, key_head * d + c), dvalue[n], true);
  }
}

}  // namespace

template <class S>
template <class C>
void Launch<S>::attention_backward(Stream stream, bool tangents, Operand<S> q,
                                   KeysAndValues<S, C> cache, PlacedShape shape, Operand<S> o,
                                   Operand<S> lse, Operand<S> dout, View<S> dq, View<S> dkeys,
                                   View<S> dvalues, Index first) {
  if (q.value.rows == 0) return;
  const Index from = shape.first_seen(first), end = q.value.rows;
  with_number<S>(tangents, [&]<class T>() {
    constexpr Index tile = streamed_rows<T>, bytes = sizeof(T);
    if (!dq.empty()) {
      const dim3 blocks(grid(blocks_for(q.value.rows, owned_rows)), grid(shape.heads));
      const Index numbers =
          2 * (owned_rows + tile) * (shape.head_dim + 1) + owned_rows * (tile + 1);
      start(attention_queries_kernel<T, C, S>, blocks, numbers * bytes, stream, q, cache, shape, o,
            lse, dout, dq);
    }
    if (!(dkeys.empty() && dvalues.empty()) && from < end) {
      const dim3 blocks(grid(blocks_for(end - from, owned_rows)), grid(shape.key_heads));
      const Index numbers = 4 * owned_rows * (shape.head_dim + 1) +
                            2 * owned_rows * (owned_rows + 1) + 2 * owned_rows;
      start(attention_keys_kernel<T, C, S>, blocks, numbers * bytes, stream, q, cache, shape, o,
            lse, dout, dkeys, dvalues, first, from);
    }
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
