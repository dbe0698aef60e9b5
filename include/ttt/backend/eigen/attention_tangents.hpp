// SPDX-License-Identifier: MIT
/// \file
/// The tangents of window attention, forwards and backwards, streamed over tiles of keys as the
/// values are: nothing of size queries x keys is kept.
///
/// Every tile lies beside its tangent, so that one product brings both: a row of a score tile holds
/// the scores of all queries, then their tangents.
#pragma once

#include <algorithm>
#include <cmath>

#include <ttt/backend/eigen/attention.hpp>
#include <ttt/backend/eigen/gemm.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// Elements between the rows of a tile and its tangent.
inline constexpr Index pair_stride = 2 * query_tile;

/// A head's rows transposed, times `factor`, [head_dim, pair_stride]: `from` in columns [0, rows),
/// `tfrom` in [rows, 2 rows), zeros up to a whole panel.
template <class S>
inline void transpose_pair(View<const S> from, View<const S> tfrom, const QueryTile& tile, Index d,
                           S factor, S* to) {
  const Index used = 2 * tile.rows, at = tile.head * d;
  transpose(from.row(tile.first) + at, from.stride, tile.rows, d, to, pair_stride);
  transpose(tfrom.row(tile.first) + at, tfrom.stride, tile.rows, d, to + tile.rows, pair_stride);
  for (Index i = 0; i < d; ++i) {
    S* row = to + i * pair_stride;
    for_lanes<S>(used, [&]<class P>(Index j) {
      store(row + j, packet::pmul(broadcast<P>(factor), load<P>(row + j)));
    });
    std::fill(row + used, row + (used + panel_cols<S> - 1) / panel_cols<S> * panel_cols<S>, S(0));
  }
}

/// The same rows as they lie, [2 rows, padded head_dim], tangents first: the right operand of
/// (tile, tangent)ᵀ products, in which each factor meets the tangent of the other.
template <class S>
inline void copy_pair(View<const S> from, View<const S> tfrom, const QueryTile& tile, Index d,
                      S factor, S* to, Index to_stride) {
  copy_head(tfrom, tile, d, factor, to, to_stride);
  copy_head(from, tile, d, factor, to + tile.rows * to_stride, to_stride);
}

/// Zeros where a query does not see a key, in a tile and its tangent.
template <class S>
inline void mask_pair(const QueryTile& tile, const AttentionShape& shape, Index key, Index count,
                      S* pair) {
  tile.for_masked(shape, key, count, [&](Index i, Index begin, Index end) {
    for (S* line : {pair + i * pair_stride, pair + i * pair_stride + tile.rows}) {
      std::fill(line, line + begin, S(0));
      std::fill(line + end, line + tile.rows, S(0));
    }
  });
}

/// The rows of one head from `key` on, of a block that starts at `position`.
template <class S>
inline const S* own_rows(View<const S> block, Index key, Index position, Index key_head, Index d) {
  return block.row(key - position) + key_head * d;
}

