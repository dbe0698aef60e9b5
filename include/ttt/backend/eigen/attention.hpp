// SPDX-License-Identifier: MIT
/// \file
/// Window attention, streamed over tiles of keys with running row statistics (after
/// FlashAttention, Dao et al. 2022, arXiv 2205.14135): nothing of size queries x keys is kept.
///
/// Scores are held transposed, keys down and queries across, so that queries fill the lanes: row
/// statistics are plain packets, and keys and values are read one scalar at a time where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <ttt/backend/eigen/gemm.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// Queries and keys of one tile, and the widest head (tiles live on the stack).
inline constexpr Index query_tile = 64;
inline constexpr Index key_tile = 128;
inline constexpr Index most_head_dim = 256;

/// Far below any score, but finite: exp must tell it from a NaN.
template <class S>
inline constexpr S masked_score = std::numeric_limits<S>::lowest() / 4;

/// Calls f(first, count) for the stretches of keys in [first, last): contiguous in the ring, at
/// most a tile long, and cut at places that depend on positions only.
template <class F>
inline void for_key_tiles(Index first, Index last, Index slots, const F& f) {
  while (first < last) {
    const Index tile_end = first - first % key_tile + key_tile;
    const Index ring_end = first - first % slots + slots;
    const Index end = std::min({last, tile_end, ring_end});
    f(first, end - first);
    first = end;
  }
}

/// The queries of one head and tile, and the keys they can see.
struct QueryTile {
  Index head, key_head, first, rows;  // first: row in the block
  Index position;                     // of the first query
  Index keys_begin, keys_end;

  QueryTile(const AttentionShape& shape, Index block_rows, Index head_, Index tile)
      : head(head_),
        key_head(head_ / (shape.heads / shape.key_heads)),
        first(tile * query_tile),
        rows(std::min(query_tile, block_rows - first)),
        position(shape.position + first),
        keys_begin(shape.first_key(position)),
        keys_end(position + rows) {}

  /// Calls f(key row, first, last) for every key row with queries outside [first, last) masked.
  template <class F>
  void for_masked(const AttentionShape& shape, Index key, Index count, const F& f) const {
    const bool all_see = key + count - 1 <= position && shape.first_key(position + rows - 1) <= key;
    if (all_see) return;
    for (Index i = 0; i < count; ++i) {
      const Index age_zero = key + i - position;  // the query at this key's own position
      const Index begin = std::clamp<Index>(age_zero, 0, rows);
      const Index end = shape.window > rows - age_zero ? rows : age_zero + shape.window;
      f(i, begin, std::max(begin, end));
    }
  }
};

template <class S>
inline void mask(S* scores, Index row, Index begin, Index end, Index rows, S value) {
  S* line = scores + row * query_tile;
  for (Index j = 0; j < begin; ++j) line[j] = value;
  for (Index j = end; j < rows; ++j) line[j] = value;
}

/// Rows x head_dim of a head into [head_dim, query_tile], times `factor`; zeros behind the last
/// row.
template <class S>
inline void transpose_head(View<const S> from, const QueryTile& tile, Index d, S factor, S* to) {
  if (tile.rows < query_tile) std::fill_n(to, d * query_tile, S(0));
  transpose(from.row(tile.first) + tile.head * d, from.stride, tile.rows, d, to, query_tile);
  if (factor != S(1)) {
    for_lanes<S>(d * query_tile, [&]<class P>(Index j) {
      store(to + j, packet::pmul(broadcast<P>(factor), load<P>(to + j)));
    });
  }
}

/// The same rows untransposed, [query_tile, padded head_dim], for use as a right operand.
template <class S>
inline void copy_head(View<const S> from, const QueryTile& tile, Index d, S factor, S* to,
                      Index to_stride) {
  for (Index t = 0; t < tile.rows; ++t) {
    const S* row = from.row(tile.first + t) + tile.head * d;
    for (Index i = 0; i < d; ++i) to[t * to_stride + i] = factor * row[i];
    for (Index i = d; i < to_stride; ++i) to[t * to_stride + i] = S(0);
  }
}

