// SPDX-License-Identifier: MIT
/// \file
/// The tangent of attention's way back on Hopper, for the queries. See
/// attention_backward_tangent_bfloat16.cuh for what is computed.
///
/// A block owns 128 queries and goes along tiles of keys, from the oldest to the newest: one group
/// brings tiles, two take turns at the tensor cores, as in attention_queries_hopper.cuh. Registers
/// hold the sums of four products and dq' for 64 keys at a time. Products so narrow wait for shared
/// memory if their left operand lies there, too, so those for which there is room stay in
/// registers.
#pragma once

#include <ttt/backend/cuda/kernels/attention_queries_tangent_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/attention_tangent_stream.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <int D>
struct QueriesTangentShape {
  static constexpr int columns = 64;  // keys of a tile
  static constexpr int stages = D <= 80 ? 8 : D <= 96 ? 4 : 3;
  static_assert(stages >= 3);  // a tile that is multiplied, the next, and the one before
  static constexpr bool keep_queries = D <= 80, keep_douts = D <= 64;
  using Own = Tile<D, 64>;
  using Keys = Tile<D, columns>;
  static constexpr int own_bytes = (4 - keep_queries - keep_douts) * Own::bytes;  // of a group
  static constexpr int shared_bytes = tangent_groups * own_bytes + stages * 2 * Keys::bytes + 1024;
};

/// Keys and values on their way through a ring; of keys that move, k' and v' in the place behind.
template <int D>
struct QueriesTangentStream {
  using Shape = QueriesTangentShape<D>;
  using Keys = typename Shape::Keys;
  static constexpr int columns = Shape::columns;

  RingBarriers<Shape::stages> places;

  /// By all threads of the block.
  __device__ void init() {
    if (threadIdx.x == 0) places.init(4 * tangent_groups);
    share_barriers();
  }
  __device__ static unsigned key_tile(unsigned memory, int n) {
    return memory + RingBarriers<Shape::stages>::place(n) * (2 * Keys::bytes);
  }
  __device__ static unsigned value_tile(unsigned memory, int n) {
    return key_tile(memory, n) + Keys::bytes;
  }

  /// By the group that brings; the block's first query is the `first`th.
  __device__ void bring_all(unsigned memory, const Cache<const bfloat16>& key_cache,
                            const Cache<const bfloat16>& value_cache, const Rounded& in, Index head,
                            const AttentionShape& shape, Index first,
                            const TangentTiles<columns>& tiles) {
    using From = CachedRows<D, columns>;
    const TileCopy<D, columns> copy;
    const auto bring = [&](int n, const From& keys, const From& values, int slot, int count) {
      places.wait_empty(n);
      keys.bring(copy, key_tile(memory, n), slot, 0, count);
      values.bring(copy, value_tile(memory, n), slot, 0, count);
      places.fill(n);
    };
    const From keys(key_cache, head), values(value_cache, head);
    const int slots = keys.slots;
    int slot = static_cast<int>((shape.position + first + tiles.begin) % slots);
    const auto next_slot = [&] {
      for (slot += columns; slot >= slots;) slot -= slots;
    };
    for (int n = 0; n < tiles.still_count; ++n) {
      bring(n, keys, values, slot, tiles.moving - tiles.still(n));
      next_slot();
    }
    if (tiles.own_count == 0) return;
    const From tkeys({in.tkeys, shape.key_heads, in.rows, D}, head),
        tvalues({in.tvalues, shape.key_heads, in.rows, D}, head);
    slot = static_cast<int>((shape.position + first + tiles.moving) % slots);
    for (int i = 0; i < tiles.own_count; ++i) {
      const int n = tiles.still_count + 2 * i, j = tiles.own(i);
      bring(n, keys, values, slot, tiles.end - j);
      bring(n + 1, tkeys, tvalues, static_cast<int>(first) + j, tiles.end - j);
      next_slot();
    }
  }
};

/// 64 rows of a left operand, in registers or in shared memory.
template <int D, bool kept>
struct LeftRows {
  using Own = Tile<D, 64>;

  LeftOperand<kept ? D / 16 : 1> rows;
  unsigned tile;

