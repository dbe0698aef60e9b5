// SPDX-License-Identifier: MIT
/// \file
/// The tangent of attention's way back on Hopper, for the keys and values. See
/// attention_backward_tangent_bfloat16.cuh for what is computed.
///
/// A block owns 128 keys and goes along queries, as the keys' half of attention_backward_hopper.cuh
/// does: one group brings tiles, two take turns at the tensor cores. Tiles are of 32 queries, for
/// there are twice the sums; keys and values stay in registers as far as they fit, or the tensor
/// cores would wait for shared memory.
#pragma once

#include <ttt/backend/cuda/kernels/attention_queries_hopper.cuh>
#include <ttt/backend/cuda/kernels/attention_rounding.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <int D, bool own>
struct TangentKeyOwner {
  static constexpr int columns = 32;  // queries of a tile
  static constexpr int stages = 4;
  // Of keys and values, so many times 16 channels stay in registers: as many as fit.
  static constexpr int kept = own && D > 64 ? 3 : 4;
  using Own = Tile<D, hopper_rows>;
  using Queries = Tile<D, columns>;
  static constexpr int stage_bytes = 4 * Queries::bytes + 1024;  // numbers behind the tiles
  static constexpr int own_bytes = (own ? 4 : 2) * Own::bytes;   // k, v, k', v'
  static constexpr int shared_bytes = own_bytes + stages * stage_bytes + 1024;
  static_assert(columns * sizeof(QueryNumbers) <= 1024);

  /// q, q', dO and dO' of tile n and its numbers, in this order.
  __device__ static unsigned tile(unsigned tiles, int n, int which) {
    return tiles + RingBarriers<stages>::place(n) * stage_bytes +
           static_cast<unsigned>(which * Queries::bytes);
  }
  /// Those of the query in column c of tile n.
  __device__ static QueryNumbers numbers(unsigned tiles, int n, int c) {
    QueryNumbers out;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.log_sum), "=f"(out.tlog_sum), "=f"(out.along), "=f"(out.talong)
                 : "r"(tile(tiles, n, 4) + static_cast<unsigned>(16 * c)));
    return out;
  }
  /// sums = rows · queriesᵀ, along the channels; those that are not in registers are in row_tile.
  __device__ static void multiply(float (&sums)[columns / 2], const LeftOperand<kept>& rows,
                                  unsigned row_tile, unsigned query_tile) {
    unsigned left = Own::operand(row_tile);
    asm volatile("" : "+r"(left));  // as in multiply_channels
    const unsigned right = Queries::operand(query_tile);
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      multiply_add<Depth::Channels>(sums, rows[i], Queries::along_channels(right, i), i > 0);
    }
#pragma unroll
    for (int i = kept; i < D / 16; ++i) {
      multiply_add<Depth::Channels>(sums, Own::along_channels(left, i),
                                    Queries::along_channels(right, i), true);
    }
  }
};

