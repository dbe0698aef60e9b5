// SPDX-License-Identifier: MIT
/// \file
/// Window attention forwards on Hopper (after FlashAttention-3, Shah et al. 2024, arXiv
/// 2407.08608).
///
/// A block owns 64 queries a group of four warps and goes along tiles of 128 keys, from the newest
/// to the oldest. One group brings tiles; in the others the products of one tile run while the
/// exponentials of the tile after it are taken, and groups take turns at the tensor cores.
/// 2 products a pair of tiles; bounded by the exponentials (16 a clock and multiprocessor) where
/// heads are small: at D = 64 they take as long as the products.
#pragma once

#include <algorithm>

#include <ttt/backend/cuda/kernels/wgmma.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Rows of a streamed tile.
constexpr int hopper_rows = 128;

/// The window as seen from query `first` of a block's queries: positions relative to that, clamped
/// so that they fit.
struct LocalWindow {
  int before;  // keys before that query
  int window;

  __device__ LocalWindow(const AttentionShape& shape, Index first)
      : before(clamp(shape.position + first)), window(clamp(shape.window)) {}

  /// The first key that query i sees.
  __device__ int begin(int i) const { return i - window + 1 > -before ? i - window + 1 : -before; }
  __device__ bool sees(int i, int j) const { return j <= i && j >= begin(i); }
  /// Whether all of `queries` from i on see all of `keys` from j on.
  __device__ bool all_seen(int i, int queries, int j, int keys) const {
    return j + keys - 1 <= i && j >= begin(i + queries - 1);
  }

 private:
  __device__ static int clamp(Index n) {
    constexpr Index most = Index{1} << 30;
    return static_cast<int>(n < most ? n : most);
  }
};