/// What attention_tangent does for one tile of queries: with P = exp(S - lse) and S' the tangent of
/// the scaled scores S, tlse = Σ P S' and to = Σ P S' v + Σ P tv - tlse o.
template <class S>
inline void attention_tangent_tile(View<const S> q, View<const S> tq, Cache<const S> keys,
                                   Cache<const S> values, View<const S> tkeys,
                                   View<const S> tvalues, const AttentionShape& shape,
                                   const QueryTile& tile, View<const S> o, View<const S> lse,
                                   View<S> to, View<S> tlse) {
  const Index d = shape.head_dim, rows = tile.rows, at = tile.head * d;
  alignas(64) S queries[most_head_dim * pair_stride];  // [d, queries and tangents], scaled
  alignas(64) S out[most_head_dim * query_tile];       // [d, queries]
  alignas(64) S scores[key_tile * pair_stride];        // S, S'; then P, P S'
  alignas(64) S log_sum[query_tile] = {}, tlog_sum[query_tile] = {};
  transpose_pair(q, tq, tile, d, S(1) / std::sqrt(static_cast<S>(d)), queries);
  std::fill_n(out, d * query_tile, S(0));
  for (Index t = 0; t < rows; ++t) log_sum[t] = lse(tile.head, tile.first + t);

  const auto visit = [&](Index key, Index count) {
    const bool own = key >= shape.position;
    tile_product(count, 2 * rows, d, Left<S>{keys.at(tile.key_head, key), d, 1}, queries,
                 pair_stride, scores, pair_stride, Write::Replace);
    if (own) {
      const S* tk = own_rows(tkeys, key, shape.position, tile.key_head, d);
      tile_product(count, rows, d, Left<S>{tk, tkeys.stride, 1}, queries, pair_stride,
                   scores + rows, pair_stride, Write::Add);
    }
    for (Index i = 0; i < count; ++i) {
      S* line = scores + i * pair_stride;
      for_lanes<S>(rows, [&]<class P>(Index j) {
        const P p = exp(packet::psub(load<P>(line + j), load<P>(log_sum + j)));
        store(line + j, p);
        store(line + rows + j, packet::pmul(p, load<P>(line + rows + j)));
      });
    }
    mask_pair(tile, shape, key, count, scores);
    for (Index i = 0; i < count; ++i) {
      const S* line = scores + i * pair_stride + rows;
      for_lanes<S>(rows, [&]<class P>(Index j) {
        store(tlog_sum + j, packet::padd(load<P>(tlog_sum + j), load<P>(line + j)));
      });
    }
    if (to.empty()) return;
    tile_product(d, rows, count, Left<S>{values.at(tile.key_head, key), 1, d}, scores + rows,
                 pair_stride, out, query_tile, Write::Add);
    if (!own) return;
    const S* tv = own_rows(tvalues, key, shape.position, tile.key_head, d);
    tile_product(d, rows, count, Left<S>{tv, 1, tvalues.stride}, scores, pair_stride, out,
                 query_tile, Write::Add);
  };
  const Index middle = std::clamp(shape.position, tile.keys_begin, tile.keys_end);
  for_key_tiles(tile.keys_begin, middle, keys.slots, visit);
  for_key_tiles(middle, tile.keys_end, keys.slots, visit);

  if (!tlse.empty()) {
    for (Index t = 0; t < rows; ++t) tlse(tile.head, tile.first + t) = tlog_sum[t];
  }
  if (to.empty()) return;
  transpose(out, query_tile, d, rows, to.row(tile.first) + at, to.stride);
  for (Index t = 0; t < rows; ++t) {
    const S* value = o.row(tile.first + t) + at;
    S* tangent = to.row(tile.first + t) + at;
    for_lanes<S>(d, [&]<class P>(Index j) {
      store(tangent + j,
            packet::pmadd(broadcast<P>(-tlog_sum[t]), load<P>(value + j), load<P>(tangent + j)));
    });
  }
}

/// to and tlse, the tangents of attention's o and lse along tq, and along tkeys and tvalues, whose
/// row r belongs to position shape.position + r: earlier keys and values do not move. Three
/// products for every query and key of a tile, five for the block's own keys.
template <class S>
void attention_tangent(ThreadPool& pool, View<const S> q, View<const S> tq,
                              Cache<const S> keys, Cache<const S> values, View<const S> tkeys,
                              View<const S> tvalues, const AttentionShape& shape, View<const S> o,
                              View<const S> lse, View<S> to, View<S> tlse) {
  const Index tiles = (q.rows + query_tile - 1) / query_tile;
  pool.run(shape.heads * tiles, [&](Index task) {
    attention_tangent_tile(q, tq, keys, values, tkeys, tvalues, shape,
                           {shape, q.rows, task / tiles, task % tiles}, o, lse, to, tlse);
  });
}

