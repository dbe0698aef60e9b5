// SPDX-License-Identifier: MIT
/// \file
/// What the kernels of attention's backward tangent read, rounded once: queries, gradients and
/// their tangents, and four numbers of each query.
#pragma once

#include <ttt/backend/cuda/kernels/attention_tiles.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

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

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
