// SPDX-License-Identifier: MIT
/// \file
/// The head and its loss as one product on Hopper: logits never touch memory. With l a row's
/// logits, t its target, e the powers of the other words and s their sum
///
///     e_v = 2^(log2(e) (l_v - l_t) - head_shift), e_t = 0,   nll = log(1 + 2^head_shift s),
///     gradient of h = weight (sum_v e_v w_v - s w_t) / (s + 2^-head_shift),
///
/// the product writes e in bfloat16 (2 bytes a logit, where float logits and their gradient are 10)
/// and sums it in float, a number a row and tile. No maximum is needed: a float reaches from a word
/// that is e^-43 times as likely as the target to one that is e^88 times as likely. A row beyond
/// that is computed anew by one block, which reads the head two or three times: some milliseconds.
/// 650 to 750 TFLOP/s on an H200.
#pragma once

#include <ttt/backend/cuda/kernels/product_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr float head_shift = 64;
/// A sum of powers from which on single ones may be too large.
constexpr float most_head_sum = 0x1p64f;

/// Logits become powers on their way out.
struct PowersEnd {
  static constexpr int stages = 4, places = 2;
  static_assert(HeadScratch::tile == product_tile_columns);

  CUtensorMap map;
  const Token* targets;
  const float* base;
  View<float> totals;
  int words;
  bool want_powers;

  template <int n, class Boxes>
  __device__ void operator()(float (&logits)[n], int first_row, int tile, Boxes& boxes) const {
    const int rows = static_cast<int>(totals.rows);
    const int first = tile * product_tile_columns;
    float less[2], sum[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + group_row(2 * r);
      less[r] = row < rows ? base[row] : 0.0f;
      const int target = row < rows ? targets[row] - first : -1;
      if (target < 0 || target >= product_tile_columns) continue;
#pragma unroll
      for (int e = 0; e < n; ++e) {
        if (e / 2 % 2 == r && 8 * (e / 4) + group_col(e) == target) logits[e] = -INFINITY;
      }
    }
    if (first + product_tile_columns > words) {
#pragma unroll
      for (int e = 0; e < n; ++e) {
        if (first + 8 * (e / 4) + group_col(e) >= words) logits[e] = -INFINITY;
      }
    }
#pragma unroll
    for (int part = 0; part < product_tile_columns / 64; ++part) {
      const unsigned to = want_powers ? boxes.place(part) : 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int e = 32 * part + 4 * j + 2 * r;
          const float low = exp2_of(fmaf(logits[e], log2_e, -less[r])),
                      high = exp2_of(fmaf(logits[e + 1], log2_e, -less[r]));
          sum[r] += low + high;
          if (want_powers) boxes.put(to, r, j, low, high);
        }
      }
      if (!want_powers) continue;
      boxes.send([&] { take_box(map, first_row, first + 64 * part, to); });
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = quad_reduce(sum[r], [](float a, float b) { return a + b; });
      const int row = first_row + group_row(2 * r);
      if (row < rows && threadIdx.x % 4 == 0) totals(row, tile) = total;
    }
  }
};

