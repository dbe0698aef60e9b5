// SPDX-License-Identifier: MIT
/// \file
/// The tangent of attention's way back on tensor cores. With P the probabilities, D = rowsum(dO∘O),
/// r the tangent of the log sums and a prime for tangents,
///
///     P' = P∘(S' - r),   dS = P∘(dP - D),   dS' = P'∘(dP - D) + P∘(dP' - D').
///
/// One kernel rounds what is read often, one owns queries (dq' = dS' k + dS k', 5 products a pair
/// of a query and a cached key, 8 for the block's own keys), one owns keys (dk' = dS'ᵀ q + dSᵀ q',
/// dv' = P'ᵀ dO + Pᵀ dO', 8 products, 10 for the block's own). The least that one kernel could do
/// is 10, 15 for the block's own; counted so, 225 TFLOP/s on an H200 for heads of 64, 190 for heads
/// of 80, where these instructions reach 600. On Hopper queries have a kernel of their own, and keys
/// in heads up to 80, attention_*_tangent_hopper.cuh: 385 and 380.
#pragma once

#include <ttt/backend/cuda/kernels/attention_keys_tangent_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/attention_keys_tangent_hopper.cuh>
#include <ttt/backend/cuda/kernels/attention_queries_tangent_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/attention_queries_tangent_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

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
      if (!in_sixteens(x)) return false;
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
      if (!tdq.empty() &&
          !attention_queries_tangent_hopper<d()>(stream, in, keys, values, moves, shape, tdq)) {
        const dim3 blocks(grid(in.rows / flash_rows), grid(shape.heads));
        start_tiles(attention_queries_tangent_bfloat16_kernel<d()>, blocks, flash_threads,
                    12 * tile, stream, in, keys, values, moves, shape, tdq);
      }
      if (tdkeys.empty() && tdvalues.empty()) return;
      const auto keys_between = [&](auto own, Index begin, Index to) {
        if (begin >= to) return;
        if (attention_keys_tangent_hopper<d(), own()>(stream, in, keys, values, shape, rows, tdkeys,
                                                      tdvalues, first, begin, to)) {
          return;
        }
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