/// most + log(sum), to the last bit: every weight of a row is made from it on the way back.
template <class S>
inline S log_sum(S most, S sum) {
  return static_cast<S>(static_cast<double>(most) + std::log(static_cast<double>(sum)));
}

template <class S>
inline void attention_tile(View<const S> q, Cache<const S> keys, Cache<const S> values,
                           const AttentionShape& shape, const QueryTile& tile, View<S> o,
                           View<S> lse) {
  const Index d = shape.head_dim;
  alignas(64) S queries[most_head_dim * query_tile];
  alignas(64) S out[most_head_dim * query_tile];
  alignas(64) S scores[key_tile * query_tile];
  alignas(64) S most[query_tile], sum[query_tile], shrink[query_tile];
  transpose_head(q, tile, d, S(1) / std::sqrt(static_cast<S>(d)), queries);
  std::fill_n(most, query_tile, masked_score<S>);
  std::fill_n(sum, query_tile, S(0));
  std::fill_n(out, d * query_tile, S(0));

  for_key_tiles(tile.keys_begin, tile.keys_end, keys.slots, [&](Index key, Index count) {
    const S* k = keys.at(tile.key_head, key);
    const S* v = values.at(tile.key_head, key);
    tile_product(count, tile.rows, d, Left<S>{k, d, 1}, queries, query_tile, scores, query_tile,
                 Write::Replace);
    tile.for_masked(shape, key, count, [&](Index i, Index begin, Index end) {
      mask(scores, i, begin, end, tile.rows, masked_score<S>);
    });
    bool moved = false;
    for_lanes<S>(tile.rows, [&]<class P>(Index j) {
      const P before = load<P>(most + j);
      P now = before;
      for (Index i = 0; i < count; ++i)
        now = packet::pmax(now, load<P>(scores + i * query_tile + j));
      const P factor = exp(packet::psub(before, now));
      P total = packet::pmul(factor, load<P>(sum + j));
      for (Index i = 0; i < count; ++i) {
        S* at = scores + i * query_tile + j;
        store(at, exp(packet::psub(load<P>(at), now)));
      }
      store(most + j, now);
      store(shrink + j, factor);
      store(sum + j, total);
    });
    tile.for_masked(shape, key, count, [&](Index i, Index begin, Index end) {
      mask(scores, i, begin, end, tile.rows, S(0));
    });
    for_lanes<S>(tile.rows, [&]<class P>(Index j) {
      P total = load<P>(sum + j);
      for (Index i = 0; i < count; ++i)
        total = packet::padd(total, load<P>(scores + i * query_tile + j));
      store(sum + j, total);
    });
    for (Index j = 0; j < tile.rows; ++j) moved |= shrink[j] != S(1);
    if (moved) {
      for (Index i = 0; i < d; ++i) {
        for_lanes<S>(tile.rows, [&]<class P>(Index j) {
          S* at = out + i * query_tile + j;
          store(at, packet::pmul(load<P>(shrink + j), load<P>(at)));
        });
      }
    }
    tile_product(d, tile.rows, count, Left<S>{v, 1, d}, scores, query_tile, out, query_tile,
                 Write::Add);
  });

  for_lanes<S>(tile.rows, [&]<class P>(Index j) {
    const P inverse = packet::pdiv(broadcast<P>(S(1)), load<P>(sum + j));
    for (Index i = 0; i < d; ++i) {
      S* at = out + i * query_tile + j;
      store(at, packet::pmul(inverse, load<P>(at)));
    }
  });
  transpose(out, query_tile, d, tile.rows, o.row(tile.first) + tile.head * d, o.stride);
  if (lse.empty()) return;
  for (Index j = 0; j < tile.rows; ++j) {
    lse(tile.head, tile.first + j) = log_sum(most[j], sum[j]);
  }
}

