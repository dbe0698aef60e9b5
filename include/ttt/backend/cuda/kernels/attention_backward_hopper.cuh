// SPDX-License-Identifier: MIT
/// \file
/// Window attention backwards on Hopper, in two kernels as attention_backward.cuh has them: one
/// whose blocks own 128 queries and go along keys, 3 products a pair, and one whose blocks own 128
/// keys and go along queries, 4 products. Nothing is added to by two blocks, so the same GPU gives
/// the same bits.
///
/// Groups take turns at the tensor cores: a group puts the first products of a tile and the last
/// ones of the tile before it there, and computes gradients of scores while the other multiplies.
/// An H200 gets 586, 550, 647 and 643 TFLOP/s in the queries' kernel at D = 64, 80, 96 and 128, and
/// 566 and 445 in the keys' at D = 64 and 80, where a large product gets 790.
#pragma once

#include <ttt/backend/cuda/kernels/attention_keys_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Bytes of scratch that attention_backward_hopper needs, from a multiple of 16 on.
inline Index attention_backward_hopper_scratch(AttentionShape shape, Index q_rows) {
  return shape.heads * QueryCopies::padded(q_rows) *
         (2 * shape.head_dim * Index{sizeof(bfloat16)} + 2 * Index{sizeof(float)});
}

/// As Launch::attention_backward_bfloat16, out of caches in bfloat16. False, and nothing done,
/// where there is no kernel for it; see attention_hopper. `scratch` is not read where dkeys and
/// dvalues are absent.
inline bool attention_backward_hopper(cudaStream_t stream, View<const float> q,
                                      Cache<const bfloat16> keys, Cache<const bfloat16> values,
                                      PlacedShape shape, View<const float> o,
                                      View<const float> lse, View<const float> dout, View<float> dq,
                                      View<float> dkeys, View<float> dvalues, Index first,
                                      void* scratch) {
  if (q.rows < least_hopper_queries || dq.empty() || dkeys.empty() != dvalues.empty()) return false;
  for (const View<const float>& v :
       {q, o, dout, View<const float>(dq), View<const float>(dkeys), View<const float>(dvalues)}) {
    if (!in_fours_of_floats(v)) return false;
  }
  if (!in_chunks(keys) || !in_chunks(values) || !runs_hopper_code()) return false;
  const Index from = shape.first_seen(first), end = q.rows;
  const bool want_keys = !dkeys.empty() && from < end;
  return with_head_dim(shape.head_dim, [&](auto d) {
    const auto queries_kernel = attention_queries_hopper_kernel<d()>;
    const auto keys_kernel = attention_keys_hopper_kernel<d()>;
    constexpr int query_bytes = QueryOwner<d()>::shared_bytes,
                  key_bytes = KeyOwner<d()>::shared_bytes;
    if (!with_shared_memory(queries_kernel, query_bytes) ||
        !with_shared_memory(keys_kernel, key_bytes)) {
      return false;
    }
    const QueryCopies copies = want_keys ? QueryCopies(scratch, shape, q.rows) : QueryCopies();
    const dim3 blocks(grid(blocks_for(q.rows, hopper_rows)), grid(shape.heads));
    queries_kernel<<<blocks, backward_threads, query_bytes, stream>>>(q, keys, values, shape, o,
                                                                      lse, dout, dq, copies);
    if (!want_keys) return true;
    const dim3 key_blocks(grid(blocks_for(end - from, hopper_rows)), grid(shape.key_heads));
    keys_kernel<<<key_blocks, backward_threads, key_bytes, stream>>>(
        keys, values, shape, copies, q.rows, dkeys, dvalues, first, from);
    return true;
  });
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