/// The operands of attention_backward_tangent.
template <class S>
struct AttentionBackwardTangent {
  View<const S> q, tq;
  Cache<const S> keys, values;
  View<const S> tkeys, tvalues;
  const AttentionShape& shape;
  View<const S> o, to, lse, tlse, dout, tdout;
  View<S> tdq, tdkeys, tdvalues;
  Index first;

  /// Adds one tile of queries to the tangents of the gradients.
  void add_tile(const QueryTile& tile) const {
    const Index d = shape.head_dim, rows = tile.rows, at = tile.head * d;
    const Index padded = (d + panel_cols<S> - 1) / panel_cols<S> * panel_cols<S>;
    const S scale = S(1) / std::sqrt(static_cast<S>(d));
    alignas(64) S queries[most_head_dim * pair_stride];     // [d, queries and tangents], scaled
    alignas(64) S douts[most_head_dim * pair_stride];       // [d, queries and tangents]
    alignas(64) S query_rows[most_head_dim * pair_stride];  // [tangents and queries, d], scaled
    alignas(64) S dout_rows[most_head_dim * pair_stride];   // [tangents and queries, d]
    alignas(64) S tdqueries[most_head_dim * query_tile];    // [d, queries]
    alignas(64) S weights[key_tile * pair_stride];          // S, S'; then P, P'
    alignas(64) S dscores[key_tile * pair_stride];          // dP, dP'; then dS, dS'
    alignas(64) S log_sum[query_tile], tlog_sum[query_tile], delta[query_tile], tdelta[query_tile];
    transpose_pair(q, tq, tile, d, scale, queries);
    transpose_pair(dout, tdout, tile, d, S(1), douts);
    copy_pair(q, tq, tile, d, scale, query_rows, padded);
    copy_pair(dout, tdout, tile, d, S(1), dout_rows, padded);
    std::fill_n(tdqueries, d * query_tile, S(0));
    for (Index t = 0; t < rows; ++t) {
      const Index row = tile.first + t;
      const S *out = o.row(row) + at, *tout = to.row(row) + at;
      const S *grad = dout.row(row) + at, *tgrad = tdout.row(row) + at;
      const Two<S> dots = sum_two<S>(d, [&]<class P>(Index j) {
        const P value = load<P>(out + j), g = load<P>(grad + j);
        return Two<P>{packet::pmul(g, value),
                      packet::pmadd(load<P>(tgrad + j), value, packet::pmul(g, load<P>(tout + j)))};
      });
      delta[t] = dots.first;
      tdelta[t] = dots.second;
      log_sum[t] = lse(tile.head, row);
      tlog_sum[t] = tlse(tile.head, row);
    }

    const auto visit = [&](Index key, Index count) {
      const S* k = keys.at(tile.key_head, key);
      const S* v = values.at(tile.key_head, key);
      const bool own = key >= shape.position;
      tile_product(count, 2 * rows, d, Left<S>{k, d, 1}, queries, pair_stride, weights, pair_stride,
                   Write::Replace);
      tile_product(count, 2 * rows, d, Left<S>{v, d, 1}, douts, pair_stride, dscores, pair_stride,
                   Write::Replace);
      const S *tk = nullptr, *tv = nullptr;
      if (own) {
        tk = own_rows(tkeys, key, shape.position, tile.key_head, d);
        tv = own_rows(tvalues, key, shape.position, tile.key_head, d);
        tile_product(count, rows, d, Left<S>{tk, tkeys.stride, 1}, queries, pair_stride,
                     weights + rows, pair_stride, Write::Add);
        tile_product(count, rows, d, Left<S>{tv, tvalues.stride, 1}, douts, pair_stride,
                     dscores + rows, pair_stride, Write::Add);
      }
      for (Index i = 0; i < count; ++i) {
        S* w = weights + i * pair_stride;
        S* g = dscores + i * pair_stride;
        for_lanes<S>(rows, [&]<class P>(Index j) {
          const P p = exp(packet::psub(load<P>(w + j), load<P>(log_sum + j)));
          const P tp = packet::pmul(p, packet::psub(load<P>(w + rows + j), load<P>(tlog_sum + j)));
          const P dp = packet::psub(load<P>(g + j), load<P>(delta + j));
          const P tdp = packet::psub(load<P>(g + rows + j), load<P>(tdelta + j));
          store(w + j, p);
          store(w + rows + j, tp);
          store(g + j, packet::pmul(p, dp));
          store(g + rows + j, packet::pmadd(tp, dp, packet::pmul(p, tdp)));
        });
      }
      mask_pair(tile, shape, key, count, weights);
      mask_pair(tile, shape, key, count, dscores);
      if (!tdq.empty()) {
        tile_product(d, rows, count, Left<S>{k, 1, d}, dscores + rows, pair_stride, tdqueries,
                     query_tile, Write::Add);
        if (own) {
          tile_product(d, rows, count, Left<S>{tk, 1, tkeys.stride}, dscores, pair_stride,
                       tdqueries, query_tile, Write::Add);
        }
      }
      if (key < first) return;
      // (dS, dS') · (tq, q) and (P, P') · (tdout, dout): two products each, in one sweep.
      const Index row = key - first, column = tile.key_head * d;
      if (!tdkeys.empty()) {
        tile_product(count, d, 2 * rows, Left<S>{dscores, pair_stride, 1}, query_rows, padded,
                     &tdkeys(row, column), tdkeys.stride, Write::Add);
      }
      if (!tdvalues.empty()) {
        tile_product(count, d, 2 * rows, Left<S>{weights, pair_stride, 1}, dout_rows, padded,
                     &tdvalues(row, column), tdvalues.stride, Write::Add);
      }
    };
    // Cut where keys begin to have gradients, and where they begin to move.
    const Index cut = std::clamp(std::min(first, shape.position), tile.keys_begin, tile.keys_end);
    const Index other = std::clamp(std::max(first, shape.position), cut, tile.keys_end);
    for_key_tiles(tile.keys_begin, cut, keys.slots, visit);
    for_key_tiles(cut, other, keys.slots, visit);
    for_key_tiles(other, tile.keys_end, keys.slots, visit);

    if (tdq.empty()) return;
    for_lanes<S>(d * query_tile, [&]<class P>(Index j) {
      store(tdqueries + j, packet::pmul(broadcast<P>(scale), load<P>(tdqueries + j)));
    });
    transpose(tdqueries, query_tile, d, rows, tdq.row(tile.first) + at, tdq.stride);
  }
};

