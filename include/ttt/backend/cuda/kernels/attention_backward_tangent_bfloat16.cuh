// SPDX-License-Identifier: MIT
/// \file
/// The tangent of attention's way back on tensor cores. With P the probabilities, D = rowsum(dO∘O),
/// r the tangent of the log sums and a prime for tangents,
///
///     P' = P∘(S' - r),   dS = P∘(dP - D),   dS' = P'∘(dP - D) + P∘(dP' - D').
///
/// One kernel rounds what is read often, one owns queries (dq' = dS' k + dS k', 5 products a pair
/// of a query and a cached key, 8 for the block's own keys), one owns keys (dk' = dS'ᵀ q + dSᵀ q',
/// dv' = P'ᵀ dO + Pᵀ dO', 8 products, 10 for the block's own).
#pragma once

#include <ttt/backend/cuda/kernels/attention_tiles.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Rows of a streamed tile of queries: shared memory holds less of what is wider.
template <int D>
constexpr int query_rows = D <= 96 ? 32 : 16;

/// Of a query: its log sum in powers of two, that one's tangent, D and D'.
struct alignas(16) QueryNumbers {
  float log_sum, tlog_sum, along, talong;
};

/// What the two kernels read: the queries with the scale, in bfloat16, by heads. Rows behind the
/// last are zeros of no weight, so that tiles are whole.
struct Rounded {
  bfloat16 *q, *tq, *dout, *tdout;  // (heads, rows, head_dim)
  bfloat16 *tkeys, *tvalues;        // (key_heads, rows, head_dim)
  QueryNumbers* numbers;            // (heads, rows)
  Index rows;

  static constexpr Index padded(Index rows) { return blocks_for(rows, flash_rows) * flash_rows; }
  static constexpr Index bytes(const AttentionShape& shape, Index rows) {
    const Index channels = (4 * shape.heads + 2 * shape.key_heads) * shape.head_dim;
    return padded(rows) * (2 * channels + 16 * shape.heads);
  }
  Rounded(void* scratch, const AttentionShape& shape, Index count) : rows(padded(count)) {
    const Index size = rows * shape.heads * shape.head_dim;
    q = static_cast<bfloat16*>(scratch);
    tq = q + size;
    dout = tq + size;
    tdout = dout + size;
    tkeys = tdout + size;
    tvalues = tkeys + rows * shape.key_heads * shape.head_dim;
    numbers = reinterpret_cast<QueryNumbers*>(tvalues + rows * shape.key_heads * shape.head_dim);
  }
};

__device__ inline float4 four(const View<const float>& x, Index t, Index c, bool there) {
  return there && !x.empty() ? *reinterpret_cast<const float4*>(x.row(t) + c) : float4{};
}
/// Leaves four bfloat16s; returns what they hold.
__device__ inline float4 put_four(bfloat16* to, float4 v, float factor = 1) {
  const uint2 rounded =
      make_uint2(pack(v.x * factor, v.y * factor), pack(v.z * factor, v.w * factor));
  *reinterpret_cast<uint2*>(to) = rounded;
  return {low(rounded.x), high(rounded.x), low(rounded.y), high(rounded.y)};
}
__device__ inline float dot_four(float4 a, float4 b) {
  return (a.x * b.x + a.y * b.y) + (a.z * b.z + a.w * b.w);
}

/// A warp rounds one row of one head. Reads 24 bytes a channel of a query and writes 8.
template <int D>
__global__ void round_rows_kernel(Operand<float> q, View<const float> tkeys,
                                  View<const float> tvalues, AttentionShape shape, Operand<float> o,
                                  Operand<float> lse, Operand<float> dout, Rounded out) {
  const Index head = blockIdx.y, t = static_cast<Index>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int lane = static_cast<int>(threadIdx.x), c = 4 * lane;
  const bool there = t < q.value.rows, mine = c < D;
  if (head >= shape.heads) {
    const Index key_head = head - shape.heads, from = key_head * D + c;
    const Index to = (key_head * out.rows + t) * D + c;
    if (!mine) return;
    put_four(out.tkeys + to, four(tkeys, t, from, there));
    put_four(out.tvalues + to, four(tvalues, t, from, there));
    return;
  }
  const Index from = head * D + c, to = (head * out.rows + t) * D + c;
  float along = 0, talong = 0;
  if (mine) {
    const float scale = rsqrtf(static_cast<float>(D));
    const float4 y = four(o.value, t, from, there), ty = four(o.tangent, t, from, there);
    put_four(out.q + to, four(q.value, t, from, there), scale);
    put_four(out.tq + to, four(q.tangent, t, from, there), scale);
    // Rounded here too, or dP - D would keep what the rounding and all values have in common.
    const float4 g = put_four(out.dout + to, four(dout.value, t, from, there));
    const float4 tg = put_four(out.tdout + to, four(dout.tangent, t, from, there));
    along = dot_four(g, y);
    talong = dot_four(tg, y) + dot_four(g, ty);
  }
  along = lanes_sum(along);
  talong = lanes_sum(talong);
  if (lane > 0) return;
  const float tangent = there && !lse.tangent.empty() ? lse.tangent(head, t) : 0.0f;
  out.numbers[head * out.rows + t] = {there ? lse.value(head, t) * log2_e : INFINITY, tangent,
                                      along, talong};
}

