// SPDX-License-Identifier: MIT
/// \file
/// The tangent of window attention on Hopper. See attention_tangent_bfloat16.cuh for what is
/// computed.
///
/// A block owns 128 queries and goes along tiles of keys, from the oldest to the newest, as the
/// queries' half of attention_backward_hopper.cuh does: one group brings tiles, two take turns at
/// the tensor cores. Nothing is scaled before it is rounded, so that scores are those of the
/// forward: A and r are D^1/2 times what they are there, and so is v'.
#pragma once

#include <ttt/backend/cuda/kernels/attention_tiles.cuh>
#include <ttt/backend/cuda/kernels/hopper_streams.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int tangent_groups = 2;  // that multiply, 64 queries each
constexpr int tangent_consumers = group_threads * tangent_groups;
constexpr int tangent_block_threads = tangent_consumers + group_threads;

template <int D>
struct TangentShape {
  static constexpr int columns = D <= 80 ? 128 : 96;  // keys of a tile
  static constexpr int stages = D <= 96 ? 4 : 3;
  static_assert(stages >= 3);  // a tile of keys that move takes three places
  static constexpr int rows = 64 * tangent_groups;
  using Own = Tile<D, rows>;
  using Stream = KeyStream<D, columns, stages>;
  static constexpr int shared_bytes = 2 * Own::bytes + Stream::bytes + 1024;
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
  using Stream = typename Shape::Stream;
  using Keys = typename Stream::Keys;
  static constexpr int columns = Shape::columns;