/// The exponent to take off each row's logits, one warp a row: that of its target.
template <class = void>
__global__ void __launch_bounds__(256) head_base_kernel(View<const bfloat16> h, Weight<float> head,
                                                        const Token* targets, float* base) {
  const Index t = (static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (t >= h.rows) return;
  float sum = 0;
  for (Index c = threadIdx.x % 32; c < h.cols; c += 32)
    sum += element(&h(t, c)) * load(head, c, targets[t]);
  sum = lanes_sum(sum);
  if (threadIdx.x % 32 == 0) base[t] = fmaf(sum, log2_e, head_shift);
}

constexpr int head_end_threads = 256;

/// A row whose words differ by more than powers can tell, by one block: the logits are computed
/// twice, a word a warp.
template <class = void>
__device__ void head_row_anew(const View<const bfloat16>& h, Index t, const Weight<float>& head,
                              Index target, const float* weights, float* nll,
                              const View<float>& dh) {
  constexpr int warps = head_end_threads / 32;
  __shared__ float shares[warps];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto logit = [&](Index v) {
    float sum = 0;
    for (Index c = lane; c < h.cols; c += 32) sum += element(&h(t, c)) * load(head, c, v);
    return lanes_sum(sum);
  };
  float most = -INFINITY, sum = 0;
  for (Index v = warp; v < head.cols; v += warps) {
    const float l = logit(v);
    if (l > most) sum *= expf(most - l), most = l;
    sum += expf(l - most);
  }
  const float highest = block_max(most);
  const float log_sum = highest + logf(block_sum(lane == 0 ? sum * expf(most - highest) : 0.0f));
  const float of_target = logit(target);
  if (nll != nullptr && threadIdx.x == 0) nll[t] = log_sum - of_target;
  if (dh.empty()) return;
  for (Index c = threadIdx.x; c < dh.cols; c += head_end_threads) dh(t, c) = 0;
  if (weights[t] == 0) return;
  for (Index v = 0; v < head.cols; v += warps) {
    const Index mine = v + warp;
    float share = 0;
    if (mine < head.cols) share = expf(logit(mine) - log_sum) - (mine == target ? 1.0f : 0.0f);
    if (lane == 0) shares[warp] = weights[t] * share;
    __syncthreads();
    for (Index c = threadIdx.x; c < dh.cols; c += head_end_threads) {
      float more = 0;
      for (int i = 0; i < warps && v + i < head.cols; ++i) more += shares[i] * load(head, c, v + i);
      dh(t, c) += more;
    }
    __syncthreads();
  }
}

/// nll and, where dh holds the product of powers and words, the gradient; one row a block.
template <class = void>
__global__ void __launch_bounds__(head_end_threads)
    head_end_kernel(View<const bfloat16> h, Weight<float> head, const Token* targets,
                    const float* weights, const float* base, View<const float> sums, float* nll,
                    View<float> dh) {
  const Index t = blockIdx.x, target = targets[t];
  float sum = 0;
  for (Index i = threadIdx.x; i < sums.cols; i += head_end_threads) sum += sums(t, i);
  sum = block_sum(sum);
  if (sum >= most_head_sum || base[t] == INFINITY) {
    return head_row_anew(h, t, head, target, weights, nll, dh);
  }
  const float loss = sum < 1 ? log1pf(sum * exp2f(head_shift)) : logf(sum) + head_shift / log2_e;
  if (nll != nullptr && threadIdx.x == 0) nll[t] = loss;
  if (dh.empty()) return;
  const float share = weights[t] / (sum + exp2f(-head_shift)), miss = -share * sum;
  for (Index c = threadIdx.x; c < dh.cols; c += head_end_threads) {
    dh(t, c) = share * dh(t, c) + miss * load(head, c, target);
  }
}

/// False, and nothing done, where there is no kernel for it.
inline bool head_hopper(cudaStream_t stream, View<const bfloat16> h, const Weight<float>& head,
                        const Token* targets, const HeadScratch& scratch, bool want_powers) {
  constexpr Index most = Index{1} << 30;
  if (head.cols > most) return false;
  ProductMaps maps = {};
  PowersEnd end{{}, targets, scratch.base, scratch.sums, static_cast<int>(head.cols), want_powers};
  if (!describe_boxes(scratch.powers, 64, end.map)) return false;
  return with_depth(head, [&]<Depth right>(std::integral_constant<Depth, right>) {
    if (!describe_left<Depth::Channels>(h, 0, maps) ||
        !describe_right<right>(head.stored<bfloat16>(), 0, maps)) {
      return false;
    }
    head_base_kernel<<<grid(blocks_for(32 * h.rows, 256)), 256, 0, stream>>>(h, head, targets,
                                                                             scratch.base);
    return start_product<Depth::Channels, right>(stream, maps, h.rows, head.cols, end);
  });
}

}  // namespace

template <class S>
bool Launch<S>::has_large_products(Index rows) {
  return rows >= least_hopper_queries && runs_hopper_code();
}

template <class S>
bool Launch<S>::head_powers(Stream stream, View<const bfloat16> h, Weight<S> head,
                            const Token* targets, const HeadScratch& scratch, bool want_powers) {
  if constexpr (std::is_same_v<S, float>) {
    return head_hopper(stream, h, head, targets, scratch, want_powers);
  }
  return false;
}

template <class S>
void Launch<S>::head_loss(Stream stream, View<const bfloat16> h, Weight<S> head,
                          const Token* targets, const S* weights, const HeadScratch& scratch,
                          S* nll, View<S> dh) {
  if constexpr (std::is_same_v<S, float>) {
    head_end_kernel<<<grid(h.rows), head_end_threads, 0, stream>>>(
        h, head, targets, weights, scratch.base, scratch.sums, nll, dh);
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
