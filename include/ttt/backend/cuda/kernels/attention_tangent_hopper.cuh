// SPDX-License-Identifier: MIT
/// \file
/// The tangent of window attention on Hopper. See attention_tangent_bfloat16.cuh for what is
/// computed.
///
/// A block owns 128 queries and goes along tiles of keys, from the oldest to the newest, as the
/// queries' half of attention_backward_hopper.cuh does: one group brings tiles, two take turns at
/// the tensor cores. Nothing is scaled before it is rounded, so that scores are those of the
/// forward: A and r are D^1/2 times what they are there, and so is v'.
///
/// The tensor cores sum the rounded weights, too, as their product with eight ones behind each
/// value: 4 percent more products, for which nothing is unpacked and added. 440 TFLOP/s on an H200
/// for heads of 64, 395 for heads of 80.
#pragma once

#include <ttt/backend/cuda/kernels/attention_tangent_stream.cuh>
#include <ttt/backend/cuda/kernels/attention_tiles.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <int D>
__global__ void __launch_bounds__(tangent_block_threads, 1)
    attention_tangent_hopper_kernel(Operand<float> q, Cache<const bfloat16> keys,
                                    Cache<const bfloat16> values, View<const float> tkeys,
                                    View<const float> tvalues, AttentionShape shape,
                                    View<const float> o, View<const float> lse, View<float> to,
                                    View<float> tlse) {
  if constexpr (hopper_code) {
    using Shape = TangentShape<D>;
    using Own = typename Shape::Own;
    using Stream = TangentStream<D>;
    using Keys = typename Shape::Keys;
    constexpr int columns = Shape::columns, rows = Shape::rows;
    extern __shared__ unsigned char dynamic[];
    __shared__ Stream ring;
    const unsigned query_tile = aligned_address(dynamic), tquery_tile = query_tile + Own::bytes,
                   memory = tquery_tile + Own::bytes;
    const auto at = [&](unsigned address) { return dynamic + (address - shared_address(dynamic)); };
    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * rows;
    const int count = static_cast<int>(q.value.rows - first < rows ? q.value.rows - first : rows);
    const LocalWindow window(shape, first);
    const TangentTiles<columns> tiles(window, first, count, !tkeys.empty() || !tvalues.empty());
    const int group = group_index();
    ring.init(at(memory));

    if (group == tangent_groups) {
      give_registers<24>();
      ring.bring_all(memory, keys, values, tkeys, tvalues, key_head, shape.position, first, tiles);
    } else {
      take_registers<240>();
      bring_rounded<Own>(at(query_tile), q.value, first, count, head * D);
      bring_rounded<Own>(at(tquery_tile), q.tangent, first, q.tangent.empty() ? 0 : count,
                         head * D);
      show_copies();
      meet(1 + tangent_groups + group, group_threads);
      const int i0 = 64 * group;
      const unsigned queries = query_tile + static_cast<unsigned>(i0 * Own::pitch),
                     tqueries = tquery_tile + static_cast<unsigned>(i0 * Own::pitch);
      const float scale = rsqrtf(static_cast<float>(D));
      float log_sums[2], centre[2], sums[4] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = i0 + group_row(2 * r);
        log_sums[r] = row < count ? lse(head, first + row) * log2_e : INFINITY;
      }
      float scores[columns / 2], tscores[columns / 2], out[D / 2];
      LeftOperand<columns / 16> weights, probabilities;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] = 0;

      const auto multiply_scores = [&](int n) {
        begin_products();
        multiply_channels<Own, Keys>(scores, queries, Stream::key_tile(memory, n));
        commit_products();
        multiply_channels<Own, Keys>(tscores, tqueries, Stream::key_tile(memory, n));
        commit_products();
      };
      // A and r of the same rounded weights, or what the values share would stay.
      const auto add_weighted = [&](int n) {
        add_products_and_sums_of_rows<Keys>(out, sums, weights, Stream::value_tile(memory, n),
                                            memory + Shape::ring_bytes);
      };
      // Of the tile whose first key is j; keys from `end` on are not there.
      const auto exponentials = [&](int j, int end) {
        take_probabilities(scores, window, i0, j, end, scale, log_sums);
      };
      // P∘(S' - c), in place of S'.
      const auto weigh = [&] {
#pragma unroll
        for (int e = 0; e < columns / 2; ++e) {
          tscores[e] = scores[e] * (tscores[e] - centre[e / 2 % 2]);
        }
      };
      // c, from a tile of which so many keys are there; the others are zeros.
      const auto centre_on = [&](int there) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float part[4] = {};
#pragma unroll
          for (int e = 2 * r; e < columns / 2; e += 4) {
            part[e / 4 % 4] += tscores[e] + tscores[e + 1];
          }
          centre[r] = quad_sum((part[0] + part[1]) + (part[2] + part[3])) /
                      static_cast<float>(there < columns ? there : columns);
        }
      };
      const auto await_keys = [&](int n) {
        if (n < tiles.still_count) ring.keys.wait_full(n);
      };
      const Turns<tangent_groups> turns(group);

      if (tiles.still_count > 0) {
        await_keys(0);
        show_copies();
        multiply_scores(0);
        wait_products<0>(scores);
        keep_order(tscores);
        ring.keys.release(0);
        centre_on(tiles.moving - tiles.begin);
        exponentials(tiles.begin, tiles.moving);
        weigh();
        round_sums(tscores, weights);
        await_keys(1);
        ring.values.wait_full(0);
        for (int n = 1; n < tiles.still_count; ++n) {
          show_copies();
          turns.take();
          multiply_scores(n);
          begin_products();
          add_weighted(n - 1);
          commit_products();
          turns.pass_on();
          wait_products<2>(scores);
          exponentials(tiles.still(n), tiles.moving);
          keep_order(scores);
          await_keys(n + 1);  // a loop: the compiler waits for products no earlier than here
          wait_products<1>(tscores);
          ring.keys.release(n);
          weigh();
          keep_order(tscores);
          ring.values.wait_full(n);
          wait_products<0>(out);
          keep_order(sums);
          ring.values.release(n - 1);
          round_sums(tscores, weights);
        }
        show_copies();
        begin_products();
        add_weighted(tiles.still_count - 1);
        commit_products();
        wait_products<0>(out);
        keep_order(sums);
        ring.values.release(tiles.still_count - 1);
      }

      for (int i = 0; i < tiles.own_count; ++i) {
        const int n = tiles.still_count + 3 * i, j = tiles.own(i);
        const unsigned tkey_tile = Stream::key_tile(memory, n + 1),
                       tvalue_tile = Stream::key_tile(memory, n + 2);
        ring.await(n + 1);
        ring.await(n + 2);
        {
          uint4 of_keys[Stream::each], of_values[Stream::each];
          ring.read_floats(at(tkey_tile), !tkeys.empty(), 1.0f, of_keys);
          ring.read_floats(at(tvalue_tile), !tvalues.empty(), 1 / scale, of_values);
          meet(1 + 2 * tangent_groups, tangent_consumers);
          ring.write_rounded(at(tkey_tile), of_keys);
          ring.write_rounded(at(tvalue_tile), of_values);
        }
        ring.await(n);
        show_copies();
        meet(1 + 2 * tangent_groups, tangent_consumers);
        begin_products();
        multiply_channels<Own, Keys>(scores, queries, Stream::key_tile(memory, n));
        multiply_channels<Own, Keys>(tscores, tqueries, Stream::key_tile(memory, n));
        multiply_channels<Own, Keys>(tscores, queries, tkey_tile, true);
        commit_products();
        wait_products<0>(scores);
        keep_order(tscores);
        if (n == 0) centre_on(tiles.end - j);
        exponentials(j, tiles.end);
        weigh();
        round_sums(tscores, weights);
        round_sums(scores, probabilities);
        begin_products();
        add_weighted(n);
        add_products_of_rows<Keys>(out, probabilities, tvalue_tile);
        commit_products();
        wait_products<0>(out);
        keep_order(sums);
        ring.release(n);
        ring.release(n + 1);
        ring.release(n + 2);
      }

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float shift = sums[2 * r];
        const int row = i0 + group_row(2 * r);
        if (row >= count) continue;
        const Index t = first + row;
        if (!tlse.empty() && threadIdx.x % 4 == 0) tlse(head, t) = (shift + centre[r]) * scale;
        if (to.empty()) continue;
        const Index column = head * D + group_col(0);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          const float2 y = *reinterpret_cast<const float2*>(&o(t, column + 8 * n));
          *reinterpret_cast<float2*>(&to(t, column + 8 * n)) =
              make_float2((out[4 * n + 2 * r] - shift * y.x) * scale,
                          (out[4 * n + 2 * r + 1] - shift * y.y) * scale);
        }
      }
    }
  }
}