/// 16 rows of a left operand out of the memory of the device: rows at(0) and at(8) of this lane.
template <int D>
__device__ void read_rows(const bfloat16* row, const bfloat16* row8, Rows<D>& out) {
  const int c = col_of(0);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    out[k][0] = *reinterpret_cast<const unsigned*>(row + 16 * k + c);
    out[k][1] = *reinterpret_cast<const unsigned*>(row8 + 16 * k + c);
    out[k][2] = *reinterpret_cast<const unsigned*>(row + 16 * k + c + 8);
    out[k][3] = *reinterpret_cast<const unsigned*>(row8 + 16 * k + c + 8);
  }
}

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

/// dq': a block owns 64 queries of a head and goes along their keys.
template <int D>
__global__ void __launch_bounds__(flash_threads, D == 64 ? 3 : 2)
    attention_queries_tangent_bfloat16_kernel(Rounded in, Cache<const bfloat16> keys,
                                              Cache<const bfloat16> values, bool moves,
                                              AttentionShape shape, View<float> tdq) {
  constexpr int tile = flash_tile<D>;
  extern __shared__ __align__(16) std::uint16_t tiles[];  // keys, values; the next; k', v'
  std::uint16_t* const tkey_tile = tiles + 4 * tile;
  const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
  const Index first = static_cast<Index>(blockIdx.x) * flash_rows,
              position = shape.position + first;
  const int count = tdq.rows - first < flash_rows ? static_cast<int>(tdq.rows - first) : flash_rows;
  const int mine = static_cast<int>(threadIdx.x) / 32 * 16;
  Rows<D> q, tq, dout, tdout;
  float log_sum[2], tlog_sum[2], along[2], talong[2];
  {
    const Index row = head * in.rows + first + mine + row_of(0);
    const auto read = [&](const bfloat16* rows, Rows<D>& out) {
      read_rows<D>(rows + row * D, rows + (row + 8) * D, out);
    };
    read(in.q, q);
    read(in.tq, tq);
    read(in.dout, dout);
    read(in.tdout, tdout);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const QueryNumbers n = in.numbers[row + 8 * r];
      log_sum[r] = n.log_sum;
      tlog_sum[r] = n.tlog_sum;
      along[r] = n.along;
      talong[r] = n.talong;
    }
  }
  Sums<D / 8> out = {};

  // Keys are counted from the first that a query of the block sees.
  const Index begin = shape.first_key(position);
  const Window window(shape);
  __shared__ RingCursor<D> cursor;
  __shared__ KeyRange range_;
  if (threadIdx.x == 0) {
    range_ = KeyRange::of(shape, begin, position, count, flash_rows,
                          moves ? shape.position - begin : position + 1);
  }
  __syncthreads();
  cursor.start(keys, key_head, begin);
  const auto send = [&](int j0, int end) {
    std::uint16_t* const to = tiles + (j0 / flash_rows % 2 == 0 ? 0 : 2 * tile);
    cursor.send(keys, values, end - j0, to, to + tile);
    close_copies();
  };
  const auto send_tangents = [&](int j0, int end) {
    const TilePart<D> part;
    const Index row = begin + j0 + part.row() - shape.position;
    const bool moved = row >= 0 && j0 + part.row() < end;
    const Index from = (key_head * in.rows + (moved ? row : 0)) * D + part.channel();
    part.send(in.tkeys + from, moved, tkey_tile);
    part.send(in.tvalues + from, moved, tkey_tile + tile);
    close_copies();
  };
  /// 16 keys from j on of a tile; `before`: by how much the warp's first query is behind the first.
  const auto go_along = [&]<bool edge>(std::bool_constant<edge>, const std::uint16_t* key_tile,
                                       int j, int before) {
    Sums<2> s = {}, ts, dp, tdp;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        ts[n][e] = -tlog_sum[e / 2];
        dp[n][e] = -along[e / 2];
        tdp[n][e] = -talong[e / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      unsigned b[4];
      load_matrices<true, false, flash_pitch<D>>(key_tile, j, 16 * k, b);
      multiply_add_16(q[k], b, s);
      multiply_add_16(tq[k], b, ts);
      load_matrices<true, false, flash_pitch<D>>(key_tile + tile, j, 16 * k, b);
      multiply_add_16(dout[k], b, dp);
      multiply_add_16(tdout[k], b, tdp);
      if constexpr (edge) {
        load_matrices<true, false, flash_pitch<D>>(tkey_tile, j, 16 * k, b);
        multiply_add_16(q[k], b, ts);
        load_matrices<true, false, flash_pitch<D>>(tkey_tile + tile, j, 16 * k, b);
        multiply_add_16(dout[k], b, tdp);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float p = power_of_two(fmaf(s[n][e], log2_e, -log_sum[e / 2]));
        if (edge && !window.has(before + row_of(e) - 8 * n - col_of(e))) p = 0;
        tdp[n][e] = p * fmaf(ts[n][e], dp[n][e], tdp[n][e]);
        if (edge) dp[n][e] *= p;
      }
    }
    unsigned rounded[4];
    round_sums(tdp, rounded);
    add_rows<D>(rounded, key_tile, j, out);
    if constexpr (edge) {
      round_sums(dp, rounded);
      add_rows<D>(rounded, tkey_tile, j, out);
    }
  };

  send(0, range_.end);
  const auto at = [&](int j0) { return tiles + (j0 / flash_rows % 2 == 0 ? 0 : 2 * tile); };
  for (int j0 = 0;; j0 += flash_rows) {
    // A loop of its own, with nothing in registers that only the edges need.
    for (; range_.inside(j0); j0 += flash_rows) {
      wait_for_copies();
      __syncthreads();  // this tile has come, and nobody reads the one before any more
      const int end = range_.end;
      if (j0 + flash_rows < end) send(j0 + flash_rows, end);
#pragma unroll
      for (int j = 0; j < flash_rows; j += 16) go_along(std::false_type(), at(j0), j, 0);
    }
    const KeyRange range = range_;
    if (j0 >= range.end) break;
    wait_for_copies();
    __syncthreads();
    send_tangents(j0, range.end);
    if (j0 + flash_rows < range.end) {
      send(j0 + flash_rows, range.end);
      wait_for_copies<1>();
    } else {
      wait_for_copies();
    }
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < flash_rows; j += 16) {
      const int before = range.here - j0 + mine - j;
      if (!window.reaches(before - 15, before + 15)) continue;
      go_along(std::true_type(), at(j0), j, before);
    }
  }
  const float scale = rsqrtf(static_cast<float>(D));
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int t = mine + row_of(e);
    if (t >= count) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      tdq(first + t, head * D + 8 * n + col_of(e)) = out[n][e] * scale;
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
    if (head < plan.heads) send(head, step, stage ^ 1);
    if (after >= flash_rows - 1 && window.has(after + streamed - 1)) {
#pragma unroll
      for (int t = 0; t < streamed; t += 16) go_along(std::false_type(), stage, t, 0);
    } else {
#pragma unroll 1
      for (int t = 0; t < streamed; t += 16) {
        const int distance = after + t - mine;
        if (!window.reaches(distance - 31, distance + 15)) continue;
        go_along(std::true_type(), stage, t, distance);
      }
    }
    if (head >= plan.heads) break;
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