/// One query of one head: keys stream past once, dot products along the head.
template <class S>
inline void attention_row(const S* q, Cache<const S> keys, Cache<const S> values,
                          const AttentionShape& shape, Index head, Index position, S* o, S* lse) {
  const Index d = shape.head_dim;
  const Index key_head = head / (shape.heads / shape.key_heads);
  const S scale = S(1) / std::sqrt(static_cast<S>(d));
  alignas(64) S scores[key_tile];
  alignas(64) S out[most_head_dim] = {};
  S most = masked_score<S>, sum = 0;
  for_key_tiles(shape.first_key(position), position + 1, keys.slots, [&](Index key, Index count) {
    const S* k = keys.at(key_head, key);
    const S* v = values.at(key_head, key);
    S now = most;
    for (Index i = 0; i < count; ++i) {
      scores[i] = scale * sum_lanes<S>(d, [&]<class P>(Index j) {
                    return packet::pmul(load<P>(q + j), load<P>(k + i * d + j));
                  });
      if (!(scores[i] <= now)) now = scores[i];
    }
    const S shrink = std::exp(most - now);
    most = now;
    S total = 0;
    for_lanes<S>(count, [&]<class P>(Index i) {
      store(scores + i, exp(packet::psub(load<P>(scores + i), broadcast<P>(now))));
    });
    for (Index i = 0; i < count; ++i) total += scores[i];
    sum = sum * shrink + total;
    for_lanes<S>(d, [&]<class P>(Index j) {
      store(out + j, packet::pmul(broadcast<P>(shrink), load<P>(out + j)));
    });
    thin_columns<1>(d, count, Left<S>{scores, 0, 1}, v, d, out, d, Write::Add);
  });
  for (Index j = 0; j < d; ++j) o[j] = out[j] / sum;
  if (lse != nullptr) *lse = log_sum(most, sum);
}

/// o = softmax(q·kᵀ / sqrt(d))·v; lse(h, t) = log of the row's sum of exponentials, where wanted.
template <class S>
void attention(ThreadPool& pool, View<const S> q, Cache<const S> keys, Cache<const S> values,
                      const AttentionShape& shape, View<S> o, View<S> lse) {
  if (q.rows <= thin_rows) {
    pool.run(shape.heads * q.rows, [&](Index task) {
      const Index head = task % shape.heads, t = task / shape.heads;
      const Index at = head * shape.head_dim;
      attention_row(q.row(t) + at, keys, values, shape, head, shape.position + t, o.row(t) + at,
                    lse.empty() ? nullptr : &lse(head, t));
    });
    return;
  }
  const Index tiles = (q.rows + query_tile - 1) / query_tile;
  pool.run(shape.heads * tiles, [&](Index task) {
    attention_tile(q, keys, values, shape, {shape, q.rows, task / tiles, task % tiles}, o, lse);
  });
}

