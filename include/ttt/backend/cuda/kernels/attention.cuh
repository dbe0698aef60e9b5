// SPDX-License-Identifier: MIT
/// \file
/// Window attention in the scalar's own precision, streamed over tiles of keys with running row
/// statistics (after FlashAttention, Dao et al. 2022, arXiv 2205.14135). Nothing of size queries x
/// keys leaves the chip. 4 · head_dim operations a query, head and visible key on the float units,
/// out of shared memory: this is for parity, attention_hopper.cuh for speed.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// A block is 128 threads: 16 rows of 8 lanes. A row is a query (or, where a block owns keys, a
/// key); its lanes share the other side's tile, and the channels of what is summed.
constexpr int attention_threads = 128;
constexpr int owned_rows = 16;
constexpr int row_lanes = 8;
constexpr int lane_channels = most_head_dim / row_lanes;

/// Rows of a streamed tile: shared memory holds less of what is wider.
template <class T>
constexpr int streamed_rows = sizeof(T) > 4 ? 16 : 32;

/// Rows [first, first + count) of one head into shared memory, `tile` rows of d + 1, zeros behind.
template <class T, class Load>
__device__ void bring_rows(T* shared, int tile, Index count, Index d, const Load& load_at) {
  for (Index e = threadIdx.x; e < tile * d; e += attention_threads) {
    const Index row = e / d, channel = e % d;
    shared[row * (d + 1) + channel] = row < count ? load_at(row, channel) : T(0);
  }
}

/// Channel c of a key (or value) of key head `head` at a position. Tangents begin at the queries'
/// first position.
template <class T, class C, class S = ScalarOf<T>>
__device__ T cached(const Cache<const C>& cache, const View<const S>& tangents, Index head,
                    Index position, Index channel, Index first_query) {
  const S value = element(cache.at(head, position) + channel);
  if constexpr (std::is_same_v<T, S>) {
    return value;
  } else {
    const bool moves = tangents.data != nullptr && position >= first_query;
    return {value,
            moves ? tangents(position - first_query, head * cache.head_dim + channel) : S(0)};
  }
}

/// `count` keys and values from position j0 on into shared memory, a tile of rows each.
template <class T, class C, class S = ScalarOf<T>>
__device__ void bring_keys(const KeysAndValues<S, C>& cache, Index key_head, Index first_query,
                           int tile, Index j0, Index count, T* keys, T* values) {
  bring_rows(keys, tile, count, cache.keys.head_dim, [&](Index i, Index c) {
    return cached<T>(cache.keys, cache.tkeys, key_head, j0 + i, c, first_query);
  });
  bring_rows(values, tile, count, cache.values.head_dim, [&](Index i, Index c) {
    return cached<T>(cache.values, cache.tvalues, key_head, j0 + i, c, first_query);
  });
}

template <class T>
__device__ T dot_rows(const T* a, const T* b, Index d) {
  T sum(0);
  for (Index c = 0; c < d; ++c) sum = sum + a[c] * b[c];
  return sum;
}

/// What a block that owns queries owns, which of it this thread's lane has, and the keys it sees.
struct OwnedQueries {
  Index head, key_head, first, count;
  Index row, lane, p;
  Index begin, end;
};
__device__ inline OwnedQueries owned_queries(const AttentionShape& shape, Index rows) {
  const Index head = blockIdx.y, first = static_cast<Index>(blockIdx.x) * owned_rows;
  const Index count = rows - first < owned_rows ? rows - first : owned_rows;
  const Index row = threadIdx.x / row_lanes, position = shape.position + first;
  return {head,
          head / (shape.heads / shape.key_heads),
          first,
          count,
          row,
          threadIdx.x % row_lanes,
          position + row,
          shape.first_key(position),
          position + count};
}

