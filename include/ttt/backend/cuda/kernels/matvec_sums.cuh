// SPDX-License-Identifier: MIT
/// \file
/// Some columns of a product with one row, by a block or a cluster: the weights are asked for, as
/// many as fit under way, before the row is.
#pragma once

#include <ttt/backend/cuda/kernels/overlap.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Eight neighbouring elements as they lie, and as floats.
template <class Element>
struct Eight;
template <>
struct Eight<bfloat16> {
  uint4 raw;
  __device__ void widen(float (&out)[8]) const {
    const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};
template <>
struct Eight<float> {
  float4 low, high;
  __device__ void widen(float (&out)[8]) const {
    const float all[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = all[i];
  }
};

/// Those at `at`, zeros from `count` on. Where they are `aligned`, they come in whole eights; of
/// bfloat16s, in the order in which they are asked for, and from the GPU's memory.
template <bool aligned, class Element>
__device__ Eight<Element> load_eight(const Element* at, Index count) {
  Eight<Element> out = {};
  if constexpr (aligned && std::is_same_v<Element, bfloat16>) {
    uint4& raw = out.raw;
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %5, 0;\n"
        "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
        : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w)
        : "l"(at), "r"(count > 0 ? 1 : 0));
  } else if constexpr (aligned) {
    if (count > 0) out = *reinterpret_cast<const Eight<Element>*>(at);
  } else {
    auto* const each = reinterpret_cast<Element*>(&out);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) each[i] = at[i];
    }
  }
  return out;
}

/// Two blocks an SM leave room for all the loads that are in flight here. Unless it is told so, the
/// compiler saves registers and waits for one load after the other.
constexpr int matvec_threads = row_threads, matvec_warps = matvec_threads / 32, matvec_blocks = 2;

/// Adds what lanes `apart`, 2 · apart .. 16 from each other have; then calls put(i, sum) in one
/// lane for every element. Each round halves what a lane has: what it gives away another sums up.
template <int apart, int count, class Put>
__device__ void sum_lanes(const float (&mine)[count], int first, bool owns, const Put& put) {
  const bool is_high = (threadIdx.x & static_cast<unsigned>(apart)) != 0;
  if constexpr (apart == 32) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (owns) put(first + i, mine[i]);
    }
  } else if constexpr (count % 2 == 0) {
    constexpr int half = count / 2;
    float sum[half];
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = shuffle_xor(is_high ? mine[i] : mine[half + i], apart);
      sum[i] = (is_high ? mine[half + i] : mine[i]) + given;
    }
    sum_lanes<2 * apart>(sum, is_high ? first + half : first, owns, put);
  } else {
    float sum[count];
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = mine[i] + shuffle_xor(mine[i], apart);
    sum_lanes<2 * apart>(sum, first, owns && !is_high, put);
  }
}

/// Weights stored [in, out]: a block, or a cluster, makes some columns. Threads side by side have
/// eight each; the lines of such threads, in all blocks of the cluster, share the depth.
template <int columns, bool is_aligned, bool clusters = false>
struct StoredInOut {
  static constexpr int each = columns;  // of a block, or of a cluster
  static constexpr bool in_clusters = clusters;

  /// Whether this thread has a column, its place from `first` on, and for every weight the sum of
  /// x[k] · w(k, column). Asks for weights, then waits for x.
  template <int count, class Element, class X>
  static __device__ bool sums(X& made, const View<const Element> (&w)[count], Index first,
                              Index& col, float (&total)[count]) {
    constexpr int across = columns / 8, own_lines = matvec_threads / across;
    // Loads under way: what registers hold beside the sums and what makes x.
    constexpr int most = count > 1 ? (clusters ? 8 : 6) : X::makes ? 8 : clusters ? 12 : 13;
    constexpr int ahead = sizeof(Element) > 2 ? most / 2 : most;
    __shared__ float parts[count][matvec_warps][columns];
    [[maybe_unused]] std::conditional_t<clusters, Gathered<count * columns>, char> gathered;
    const int rank = clusters ? static_cast<int>(cluster_rank()) : 0;
    const int lines = clusters ? static_cast<int>(cluster_size()) * own_lines : own_lines;
    const int thread = static_cast<int>(threadIdx.x), line = rank * own_lines + thread / across;
    const int mine = 8 * (thread % across), depth = static_cast<int>(w[0].rows);
    const Index left = w[0].cols - first - mine;
    Eight<Element> weights[ahead][count];
    float factors[ahead];
    // Few registers are left: the next line is one pointer a weight, and all else is an int.
    const Element* at[count];
    Index apart[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      at[i] = w[i].row(line) + first + mine;
      apart[i] = lines * w[i].stride;
    }
    const auto ask = [&](int n, int k) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        weights[n][i] = load_eight<is_aligned>(at[i], k < depth ? left : 0);
        at[i] += apart[i];
      }
    };
    const float* x = nullptr;
    const auto ask_x = [&](int n, int k) { factors[n] = k < depth ? x[k] : 0.0f; };
