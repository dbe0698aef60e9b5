// SPDX-License-Identifier: MIT
/// \file
/// Window attention backwards on Hopper, in two kernels as attention_backward.cuh has them: one
/// whose blocks own 128 queries and go along keys, 3 products a pair, and one whose blocks own 128
/// keys and go along queries, 4 products. Nothing is added to by two blocks, so the same GPU gives
/// the same bits.
///
/// Groups take turns at the tensor cores: a group puts the first products of a tile and the last
/// ones of the tile before it there, and computes gradients of scores while the other multiplies.
#pragma once

#include <ttt/backend/cuda/kernels/hopper_streams.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int hopper_owned_rows = 128;  // by a block; 64 by a group that multiplies
constexpr int backward_groups = 2;
constexpr int backward_threads = group_threads * (backward_groups + 1);

/// What the kernel with queries leaves to the one with keys, in the caller's scratch: operands in
/// bfloat16 (heads, rows, D), the sums of logarithms in base 2 and <dout, o> (heads, rows). Rows
/// behind the last query are zeros, up to a whole tile.
struct QueryCopies {
  std::uint16_t *queries = nullptr, *douts = nullptr;
  float *log_sums = nullptr, *alongs = nullptr;
  Index rows = 0;

  QueryCopies() = default;
  QueryCopies(void* scratch, const AttentionShape& shape, Index q_rows) : rows(padded(q_rows)) {
    const Index size = shape.heads * rows * shape.head_dim;
    queries = static_cast<std::uint16_t*>(scratch);
    douts = queries + size;
    log_sums = reinterpret_cast<float*>(douts + size);
    alongs = log_sums + shape.heads * rows;
  }
  static Index padded(Index q_rows) {
    return blocks_for(q_rows, hopper_owned_rows) * hopper_owned_rows;
  }
};

template <int D>
struct QueryOwner {
  static constexpr int columns = D <= 80 ? 128 : 96;  // keys of a tile
  using Own = Tile<D, hopper_owned_rows>;
  static constexpr int stages = D <= 96 ? 4 : 3;
  using Stream = KeyStream<D, columns, stages>;
  static constexpr int shared_bytes = 2 * Own::bytes + Stream::bytes + 1024;
};