/// The tangents of attention_backward's results along tq, tkeys, tvalues (the block's own rows) and
/// tdout: replaces tdq and adds to tdkeys and tdvalues, whose row r belongs to position first + r.
/// With P = exp(S - lse), D = <dout, o>, and a prime for tangents:
///
///     P' = P (S' - tlse)      dS' = P' (dP - D) + P (dP' - D')      D' = <tdout, o> + <dout, to>
///     tdq = (dS' k + dS tk) / √d,   tdk = (dS'ᵀ q + dSᵀ tq) / √d,   tdv = P'ᵀ dout + Pᵀ tdout
///
/// Five products for every query and key of a tile, four more from `first` on, three more for the
/// block's own keys. One task a key head, as in attention_backward.
template <class S>
void attention_backward_tangent(ThreadPool& pool,
                                       const AttentionBackwardTangent<S>& operands) {
  const AttentionShape& shape = operands.shape;
  const Index group = shape.heads / shape.key_heads;
  const Index block_rows = operands.q.rows;
  const Index tiles = (block_rows + query_tile - 1) / query_tile;
  pool.run(shape.key_heads, [&](Index key_head) {
    for (Index head = key_head * group; head < (key_head + 1) * group; ++head) {
      for (Index tile = 0; tile < tiles; ++tile) {
        operands.add_tile({shape, block_rows, head, tile});
      }
    }
  });
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
