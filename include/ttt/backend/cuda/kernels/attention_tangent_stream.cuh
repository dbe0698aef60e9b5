// SPDX-License-Identifier: MIT
/// \file
/// The keys that attention's tangent goes along on Hopper, and how they come into shared memory.
/// See attention_tangent_hopper.cuh.
#pragma once

#include <ttt/backend/cuda/kernels/hopper_streams.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int tangent_groups = 2;  // that multiply, 64 queries each
constexpr int tangent_consumers = group_threads * tangent_groups;
constexpr int tangent_block_threads = tangent_consumers + group_threads;

template <int D>
struct TangentShape {
  static constexpr int columns = D <= 80 ? 128 : D <= 96 ? 96 : 80;  // keys of a tile
  static constexpr int stages = D <= 96 ? 4 : 3;
  static_assert(stages >= 3);  // a tile of keys that move takes three places
  static constexpr int rows = 64 * tangent_groups;
  using Own = Tile<D, rows>;
  using Keys = Tile<D, columns>;
  // Ones behind the values: for all places, or for each.
  static constexpr int ones = Keys::ones_bytes;
  static constexpr int place_bytes = 2 * Keys::bytes + (Keys::one_block ? 0 : ones);
  static constexpr int ring_bytes = stages * place_bytes;
  static constexpr int shared_bytes =
      2 * Own::bytes + ring_bytes + (Keys::one_block ? ones : 0) + 1024;
};

/// Tiles of the keys that a block's queries see, from the oldest to the newest: first of those that
/// stay, then of those that move. Positions are relative to the block's first query.
template <int columns>
struct TangentTiles {
  int begin, moving, end;      // the first key, the first that moves, behind the last
  int still_count, own_count;  // tiles

  __device__ TangentTiles(const LocalWindow& window, Index first, int queries, bool moves)
      : begin(window.begin(0)), moving(queries), end(queries) {
    if (moves) moving = -first > begin ? static_cast<int>(-first) : begin;
    still_count = (moving - begin + columns - 1) / columns;
    own_count = (end - moving + columns - 1) / columns;
  }
  /// The first key of a tile.
  __device__ int still(int n) const { return begin + n * columns; }
  __device__ int own(int n) const { return moving + n * columns; }
};

/// The block's tiles on their way through the ring of a stream: keys and values in one place; of
/// keys that move in three, of which the second and the third are k' and v' in float, one row after
/// the other, as long as both tiles of a place.
template <int D>
struct TangentStream {
  using Shape = TangentShape<D>;
  using Keys = typename Shape::Keys;
  static constexpr int columns = Shape::columns;

  RingBarriers<Shape::stages> keys, values;

  /// By all threads of the block.
  __device__ void init(unsigned char* memory) {
    constexpr unsigned pair = 0x3f803f80;  // of ones
    for (int i = 0; i < (Keys::one_block ? 1 : Shape::stages); ++i) {
      unsigned char* const to =
          memory + (Keys::one_block ? Shape::ring_bytes : i * Shape::place_bytes + 2 * Keys::bytes);
      for (int e = static_cast<int>(threadIdx.x) * 16; e < Shape::ones;
           e += tangent_block_threads * 16) {
        *reinterpret_cast<uint4*>(to + e) = make_uint4(pair, pair, pair, pair);
      }
    }
    show_copies();
    if (threadIdx.x == 0) {
      keys.init(4 * tangent_groups);
      values.init(4 * tangent_groups);
    }
    share_barriers();
  }
  __device__ static unsigned key_tile(unsigned memory, int n) {
    return memory + RingBarriers<Shape::stages>::place(n) * Shape::place_bytes;
  }
  __device__ static unsigned value_tile(unsigned memory, int n) {
    return key_tile(memory, n) + Keys::bytes;
  }

