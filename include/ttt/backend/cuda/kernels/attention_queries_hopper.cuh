// SPDX-License-Identifier: MIT
/// \file
/// Window attention backwards on Hopper, the half whose blocks own 128 queries and go along keys: 3
/// products a pair. See attention_backward_hopper.cuh.
#pragma once

#include <ttt/backend/cuda/kernels/hopper_streams.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int hopper_rows = 128;  // by a block; 64 by a group that multiplies
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
  static Index padded(Index q_rows) { return blocks_for(q_rows, hopper_rows) * hopper_rows; }
};

template <int D>
struct QueryOwner {
  static constexpr int columns = D <= 80 ? 128 : 96;  // keys of a tile
  using Own = Tile<D, hopper_rows>;
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
  using Own = Tile<D, hopper_rows>;
  const int row = static_cast<int>(threadIdx.x) / 2, half = static_cast<int>(threadIdx.x) % 2;
  const bool there = row < count;
  const Index t = first + (there ? row : 0), column = head * D + half * (D / 2);
  const Index copy_row = head * copies.rows + first + row;
  float along = 0;
  const auto put = [&](unsigned char* tile, std::uint16_t* copy, int c, const float(&x)[8]) {
    const uint4 chunk = there ? round_eight(x) : uint4{};
    const int channel = half * (D / 2) + c;
    *reinterpret_cast<uint4*>(tile + Own::at(row, channel / 8)) = chunk;
    if (copy != nullptr) *reinterpret_cast<uint4*>(copy + copy_row * D + channel) = chunk;
  };
#pragma unroll
  for (int c = 0; c < D / 2; c += 8) {
    float x[8], dy[8], y[8];
    load_eight(&q(t, column + c), x);
    load_eight(&dout(t, column + c), dy);
    load_eight(&o(t, column + c), y);
    put(queries, copies.queries, c, x);
    put(douts, copies.douts, c, dy);
    // Of dout as it is multiplied: what all values have in common then cancels in its products.
#pragma unroll
    for (int i = 0; i < 8; ++i) along += rounded(dy[i]) * y[i];
  }
  along += __shfl_xor_sync(0xffffffffu, along, 1);
  if (half != 0) return;
  log_sums[row] = there ? lse(head, t) * log2_e : 0.0f;
  alongs[row] = there ? along : 0.0f;
  if (copies.log_sums != nullptr) {
    copies.log_sums[copy_row] = log_sums[row];
    copies.alongs[copy_row] = alongs[row];
  }
}

template <int D>
__global__ void __launch_bounds__(backward_threads, 1)
    attention_queries_hopper_kernel(View<const float> q, Cache<const bfloat16> keys,
                                    Cache<const bfloat16> values, PlacedShape placed,
                                    View<const float> o, View<const float> lse,
                                    View<const float> dout, View<float> dq, QueryCopies copies) {
  if constexpr (hopper_code) {
    const AttentionShape shape = placed.now();
    using Owner = QueryOwner<D>;
    using Own = typename Owner::Own;
    using Stream = typename Owner::Stream;
    using Keys = typename Stream::Keys;
    constexpr int columns = Owner::columns;
    extern __shared__ unsigned char dynamic[];
    __shared__ Stream stream;
    __shared__ float all_log_sums[hopper_rows], all_alongs[hopper_rows];
    const unsigned query_tile = aligned_address(dynamic), dout_tile = query_tile + Own::bytes,
                   memory = dout_tile + Own::bytes;
    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * hopper_rows;
    const int count = static_cast<int>(q.rows - first < hopper_rows ? q.rows - first : hopper_rows);
    const LocalWindow window(shape, first);
    const KeyTiles<columns> tiles(window, hopper_rows, count);
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
          scores[e] = exp2_of(fmaf(scores[e], scale * log2_e, -log_sums[e / 2 % 2]));
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
      const Turns<backward_groups> turns(group);

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
        turns.take();
        multiply_scores(n);
        multiply_dscores(n - 1);
        turns.pass_on();
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

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
