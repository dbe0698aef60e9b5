// SPDX-License-Identifier: MIT
/// \file
/// The gradient of the loss in bfloat16, as the kernels for it write it.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// A token's part in the loss: its weight, how much that moves, and the mean of the logits'
/// tangents under its probabilities.
struct LossRow {
  float weight, moved, along;
};

/// Writes the gradient of four neighbouring logits, and its tangent, from their probabilities and
/// tangents. The target is so many behind the first of them, if it is one of them at all. Rows of
/// the gradient have room for whole eights.
template <bool tangents>
__device__ void put_loss_gradient(const LossRow& row, const float (&p)[4], const float4& u,
                                  Index target, bfloat16* to, bfloat16* tangent_to) {
  const float tangent[4] = {u.x, u.y, u.z, u.w};
  float g[4], h[4] = {};
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float miss = p[n] - (n == target ? 1.0f : 0.0f);
    g[n] = row.weight * miss;
    if (tangents) h[n] = row.weight * (p[n] * (tangent[n] - row.along)) + row.moved * miss;
  }
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(g[0], g[1]), pack(g[2], g[3]));
  if (tangents) {
    *reinterpret_cast<uint2*>(tangent_to) = make_uint2(pack(h[0], h[1]), pack(h[2], h[3]));
  }
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