  /// By the group that brings; the block's first query is the `first`th.
  __device__ void bring_all(unsigned memory, const Cache<const bfloat16>& key_cache,
                            const Cache<const bfloat16>& value_cache,
                            const View<const float>& tkeys, const View<const float>& tvalues,
                            Index head, Index position, Index first,
                            const TangentTiles<columns>& tiles) {
    const CachedRows<D, columns> key_rows(key_cache, head), value_rows(value_cache, head);
    const TileCopy<D, columns> copy;
    const int slots = key_rows.slots;
    int slot = static_cast<int>((position + first + tiles.begin) % slots);
    const auto bring = [&](int n, int count) {
      keys.wait_empty(n);
      key_rows.bring(copy, key_tile(memory, n), slot, 0, count);
      keys.fill(n);
      values.wait_empty(n);
      value_rows.bring(copy, value_tile(memory, n), slot, 0, count);
      values.fill(n);
      for (slot += columns; slot >= slots;) slot -= slots;
    };
    for (int n = 0; n < tiles.still_count; ++n) bring(n, tiles.moving - tiles.still(n));
    slot = static_cast<int>((position + first + tiles.moving) % slots);
    for (int i = 0; i < tiles.own_count; ++i) {
      const int n = tiles.still_count + 3 * i, j = tiles.own(i);
      bring(n, tiles.end - j);
      bring_floats(memory, n + 1, tkeys, first + j, tiles.end - j, head * D);
      bring_floats(memory, n + 2, tvalues, first + j, tiles.end - j, head * D);
    }
  }
  /// Rows in float into a whole place; absent ones leave it as it is.
  __device__ void bring_floats(unsigned memory, int n, const View<const float>& from, Index first,
                               int count, Index column) {
    keys.wait_empty(n);
    values.wait_empty(n);
    if (!from.empty()) {
#pragma unroll 1
      for (int e = static_cast<int>(threadIdx.x) % group_threads; e < columns * D / 4;
           e += group_threads) {
        const int row = e / (D / 4), channel = e % (D / 4) * 4;
        const bool there = row < count;
        copy_chunk(key_tile(memory, n) + static_cast<unsigned>(16 * e),
                   &from(first + (there ? row : 0), column + channel), there);
      }
    }
    keys.fill(n);
    values.fill(n);
  }

  /// Waits for a place, or gives it back.
  __device__ void await(int n) {
    keys.wait_full(n);
    values.wait_full(n);
  }
  __device__ void release(int n) {
    keys.release(n);
    values.release(n);
  }

  /// This thread's share of a tile in float, and where it goes once it is rounded: in the same
  /// place, which all must have read by then.
  static constexpr int parts = columns * D / 8;
  static constexpr int each = (parts + tangent_consumers - 1) / tangent_consumers;
  __device__ static void read_floats(const unsigned char* tile, bool there, float factor,
                                     uint4 (&out)[each]) {
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int e = static_cast<int>(threadIdx.x) + k * tangent_consumers;
      out[k] = uint4{};
      if (!there || (parts % tangent_consumers != 0 && e >= parts)) continue;
      const auto* const from = reinterpret_cast<const float4*>(tile) + 2 * e;
      const float4 a = from[0], b = from[1];
      out[k] = make_uint4(
          rounded_pair(a.x * factor, a.y * factor), rounded_pair(a.z * factor, a.w * factor),
          rounded_pair(b.x * factor, b.y * factor), rounded_pair(b.z * factor, b.w * factor));
    }
  }
  __device__ static void write_rounded(unsigned char* tile, const uint4 (&in)[each]) {
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int e = static_cast<int>(threadIdx.x) + k * tangent_consumers;
      if (parts % tangent_consumers != 0 && e >= parts) continue;
      *reinterpret_cast<uint4*>(tile + Keys::at(e / (D / 8), e % (D / 8))) = in[k];
    }
  }
};

/// Scores become P: of 64 queries from i on, for a tile whose first key is j; keys from `end` on
/// are not there.
template <int n>
__device__ void take_probabilities(float (&scores)[n], const LocalWindow& window, int i, int j,
                                   int end, float scale, const float (&log_sums)[2]) {
  if (!window.all_seen(i, 64, j, 2 * n) || j + 2 * n > end) {
#pragma unroll
    for (int e = 0; e < n; ++e) {
      const int key = j + e / 4 * 8 + group_col(e);
      if (key >= end || !window.sees(i + group_row(e % 4), key)) scores[e] = -INFINITY;
    }
  }
#pragma unroll
  for (int e = 0; e < n; ++e) {
    scores[e] = exp2_of(fmaf(scores[e], scale * log2_e, -log_sums[e / 2 % 2]));
  }
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
