// SPDX-License-Identifier: MIT
/// \file
/// Window attention backwards on Hopper, the half whose blocks own 128 keys and go along queries: 4
/// products a pair. See attention_backward_hopper.cuh.
#pragma once

#include <ttt/backend/cuda/kernels/attention_queries_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <int D>
struct KeyOwner {
  static constexpr int columns = D <= 96 ? 64 : 32;  // queries of a tile
  static constexpr int stages = 4;
  static constexpr bool in_registers = D == 64;  // keys and values: there is room for them
  using Own = Tile<D, hopper_rows>;
  using Queries = Tile<D, columns>;
  static constexpr int stage_bytes = 2 * Queries::bytes + 1024;  // statistics behind the tiles
  static constexpr int shared_bytes = 2 * Own::bytes + stages * stage_bytes + 1024;

  __device__ static unsigned query_tile(unsigned tiles, int n) {
    return tiles + RingBarriers<stages>::place(n) * stage_bytes;
  }
  __device__ static unsigned dout_tile(unsigned tiles, int n) {
    return query_tile(tiles, n) + Queries::bytes;
  }
  /// `columns` sums of logarithms, and as many <dout, o>.
  __device__ static unsigned statistics(unsigned tiles, int n) {
    return query_tile(tiles, n) + 2 * Queries::bytes;
  }
};

