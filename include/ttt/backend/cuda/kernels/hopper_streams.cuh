// SPDX-License-Identifier: MIT
/// \file
/// What the attention kernels for Hopper have in common: which keys a block goes along, and how
/// they come out of a cache into shared memory.
#pragma once

#include <ttt/backend/cuda/kernels/hopper_rings.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// The window as seen from query `first` of a block's queries: positions relative to that, clamped
/// so that they fit.
struct LocalWindow {
  int before;  // keys before that query
  int window;

  __device__ LocalWindow(const AttentionShape& shape, Index first)
      : before(clamp(shape.position + first)), window(clamp(shape.window)) {}

  /// The first key that query i sees.
  __device__ int begin(int i) const { return i - window + 1 > -before ? i - window + 1 : -before; }
  __device__ bool sees(int i, int j) const { return j <= i && j >= begin(i); }
  /// Whether all of `queries` from i on see all of `keys` from j on.
  __device__ bool all_seen(int i, int queries, int j, int keys) const {
    return j + keys - 1 <= i && j >= begin(i + queries - 1);
  }

 private:
  __device__ static int clamp(Index n) {
    constexpr Index most = Index{1} << 30;
    return static_cast<int>(n < most ? n : most);
  }
};

/// This thread's place in the 64 rows of its group's sums, and in 8 of their columns.
__device__ inline int group_row(int e) {
  return static_cast<int>(threadIdx.x) % group_threads / 32 * 16 +
         static_cast<int>(threadIdx.x) % 32 / 4 + 8 * (e / 2);
}
__device__ inline int group_col(int e) {
  return 2 * (static_cast<int>(threadIdx.x) % 4) + e % 2;
}

/// Tiles of the keys that a block's queries see, from the newest to the oldest; positions are
/// relative to the block's first query.
template <int columns>
struct KeyTiles {
  int begin, end, rows, count;

  /// Of a block that owns `rows` queries, of which `queries` are there.
  __device__ KeyTiles(const LocalWindow& window, int rows_, int queries)
      : begin(window.begin(0)),
        end(queries),
        rows(rows_),
        count((rows - begin + columns - 1) / columns) {}

  /// The first key of a tile.
  __device__ int first(int n) const { return rows - (n + 1) * columns; }
};

/// Rows of one head out of the ring of a cache, into tiles.
template <int D, int rows>
struct CachedRows {
  const bfloat16* head;
  int slots;

  __device__ CachedRows(const Cache<const bfloat16>& cache, Index which)
      : head(cache.data + which * cache.slots * D), slots(static_cast<int>(cache.slots)) {}

  /// Of the tile's rows, which begin in a slot, those from `begin` to `end` are there; the others
  /// become zeros.
  __device__ void bring(const TileCopy<D, rows>& copy, unsigned tile, int slot, int begin,
                        int end) const {
    if (begin <= 0 && end >= rows && slot + rows <= slots) {
      copy.all(tile, head + static_cast<Index>(slot) * D);
    } else {
      copy.some(tile, begin, end, [&](int row) {
        int at = slot + row;
        while (at >= slots) at -= slots;
        return head + static_cast<Index>(at) * D;
      });
    }
  }
};

/// Keys and values of one head on their way through shared memory.
template <int D, int columns, int stages>
struct KeyStream {
  using Keys = Tile<D, columns>;
  static constexpr int bytes = 2 * stages * Keys::bytes;

  RingBarriers<stages> keys, values;

  /// By all threads of a block; `consumers` groups of them will read.
  __device__ void init(int consumers) {
    if (threadIdx.x == 0) {
      keys.init(4 * consumers);
      values.init(4 * consumers);
    }
    share_barriers();
  }
  /// Where tile n lies, when the tiles begin at `tiles`.
  __device__ static unsigned key_tile(unsigned tiles, int n) {
    return tiles + RingBarriers<stages>::place(n) * (2 * Keys::bytes);
  }
  __device__ static unsigned value_tile(unsigned tiles, int n) {
    return key_tile(tiles, n) + Keys::bytes;
  }

  /// By the group that brings; the block's first query is at `position`.
  __device__ void bring_all(unsigned tiles, const Cache<const bfloat16>& key_cache,
                            const Cache<const bfloat16>& value_cache, Index head, Index position,
                            const KeyTiles<columns>& range) {
    const CachedRows<D, columns> key_rows(key_cache, head), value_rows(value_cache, head);
    const TileCopy<D, columns> copy;
    const int slots = key_rows.slots;
    int slot = static_cast<int>((position + range.first(0) + slots * Index{columns}) % slots);
    for (int n = 0; n < range.count; ++n) {
      const int begin = range.begin - range.first(n), end = range.end - range.first(n);
      keys.wait_empty(n);
      key_rows.bring(copy, key_tile(tiles, n), slot, begin, end);
      keys.fill(n);
      values.wait_empty(n);
      value_rows.bring(copy, value_tile(tiles, n), slot, begin, end);
      values.fill(n);
      for (slot -= columns; slot < 0;) slot += slots;
    }
  }
};

/// Eight channels of a row of floats, and the same rounded.
__device__ inline void load_eight(const float* from, float (&out)[8]) {
  const float4 a = __ldg(reinterpret_cast<const float4*>(from)),
               b = __ldg(reinterpret_cast<const float4*>(from) + 1);
  out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
  out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
__device__ inline uint4 round_eight(const float (&x)[8]) {
  return make_uint4(rounded_pair(x[0], x[1]), rounded_pair(x[2], x[3]), rounded_pair(x[4], x[5]),
                    rounded_pair(x[6], x[7]));
}
/// Rows of a matrix in float, rounded, into a tile, by two threads a row; zeros from row `count`
/// on.
template <class To>
__device__ void bring_rounded(unsigned char* tile, const View<const float>& from, Index first,
                              int count, Index column) {
  constexpr int half = To::channels / 2;
  const int row = static_cast<int>(threadIdx.x) / 2,
            begin = static_cast<int>(threadIdx.x) % 2 * half;
#pragma unroll
  for (int c = begin; c < begin + half; c += 8) {
    float x[8] = {};
    if (row < count) load_eight(&from(first + row, column + c), x);
    *reinterpret_cast<uint4*>(tile + To::at(row, c / 8)) = round_eight(x);
  }
}

/// Rows that can be read and written by pairs or fours of floats; absent ones can.
inline bool in_fours_of_floats(const View<const float>& v) {
  return v.empty() || in_sixteens(v);
}
/// Caches that can be read 16 bytes at a time, and whose slots can be counted in an int.
inline bool in_chunks(const Cache<const bfloat16>& c) {
  return reinterpret_cast<std::uintptr_t>(c.data) % 16 == 0 && c.slots < (Index{1} << 24);
}
constexpr Index least_hopper_queries = 64;

/// Of the running GPU.
inline Index multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess) {
    return count > 0 ? count : 1;
  }
  static_cast<void>(cudaGetLastError());
  return 1;
}
/// Lets a kernel have that much shared memory; says whether it can.
template <class Kernel>
bool with_shared_memory(Kernel* kernel, int bytes) {
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) ==
      cudaSuccess) {
    return true;
  }
  static_cast<void>(cudaGetLastError());
  return false;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
