// SPDX-License-Identifier: MIT
/// \file
/// Window attention forwards on Hopper (after FlashAttention-3, Shah et al. 2024, arXiv
/// 2407.08608).
///
/// A block owns 64 queries a group of four warps and goes along tiles of keys, from the newest to
/// the oldest. One group brings tiles; in the others the products of one tile run while the
/// exponentials of the tile after it are taken, and groups take turns at the tensor cores.
/// 2 products a pair of tiles. Where heads are small the exponentials (16 a clock and
/// multiprocessor) and what belongs to them bound it: at D = 64 they alone take as long as the
/// products. An H200 gets 454, 428, 487 and 620 TFLOP/s of D = 64, 80, 96 and 128 (window 8192,
/// 1024 queries, 32 heads or more), where a large product gets 790.
#pragma once

#include <ttt/backend/cuda/kernels/hopper_streams.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// 64 rows of a matrix in float, rounded, as a left operand; zeros from row `count` on.
template <int D>
__device__ void load_left(const View<const float>& from, Index first, int count, Index column,
                          LeftOperand<D / 16>& out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = group_row(i % 2 * 2);
    const float* const at =
        &from(first + (row < count ? row : 0), column + i / 2 * 8 + group_col(0));
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      float2 pair = {};
      if (row < count) pair = *reinterpret_cast<const float2*>(at + 16 * k);
      out[k][i] = rounded_pair(pair.x, pair.y);
    }
  }
}

/// A block with `groups` groups that multiply. Two have registers for long tiles and for their
/// queries; four hide more of each other's waiting, where heads are small, but need twice the
/// queries to fill a GPU.
template <int D, int groups>
struct ForwardShape {
  static_assert(groups == 2 || groups == 4);
  static constexpr bool many = groups == 4;
  static constexpr int columns = !many ? 128 : D == 64 ? 64 : 48;  // keys of a tile
  static constexpr int stages = many ? 6 : D <= 96 ? 4 : 3;
  static constexpr int rows = 64 * groups;
  static constexpr int threads = group_threads * (groups + 1);
  // A block begins with 65,536 / threads, rounded down to eights, and shares them out anew.
  static constexpr int registers = many ? 112 : 240;
  static constexpr int copy_registers = many ? 32 : 24;
  using Queries = Tile<D, rows>;
  using Stream = KeyStream<D, columns, stages>;
  static constexpr int query_bytes = many ? Queries::bytes : 0;
  static constexpr int shared_bytes = query_bytes + Stream::bytes + 1024;
};