template <class T, class C, class S = ScalarOf<T>>
__global__ void __launch_bounds__(attention_threads)
    attention_kernel(Operand<S> q, KeysAndValues<S, C> cache, PlacedShape placed, View<S> o,
                     View<S> lse) {
  const AttentionShape shape = placed.now();
  using std::exp, std::log, std::sqrt;
  constexpr int tile = streamed_rows<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Index d = shape.head_dim, rows = q.value.rows;
  T* const queries = reinterpret_cast<T*>(memory);
  T* const keys = queries + owned_rows * (d + 1);
  T* const values = keys + tile * (d + 1);
  T* const weights = values + tile * (d + 1);  // (owned_rows, tile + 1)
  const auto [head, key_head, first, count, row, lane, p, begin, end] = owned_queries(shape, rows);
  const S scale = S(1) / sqrt(static_cast<S>(d));
  bring_rows(queries, owned_rows, count, d,
             [&](Index i, Index c) { return load<T>(q, first + i, head * d + c) * T(scale); });

  bool began = false;
  S most(0);
  T sum(0), out[lane_channels];
  for (T& x : out) x = T(0);
  for (Index j0 = begin; j0 < end; j0 += tile) {
    const Index here = end - j0 < tile ? end - j0 : tile;
    __syncthreads();
    bring_keys(cache, key_head, shape.position, tile, j0, here, keys, values);
    __syncthreads();
    T scores[tile / row_lanes];
    bool seen[tile / row_lanes];
    bool any = false;
    S highest(0);
#pragma unroll
    for (int n = 0; n < tile / row_lanes; ++n) {
      const Index i = lane + row_lanes * n;
      seen[n] = row < count && i < here && sees(shape, p, j0 + i);
      if (!seen[n]) continue;
      scores[n] = dot_rows(queries + row * (d + 1), keys + i * (d + 1), d);
      const S value = value_of(scores[n]);
      if (!any || !(value <= highest)) highest = value;  // a NaN wins, so that it shows
      any = true;
    }
    for (int mask = row_lanes / 2; mask > 0; mask /= 2) {
      const S other = shuffle_xor(highest, mask);
      const bool others = __shfl_xor_sync(0xffffffffu, any ? 1 : 0, mask) != 0;
      if (others && (!any || !(other <= highest))) highest = other;
      any = any || others;
    }
    if (any) {
      const S now = !began || !(highest <= most) ? highest : most;
      const S shrink = began && most != -INFINITY ? exp(most - now) : S(0);
      sum = sum * T(shrink);
      for (T& x : out) x = x * T(shrink);
      most = now;
      began = true;
    }
    const S base = most == -INFINITY ? S(0) : most;  // where nothing has any weight yet
#pragma unroll
    for (int n = 0; n < tile / row_lanes; ++n) {
      const T weight = seen[n] ? exp(scores[n] - T(base)) : T(0);
      sum = sum + weight;
      weights[row * (tile + 1) + lane + row_lanes * n] = weight;
    }
    __syncwarp();
    for (Index i = 0; i < here; ++i) {
      const T weight = weights[row * (tile + 1) + i];
#pragma unroll
      for (int n = 0; n < lane_channels; ++n) {
        const Index c = lane + row_lanes * n;
        if (c < d) out[n] = out[n] + weight * values[i * (d + 1) + c];
      }
    }
  }
  sum = lanes_sum(sum, row_lanes);
  if (row >= count) return;
#pragma unroll
  for (int n = 0; n < lane_channels; ++n) {
    const Index c = lane + row_lanes * n;
    if (c < d && !o.empty()) put(o(first + row, head * d + c), out[n] / sum);
  }
  if (!lse.empty() && lane == 0) {
    put(lse(head, first + row), narrow<T>(Wide<T>(static_cast<double>(most)) + log(widen(sum))));
  }
}

template <class S, class C>
__global__ void store_kernel(View<const S> rows, Cache<C> cache, Place place) {
  const Index t = blockIdx.x, d = cache.head_dim, position = place.now() + t;
  for (Index j = threadIdx.x; j < cache.heads * d; j += blockDim.x) {
    set(cache.at(j / d, position)[j % d], rows(t, j));
  }
}

/// Starts a kernel with `bytes` of dynamic shared memory. What it may have belongs to the kernel,
/// not to the start, and other threads start it too: so it is always the same, all there is.
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, Index bytes, cudaStream_t stream,
           const Arguments&... arguments) {
  int device = 0, most = 0;
  static_cast<void>(cudaGetDevice(&device));
  static_cast<void>(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  static_cast<void>(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  kernel<<<blocks, attention_threads, static_cast<std::size_t>(bytes), stream>>>(arguments...);
}

}  // namespace

template <class S>
template <class C>
void Launch<S>::store(Stream stream, View<const S> rows, Cache<C> cache, Place place) {
  if (rows.rows > 0) store_kernel<<<grid(rows.rows), 256, 0, stream>>>(rows, cache, place);
}

template <class S>
template <class C>
void Launch<S>::attention(Stream stream, bool tangents, Operand<S> q, KeysAndValues<S, C> cache,
                          PlacedShape shape, View<S> o, View<S> lse) {
  if (q.value.rows == 0) return;
  const dim3 blocks(grid(blocks_for(q.value.rows, owned_rows)), grid(shape.heads));
  with_number<S>(tangents, [&]<class T>() {
    constexpr Index tile = streamed_rows<T>;
    const Index numbers = (owned_rows + 2 * tile) * (shape.head_dim + 1) + owned_rows * (tile + 1);
    start(attention_kernel<T, C, S>, blocks, numbers * static_cast<Index>(sizeof(T)), stream, q,
          cache, shape, o, lse);
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
