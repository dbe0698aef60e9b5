// SPDX-License-Identifier: MIT
/// \file
/// Next-token cross-entropy, fused with the head in blocks of rows: no [tokens, words] buffer.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

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
  const S most = max_lanes(words, logits, logits[0]);
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
void cross_entropy(ThreadPool& pool, View<const S> h, const Weight<S>& head, const Token* targets,
                   const S* weights, S* nll, View<S> dh, S* scratch) {
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

/// log(sum of exp(logits)), with `most` the largest of them; not a number unless every one is
/// finite.
template <class S>
inline S log_sum_exp(const S* logits, Index words, S most) {
  const S sum = sum_lanes<S>(words, [&]<class P>(Index j) {
    const P below = packet::psub(load<P>(logits + j), broadcast<P>(most));
    return packet::padd(exp(below), packet::pmul(below, broadcast<P>(S(0))));
  });
  return most + std::log(sum);
}

/// One row of logits and their tangents, which become dl = weight * (softmax - onehot) and
/// tdl = weight * softmax * (tl - <softmax, tl>) + seed * dl.
template <class S>
inline void cross_entropy_tangent_row(S* logits, S* tlogits, Index words, Token target, S weight,
                                      S seed) {
  const S most = max_lanes(words, logits, logits[0]);
  const Two<S> sums = sum_two<S>(words, [&]<class P>(Index j) {
    const P e = exp(packet::psub(load<P>(logits + j), broadcast<P>(most)));
    store(logits + j, e);
    return Two<P>{e, packet::pmul(e, load<P>(tlogits + j))};
  });
  const S shift = seed - sums.second / sums.first;
  for_lanes<S>(words, [&]<class P>(Index j) {
    const P dl = packet::pmul(broadcast<P>(weight / sums.first), load<P>(logits + j));
    store(logits + j, dl);
    store(tlogits + j, packet::pmul(dl, packet::padd(load<P>(tlogits + j), broadcast<P>(shift))));
  });
  logits[target] -= weight;
  tlogits[target] -= seed * weight;
}

/// dl and tdl of one block of rows, one above the other.
template <class S>
inline Index loss_tangent_scratch(Index rows, Index words) {
  return 2 * loss_rows<S>(rows, words) * words;
}

/// The tangents of cross_entropy's dh along th, and of the gradient for the head, when the
/// gradient of the loss, one, moves by `seed`: with l = h · head and tl = th · head,
///
///     tdh = tdl · headᵀ,   tdhead += thᵀ · dl + hᵀ · tdl,
///
/// dl and tdl as in cross_entropy_tangent_row; tdhead lies as the head does. Two products and one
/// for each of tdh and tdhead; two more with th.
template <class S>
void cross_entropy_tangent(ThreadPool& pool, View<const S> h, View<const S> th,
                           const Weight<S>& head, const Token* targets, const S* weights, S seed,
                           View<S> tdh, View<S> tdhead, S* scratch) {
  const Index block = loss_rows<S>(h.rows, head.cols);
  for (Index first = 0; first < h.rows; first += block) {
    const Index rows = std::min(block, h.rows - first);
    const View<const S> x = h.rows_at(first, rows);
    const View<S> logits(scratch, rows, head.cols);
    View<S> tlogits = logits;
    View<const S> tx;
    matmul<S>(pool, x, head, logits, Write::Replace);
    if (th.empty()) {
      // Nothing moves but the seed: tdl = seed * dl, and dl itself has no use.
      pool.run(rows, [&](Index t) {
        cross_entropy_row(logits.row(t), head.cols, targets[first + t], seed * weights[first + t],
                          true);
      });
    } else {
      tx = th.rows_at(first, rows);
      tlogits.data += rows * head.cols;
      matmul<S>(pool, tx, head, tlogits, Write::Replace);
      pool.run(rows, [&](Index t) {
        cross_entropy_tangent_row(logits.row(t), tlogits.row(t), head.cols, targets[first + t],
                                  weights[first + t], seed);
      });
    }
    if (!tdh.empty()) {
      matmul<S>(pool, tlogits, head.transpose(), tdh.rows_at(first, rows), Write::Replace);
    }
    if (tdhead.empty()) continue;
    const auto term = [&](View<const S> hidden, View<const S> scores) {
      const auto [a, b] =
          is_embedding(tdhead, head) ? std::pair(scores, hidden) : std::pair(hidden, scores);
      return Term<S>{{a.data, 1, a.stride}, b};
    };
    if (th.empty()) {
      wide_sum<S>(pool, {term(x, tlogits)}, tdhead, Write::Add);
    } else {
      wide_sum<S>(pool, {term(tx, logits), term(x, tlogits)}, tdhead, Write::Add);
    }
  }
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