template <class S>
Index Launch<S>::attention_backward_tangent_scratch(AttentionShape shape, Index rows) {
  return Rounded::bytes(shape, rows);
}

template <class S>
bool Launch<S>::attention_backward_tangent_bfloat16(
    Stream stream, Operand<S> q, Cache<const bfloat16> keys, Cache<const bfloat16> values,
    View<const S> tkeys, View<const S> tvalues, AttentionShape shape, Operand<S> o, Operand<S> lse,
    Operand<S> dout, View<S> tdq, View<S> tdkeys, View<S> tdvalues, Index first, void* scratch) {
  if constexpr (std::is_same_v<S, float>) {
    const Index rows = q.value.rows;
    if (rows == 0 || !in_eights(keys) || !in_eights(values) || keys.slots != values.slots) {
      return false;
    }
    const View<const S> read[] = {q.value, q.tangent, tkeys,      tvalues,
                                  o.value, o.tangent, dout.value, dout.tangent};
    for (const View<const S>& x : read) {
      if (!in_fours(x)) return false;
    }
    const Index seen = shape.first_key(shape.position), end = shape.position + rows;
    const Index from = first > seen ? first : seen;
    const bool moves = !tkeys.empty() || !tvalues.empty();
    const Rounded in(scratch, shape, rows);
    return with_head_dim(shape.head_dim, [&](auto d) {
      constexpr int warps = 8, tile = flash_tile<d()>;
      round_rows_kernel<d()>
          <<<dim3(grid(in.rows / warps), grid(shape.heads + shape.key_heads)), dim3(32, warps), 0,
             stream>>>(q, tkeys, tvalues, shape, o, lse, dout, in);
      if (!tdq.empty()) {
        const dim3 blocks(grid(in.rows / flash_rows), grid(shape.heads));
        start_tiles(attention_queries_tangent_bfloat16_kernel<d()>, blocks, flash_threads,
                    12 * tile, stream, in, keys, values, moves, shape, tdq);
      }
      if (tdkeys.empty() && tdvalues.empty()) return;
      const auto keys_between = [&](auto own, Index begin, Index to) {
        if (begin >= to) return;
        constexpr int streamed = 8 * query_rows<d()> * flash_pitch<d()>;
        const dim3 blocks(grid(blocks_for(to - begin, flash_rows)), grid(shape.key_heads));
        start_tiles(attention_keys_tangent_bfloat16_kernel<d(), own()>, blocks, flash_threads,
                    2 * (streamed + (own() ? 2 * tile : 0)), stream, in, keys, values, shape, rows,
                    tdkeys, tdvalues, first, begin, to);
      };
      const Index moving = !moves ? end : from > shape.position ? from : shape.position;
      keys_between(std::true_type(), moving, end);
      keys_between(std::false_type(), from, moving);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