/// Adds one tile of queries to the gradients of its own rows and of the keys and values from
/// `grad_first` on.
template <class S>
inline void attention_backward_tile(View<const S> q, Cache<const S> keys, Cache<const S> values,
                                    const AttentionShape& shape, const QueryTile& tile,
                                    View<const S> o, View<const S> lse, View<const S> dout,
                                    View<S> dq, View<S> dkeys, View<S> dvalues, Index grad_first) {
  const Index d = shape.head_dim;
  const Index padded = (d + panel_cols<S> - 1) / panel_cols<S> * panel_cols<S>;
  const S scale = S(1) / std::sqrt(static_cast<S>(d));
  const Index at = tile.head * d;
  alignas(64) S queries[most_head_dim * query_tile];     // [d, queries], scaled
  alignas(64) S douts[most_head_dim * query_tile];       // [d, queries]
  alignas(64) S dqueries[most_head_dim * query_tile];    // [d, queries]
  alignas(64) S query_rows[most_head_dim * query_tile];  // [queries, d], scaled
  alignas(64) S dout_rows[most_head_dim * query_tile];   // [queries, d]
  alignas(64) S weights[key_tile * query_tile];
  alignas(64) S dscores[key_tile * query_tile];
  alignas(64) S delta[query_tile] = {}, log_sum[query_tile] = {};
  transpose_head(q, tile, d, scale, queries);
  transpose_head(dout, tile, d, S(1), douts);
  copy_head(q, tile, d, scale, query_rows, padded);
  copy_head(dout, tile, d, S(1), dout_rows, padded);
  std::fill_n(dqueries, d * query_tile, S(0));
  for (Index t = 0; t < tile.rows; ++t) {
    const S* a = dout.row(tile.first + t) + at;
    const S* b = o.row(tile.first + t) + at;
    delta[t] = sum_lanes<S>(
        d, [&]<class P>(Index j) { return packet::pmul(load<P>(a + j), load<P>(b + j)); });
    log_sum[t] = lse(tile.head, tile.first + t);
  }

  const auto visit = [&](Index key, Index count) {
    const S* k = keys.at(tile.key_head, key);
    const S* v = values.at(tile.key_head, key);
    tile_product(count, tile.rows, d, Left<S>{k, d, 1}, queries, query_tile, weights, query_tile,
                 Write::Replace);
    tile_product(count, tile.rows, d, Left<S>{v, d, 1}, douts, query_tile, dscores, query_tile,
                 Write::Replace);
    for_lanes<S>(tile.rows, [&]<class P>(Index j) {
      const P shift = load<P>(log_sum + j), pull = load<P>(delta + j);
      for (Index i = 0; i < count; ++i) {
        S* weight = weights + i * query_tile + j;
        S* dscore = dscores + i * query_tile + j;
        const P p = exp(packet::psub(load<P>(weight), shift));
        store(weight, p);
        store(dscore, packet::pmul(p, packet::psub(load<P>(dscore), pull)));
      }
    });
    tile.for_masked(shape, key, count, [&](Index i, Index begin, Index end) {
      mask(weights, i, begin, end, tile.rows, S(0));
      mask(dscores, i, begin, end, tile.rows, S(0));
    });
    tile_product(d, tile.rows, count, Left<S>{k, 1, d}, dscores, query_tile, dqueries, query_tile,
                 Write::Add);
    if (key < grad_first) return;
    const Index row = key - grad_first, column = tile.key_head * d;
    tile_product(count, d, tile.rows, Left<S>{dscores, query_tile, 1}, query_rows, padded,
                 &dkeys(row, column), dkeys.stride, Write::Add);
    tile_product(count, d, tile.rows, Left<S>{weights, query_tile, 1}, dout_rows, padded,
                 &dvalues(row, column), dvalues.stride, Write::Add);
  };
  const Index middle = std::clamp(grad_first, tile.keys_begin, tile.keys_end);
  for_key_tiles(tile.keys_begin, middle, keys.slots, visit);
  for_key_tiles(middle, tile.keys_end, keys.slots, visit);

  for_lanes<S>(d * query_tile, [&]<class P>(Index j) {
    store(dqueries + j, packet::pmul(broadcast<P>(scale), load<P>(dqueries + j)));
  });
  transpose(dqueries, query_tile, d, tile.rows, dq.row(tile.first) + at, dq.stride);
}

/// Replaces dq and adds to dkeys and dvalues, whose row r belongs to position first + r; keys and
/// values before `first` are constants. One task a key head: its keys' gradients are sums over
/// queries, added in a fixed order.
template <class S>
void attention_backward(ThreadPool& pool, View<const S> q, Cache<const S> keys,
                               Cache<const S> values, const AttentionShape& shape, View<const S> o,
                               View<const S> lse, View<const S> dout, View<S> dq, View<S> dkeys,
                               View<S> dvalues, Index first) {
  const Index group = shape.heads / shape.key_heads;
  const Index tiles = (q.rows + query_tile - 1) / query_tile;
  pool.run(shape.key_heads, [&](Index key_head) {
    for (Index head = key_head * group; head < (key_head + 1) * group; ++head) {
      for (Index tile = 0; tile < tiles; ++tile) {
        attention_backward_tile(q, keys, values, shape, {shape, q.rows, head, tile}, o, lse, dout,
                                dq, dkeys, dvalues, first);
      }
    }
  });
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
