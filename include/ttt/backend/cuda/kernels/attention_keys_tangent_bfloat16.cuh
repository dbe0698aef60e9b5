// SPDX-License-Identifier: MIT
/// \file
/// The tangent of attention's way back on tensor cores, for the keys and values: 8 products a pair,
/// 10 for the block's own; see attention_backward_tangent_bfloat16.cuh.
#pragma once

#include <ttt/backend/cuda/kernels/attention_rounding.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Rows of a streamed tile of queries: shared memory holds less of what is wider.
template <int D>
constexpr int query_rows = D <= 96 ? 32 : 16;

/// sums += weights · tile for 16 of the tile's rows, for two bands of 16 weights.
template <int D>
__device__ void add_rows_2(const unsigned (&weights)[2][4], const std::uint16_t* tile, int row,
                           Sums<D / 8> (&sums)[2]) {
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    unsigned b[4];
    load_matrices<false, false, flash_pitch<D>>(tile, 16 * c, row, b);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add(weights[m], b[0], b[1], sums[m][2 * c]);
      multiply_add(weights[m], b[2], b[3], sums[m][2 * c + 1]);
    }
  }
}

/// What two warps that share keys tell each other, through one place that holds 16 queries' worth.
class Handover {
 public:
  __device__ Handover(uint4* place, int pair)
      : place_(place + pair * size + threadIdx.x % 32), full_(1 + pair), empty_(3 + pair) {}
  static constexpr int size = 4 * 32;  // of one pair's place

  __device__ void give(const unsigned (&weights)[2][4], const unsigned (&tweights)[2][4]) const {
    wait(empty_);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      place_[64 * m] = {weights[m][0], weights[m][1], weights[m][2], weights[m][3]};
      place_[64 * m + 32] = {tweights[m][0], tweights[m][1], tweights[m][2], tweights[m][3]};
    }
    arrive(full_);
  }
  __device__ void take(unsigned (&weights)[2][4], unsigned (&tweights)[2][4]) const {
    wait(full_);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 w = place_[64 * m], tw = place_[64 * m + 32];
      weights[m][0] = w.x, weights[m][1] = w.y, weights[m][2] = w.z, weights[m][3] = w.w;
      tweights[m][0] = tw.x, tweights[m][1] = tw.y, tweights[m][2] = tw.z, tweights[m][3] = tw.w;
    }
    open();
  }
  /// Says, before anything is given, that the place is free; waits until all was taken.
  __device__ void open() const {
    arrive(empty_);
  }
  __device__ void close() const {
    wait(empty_);
  }

 private:
  __device__ static void wait(int barrier) {
    asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
  }
  __device__ static void arrive(int barrier) {
    asm volatile("bar.arrive %0, 64;" ::"r"(barrier) : "memory");
  }

  uint4* place_;
  int full_, empty_;
};