/// As attention_keys_tangent_bfloat16_kernel.
template <int D, bool own>
__global__ void __launch_bounds__(backward_threads, 1)
    attention_keys_tangent_hopper_kernel(Rounded in, Cache<const bfloat16> keys,
                                         Cache<const bfloat16> values, AttentionShape shape,
                                         Index rows, View<float> tdkeys, View<float> tdvalues,
                                         Index first, Index from, Index to) {
  if constexpr (hopper_code) {
    using Owner = TangentKeyOwner<D, own>;
    using Own = typename Owner::Own;
    using Queries = typename Owner::Queries;
    constexpr int columns = Owner::columns, stages = Owner::stages;
    extern __shared__ unsigned char dynamic[];
    __shared__ RingBarriers<stages> ring;
    __shared__ std::uint64_t own_full;
    const unsigned own_tiles = aligned_address(dynamic), memory = own_tiles + Owner::own_bytes;
    const Index key_head = blockIdx.y, group_size = shape.heads / shape.key_heads;
    const Index j0 = from + static_cast<Index>(blockIdx.x) * hopper_rows;
    const int count = static_cast<int>(to - j0 < hopper_rows ? to - j0 : hopper_rows);
    const int j_block = static_cast<int>(j0 - shape.position);  // as seen from the first query
    const Window window(shape);
    // The queries that see the block's keys, for every head of the group, one after the other.
    struct {
      int begin, each, count;  // the first query, tiles of a head, tiles in all
    } tiles;
    tiles.begin = (j_block > 0 ? j_block : 0) / columns * columns;
    const Index key_end = shape.position + rows;
    const Index reach = j_block + count - 1 + (shape.window < key_end ? shape.window : key_end);
    const int end = static_cast<int>(reach < rows ? reach : rows);
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
        const int slot = static_cast<int>(j0 % key_rows.slots);
        key_rows.bring(copy, own_tiles, slot, 0, count);
        value_rows.bring(copy, own_tiles + Own::bytes, slot, 0, count);
        if constexpr (own) {
          const Index at = (key_head * in.rows + j_block) * D;
          copy.some(own_tiles + 2 * Own::bytes, 0, count,
                    [&](int row) { return in.tkeys + at + row * D; });
          copy.some(own_tiles + 3 * Own::bytes, 0, count,
                    [&](int row) { return in.tvalues + at + row * D; });
        }
        arrive_with_copies(&own_full);
      }
      const TileCopy<D, columns> copy;
      const int thread = static_cast<int>(threadIdx.x) % group_threads;
      Index row = key_head * group_size * in.rows + tiles.begin;
      int tile = 0;
      for (int n = 0; n < tiles.count; ++n) {
        ring.wait_empty(n);
        copy.all(Owner::tile(memory, n, 0), in.q + row * D);
        copy.all(Owner::tile(memory, n, 1), in.tq + row * D);
        copy.all(Owner::tile(memory, n, 2), in.dout + row * D);
        copy.all(Owner::tile(memory, n, 3), in.tdout + row * D);
        if (thread < columns) {
          copy_chunk(Owner::tile(memory, n, 4) + static_cast<unsigned>(16 * thread),
                     in.numbers + row + thread);
        }
        ring.fill(n);
        row += columns;
        if (++tile == tiles.each) {
          tile = 0;
          row += in.rows - static_cast<Index>(tiles.each) * columns;
        }
      }
    } else {
      take_registers<240>();
      const unsigned own_rows = own_tiles + static_cast<unsigned>(64 * group * Own::pitch);
      // S, S', dP and dP', then P, P', dS and dS'.
      float scores[columns / 2], tscores[columns / 2], dweights[columns / 2],
          tdweights[columns / 2], tdkey[D / 2], tdvalue[D / 2];
      LeftOperand<columns / 16> weights, tweights, dscores, tdscores;
      LeftOperand<Owner::kept> key_rows, value_rows;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) tdkey[i] = tdvalue[i] = 0;

      const auto multiply_first = [&](int n) {
        const unsigned q = Owner::tile(memory, n, 0), dout = Owner::tile(memory, n, 2);
        const unsigned own_values = own_rows + Own::bytes;
        begin_products();
        Owner::multiply(scores, key_rows, own_rows, q);
        Owner::multiply(tscores, key_rows, own_rows, q + Queries::bytes);
        Owner::multiply(dweights, value_rows, own_values, dout);
        Owner::multiply(tdweights, value_rows, own_values, dout + Queries::bytes);
        if constexpr (own) {
          multiply_channels<Own, Queries>(tscores, own_rows + 2 * Own::bytes, q, true);
          multiply_channels<Own, Queries>(tdweights, own_rows + 3 * Own::bytes, dout, true);
        }
        commit_products();
      };
      const auto multiply_last = [&](int n) {
        const unsigned q = Owner::tile(memory, n, 0), dout = Owner::tile(memory, n, 2);
        begin_products();
        add_products_of_rows<Queries>(tdvalue, tweights, dout);
        add_products_of_rows<Queries>(tdvalue, weights, dout + Queries::bytes);
        add_products_of_rows<Queries>(tdkey, tdscores, q);
        add_products_of_rows<Queries>(tdkey, dscores, q + Queries::bytes);
        commit_products();
      };
      // By how much the first query is behind the group's first key.
      int after = tiles.begin - j_block - 64 * group, tile = 0;
      const auto make_weights = [&](int n) {
        if (after < 63 || !window.has(after + columns - 1)) {
#pragma unroll
          for (int e = 0; e < columns / 2; ++e) {
            if (!window.has(after + e / 4 * 8 + group_col(e) - group_row(e % 4))) {
              scores[e] = -INFINITY;
            }
          }
        }
        after += columns;
        if (++tile == tiles.each) {
          tile = 0;
          after -= tiles.each * columns;
        }
#pragma unroll
        for (int e = 0; e < columns / 2; e += 4) {
          const int c = e / 4 * 8 + group_col(0);
          const QueryNumbers of[] = {Owner::numbers(memory, n, c),
                                     Owner::numbers(memory, n, c + 1)};
#pragma unroll
          for (int i = e; i < e + 4; ++i) {
            const QueryNumbers& query = of[i % 2];
            const float p = exp2_of(fmaf(scores[i], log2_e, -query.log_sum));
            const float tp = p * (tscores[i] - query.tlog_sum);
            const float dweight = dweights[i] - query.along;
            tdweights[i] = fmaf(p, tdweights[i] - query.talong, tp * dweight);
            dweights[i] = p * dweight;
            scores[i] = p;
            tscores[i] = tp;
          }
        }
      };
      const auto keep_first = [&] {
        keep_order(scores);
        keep_order(tscores);
        keep_order(dweights);
        keep_order(tdweights);
      };
      const auto round_all = [&] {
        round_sums(scores, weights);
        round_sums(tscores, tweights);
        round_sums(dweights, dscores);
        round_sums(tdweights, tdscores);
      };
      const auto await = [&](int n) {
        if (n < tiles.count) ring.wait_full(n);
      };
      const Turns<backward_groups> turns(group);

      barrier_wait(&own_full, 0);
      load_left_rows<Own>(own_rows, key_rows);
      load_left_rows<Own>(own_rows + Own::bytes, value_rows);
      await(0);
      show_copies();
      multiply_first(0);
      wait_products<0>(scores);
      keep_first();
      make_weights(0);
      round_all();
      await(1);
      for (int n = 1; n < tiles.count; ++n) {
        show_copies();
        turns.take();
        multiply_first(n);
        multiply_last(n - 1);
        turns.pass_on();
        wait_products<1>(scores);
        keep_first();
        make_weights(n);
        keep_first();
        await(n + 1);  // a loop: the compiler waits for products no earlier than here
        wait_products<0>(tdkey);
        keep_order(tdvalue);
        ring.release(n - 1);
        round_all();
      }
      multiply_last(tiles.count - 1);
      wait_products<0>(tdkey);
      keep_order(tdvalue);

      unsigned block;
      asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));  // not kept along the loop
      const Index begin = from + static_cast<Index>(block) * hopper_rows;
      const auto add_to = [&](const View<float>& out, const float(&sums)[D / 2]) {
        if (out.empty()) return;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Index j = begin + 64 * group + group_row(2 * r);
          if (j >= to) continue;
          float2* const at =
              reinterpret_cast<float2*>(&out(j - first, key_head * D + group_col(0)));
          float2 before[D / 8];  // all read before the first is written
#pragma unroll
          for (int n = 0; n < D / 8; ++n) before[n] = at[4 * n];
#pragma unroll
          for (int n = 0; n < D / 8; ++n) {
            const int e = 4 * n + 2 * r;
            at[4 * n] = make_float2(before[n].x + sums[e], before[n].y + sums[e + 1]);
          }
        }
      };
      add_to(tdkeys, tdkey);
      add_to(tdvalues, tdvalue);
    }
  }
}

