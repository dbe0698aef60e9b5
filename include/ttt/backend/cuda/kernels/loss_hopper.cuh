// SPDX-License-Identifier: MIT
/// \file
/// The loss of rows of logits on Hopper: eight blocks of a cluster hold a row in registers, so that
/// the logits are read once, 4 bytes a logit, and the gradient is written once, 2 bytes. Tangents
/// are read twice, the second time while the L2 cache still has them.
#pragma once

#include <ttt/backend/cuda/kernels/loss_gradient.cuh>
#include <ttt/backend/cuda/kernels/tensor_maps.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

// 64 registers a thread, of which 32 hold logits: two blocks fill a multiprocessor, and one of them
// brings a row while the other waits for its cluster.
constexpr int loss_cluster = 8, loss_threads = 512, loss_packs = 8;
constexpr Index most_loss_words = Index{4} * loss_cluster * loss_threads * loss_packs;

/// What a block says of its part of a row: powers are relative to `base`, the part's highest logit
/// or, where all are minus infinity, 0.
struct LossPart {
  float highest, sum, along;
  __device__ float base() const { return highest == -INFINITY ? 0.0f : highest; }
};

/// One row a cluster. Every number is a sum in an order of its own, the parts' in theirs.
template <bool tangents>
__global__ void __launch_bounds__(loss_threads, 2)
    loss_hopper_kernel(View<const float> z, View<const float> tz, const Token* targets,
                       const float* weights, float seed, float* nll, View<bfloat16> dz,
                       View<bfloat16> tdz) {
  if constexpr (hopper_code) {
    __shared__ LossPart parts[loss_cluster];
    come_in_cluster();
    const Index t = blockIdx.x / loss_cluster;
    const unsigned rank = blockIdx.x % loss_cluster;
    const int words = static_cast<int>(z.cols);
    const int each = 4 * ((words + 4 * loss_cluster - 1) / (4 * loss_cluster));
    const int begin = static_cast<int>(rank) * each,
              end = begin + each < words ? begin + each : words;
    const float* const row = z.row(t);
    const float* const trow = tangents ? tz.row(t) : nullptr;
    const auto for_packs = [&](const auto& f) {
#pragma unroll
      for (int i = 0; i < loss_packs; ++i) {
        const int j = begin + 4 * (static_cast<int>(threadIdx.x) + i * loss_threads);
        if (j < end) f(i, j);
      }
    };
    float4 x[loss_packs];
    for_packs([&](int i, int j) { x[i] = *reinterpret_cast<const float4*>(row + j); });
    LossPart mine{-INFINITY, 0, 0};
    for_packs([&](int i, int) {
      mine.highest = fmaxf(fmaxf(fmaxf(x[i].x, x[i].y), fmaxf(x[i].z, x[i].w)), mine.highest);
    });
    mine.highest = block_max(mine.highest);
    const float base = mine.base();
    for_packs([&](int i, int j) {
      x[i] = {exp2f((x[i].x - base) * log2_e), exp2f((x[i].y - base) * log2_e),
              exp2f((x[i].z - base) * log2_e), exp2f((x[i].w - base) * log2_e)};
      mine.sum += (x[i].x + x[i].y) + (x[i].z + x[i].w);
      if (tangents) {
        const float4 u = *reinterpret_cast<const float4*>(trow + j);
        mine.along += (x[i].x * u.x + x[i].y * u.y) + (x[i].z * u.z + x[i].w * u.w);
      }
    });
    mine.sum = block_sum(mine.sum);
    if (tangents) mine.along = block_sum(mine.along);
    await_cluster();  // all blocks have begun: there is memory to write to
    if (threadIdx.x < loss_cluster) {
      put_in_cluster(&parts[rank].highest, threadIdx.x, mine.highest);
      put_in_cluster(&parts[rank].sum, threadIdx.x, mine.sum);
      put_in_cluster(&parts[rank].along, threadIdx.x, mine.along);
    }
    __syncwarp();
    come_in_cluster();
    await_cluster();
    float highest = -INFINITY, sum = 0, along = 0;
#pragma unroll
    for (const LossPart& part : parts) highest = fmaxf(highest, part.highest);
    const auto shrink = [&](const LossPart& part) {
      return part.highest == -INFINITY ? 0.0f : exp2f((part.highest - highest) * log2_e);
    };
#pragma unroll
    for (const LossPart& part : parts) {
      sum += part.sum * shrink(part);
      if (tangents) along += part.along * shrink(part);
    }
    along /= sum;
    const Index target = targets[t];
    if (nll != nullptr && rank == 0 && threadIdx.x == 0) {
      nll[t] = highest + logf(sum) - row[target];
    }
    if (dz.empty()) return;
    const LossRow loss{weights[t], tangents ? seed * weights[t] : 0.0f, along};
    const float share = shrink(mine) / sum;
    bfloat16* const to = dz.row(t);
    for_packs([&](int i, int j) {
      const float p[4] = {x[i].x * share, x[i].y * share, x[i].z * share, x[i].w * share};
      float4 u = {};
      if (tangents) u = *reinterpret_cast<const float4*>(trow + j);
      put_loss_gradient<tangents>(loss, p, u, target - j, to + j,
                                  tangents ? tdz.row(t) + j : nullptr);
    });
  }
}

/// False, and nothing done, where there is no kernel for it: few words or too many, rows that do
/// not lie in fours, another GPU than the code is for.
inline bool loss_hopper(cudaStream_t stream, View<const float> z, View<const float> tz,
                        const Token* targets, const float* weights, float seed, float* nll,
                        View<bfloat16> dz, View<bfloat16> tdz) {
  constexpr Index least = Index{4} * loss_cluster * loss_threads / 2;
  if (z.cols < least || z.cols > most_loss_words || !in_packs(z) || !in_packs(tz)) return false;
  if (!runs_hopper_code()) return false;
  cudaLaunchAttribute cluster = in_clusters(loss_cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid(z.rows * loss_cluster));
  config.blockDim = dim3(loss_threads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  const auto kernel = tz.empty() ? loss_hopper_kernel<false> : loss_hopper_kernel<true>;
  if (cudaLaunchKernelEx(&config, kernel, z, tz, targets, weights, seed, nll, dz, tdz) ==
      cudaSuccess) {
    return true;
  }
  static_cast<void>(cudaGetLastError());  // a part of a GPU that has no room for a cluster
  return false;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