  /// By a group, which takes what it needs of free memory.
  __device__ LeftRows(const bfloat16* from, unsigned& free) : tile(free) {
    if constexpr (kept) {
      const bfloat16* const row = from + group_row(0) * D;
      read_rows<D>(row, row + 8 * D, rows);
    } else {
      const TileCopy<D, 64> copy;
      copy.all(tile, from);
      free += Own::bytes;
    }
  }
  /// As multiply_channels.
  template <class Right, int n>
  __device__ void multiply(float (&sums)[n], unsigned right) const {
    if constexpr (kept) {
      multiply_channels<Right>(sums, rows, right);
    } else {
      multiply_channels<Own, Right>(sums, tile, right);
    }
  }
  template <class Right, int n>
  __device__ void multiply_and_add(float (&sums)[n], unsigned right) const {
    static_assert(!kept);
    multiply_channels<Own, Right>(sums, tile, right, true);
  }
};

/// dq'.
template <int D>
__global__ void __launch_bounds__(tangent_block_threads, 1)
    attention_queries_tangent_hopper_kernel(Rounded in, Cache<const bfloat16> keys,
                                            Cache<const bfloat16> values, bool moves,
                                            AttentionShape shape, View<float> tdq) {
  if constexpr (hopper_code) {
    using Shape = QueriesTangentShape<D>;
    using Stream = QueriesTangentStream<D>;
    using Keys = typename Shape::Keys;
    constexpr int columns = Shape::columns, rows = 64 * tangent_groups;
    extern __shared__ unsigned char dynamic[];
    __shared__ Stream ring;
    const unsigned memory = aligned_address(dynamic);
    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * rows;
    const int count = static_cast<int>(tdq.rows - first < rows ? tdq.rows - first : rows);
    const LocalWindow window(shape, first);
    const TangentTiles<columns> tiles(window, first, count, moves);
    const int group = group_index();
    ring.init();

    if (group == tangent_groups) {
      give_registers<24>();
      ring.bring_all(memory, keys, values, in, key_head, shape, first, tiles);
    } else {
      take_registers<240>();
      const int i0 = 64 * group;
      // A group without queries computes with others and keeps nothing.
      const Index own = head * in.rows + (first + i0 < in.rows ? first + i0 : in.rows - Index{64});
      unsigned free = memory + Shape::stages * 2 * Keys::bytes +
                      static_cast<unsigned>(group) * Shape::own_bytes;
      const LeftRows<D, Shape::keep_queries> queries(in.q + own * D, free);
      const LeftRows<D, Shape::keep_douts> douts(in.dout + own * D, free);
      const LeftRows<D, false> tqueries(in.tq + own * D, free), tdouts(in.tdout + own * D, free);
      close_copies();
      float log_sums[2], tlog_sums[2], alongs[2], talongs[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const QueryNumbers n = in.numbers[own + group_row(2 * r)];
        log_sums[r] = n.log_sum;
        tlog_sums[r] = n.tlog_sum;
        alongs[r] = n.along;
        talongs[r] = n.talong;
      }
      wait_for_copies();
      show_copies();
      meet(1 + tangent_groups + group, group_threads);
      float scores[columns / 2], tscores[columns / 2], dweights[columns / 2],
          tdweights[columns / 2], out[D / 2];
      LeftOperand<columns / 16> tdscores, dscores;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] = 0;

      const auto multiply_scores = [&](int n) {
        const unsigned key_tile = Stream::key_tile(memory, n),
                       value_tile = Stream::value_tile(memory, n);
        begin_products();
        queries.template multiply<Keys>(scores, key_tile);
        commit_products();
        tqueries.template multiply<Keys>(tscores, key_tile);
        douts.template multiply<Keys>(dweights, value_tile);
        tdouts.template multiply<Keys>(tdweights, value_tile);
        commit_products();
      };
      const auto multiply_tdscores = [&](int n) {
        begin_products();
        add_products_of_rows<Keys>(out, tdscores, Stream::key_tile(memory, n));
        commit_products();
      };
      // P, of the tile whose first key is j; keys from `end` on are not there.
      const auto exponentials = [&](int j, int end) {
        take_probabilities(scores, window, i0, j, end, 1.0f, log_sums);
      };
      // dS in place of dP, dS' in place of dP'.
      const auto gradients = [&] {
#pragma unroll
        for (int e = 0; e < columns / 2; ++e) {
          const int r = e / 2 % 2;
          dweights[e] = scores[e] * (dweights[e] - alongs[r]);
          tdweights[e] =
              fmaf(tscores[e] - tlog_sums[r], dweights[e], scores[e] * (tdweights[e] - talongs[r]));
        }
      };
      const auto await_scores = [&] {
        wait_products<1>(tscores);
        keep_order(dweights);
        keep_order(tdweights);
      };
      const Turns<tangent_groups> turns(group);

      if (tiles.still_count > 0) {
        ring.places.wait_full(0);
        show_copies();
        multiply_scores(0);
        wait_products<0>(scores);
        keep_order(tscores);
        keep_order(dweights);
        keep_order(tdweights);
        exponentials(tiles.begin, tiles.moving);
        gradients();
        round_sums(tdweights, tdscores);
        if (tiles.still_count > 1) ring.places.wait_full(1);
        for (int n = 1; n < tiles.still_count; ++n) {
          show_copies();
          turns.take();
          multiply_scores(n);
          multiply_tdscores(n - 1);
          turns.pass_on();
          wait_products<2>(scores);
          exponentials(tiles.still(n), tiles.moving);
          keep_order(scores);
          // A loop: the compiler waits for products no earlier than here.
          if (n + 1 < tiles.still_count) ring.places.wait_full(n + 1);
          await_scores();
          gradients();
          keep_order(tdweights);
          wait_products<0>(out);
          ring.places.release(n - 1);
          round_sums(tdweights, tdscores);
        }
        multiply_tdscores(tiles.still_count - 1);
        wait_products<0>(out);
        ring.places.release(tiles.still_count - 1);
      }

      for (int i = 0; i < tiles.own_count; ++i) {
        const int n = tiles.still_count + 2 * i;
        const unsigned key_tile = Stream::key_tile(memory, n),
                       value_tile = Stream::value_tile(memory, n),
                       tkey_tile = Stream::key_tile(memory, n + 1),
                       tvalue_tile = Stream::value_tile(memory, n + 1);
        ring.places.wait_full(n);
        ring.places.wait_full(n + 1);
        show_copies();
        begin_products();
        queries.template multiply<Keys>(scores, key_tile);
        queries.template multiply<Keys>(tscores, tkey_tile);
        tqueries.template multiply_and_add<Keys>(tscores, key_tile);
        douts.template multiply<Keys>(dweights, value_tile);
        douts.template multiply<Keys>(tdweights, tvalue_tile);
        tdouts.template multiply_and_add<Keys>(tdweights, value_tile);
        commit_products();
        wait_products<0>(scores);
        keep_order(tscores);
        keep_order(dweights);
        keep_order(tdweights);
        exponentials(tiles.own(i), tiles.end);
        gradients();
        round_sums(tdweights, tdscores);
        round_sums(dweights, dscores);
        begin_products();
        add_products_of_rows<Keys>(out, tdscores, key_tile);
        add_products_of_rows<Keys>(out, dscores, tkey_tile);
        commit_products();
        wait_products<0>(out);
        ring.places.release(n);
        ring.places.release(n + 1);
      }

      const float scale = rsqrtf(static_cast<float>(D));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = i0 + group_row(2 * r);
        if (row >= count) continue;
        float* const to = &tdq(first + row, head * D + group_col(0));
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          *reinterpret_cast<float2*>(to + 8 * n) =
              make_float2(out[4 * n + 2 * r] * scale, out[4 * n + 2 * r + 1] * scale);
        }
      }
    }
  }
}

/// False, and nothing done, where there is no kernel for it; see attention_hopper.
template <int D>
bool attention_queries_tangent_hopper(cudaStream_t stream, const Rounded& in,
                                      const Cache<const bfloat16>& keys,
                                      const Cache<const bfloat16>& values, bool moves,
                                      const AttentionShape& shape, const View<float>& tdq) {
  if (tdq.rows < least_hopper_queries || !in_fours_of_floats(tdq)) return false;
  if (!in_chunks(keys) || !in_chunks(values) || !runs_hopper_code()) return false;
  using Shape = QueriesTangentShape<D>;
  const auto kernel = attention_queries_tangent_hopper_kernel<D>;
  if (!with_shared_memory(kernel, Shape::shared_bytes)) return false;
  const dim3 blocks(grid(blocks_for(tdq.rows, 64 * tangent_groups)), grid(shape.heads));
  kernel<<<blocks, tangent_block_threads, Shape::shared_bytes, stream>>>(in, keys, values, moves,
                                                                         shape, tdq);
  return true;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
