// SPDX-License-Identifier: MIT
/// \file
/// bfloat16 out of float: 6 bytes an element.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Eight neighbours a thread.
template <bool aligned>
__global__ void __launch_bounds__(256) round_kernel(View<const float> from, View<bfloat16> to) {
  const Index parts = (from.cols + 7) / 8;
  const Index at = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= from.rows * parts) return;
  const Index row = at / parts, col = 8 * (at - row * parts);
  const float* const in = from.data + row * from.stride + col;
  bfloat16* const out = to.data + row * to.stride + col;
  if (aligned && col + 8 <= from.cols) {
    const float4 low = *reinterpret_cast<const float4*>(in);
    const float4 high = *reinterpret_cast<const float4*>(in + 4);
    *reinterpret_cast<uint4*>(out) = make_uint4(pack(low.x, low.y), pack(low.z, low.w),
                                                pack(high.x, high.y), pack(high.z, high.w));
    return;
  }
  for (Index j = 0; j < 8 && col + j < from.cols; ++j) {
    set(out[j], in[j]);
  }
}

}  // namespace

template <class S>
void Launch<S>::round(Stream stream, View<const S> from, View<bfloat16> to) {
  if constexpr (std::is_same_v<S, float>) {
    const Index parts = from.rows * ((from.cols + 7) / 8);
    if (parts == 0) return;
    const auto kernel =
        in_sixteens(from) && in_sixteens(to) ? round_kernel<true> : round_kernel<false>;
    kernel<<<grid(blocks_for(parts, 256)), 256, 0, stream>>>(from, to);
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