/// This thread's place in the 64 rows of its group's sums, and in 8 of their columns.
__device__ inline int group_row(int e) {
  return static_cast<int>(threadIdx.x) % group_threads / 32 * 16 +
         static_cast<int>(threadIdx.x) % 32 / 4 + 8 * (e / 2);
}
__device__ inline int group_col(int e) {
  return 2 * (static_cast<int>(threadIdx.x) % 4) + e % 2;
}
template <class F>
__device__ float over_quad(float x, const F& f) {
  x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

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

constexpr float log2_of_e = 1.44269504f;

/// Keys and values of one head, a tile after the other from the newest to the oldest.
template <int D>
struct CachedTiles {
  const bfloat16* keys;
  const bfloat16* values;
  int slots, slot;  // the one of a tile's first row
  TileCopy<D, hopper_rows> copy;

  __device__ CachedTiles(const Cache<const bfloat16>& key_cache,
                         const Cache<const bfloat16>& value_cache, Index head, Index position)
      : keys(key_cache.data + head * key_cache.slots * D),
        values(value_cache.data + head * value_cache.slots * D),
        slots(static_cast<int>(key_cache.slots)),
        slot(static_cast<int>((position + slots * Index{hopper_rows}) % slots)) {}

  /// Of the tile's rows those from `begin` to `end` are there; the others become zeros.
  __device__ void bring(const bfloat16* from, unsigned tile, int begin, int end) const {
    if (begin <= 0 && end >= hopper_rows && slot + hopper_rows <= slots) {
      copy.all(tile, from + static_cast<Index>(slot) * D);
    } else {
      copy.some(tile, begin, end, [&](int row) {
        int at = slot + row;
        while (at >= slots) at -= slots;
        return from + static_cast<Index>(at) * D;
      });
    }
  }
  __device__ void step_back() {
    slot -= hopper_rows;
    while (slot < 0) slot += slots;
  }
};

template <int D>
struct ForwardShape {
  static constexpr int groups = 2;  // that multiply
  static constexpr int rows = 64 * groups;
  static constexpr int threads = group_threads * (groups + 1);
  using Keys = Tile<D, hopper_rows>;
  static constexpr int stages = D <= 96 ? 4 : 3;
  static constexpr int shared_bytes = 2 * stages * Keys::bytes + 1024;
};

template <int D>
__global__ void __launch_bounds__(ForwardShape<D>::threads, 1)
    attention_hopper_kernel(View<const float> q, Cache<const bfloat16> keys,
                            Cache<const bfloat16> values, AttentionShape shape, View<float> o,
                            View<float> lse) {
  if constexpr (hopper_code) {
    using Shape = ForwardShape<D>;
    using Keys = typename Shape::Keys;
    constexpr int stages = Shape::stages, columns = hopper_rows;
    extern __shared__ unsigned char dynamic[];
    __shared__ RingBarriers<stages> key_ring, value_ring;
    const unsigned tiles = (shared_address(dynamic) + 1023) / 1024 * 1024;
    const auto key_tile = [&](int n) { return tiles + n % stages * 2 * Keys::bytes; };
    const auto value_tile = [&](int n) { return key_tile(n) + Keys::bytes; };

    const Index head = blockIdx.y, key_head = head / (shape.heads / shape.key_heads);
    const Index first = static_cast<Index>(gridDim.x - 1 - blockIdx.x) * Shape::rows;
    const int count = static_cast<int>(q.rows - first < Shape::rows ? q.rows - first : Shape::rows);
    const LocalWindow window(shape, first);
    const int begin = window.begin(0);
    const int tile_count = (Shape::rows - begin + columns - 1) / columns;
    const auto tile_begin = [&](int n) { return Shape::rows - (n + 1) * columns; };
    const int group = static_cast<int>(threadIdx.x) / group_threads;
    if (threadIdx.x == 0) {
      key_ring.init(4 * Shape::groups);
      value_ring.init(4 * Shape::groups);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    if (group == Shape::groups) {
      give_registers<24>();
      CachedTiles<D> cached(keys, values, key_head, shape.position + first + tile_begin(0));
      for (int n = 0; n < tile_count; ++n) {
        const int j = tile_begin(n);
        key_ring.wait_empty(n);
        cached.bring(cached.keys, key_tile(n), begin - j, count - j);
        arrive_with_copies(&key_ring.full[n % stages]);
        value_ring.wait_empty(n);
        cached.bring(cached.values, value_tile(n), begin - j, count - j);
        arrive_with_copies(&value_ring.full[n % stages]);
        cached.step_back();
      }
    } else {
      take_registers<240>();
      LeftOperand<D / 16> queries;
      load_left<D>(q, first + 64 * group, count - 64 * group, head * D, queries);
      float scores[columns / 2], out[D / 2];
      LeftOperand<columns / 16> weights;
      float most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, shrink[2];
      const float scale = rsqrtf(static_cast<float>(D)) * log2_of_e;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] = 0;

      const auto multiply_scores = [&](int n) {
        begin_products();
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
          multiply_add<Depth::Channels>(scores, queries[k], Keys::along_channels(key_tile(n), k),
                                        k > 0);
        }
        commit_products();
      };
      const auto multiply_values = [&](int n) {
        begin_products();
#pragma unroll
        for (int k = 0; k < columns / 16; ++k) {
          multiply_add<Depth::Rows>(out, weights[k], Keys::along_rows(value_tile(n), k), true);
        }
        commit_products();
      };
      // Scores become weights relative to the greatest score, or to an older one within 2^8 of it.
      const auto exponentials = [&](int n) {
        const int i = 64 * group, j = tile_begin(n);
        if (!window.all_seen(i, 64, j, columns)) {
#pragma unroll
          for (int e = 0; e < columns / 2; ++e) {
            if (!window.sees(i + group_row(e % 4), j + e / 4 * 8 + group_col(e))) {
              scores[e] = -INFINITY;
            }
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float now = most[r];
#pragma unroll
          for (int e = 2 * r; e < columns / 2; e += 4) {
            now = fmaxf(now, fmaxf(scores[e], scores[e + 1]));
          }
          now = over_quad(now, [](float a, float b) { return fmaxf(a, b); });
          const float growth = (now - most[r]) * scale;
          shrink[r] = growth > 8 ? exp2_of(-growth) : 1.0f;
          if (growth > 8) most[r] = now;
          const float base = most[r] == -INFINITY ? 0.0f : most[r] * scale;
          sum[r] *= shrink[r];
#pragma unroll
          for (int e = 2 * r; e < columns / 2; e += 4) {
            scores[e] = exp2_of(fmaf(scores[e], scale, -base));
            scores[e + 1] = exp2_of(fmaf(scores[e + 1], scale, -base));
            sum[r] += scores[e] + scores[e + 1];
          }
        }
      };
      const auto shrink_sums = [&] {
        if (!__any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) out[i] *= shrink[i / 2 % 2];
      };
      const auto await_keys = [&](int n) {
        if (n >= tile_count) return;
        key_ring.wait_full(n);
        show_copies();
      };
      // One group multiplies while the others take exponentials.
      const auto take_turn = [&] { meet(1 + group, 2 * group_threads); };
      const auto pass_turn = [&] { pass(1 + (group + 1) % Shape::groups, 2 * group_threads); };
      if (group == Shape::groups - 1) pass_turn();

      await_keys(0);
      multiply_scores(0);
      wait_products<0>(scores);
      key_ring.release(0);
      exponentials(0);
      round_sums(scores, weights);
      await_keys(1);
      for (int n = 1; n < tile_count; ++n) {
        take_turn();
        multiply_scores(n);
        value_ring.wait_full(n - 1);
        show_copies();
        multiply_values(n - 1);
        pass_turn();
        wait_products<1>(scores);
        key_ring.release(n);
        exponentials(n);
        keep_order(scores);
        await_keys(n + 1);  // a loop: the compiler waits for products no earlier than here
        wait_products<0>(out);
        value_ring.release(n - 1);
        shrink_sums();
        round_sums(scores, weights);
      }
      value_ring.wait_full(tile_count - 1);
      show_copies();
      multiply_values(tile_count - 1);
      wait_products<0>(out);

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float total = over_quad(sum[r], [](float a, float b) { return a + b; });
        const int row = 64 * group + group_row(2 * r);
        if (row >= count) continue;
        const float inverse = 1 / total;
        float* const to = &o(first + row, head * D + group_col(0));
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          *reinterpret_cast<float2*>(to + 8 * n) =
              make_float2(out[4 * n + 2 * r] * inverse, out[4 * n + 2 * r + 1] * inverse);
        }
        if (!lse.empty() && threadIdx.x % 4 == 0) {
          lse(head, first + row) = most[r] * (scale / log2_of_e) + logf(total);
        }
      }
    }
  }
}