  Stream stream;

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
      stream.keys.wait_empty(n);
      key_rows.bring(copy, Stream::key_tile(memory, n), slot, 0, count);
      stream.keys.fill(n);
      stream.values.wait_empty(n);
      value_rows.bring(copy, Stream::value_tile(memory, n), slot, 0, count);
      stream.values.fill(n);
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
    stream.keys.wait_empty(n);
    stream.values.wait_empty(n);
    if (!from.empty()) {
#pragma unroll 1
      for (int e = static_cast<int>(threadIdx.x) % group_threads; e < columns * D / 4;
           e += group_threads) {
        const int row = e / (D / 4), channel = e % (D / 4) * 4;
        const bool there = row < count;
        copy_chunk(Stream::key_tile(memory, n) + static_cast<unsigned>(16 * e),
                   &from(first + (there ? row : 0), column + channel), there);
      }
    }
    stream.keys.fill(n);
    stream.values.fill(n);
  }

  /// Waits for a place, or gives it back.
  __device__ void await(int n) {
    stream.keys.wait_full(n);
    stream.values.wait_full(n);
  }
  __device__ void release(int n) {
    stream.keys.release(n);
    stream.values.release(n);
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
    using Stream = typename Shape::Stream;
    using Keys = typename Stream::Keys;
    constexpr int columns = Shape::columns, rows = Shape::rows;
    extern __shared__ unsigned char dynamic[];
    __shared__ TangentStream<D> ring;
    const unsigned query_tile = aligned_address(dynamic), tquery_tile = query_tile + Own::bytes,
                   memory = tquery_tile + Own::bytes;
    const auto at = [&](unsigned address) { return dynamic + (address - shared_address(dynamic)); };
    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * rows;
    const int count = static_cast<int>(q.value.rows - first < rows ? q.value.rows - first : rows);
    const LocalWindow window(shape, first);
    const TangentTiles<columns> tiles(window, first, count, !tkeys.empty() || !tvalues.empty());
    const int group = group_index();
    ring.stream.init(tangent_groups);

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
      float log_sums[2], centre[2], sum[2] = {};
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
      const auto multiply_values = [&](int n) {
        begin_products();
        add_products_of_rows<Keys>(out, weights, Stream::value_tile(memory, n));
        commit_products();
      };
      // Of the tile whose first key is j; keys from `end` on are not there.
      const auto exponentials = [&](int j, int end) {
        if (!window.all_seen(i0, 64, j, columns) || j + columns > end) {
#pragma unroll
          for (int e = 0; e < columns / 2; ++e) {
            const int key = j + e / 4 * 8 + group_col(e);
            if (key >= end || !window.sees(i0 + group_row(e % 4), key)) scores[e] = -INFINITY;
          }
        }
#pragma unroll
        for (int e = 0; e < columns / 2; ++e) {
          scores[e] = exp2_of(fmaf(scores[e], scale * log2_e, -log_sums[e / 2 % 2]));
        }
      };
      // P∘(S' - c), rounded, in place of S'. Their sum is that of the same weights as A, or what
      // the values share would stay.
      const auto weigh = [&] {
        float part[2][2] = {};
#pragma unroll
        for (int e = 0; e < columns / 2; e += 2) {
          const int r = e / 2 % 2;
          const unsigned pair = rounded_pair(scores[e] * (tscores[e] - centre[r]),
                                             scores[e + 1] * (tscores[e + 1] - centre[r]));
          tscores[e] = low(pair);
          tscores[e + 1] = high(pair);
          part[r][e / 4 % 2] += tscores[e] + tscores[e + 1];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) sum[r] += part[r][0] + part[r][1];
      };
      const auto pack_weights = [&] {
#pragma unroll
        for (int i = 0; i < columns / 4; ++i) {
          weights[i / 4][i % 4] = __byte_perm(__float_as_uint(tscores[2 * i]),
                                              __float_as_uint(tscores[2 * i + 1]), 0x7632);
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
        if (n < tiles.still_count) ring.stream.keys.wait_full(n);
      };
      const auto take_turn = [&] { meet(1 + group, tangent_consumers); };
      const auto pass_turn = [&] { pass(1 + (group + 1) % tangent_groups, tangent_consumers); };
      if (group == tangent_groups - 1) pass_turn();

      if (tiles.still_count > 0) {
        await_keys(0);
        show_copies();
        multiply_scores(0);
        wait_products<0>(scores);
        keep_order(tscores);
        ring.stream.keys.release(0);
        centre_on(tiles.moving - tiles.begin);
        exponentials(tiles.begin, tiles.moving);
        weigh();
        pack_weights();
        await_keys(1);
        ring.stream.values.wait_full(0);
        for (int n = 1; n < tiles.still_count; ++n) {
          show_copies();
          take_turn();
          multiply_scores(n);
          multiply_values(n - 1);
          pass_turn();
          wait_products<2>(scores);
          exponentials(tiles.still(n), tiles.moving);
          keep_order(scores);
          await_keys(n + 1);  // a loop: the compiler waits for products no earlier than here
          wait_products<1>(tscores);
          ring.stream.keys.release(n);
          weigh();
          keep_order(tscores);
          ring.stream.values.wait_full(n);
          wait_products<0>(out);
          ring.stream.values.release(n - 1);
          pack_weights();
        }
        show_copies();
        multiply_values(tiles.still_count - 1);
        wait_products<0>(out);
        ring.stream.values.release(tiles.still_count - 1);
      }

      for (int i = 0; i < tiles.own_count; ++i) {
        const int n = tiles.still_count + 3 * i, j = tiles.own(i);
        const unsigned tkey_tile = Stream::key_tile(memory, n + 1),
                       tvalue_tile = Stream::key_tile(memory, n + 2);
        ring.await(n + 1);
        ring.await(n + 2);
        {
          uint4 of_keys[TangentStream<D>::each], of_values[TangentStream<D>::each];
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
        pack_weights();
        round_sums(scores, probabilities);
        begin_products();
        add_products_of_rows<Keys>(out, weights, Stream::value_tile(memory, n));
        add_products_of_rows<Keys>(out, probabilities, tvalue_tile);
        commit_products();
        wait_products<0>(out);
        ring.release(n);
        ring.release(n + 1);
        ring.release(n + 2);
      }

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float shift = quad_sum(sum[r]);
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