/// A group's 64 queries and their gradients into tiles, with what the rows need besides.
template <int D>
__device__ void bring_queries(unsigned char* queries, unsigned char* douts, float* log_sums,
                              float* alongs, const View<const float>& q, const View<const float>& o,
                              const View<const float>& lse, const View<const float>& dout,
                              Index first, int count, Index head, const QueryCopies& copies) {
  using Own = Tile<D, hopper_owned_rows>;
  const int row = static_cast<int>(threadIdx.x) / 2, half = static_cast<int>(threadIdx.x) % 2;
  const bool there = row < count;
  const Index t = first + (there ? row : 0), column = head * D + half * (D / 2);
  const Index copy_row = head * copies.rows + first + row;
  float along = 0;
  const auto eight = [&](const View<const float>& from, int c, float(&out)[8]) {
    const float4* const at = reinterpret_cast<const float4*>(&from(t, column + c));
    const float4 a = __ldg(at), b = __ldg(at + 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  };
  const auto put = [&](unsigned char* tile, std::uint16_t* copy, int c, const float(&x)[8]) {
    const uint4 chunk = there ? make_uint4(rounded_pair(x[0], x[1]), rounded_pair(x[2], x[3]),
                                           rounded_pair(x[4], x[5]), rounded_pair(x[6], x[7]))
                              : uint4{};
    const int channel = half * (D / 2) + c;
    *reinterpret_cast<uint4*>(tile + Own::at(row, channel / 8)) = chunk;
    if (copy != nullptr) *reinterpret_cast<uint4*>(copy + copy_row * D + channel) = chunk;
  };
#pragma unroll
  for (int c = 0; c < D / 2; c += 8) {
    float x[8], dy[8], y[8];
    eight(q, c, x);
    eight(dout, c, dy);
    eight(o, c, y);
    put(queries, copies.queries, c, x);
    put(douts, copies.douts, c, dy);
    // Of dout as it is multiplied: what all values have in common then cancels in its products.
#pragma unroll
    for (int i = 0; i < 8; ++i) along += rounded(dy[i]) * y[i];
  }
  along += __shfl_xor_sync(0xffffffffu, along, 1);
  if (half != 0) return;
  log_sums[row] = there ? lse(head, t) * log2_of_e : 0.0f;
  alongs[row] = there ? along : 0.0f;
  if (copies.log_sums != nullptr) {
    copies.log_sums[copy_row] = log_sums[row];
    copies.alongs[copy_row] = alongs[row];
  }
}

template <int D>
__global__ void __launch_bounds__(backward_threads, 1)
    attention_queries_hopper_kernel(View<const float> q, Cache<const bfloat16> keys,
                                    Cache<const bfloat16> values, AttentionShape shape,
                                    View<const float> o, View<const float> lse,
                                    View<const float> dout, View<float> dq, QueryCopies copies) {
  if constexpr (hopper_code) {
    using Owner = QueryOwner<D>;
    using Own = typename Owner::Own;
    using Stream = typename Owner::Stream;
    using Keys = typename Stream::Keys;
    constexpr int columns = Owner::columns;
    extern __shared__ unsigned char dynamic[];
    __shared__ Stream stream;
    __shared__ float all_log_sums[hopper_owned_rows], all_alongs[hopper_owned_rows];
    const unsigned query_tile = aligned_address(dynamic), dout_tile = query_tile + Own::bytes,
                   memory = dout_tile + Own::bytes;
    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * hopper_owned_rows;
    const int count =
        static_cast<int>(q.rows - first < hopper_owned_rows ? q.rows - first : hopper_owned_rows);
    const LocalWindow window(shape, first);
    const KeyTiles<columns> tiles(window, hopper_owned_rows, count);
    const int group = group_index();
    stream.init(backward_groups);

    if (group == backward_groups) {
      give_registers<24>();
      stream.bring_all(memory, keys, values, key_head, shape.position + first, tiles);
    } else {
      take_registers<240>();
      unsigned char* const own = dynamic + (query_tile - shared_address(dynamic));
      bring_queries<D>(own, own + Own::bytes, all_log_sums, all_alongs, q, o, lse, dout, first,
                       count, head, copies);
      show_copies();
      meet(1 + backward_groups + group, group_threads);
      const int i0 = 64 * group;
      const unsigned queries = query_tile + static_cast<unsigned>(i0 * Own::pitch),
                     douts = dout_tile + static_cast<unsigned>(i0 * Own::pitch);
      const float log_sums[2] = {all_log_sums[i0 + group_row(0)], all_log_sums[i0 + group_row(2)]},
                  alongs[2] = {all_alongs[i0 + group_row(0)], all_alongs[i0 + group_row(2)]};
      const float scale = rsqrtf(static_cast<float>(D));
      float scores[columns / 2], dweights[columns / 2], out[D / 2];
      LeftOperand<columns / 16> dscores;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] = 0;

      const auto multiply_scores = [&](int n) {
        begin_products();
        multiply_channels<Own, Keys>(scores, queries, Stream::key_tile(memory, n));
        commit_products();
        multiply_channels<Own, Keys>(dweights, douts, Stream::value_tile(memory, n));
        commit_products();
      };
      const auto multiply_dscores = [&](int n) {
        begin_products();
        add_products_of_rows<Keys>(out, dscores, Stream::key_tile(memory, n));
        commit_products();
      };
      const auto weights = [&](int n) {
        const int j = tiles.first(n);
        if (!window.all_seen(i0, 64, j, columns)) {
#pragma unroll
          for (int e = 0; e < columns / 2; ++e) {
            if (!window.sees(i0 + group_row(e % 4), j + e / 4 * 8 + group_col(e))) {
              scores[e] = -INFINITY;
            }
          }
        }
#pragma unroll
        for (int e = 0; e < columns / 2; ++e) {
          scores[e] = exp2_of(fmaf(scores[e], scale * log2_of_e, -log_sums[e / 2 % 2]));
        }
      };
      const auto gradients = [&] {
#pragma unroll
        for (int e = 0; e < columns / 2; ++e) scores[e] *= dweights[e] - alongs[e / 2 % 2];
      };
      const auto await_keys = [&](int n) {
        if (n < tiles.count) stream.keys.wait_full(n);
      };
      const auto await_values = [&](int n) {
        if (n < tiles.count) stream.values.wait_full(n);
      };
      const auto take_turn = [&] { meet(1 + group, 2 * group_threads); };
      const auto pass_turn = [&] { pass(1 + (group + 1) % backward_groups, 2 * group_threads); };
      if (group == backward_groups - 1) pass_turn();

      await_keys(0);
      await_values(0);
      show_copies();
      multiply_scores(0);
      wait_products<1>(scores);
      weights(0);
      keep_order(scores);
      wait_products<0>(dweights);
      stream.values.release(0);
      gradients();
      round_sums(scores, dscores);
      await_keys(1);
      await_values(1);
      for (int n = 1; n < tiles.count; ++n) {
        show_copies();
        take_turn();
        multiply_scores(n);
        multiply_dscores(n - 1);
        pass_turn();
        wait_products<2>(scores);
        weights(n);
        keep_order(scores);
        await_keys(n + 1);  // a loop: the compiler waits for products no earlier than here
        wait_products<1>(dweights);
        stream.values.release(n);
        gradients();
        keep_order(scores);
        await_values(n + 1);
        wait_products<0>(out);
        stream.keys.release(n - 1);
        round_sums(scores, dscores);
      }
      multiply_dscores(tiles.count - 1);
      wait_products<0>(out);

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = i0 + group_row(2 * r);
        if (row >= count) continue;
        float* const to = &dq(first + row, head * D + group_col(0));
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          *reinterpret_cast<float2*>(to + 8 * n) =
              make_float2(out[4 * n + 2 * r] * scale, out[4 * n + 2 * r + 1] * scale);
        }
      }
    }
  }
}