/// Rows that can be read and written by pairs or fours of floats; absent ones can.
inline bool in_fours_of_floats(const View<const float>& v) {
  return v.empty() || (reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && v.stride % 4 == 0);
}
/// Caches that can be read 16 bytes at a time, and whose slots can be counted in an int.
inline bool in_chunks(const Cache<const bfloat16>& c) {
  return reinterpret_cast<std::uintptr_t>(c.data) % 16 == 0 && c.slots < (Index{1} << 24);
}
constexpr Index least_hopper_queries = 64;

/// Calls f with the head size as a type, if there is a kernel for it; says whether there is.
template <class F>
bool with_hopper_head(Index d, const F& f) {
  switch (d) {
    case 64: return f(std::integral_constant<int, 64>());
    case 80: return f(std::integral_constant<int, 80>());
    case 96: return f(std::integral_constant<int, 96>());
    case 128: return f(std::integral_constant<int, 128>());
    default: return false;
  }
}
/// Lets a kernel have that much shared memory; says whether it can.
template <class Kernel>
bool with_shared_memory(Kernel* kernel, int bytes) {
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) ==
      cudaSuccess) {
    return true;
  }
  static_cast<void>(cudaGetLastError());
  return false;
}

}  // namespace

/// False, and nothing done, where there is no kernel for it: other heads than 64, 80, 96 and 128,
/// few queries, rows that do not lie in fours of floats, another GPU than the code is for.
inline bool attention_hopper(cudaStream_t stream, View<const float> q, Cache<const bfloat16> keys,
                             Cache<const bfloat16> values, AttentionShape shape, View<float> o,
                             View<float> lse) {
  if (q.rows < least_hopper_queries || !in_fours_of_floats(q) || !in_fours_of_floats(o) ||
      !in_chunks(keys) || !in_chunks(values) || !runs_hopper_code()) {
    return false;
  }
  return with_hopper_head(shape.head_dim, [&](auto d) {
    using Shape = ForwardShape<d()>;
    const auto kernel = attention_hopper_kernel<d()>;
    if (!with_shared_memory(kernel, Shape::shared_bytes)) return false;
    const dim3 blocks(grid(blocks_for(q.rows, Shape::rows)), grid(shape.heads));
    kernel<<<blocks, Shape::threads, Shape::shared_bytes, stream>>>(q, keys, values, shape, o, lse);
    return true;
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