#pragma unroll
    for (int n = 0; n < ahead; ++n) ask(n, n * lines + line);
#pragma unroll
    for (int n = 0; n < ahead; ++n) {  // what comes next is nearer then
      if ((ahead + n) * lines + line >= depth || left <= 0) break;
#pragma unroll
      for (int i = 0; i < count; ++i) bring_nearer(at[i] + n * apart[i]);
    }
    made.prepare();
    wait_for_previous();
    x = made.row();
#pragma unroll
    for (int n = 0; n < ahead; ++n) ask_x(n, n * lines + line);
    float sum[count][8] = {};
    for (int k0 = line; k0 < depth + line; k0 += ahead * lines) {
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
          float eight[8];
          weights[n][i].widen(eight);
#pragma unroll
          for (int j = 0; j < 8; ++j) sum[i][j] += factors[n] * eight[j];
        }
        ask(n, k0 + (ahead + n) * lines);
        ask_x(n, k0 + (ahead + n) * lines);
      }
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      sum_lanes<across>(sum[i], 0, true,
                        [&](int j, float all) { parts[i][thread / 32][mine + j] = all; });
    }
    if constexpr (clusters) gathered.meet();
    __syncthreads();
    col = first + thread;
    if (thread >= columns) return false;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      total[i] = 0;
#pragma unroll
      for (int warp = 0; warp < matvec_warps; ++warp) total[i] += parts[i][warp][thread];
      if constexpr (clusters) {
        if (rank > 0) gathered.give(i * columns + thread, total[i]);
      }
    }
    if constexpr (clusters) {
      if (rank > 0) return false;
      gathered.await();
#pragma unroll
      for (int i = 0; i < count; ++i) total[i] = gathered.sum(i * columns + thread, total[i]);
    }
    return col < w[0].cols;
  }
};

/// Weights stored [out, in]: a warp a column.
template <bool is_aligned>
struct StoredOutIn {
  static constexpr int each = matvec_warps;
  static constexpr bool in_clusters = false;

  template <int count, class Element, class X>
  static __device__ bool sums(X& made, const View<const Element> (&w)[count], Index first,
                              Index& col, float (&total)[count]) {
    constexpr int ahead = sizeof(Element) > 2 ? 2 : count > 2 ? 3 : count > 1 ? 4 : 8;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    col = first + thread / 32;
    const int depth = col < w[0].rows ? static_cast<int>(w[0].cols) : 0;
    Eight<Element> weights[ahead][count];
    const Element* at[count];
#pragma unroll
    for (int i = 0; i < count; ++i) at[i] = w[i].row(col) + 8 * lane;
    const auto ask = [&](int n, int k) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        weights[n][i] = load_eight<is_aligned>(at[i] + n * 256, depth - k);
      }
    };
#pragma unroll
    for (int n = 0; n < ahead; ++n) ask(n, n * 256 + 8 * lane);
#pragma unroll
    for (int n = 0; n < ahead; ++n) {  // what comes next is nearer then
      if ((ahead + n) * 256 + 8 * lane >= depth) break;
#pragma unroll
      for (int i = 0; i < count; ++i) bring_nearer(at[i] + (ahead + n) * 256);
    }
    made.prepare();
    wait_for_previous();
    const float* const x = made.row();
#pragma unroll
    for (int i = 0; i < count; ++i) total[i] = 0;
    for (int k0 = 8 * lane; k0 < depth + 8 * lane; k0 += ahead * 256) {
#pragma unroll
      for (int i = 0; i < count; ++i) at[i] += ahead * 256;
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        const int k = k0 + n * 256;
        float ours[8];
        load_eight<is_aligned>(x + k, depth - k).widen(ours);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          float eight[8];
          weights[n][i].widen(eight);
#pragma unroll
          for (int j = 0; j < 8; ++j) total[i] += ours[j] * eight[j];
        }
        ask(n, k + ahead * 256);
      }
    }
#pragma unroll
    for (int i = 0; i < count; ++i) total[i] = lanes_sum(total[i]);
    return lane == 0 && col < w[0].rows;
  }
};

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