/// dkeys and dvalues, added to, which begin `first` behind the first query, for the keys that begin
/// `from` behind it.
template <int D>
__global__ void __launch_bounds__(backward_threads, 1)
    attention_keys_hopper_kernel(Cache<const bfloat16> keys, Cache<const bfloat16> values,
                                 PlacedShape placed, QueryCopies copies, Index rows,
                                 View<float> dkeys, View<float> dvalues, Index first, Index from) {
  if constexpr (hopper_code) {
    const AttentionShape shape = placed.now();
    using Owner = KeyOwner<D>;
    using Own = typename Owner::Own;
    using Queries = typename Owner::Queries;
    constexpr int columns = Owner::columns, stages = Owner::stages;
    extern __shared__ unsigned char dynamic[];
    __shared__ RingBarriers<stages> ring;
    __shared__ std::uint64_t own_full;
    const unsigned key_tile = aligned_address(dynamic), value_tile = key_tile + Own::bytes,
                   memory = value_tile + Own::bytes;
    const Index key_head = blockIdx.y, group_size = shape.heads / shape.key_heads;
    // Positions relative to the first query's.
    const LocalWindow window(shape, 0);
    const int j_block = static_cast<int>(from) + static_cast<int>(blockIdx.x) * hopper_rows;
    const int left = static_cast<int>(rows) - j_block;
    const int count = left < hopper_rows ? left : hopper_rows;
    // The queries that see the block's keys, for every head of the group, one after the other.
    struct {
      int begin, each, count;  // the first query, tiles of a head, tiles in all
    } tiles;
    tiles.begin = (j_block > 0 ? j_block : 0) / columns * columns;
    const int reach = j_block + count - 1 + window.window;
    const int end = reach < rows ? reach : static_cast<int>(rows);
    tiles.each = (end - tiles.begin + columns - 1) / columns;
    tiles.count = tiles.each * static_cast<int>(group_size);
    const int group = group_index();
    if (threadIdx.x == 0) {
      ring.init(4 * backward_groups);
      barrier_init(&own_full, group_threads);
    }
    share_barriers();

    if (group == backward_groups) {
      give_registers<24>();
      {
        const CachedRows<D, hopper_rows> key_rows(keys, key_head), value_rows(values, key_head);
        const TileCopy<D, hopper_rows> copy;
        const int slot = static_cast<int>((shape.position + j_block) % key_rows.slots);
        key_rows.bring(copy, key_tile, slot, 0, count);
        value_rows.bring(copy, value_tile, slot, 0, count);
        arrive_with_copies(&own_full);
      }
      const TileCopy<D, columns> copy;
      const int thread = static_cast<int>(threadIdx.x) % group_threads;
      Index row = key_head * group_size * copies.rows + tiles.begin;
      int tile = 0;
      for (int n = 0; n < tiles.count; ++n) {
        ring.wait_empty(n);
        copy.all(Owner::query_tile(memory, n),
                 reinterpret_cast<const bfloat16*>(copies.queries) + row * D);
        copy.all(Owner::dout_tile(memory, n),
                 reinterpret_cast<const bfloat16*>(copies.douts) + row * D);
        if (thread < columns / 2) {
          const bool second = thread >= columns / 4;
          const int at = 4 * (thread % (columns / 4));
          copy_chunk(Owner::statistics(memory, n) + static_cast<unsigned>(16 * thread),
                     (second ? copies.alongs : copies.log_sums) + row + at);
        }
        ring.fill(n);
        row += columns;
        if (++tile == tiles.each) {
          tile = 0;
          row += copies.rows - static_cast<Index>(tiles.each) * columns;
        }
      }
    } else {
      take_registers<240>();
      const int j_group = j_block + 64 * group;
      const unsigned own_keys = key_tile + static_cast<unsigned>(64 * group * Own::pitch),
                     own_values = value_tile + static_cast<unsigned>(64 * group * Own::pitch);
      const float scale = rsqrtf(static_cast<float>(D));
      float scores[columns / 2], dweights[columns / 2], dkey[D / 2], dvalue[D / 2];
      LeftOperand<columns / 16> weights, dscores;
      LeftOperand<Owner::in_registers ? D / 16 : 1> key_rows, value_rows;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) dkey[i] = dvalue[i] = 0;

      const auto multiply_first = [&](int n) {
        begin_products();
        if constexpr (Owner::in_registers) {
          multiply_channels<Queries>(scores, key_rows, Owner::query_tile(memory, n));
          commit_products();
          multiply_channels<Queries>(dweights, value_rows, Owner::dout_tile(memory, n));
        } else {
          multiply_channels<Own, Queries>(scores, own_keys, Owner::query_tile(memory, n));
          commit_products();
          multiply_channels<Own, Queries>(dweights, own_values, Owner::dout_tile(memory, n));
        }
        commit_products();
      };
      const auto multiply_last = [&](int n) {
        begin_products();
        add_products_of_rows<Queries>(dvalue, weights, Owner::dout_tile(memory, n));
        add_products_of_rows<Queries>(dkey, dscores, Owner::query_tile(memory, n));
        commit_products();
      };
      int i_tile = tiles.begin, tile = 0;
      // This thread's columns of a statistic.
      const auto statistic = [&](int n, int which, int e) {
        float2 pair;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(pair.x), "=f"(pair.y)
                     : "r"(Owner::statistics(memory, n) +
                           static_cast<unsigned>(4 * (which * columns + 2 * e + group_col(0)))));
        return pair;
      };
      const auto exponentials = [&](int n) {
        if (!window.all_seen(i_tile, columns, j_group, 64)) {
#pragma unroll
          for (int e = 0; e < columns / 2; ++e) {
            if (!window.sees(i_tile + e / 4 * 8 + group_col(e), j_group + group_row(e % 4))) {
              scores[e] = -INFINITY;
            }
          }
        }
        i_tile += columns;
        if (++tile == tiles.each) {
          tile = 0;
          i_tile = tiles.begin;
        }
#pragma unroll
        for (int e = 0; e < columns / 2; e += 4) {
          const float2 log_sum = statistic(n, 0, e);
#pragma unroll
          for (int i = e; i < e + 4; ++i) {
            scores[i] =
                exp2_of(fmaf(scores[i], scale * log2_e, i % 2 == 0 ? -log_sum.x : -log_sum.y));
          }
        }
      };
      const auto gradients = [&](int n) {
#pragma unroll
        for (int e = 0; e < columns / 2; e += 4) {
          const float2 along = statistic(n, 1, e);
#pragma unroll
          for (int i = e; i < e + 4; ++i) {
            dweights[i] = scores[i] * (dweights[i] - (i % 2 == 0 ? along.x : along.y));
          }
        }
      };
      const auto await = [&](int n) {
        if (n < tiles.count) ring.wait_full(n);
      };
      const Turns<backward_groups> turns(group);

      barrier_wait(&own_full, 0);
      if constexpr (Owner::in_registers) {
        load_left_rows<Own>(own_keys, key_rows);
        load_left_rows<Own>(own_values, value_rows);
      }
      await(0);
      show_copies();
      multiply_first(0);
      wait_products<1>(scores);
      exponentials(0);
      wait_products<0>(dweights);
      gradients(0);
      round_sums(scores, weights);
      round_sums(dweights, dscores);
      await(1);
      for (int n = 1; n < tiles.count; ++n) {
        show_copies();
        turns.take();
        multiply_first(n);
        multiply_last(n - 1);
        turns.pass_on();
        wait_products<2>(scores);
        exponentials(n);
        wait_products<1>(dweights);
        gradients(n);
        keep_order(scores);
        keep_order(dweights);
        await(n + 1);  // a loop: the compiler waits for products no earlier than here
        wait_products<0>(dkey);
        keep_order(dvalue);
        ring.release(n - 1);
        round_sums(scores, weights);
        round_sums(dweights, dscores);
      }
      multiply_last(tiles.count - 1);
      wait_products<0>(dkey);
      keep_order(dvalue);

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = 64 * group + group_row(2 * r);
        if (i >= count) continue;
        const Index row = j_block + i - first, column = key_head * D + group_col(0);
        float2* const to_key = reinterpret_cast<float2*>(&dkeys(row, column));
        float2* const to_value = reinterpret_cast<float2*>(&dvalues(row, column));
        float2 key_sums[D / 8], value_sums[D / 8];  // all read before the first is written
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          key_sums[n] = to_key[4 * n];
          value_sums[n] = to_value[4 * n];
        }
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          const int e = 4 * n + 2 * r;
          to_key[4 * n] =
              make_float2(key_sums[n].x + dkey[e] * scale, key_sums[n].y + dkey[e + 1] * scale);
          to_value[4 * n] =
              make_float2(value_sums[n].x + dvalue[e], value_sums[n].y + dvalue[e + 1]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
