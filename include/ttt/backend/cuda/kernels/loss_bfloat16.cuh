// SPDX-License-Identifier: MIT
/// \file
/// The loss of rows of logits whose gradient goes on as bfloat16, into a product: the logits are
/// read twice, 8 bytes a logit, or once (see loss_hopper.cuh), and the gradient is written once, 2
/// bytes.
#pragma once

#include <ttt/backend/cuda/kernels/loss_gradient.cuh>
#include <ttt/backend/cuda/kernels/loss_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Four neighbouring logits, the ones behind the row's end replaced by `rest`.
template <bool aligned>
__device__ float4 four_at(const View<const float>& z, Index t, Index j, float rest) {
  const float* const at = z.data + t * z.stride + j;
  if (aligned) return *reinterpret_cast<const float4*>(at);
  const auto one = [&](Index i) { return j + i < z.cols ? at[i] : rest; };
  return {one(0), one(1), one(2), one(3)};
}

__device__ inline float power_of(float x) {
  return exp2f(x * log2_e);
}

/// One row a block. First the running maximum and the sums of powers (and, with tangents, of powers
/// times the logits' tangents), then the gradient.
template <bool tangents, bool aligned>
__global__ void __launch_bounds__(1024)
    loss_bfloat16_kernel(View<const float> z, View<const float> tz, const Token* targets,
                         const float* weights, float seed, float* nll, View<bfloat16> dz,
                         View<bfloat16> tdz) {
  const Index t = blockIdx.x, step = 4 * static_cast<Index>(blockDim.x);
  float most = -INFINITY, sum = 0, along = 0;
  for (Index j = 4 * static_cast<Index>(threadIdx.x); j < z.cols; j += step) {
    const float4 v = four_at<aligned>(z, t, j, -INFINITY);
    const float now = fmaxf(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)), most);
    if (now > most) {
      const float shrink = power_of(most - now);
      sum *= shrink;
      if (tangents) along *= shrink;
      most = now;
    }
    const float4 p = {power_of(v.x - most), power_of(v.y - most), power_of(v.z - most),
                      power_of(v.w - most)};
    sum += (p.x + p.y) + (p.z + p.w);
    if (tangents) {
      const float4 u = four_at<aligned>(tz, t, j, 0.0f);
      along += (p.x * u.x + p.y * u.y) + (p.z * u.z + p.w * u.w);
    }
  }
  const float highest = block_max(most);
  const float shrink = most == -INFINITY ? 0.0f : power_of(most - highest);
  sum = block_sum(sum * shrink);
  if (tangents) along = block_sum(along * shrink) / sum;
  const float log_sum = highest + logf(sum);
  const Index target = targets[t];
  if (nll != nullptr && threadIdx.x == 0) nll[t] = log_sum - z(t, target);
  if (dz.empty()) return;
  const LossRow row{weights[t], tangents ? seed * weights[t] : 0.0f, along};
  for (Index j = 4 * static_cast<Index>(threadIdx.x); j < z.cols; j += step) {
    const float4 v = four_at<aligned>(z, t, j, -INFINITY);
    const float p[4] = {power_of(v.x - log_sum), power_of(v.y - log_sum), power_of(v.z - log_sum),
                        power_of(v.w - log_sum)};
    const float4 u = tangents ? four_at<aligned>(tz, t, j, 0.0f) : float4{};
    put_loss_gradient<tangents>(row, p, u, target - j, &dz(t, j), tangents ? &tdz(t, j) : nullptr);
  }
}

}  // namespace

template <class S>
void Launch<S>::softmax_loss_bfloat16(Stream stream, View<const S> logits, View<const S> tlogits,
                                      const Token* targets, const S* weights, double seed, S* nll,
                                      View<bfloat16> dlogits, View<bfloat16> tdlogits) {
  if constexpr (std::is_same_v<S, float>) {
    if (logits.rows == 0) return;
    const float own_seed = static_cast<float>(seed);
    if (loss_hopper(stream, logits, tlogits, targets, weights, own_seed, nll, dlogits, tdlogits)) {
      return;
    }
    const bool aligned = in_packs(logits) && in_packs(tlogits);
    const auto kernel =
        tlogits.empty()
            ? (aligned ? loss_bfloat16_kernel<false, true> : loss_bfloat16_kernel<false, false>)
            : (aligned ? loss_bfloat16_kernel<true, true> : loss_bfloat16_kernel<true, false>);
    kernel<<<grid(logits.rows), 1024, 0, stream>>>(logits, tlogits, targets, weights, own_seed, nll,
                                                   dlogits, tdlogits);
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