/// dk' and dv', added to: a block owns 64 keys of a key head, from position `from` on and before
/// `to`, and goes along the queries that see them, one query head of the group after the other.
/// `own`: those keys have tangents.
///
/// Two warps share 32 keys: one makes the weights P, P' and with them dv', hands them over, and the
/// other makes dP, dP', dS, dS' and dk'. Each reads a query for twice the keys that it could own
/// alone.
template <int D, bool own>
__global__ void __launch_bounds__(flash_threads, D == 64 ? 3 : 2)
    attention_keys_tangent_bfloat16_kernel(Rounded in, Cache<const bfloat16> keys,
                                           Cache<const bfloat16> values, AttentionShape shape,
                                           Index rows, View<float> tdkeys, View<float> tdvalues,
                                           Index first, Index from, Index to) {
  constexpr int tile = flash_tile<D>, streamed = query_rows<D>;
  constexpr int part = streamed * flash_pitch<D>;
  extern __shared__ __align__(16) std::uint16_t tiles[];  // q, q', dO, dO'; the next; k', v'
  __shared__ QueryNumbers numbers[2][streamed];
  __shared__ uint4 handed[2 * Handover::size];
  std::uint16_t* const tkey_tile = tiles + 8 * part;
  const Index key_head = blockIdx.y, group = shape.heads / shape.key_heads;
  const Index j0 = from + static_cast<Index>(blockIdx.x) * flash_rows;
  const int count = to - j0 < flash_rows ? static_cast<int>(to - j0) : flash_rows;
  const int warp = static_cast<int>(threadIdx.x) / 32, mine = warp % 2 * 32;
  const bool scores = warp >= 2;  // dS and keys, or else weights and values
  const Handover handover(handed, warp % 2);
  Rows<D> owned[2];  // keys; values for the scores
  {
    if constexpr (own) {
      const TilePart<D> mover;
      const Index row = j0 - shape.position + mover.row();
      const bool moved = mover.row() < count;
      const Index at = (key_head * in.rows + (moved ? row : 0)) * D + mover.channel();
      mover.send(in.tkeys + at, moved, tkey_tile);
      mover.send(in.tvalues + at, moved, tkey_tile + tile);
    }
    __shared__ RingCursor<D> cursor;
    cursor.start(keys, key_head, j0);
    __syncthreads();
    cursor.send(keys, values, count, tiles, tiles + tile);
    close_copies();
    wait_for_copies();
    __syncthreads();
    const std::uint16_t* const from_tile = tiles + (scores ? tile : 0);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        load_matrices<true, true, flash_pitch<D>>(from_tile, mine + 16 * m, 16 * k, owned[m][k]);
      }
    }
    __syncthreads();
  }
  Sums<D / 8> out[2] = {};  // dv', or dk'

  const Index begin = (j0 > shape.position ? j0 - shape.position : 0) / streamed * streamed;
  const Index key_end = shape.position + rows;
  const Index reach = j0 + count - 1 + (shape.window < key_end ? shape.window : key_end);
  const Index end = reach < key_end ? reach - shape.position : rows;
  struct alignas(16) Plan {
    int steps, heads;  // tiles of a head; query heads
    int ahead, start;  // by how much the first query is behind j0; its row
  };
  __shared__ Plan plan_;
  if (threadIdx.x == 0) {
    plan_ = {static_cast<int>(end - begin + streamed - 1) / streamed, static_cast<int>(group),
             static_cast<int>(shape.position + begin - j0),
             static_cast<int>(key_head * group * in.rows + begin)};
  }
  __syncthreads();
  const Window window(shape);
  const auto send = [&](int head, int step, int stage) {
    const TilePart<D, streamed> mover;
    const Index row = plan_.start + head * static_cast<int>(in.rows) + step * streamed;
    const Index at = (row + mover.row()) * D + mover.channel();
    std::uint16_t* const to_tile = tiles + 4 * stage * part;
    mover.send(in.q + at, true, to_tile);
    mover.send(in.tq + at, true, to_tile + part);
    mover.send(in.dout + at, true, to_tile + 2 * part);
    mover.send(in.tdout + at, true, to_tile + 3 * part);
    if (threadIdx.x < streamed) {
      const auto place =
          static_cast<unsigned>(__cvta_generic_to_shared(&numbers[stage][threadIdx.x]));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place),
                   "l"(in.numbers + row + threadIdx.x)
                   : "memory");
    }
    close_copies();
  };
  /// 16 queries from t on of a tile; `after`: by how much the first is behind the warps' first key.
  const auto go_along = [&]<bool edge>(std::bool_constant<edge>, int stage, int t, int after) {
    const std::uint16_t* const q = tiles + (4 * stage + (scores ? 2 : 0)) * part;     // or dO
    const std::uint16_t* const dout = tiles + (4 * stage + (scores ? 0 : 2)) * part;  // or q
    Sums<2> x[2] = {}, tx[2] = {};  // S, S'; or dP, dP'
    float2 number[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const QueryNumbers* const of = &numbers[stage][t + 8 * n + col_of(e)];
        number[n][e] = *reinterpret_cast<const float2*>(scores ? &of->along : &of->log_sum);
      }
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      unsigned b[4];
      load_matrices<true, false, flash_pitch<D>>(q, t, 16 * k, b);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add_16(owned[m][k], b, x[m]);
        if constexpr (own) {
          unsigned moved[4];
          load_matrices<true, true, flash_pitch<D>>(tkey_tile + (scores ? tile : 0), mine + 16 * m,
                                                    16 * k, moved);
          multiply_add_16(moved, b, tx[m]);
        }
      }
      load_matrices<true, false, flash_pitch<D>>(q + part, t, 16 * k, b);
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_add_16(owned[m][k], b, tx[m]);
    }
    unsigned weights[2][4], tweights[2][4];
    if (scores) {
      handover.take(weights, tweights);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const unsigned two = weights[m][2 * n + e / 2], ttwo = tweights[m][2 * n + e / 2];
            const float p = e % 2 == 0 ? low(two) : high(two);
            const float tp = e % 2 == 0 ? low(ttwo) : high(ttwo);
            const float dscore = x[m][n][e] - number[n][e % 2].x;
            tx[m][n][e] = fmaf(p, tx[m][n][e] - number[n][e % 2].y, tp * dscore);
            x[m][n][e] = p * dscore;
          }
        }
      }
    } else {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& p = x[m][n][e];
            p = power_of_two(fmaf(p, log2_e, -number[n][e % 2].x));
            const int distance = after + 8 * n + col_of(e) - 16 * m - row_of(e);
            if (edge && !window.has(distance)) p = 0;
            tx[m][n][e] = p * (tx[m][n][e] - number[n][e % 2].y);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      round_sums(x[m], weights[m]);
      round_sums(tx[m], tweights[m]);
    }
    if (!scores) handover.give(weights, tweights);
    add_rows_2<D>(tweights, dout, t, out);
    add_rows_2<D>(weights, dout + part, t, out);
  };

  if (scores) handover.open();
  if (plan_.steps > 0) send(0, 0, 0);
  for (int head = 0, step = 0, stage = 0; plan_.steps > 0; stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile has come, and nobody reads the one before any more
    const Plan plan = plan_;
    const int after = plan.ahead + step * streamed;
    if (++step == plan.steps) {
      step = 0;
      ++head;
    }
    if (after >= flash_rows - 1 && window.has(after + streamed - 1)) {
#pragma unroll 2
      for (int t = 0; t < streamed; t += 16) {
        go_along(std::false_type(), stage, t, 0);
        if (t == 0 && head < plan_.heads) send(head, step, stage ^ 1);
      }
    } else {
      if (head < plan.heads) send(head, step, stage ^ 1);
#pragma unroll 1
      for (int t = 0; t < streamed; t += 16) {
        const int distance = after + t - mine;
        if (!window.reaches(distance - 31, distance + 15)) continue;
        go_along(std::true_type(), stage, t, distance);
      }
    }
    if (head >= plan_.heads) break;
  }
  if (!scores) handover.close();
  float* const sums = scores ? tdkeys.data : tdvalues.data;
  const Index stride = scores ? tdkeys.stride : tdvalues.stride;
  if (sums == nullptr) return;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = mine + 16 * m + row_of(e);
      if (i >= count) continue;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        sums[(j0 + i - first) * stride + key_head * D + 8 * n + col_of(e)] += out[m][n][e];
      }
    }
  }
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