// ---- keys ---------------------------------------------------------------------------------------

template <int D>
struct KeyOwner {
  static constexpr int columns = D <= 96 ? 64 : 32;  // queries of a tile
  static constexpr int stages = 4;
  static constexpr bool in_registers = D == 64;  // keys and values: there is room for them
  using Own = Tile<D, hopper_owned_rows>;
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

/// The tiles of queries that see a block's keys, for every head of the group, one after the other.
struct QueryTiles {
  int begin, each, count;  // the first query, tiles of a head, tiles in all
};

/// dkeys and dvalues, added to, for the keys from position `from` on.
template <int D>
__global__ void __launch_bounds__(backward_threads, 1)
    attention_keys_hopper_kernel(Cache<const bfloat16> keys, Cache<const bfloat16> values,
                                 AttentionShape shape, QueryCopies copies, Index rows,
                                 View<float> dkeys, View<float> dvalues, Index first, Index from) {
  if constexpr (hopper_code) {
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
    const Index j0 = from + static_cast<Index>(blockIdx.x) * hopper_owned_rows;
    const Index left = shape.position + rows - j0;
    const int count = static_cast<int>(left < hopper_owned_rows ? left : hopper_owned_rows);
    // Positions relative to the first query's.
    const LocalWindow window(shape, 0);
    const int j_block = static_cast<int>(j0 - shape.position);
    QueryTiles tiles;
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
        const CachedRows<D, hopper_owned_rows> key_rows(keys, key_head),
            value_rows(values, key_head);
        const TileCopy<D, hopper_owned_rows> copy;
        const int slot = static_cast<int>(j0 % key_rows.slots);
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
                exp2_of(fmaf(scores[i], scale * log2_of_e, i % 2 == 0 ? -log_sum.x : -log_sum.y));
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
      const auto take_turn = [&] { meet(1 + group, 2 * group_threads); };
      const auto pass_turn = [&] { pass(1 + (group + 1) % backward_groups, 2 * group_threads); };
      if (group == backward_groups - 1) pass_turn();

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
        take_turn();
        multiply_first(n);
        multiply_last(n - 1);
        pass_turn();
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
        const Index row = j0 + i - first, column = key_head * D + group_col(0);
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

/// Bytes of scratch that attention_backward_hopper needs, from a multiple of 16 on.
inline Index attention_backward_hopper_scratch(AttentionShape shape, Index q_rows) {
  return shape.heads * QueryCopies::padded(q_rows) *
         (2 * shape.head_dim * Index{sizeof(bfloat16)} + 2 * Index{sizeof(float)});
}

/// As Launch::attention_backward_bfloat16, out of caches in bfloat16. False, and nothing done,
/// where there is no kernel for it; see attention_hopper. `scratch` is not read where dkeys and
/// dvalues are absent.
inline bool attention_backward_hopper(cudaStream_t stream, View<const float> q,
                                      Cache<const bfloat16> keys, Cache<const bfloat16> values,
                                      AttentionShape shape, View<const float> o,
                                      View<const float> lse, View<const float> dout, View<float> dq,
                                      View<float> dkeys, View<float> dvalues, Index first,
                                      void* scratch) {
  if (q.rows < least_hopper_queries || dq.empty() || dkeys.empty() != dvalues.empty()) return false;
  for (const View<const float>& v :
       {q, o, dout, View<const float>(dq), View<const float>(dkeys), View<const float>(dvalues)}) {
    if (!in_fours_of_floats(v)) return false;
  }
  if (!in_chunks(keys) || !in_chunks(values) || !runs_hopper_code()) return false;
  const Index seen = shape.first_key(shape.position), end = shape.position + q.rows;
  const Index from = first > seen ? first : seen;
  const bool want_keys = !dkeys.empty() && from < end;
  return with_hopper_head(shape.head_dim, [&](auto d) {
    const auto queries_kernel = attention_queries_hopper_kernel<d()>;
    const auto keys_kernel = attention_keys_hopper_kernel<d()>;
    constexpr int query_bytes = QueryOwner<d()>::shared_bytes,
                  key_bytes = KeyOwner<d()>::shared_bytes;
    if (!with_shared_memory(queries_kernel, query_bytes) ||
        !with_shared_memory(keys_kernel, key_bytes)) {
      return false;
    }
    const QueryCopies copies = want_keys ? QueryCopies(scratch, shape, q.rows) : QueryCopies();
    const dim3 blocks(grid(blocks_for(q.rows, hopper_owned_rows)), grid(shape.heads));
    queries_kernel<<<blocks, backward_threads, query_bytes, stream>>>(q, keys, values, shape, o,
                                                                      lse, dout, dq, copies);
    if (!want_keys) return true;
    const dim3 key_blocks(grid(blocks_for(end - from, hopper_owned_rows)), grid(shape.key_heads));
    keys_kernel<<<key_blocks, backward_threads, key_bytes, stream>>>(
        keys, values, shape, copies, q.rows, dkeys, dvalues, first, from);
    return true;
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