/// As Launch::attention_tangent_bfloat16. False, and nothing done, where there is no kernel for it;
/// see attention_hopper.
inline bool attention_tangent_hopper(cudaStream_t stream, Operand<float> q,
                                     Cache<const bfloat16> keys, Cache<const bfloat16> values,
                                     View<const float> tkeys, View<const float> tvalues,
                                     AttentionShape shape, View<const float> o,
                                     View<const float> lse, View<float> to, View<float> tlse) {
  if (q.value.rows < least_hopper_queries) return false;
  for (const View<const float>& v :
       {q.value, q.tangent, tkeys, tvalues, o, View<const float>(to)}) {
    if (!in_fours_of_floats(v)) return false;
  }
  if (!in_chunks(keys) || !in_chunks(values) || keys.slots != values.slots) return false;
  if (!runs_hopper_code()) return false;
  return with_head_dim(shape.head_dim, [&](auto d) {
    using Shape = TangentShape<d()>;
    const auto kernel = attention_tangent_hopper_kernel<d()>;
    if (!with_shared_memory(kernel, Shape::shared_bytes)) return false;
    const dim3 blocks(grid(blocks_for(q.value.rows, Shape::rows)), grid(shape.heads));
    kernel<<<blocks, tangent_block_threads, Shape::shared_bytes, stream>>>(
        q, keys, values, tkeys, tvalues, shape, o, lse, to, tlse);
    return true;
  });
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