/// Starts it for the keys from `begin` on and before `to`. False, and nothing done, where there is
/// no kernel for it; see attention_hopper.
template <int D, bool own>
bool attention_keys_tangent_hopper(cudaStream_t stream, const Rounded& in,
                                   Cache<const bfloat16> keys, Cache<const bfloat16> values,
                                   AttentionShape shape, Index rows, View<float> tdkeys,
                                   View<float> tdvalues, Index first, Index begin, Index to) {
  if constexpr (D > 80) {
    return false;  // the sums of more channels leave no registers
  } else {
    if (rows < least_hopper_queries || !in_chunks(keys) || !in_chunks(values)) return false;
    if (!in_fours_of_floats(tdkeys) || !in_fours_of_floats(tdvalues)) return false;
    const auto kernel = attention_keys_tangent_hopper_kernel<D, own>;
    constexpr int bytes = TangentKeyOwner<D, own>::shared_bytes;
    if (!runs_hopper_code() || !with_shared_memory(kernel, bytes)) return false;
    const dim3 blocks(grid(blocks_for(to - begin, hopper_rows)), grid(shape.key_heads));
    kernel<<<blocks, backward_threads, bytes, stream>>>(in, keys, values, shape, rows, tdkeys,
                                                        tdvalues, first, begin, to);
    return true;
  }
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
