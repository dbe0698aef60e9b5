// SPDX-License-Identifier: MIT
/// \file
/// Next-token cross-entropy, fused with the head in blocks of rows: no [tokens, words] buffer.
#pragma once

#include <algorithm>
#include <cmath>

#include <ttt/backend/eigen/gemm.hpp>
#include <ttt/backend/eigen/rows.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// Rows whose logits are held at once: some megabytes' worth, and enough to fill a product.
template <class S>
inline Index loss_rows(Index rows, Index words) {
  constexpr Index budget = 8 << 20;
  return std::min(rows, std::max<Index>(128, budget / (words * static_cast<Index>(sizeof(S)))));
}

/// One row of logits: returns its nll, and leaves weight * (softmax - onehot) where asked to.
template <class S>
inline S cross_entropy_row(S* logits, Index words, Token target, S weight, bool gradient) {
  S most = logits[0];
  for (Index j = 1; j < words; ++j) most = logits[j] > most ? logits[j] : most;
  const S wanted = logits[target];
  const S sum = sum_lanes<S>(words, [&]<class P>(Index j) {
    const P e = exp(packet::psub(load<P>(logits + j), broadcast<P>(most)));
    store(logits + j, e);
    return e;
  });
  if (gradient) {
    for_lanes<S>(words, [&]<class P>(Index j) {
      store(logits + j, packet::pmul(broadcast<P>(weight / sum), load<P>(logits + j)));
    });
    logits[target] -= weight;
  }
  return (most - wanted) + std::log(sum);  // this order keeps the digits when logits are large
}

template <class S>
inline void cross_entropy(ThreadPool& pool, View<const S> h, const Weight<S>& head,
                          const Token* targets, const S* weights, S* nll, View<S> dh, S* scratch) {
  const Index block = loss_rows<S>(h.rows, head.cols);
  for (Index first = 0; first < h.rows; first += block) {
    const Index rows = std::min(block, h.rows - first);
    const View<S> logits(scratch, rows, head.cols);
    matmul<S>(pool, h.rows_at(first, rows), head, logits, Write::Replace);
    pool.run(rows, [&](Index t) {
      nll[first + t] = cross_entropy_row(logits.row(t), head.cols, targets[first + t],
                                         dh.empty() ? S(0) : weights[first + t], !dh.empty());
    });
    if (dh.empty()) continue;
    matmul<S>(pool, logits, head.transpose(), dh.rows_at(first, rows), Write::Replace);
  }
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