template <int D, int groups>
__global__ void __launch_bounds__(ForwardShape<D, groups>::threads, 1)
    attention_hopper_kernel(View<const float> q, Cache<const bfloat16> keys,
                            Cache<const bfloat16> values, PlacedShape placed, View<float> o,
                            View<float> lse, View<bfloat16> rounded) {
  if constexpr (hopper_code) {
    const AttentionShape shape = placed.now();
    using Shape = ForwardShape<D, groups>;
    using Queries = typename Shape::Queries;
    using Stream = typename Shape::Stream;
    using Keys = typename Stream::Keys;
    constexpr int columns = Shape::columns, chains = 4;
    extern __shared__ unsigned char dynamic[];
    __shared__ Stream stream;
    const unsigned query_tile = aligned_address(dynamic), memory = query_tile + Shape::query_bytes;
    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * Shape::rows;
    const int count = static_cast<int>(q.rows - first < Shape::rows ? q.rows - first : Shape::rows);
    const LocalWindow window(shape, first);
    const KeyTiles<columns> tiles(window, Shape::rows, count);
    const int group = group_index();
    stream.init(groups);

    if (group == groups) {
      give_registers<Shape::copy_registers>();
      stream.bring_all(memory, keys, values, key_head, shape.position + first, tiles);
    } else {
      take_registers<Shape::registers>();
      const unsigned queries = query_tile + static_cast<unsigned>(64 * group * Queries::pitch);
      LeftOperand<Shape::many ? 1 : D / 16> query_rows;
      if constexpr (Shape::many) {
        bring_rounded<Queries>(dynamic + (query_tile - shared_address(dynamic)), q, first, count,
                               head * D);
        show_copies();
        meet(1 + groups + group, group_threads);
      } else {
        load_left<D>(q, first + 64 * group, count - 64 * group, head * D, query_rows);
      }
      float scores[columns / 2], out[D / 2];
      LeftOperand<columns / 16> weights;
      float most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, shrink[2];
      const float scale = rsqrtf(static_cast<float>(D)) * log2_e;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] = 0;

      const auto multiply_scores = [&](int n) {
        begin_products();
        const unsigned tile = Stream::key_tile(memory, n);
        if constexpr (Shape::many) {
          multiply_channels<Queries, Keys>(scores, queries, tile);
        } else {
          multiply_channels<Keys>(scores, query_rows, tile);
        }
        commit_products();
      };
      const auto multiply_values = [&](int n) {
        begin_products();
        add_products_of_rows<Keys>(out, weights, Stream::value_tile(memory, n));
        commit_products();
      };
      // Scores become weights relative to the greatest score, or to an older one within 2^8 of it.
      const auto exponentials = [&](int n) {
        const int i = 64 * group, j = tiles.first(n);
        if (!window.all_seen(i, 64, j, columns)) {
#pragma unroll
          for (int e = 0; e < columns / 2; ++e) {
            if (!window.sees(i + group_row(e % 4), j + e / 4 * 8 + group_col(e))) {
              scores[e] = -INFINITY;
            }
          }
        }
        // Several chains of comparisons and of sums: one would wait for itself.
        float now[2][chains], part[2][chains] = {}, base[2];
#pragma unroll
        for (int e = 0; e < columns / 2; e += 2) {
          float& most_of = now[e / 2 % 2][e / 4 % chains];
          most_of =
              fmaxf(e / 4 < chains ? most[e / 2 % 2] : most_of, fmaxf(scores[e], scores[e + 1]));
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int c = 1; c < chains; ++c) now[r][0] = fmaxf(now[r][0], now[r][c]);
          const float greatest =
              quad_reduce(now[r][0], [](float a, float b) { return fmaxf(a, b); });
          const float growth = (greatest - most[r]) * scale;
          shrink[r] = growth > 8 ? exp2_of(-growth) : 1.0f;
          if (growth > 8) most[r] = greatest;
          base[r] = most[r] == -INFINITY ? 0.0f : most[r] * scale;
        }
#pragma unroll
        for (int e = 0; e < columns / 2; e += 2) {
          const int r = e / 2 % 2;
          scores[e] = exp2_of(fmaf(scores[e], scale, -base[r]));
          scores[e + 1] = exp2_of(fmaf(scores[e + 1], scale, -base[r]));
          part[r][e / 4 % chains] += scores[e] + scores[e + 1];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int c = 1; c < chains; ++c) part[r][0] += part[r][c];
          sum[r] = fmaf(sum[r], shrink[r], part[r][0]);
        }
      };
      const auto shrink_sums = [&] {
        if (!__any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) out[i] *= shrink[i / 2 % 2];
      };
      // The keys of tile n and the values of the one before.
      const auto await_tiles = [&](int n) {
        if (n < tiles.count) stream.keys.wait_full(n);
        if (n > 0) stream.values.wait_full(n - 1);
        show_copies();
      };
      // One group multiplies while the others take exponentials.
      const Turns<groups> turns(group);

      await_tiles(0);
      multiply_scores(0);
      wait_products<0>(scores);
      stream.keys.release(0);
      exponentials(0);
      round_sums(scores, weights);
      await_tiles(1);
      for (int n = 1; n < tiles.count; ++n) {
        turns.take();
        multiply_scores(n);
        multiply_values(n - 1);
        turns.pass_on();
        wait_products<1>(scores);
        stream.keys.release(n);
        exponentials(n);
        keep_order(scores);
        await_tiles(n + 1);  // a loop: the compiler waits for products no earlier than here
        wait_products<0>(out);
        stream.values.release(n - 1);
        shrink_sums();
        round_sums(scores, weights);
      }
      multiply_values(tiles.count - 1);
      wait_products<0>(out);

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float total = quad_reduce(sum[r], [](float a, float b) { return a + b; });
        const int row = 64 * group + group_row(2 * r);
        if (row >= count) continue;
        const float inverse = 1 / total;
        const Index column = head * D + group_col(0);
        float* const to = &o(first + row, column);
        bfloat16* const copy = rounded.empty() ? nullptr : &rounded(first + row, column);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          const float2 pair =
              make_float2(out[4 * n + 2 * r] * inverse, out[4 * n + 2 * r + 1] * inverse);
          *reinterpret_cast<float2*>(to + 8 * n) = pair;
          if (copy != nullptr) {
            *reinterpret_cast<unsigned*>(copy + 8 * n) = rounded_pair(pair.x, pair.y);
          }
        }
        if (!lse.empty() && threadIdx.x % 4 == 0) {
          lse(head, first + row) = most[r] * (scale / log2_e) + logf(total);
        }
      }
    }
  }
}

/// False, and nothing done, where there is no kernel for it: other heads than 64, 80, 96 and 128,
/// few queries, rows that do not lie in fours of floats, another GPU than the code is for.
inline bool attention_hopper(cudaStream_t stream, View<const float> q, Cache<const bfloat16> keys,
                             Cache<const bfloat16> values, PlacedShape shape, View<float> o,
                             View<float> lse, View<bfloat16> rounded) {
  if (q.rows < least_hopper_queries || !in_fours_of_floats(q) || !in_fours_of_floats(o) ||
      !in_chunks(keys) || !in_chunks(values) || !runs_hopper_code()) {
    return false;
  }
  const auto launch = [&](auto d, auto groups) {
    using Shape = ForwardShape<d(), groups()>;
    const auto kernel = attention_hopper_kernel<d(), groups()>;
    if (!with_shared_memory(kernel, Shape::shared_bytes)) return false;
    const dim3 blocks(grid(blocks_for(q.rows, Shape::rows)), grid(shape.heads));
    kernel<<<blocks, Shape::threads, Shape::shared_bytes, stream>>>(q, keys, values, shape, o, lse,
                                                                    rounded);
    return true;
  };
  const Index units = multiprocessors();
  const auto rows_in_turn = [&](Index rows) {
    return blocks_for(blocks_for(q.rows, rows) * shape.heads, units) * rows;
  };
  return with_head_dim(shape.head_dim, [&](auto d) {
    if constexpr (d() <= 80) {
      // Four groups are so much faster while they have work, in percent.
      constexpr Index gain = d() == 64 ? 15 : 9;
      const bool many = 100 * rows_in_turn(256) <= (100 + gain) * rows_in_turn(128);
      if (many) return launch(d, std::integral_constant<int, 4>());
    }
    return launch(d, std::integral_constant<int, 2>());
  });
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
