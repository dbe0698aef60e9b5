// SPDX-License-Identifier: MIT
/// \file
/// Matrix products: one register-tile kernel, and the ways its operands are brought to it.
///
/// Left operands are read one scalar at a time and so may lie in any layout; right operands are
/// read as packets along their columns. Products of many rows copy the right operand into panels
/// first (widening bfloat16 and transposing on the way); products of few rows read it where it
/// lies. How a product is cut depends on its shape alone, never on the number of threads.
#pragma once

#include <algorithm>
#include <cstddef>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/eigen/simd.hpp>
#include <ttt/core/thread_pool.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// Columns of a panel, rows of a register tile, and the depth of a panel that stays in L1.
template <class S>
inline constexpr Index panel_cols = 2 * lanes<S>;
inline constexpr Index tile_rows = many_registers ? 8 : 6;
inline constexpr Index panel_depth = 256;

/// The most rows for which reading the right operand once, unpacked, is the cheaper way, and how
/// far ahead it is fetched.
inline constexpr Index thin_rows = 2;
inline constexpr Index prefetch_rows = 16;

/// A left operand: element (i, k) is data[i * row + k * depth].
template <class S>
struct Left {
  const S* data;
  Index row;
  Index depth;
  Left rows_from(Index i) const { return {data + i * row, row, depth}; }
  Left depth_from(Index k) const { return {data + k * depth, row, depth}; }
};

/// c (+)= a · b for Rows x (Packets * lanes) elements of c, kept in registers.
template <int Rows, int Packets, class S, class Element>
TTT_INLINE void register_tile(Index depth, Left<S> a, const Element* b, Index b_stride, S* c,
                              Index c_stride, Write write) {
  using P = Packet<S>;
  constexpr Index n = lanes<S>;
  P sum[Rows][Packets];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Packets; ++j) sum[i][j] = broadcast<P>(S(0));
  }
  for (Index k = 0; k < depth; ++k) {
    P right[Packets];
#pragma GCC unroll 8
    for (int j = 0; j < Packets; ++j) {
      const Element* from = b + k * b_stride + j * n;
      // Few rows read a strided operand once, from memory: no hardware prefetcher follows it.
      if constexpr (Rows <= thin_rows) __builtin_prefetch(from + prefetch_rows * b_stride);
      right[j] = load<P>(from);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const P left = broadcast<P>(a.data[i * a.row + k * a.depth]);
#pragma GCC unroll 8
      for (int j = 0; j < Packets; ++j) sum[i][j] = packet::pmadd(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Packets; ++j) {
      S* to = c + i * c_stride + j * n;
      store(to, write == Write::Add ? packet::padd(load<P>(to), sum[i][j]) : sum[i][j]);
    }
  }
}

/// c (+)= a · b for the last rows, fewer than a tile has.
template <int Rows, int Packets, class S, class Element>
TTT_INLINE void last_rows(Index rows, Index depth, Left<S> a, const Element* b, Index b_stride,
                          S* c, Index c_stride, Write write) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      register_tile<Rows, Packets>(depth, a, b, b_stride, c, c_stride, write);
    } else {
      last_rows<Rows - 1, Packets>(rows, depth, a, b, b_stride, c, c_stride, write);
    }
  }
}

/// c (+)= a · b for one panel of b: panel_cols columns, of which `cols` are wanted.
template <class S>
inline void panel_product(Index rows, Index cols, Index depth, Left<S> a, const S* b,
                          Index b_stride, S* c, Index c_stride, Write write) {
  constexpr Index width = panel_cols<S>;
  if (cols == width) {
    Index i = 0;
    for (; i + tile_rows <= rows; i += tile_rows) {
      register_tile<tile_rows, 2>(depth, a.rows_from(i), b, b_stride, c + i * c_stride, c_stride,
                                  write);
    }
    last_rows<tile_rows - 1, 2>(rows - i, depth, a.rows_from(i), b, b_stride, c + i * c_stride,
                                c_stride, write);
    return;
  }
  alignas(64) S tile[tile_rows * width];
  for (Index i = 0; i < rows; i += tile_rows) {
    const Index count = std::min(tile_rows, rows - i);
    last_rows<tile_rows, 2>(count, depth, a.rows_from(i), b, b_stride, tile, width, Write::Replace);
    for (Index r = 0; r < count; ++r) {
      S* to = c + (i + r) * c_stride;
      for (Index j = 0; j < cols; ++j) {
        to[j] = write == Write::Add ? to[j] + tile[r * width + j] : tile[r * width + j];
      }
    }
  }
}

/// c (+)= a · b where b is `cols` columns, padded to whole panels, that already lie well in cache.
template <class S>
inline void tile_product(Index rows, Index cols, Index depth, Left<S> a, const S* b, Index b_stride,
                         S* c, Index c_stride, Write write) {
  for (Index j = 0; j < cols; j += panel_cols<S>) {
    panel_product(rows, std::min(panel_cols<S>, cols - j), depth, a, b + j, b_stride, c + j,
                  c_stride, write);
  }
}

/// Copies rows [k, k + depth), columns [j, j + cols) of a weight into a panel, zeros behind.
template <class S, class Element>
inline void pack_panel(View<const Element> stored, bool transposed, Index k, Index depth, Index j,
                       Index cols, S* panel) {
  constexpr Index width = panel_cols<S>;
  if (cols < width) std::fill_n(panel, depth * width, S(0));
  if (transposed) {
    transpose(stored.row(j) + k, stored.stride, cols, depth, panel, width);
  } else if (cols == width) {
    for (Index i = 0; i < depth; ++i) {
      const Element* from = stored.row(k + i) + j;
      store(panel + i * width, load<Packet<S>>(from));
      store(panel + i * width + lanes<S>, load<Packet<S>>(from + lanes<S>));
    }
  } else {
    for (Index i = 0; i < depth; ++i) {
      for (Index x = 0; x < cols; ++x) panel[i * width + x] = static_cast<S>(stored(k + i, j + x));
    }
  }
}

/// One term of a sum of products.
template <class S>
struct Term {
  Left<S> left;
  Weight<S> right;
};

/// c (+)= the sum of left · right over the terms, for many rows, through panels: c is swept once.
template <class S, std::size_t Terms>
inline void wide_sum(ThreadPool& pool, const Term<S> (&terms)[Terms], View<S> c, Write write) {
  constexpr Index block_rows = 256;
  constexpr Index width = panel_cols<S>;
  const Index panels = (c.cols + width - 1) / width;
  const Index blocks = (c.rows + block_rows - 1) / block_rows;
  pool.run(panels * blocks, [&](Index task) {
    alignas(64) S panel[panel_depth * width];
    const Index first = task / panels * block_rows;
    const Index rows = std::min(block_rows, c.rows - first);
    const Index j = task % panels * width;
    const Index cols = std::min(width, c.cols - j);
    Write now = write;
    for (const Term<S>& term : terms) {
      const Left<S> left = term.left.rows_from(first);
      const Weight<S>& right = term.right;
      right.visit([&](auto stored) {
        Index k = 0;
        do {  // once even without depth: an empty sum is zero
          const Index count = std::min(panel_depth, right.rows - k);
          pack_panel(stored, right.transposed, k, count, j, cols, panel);
          panel_product(rows, cols, count, left.depth_from(k), panel, width, &c(first, j), c.stride,
                        now);
          now = Write::Add;
          k += panel_depth;
        } while (k < right.rows);
      });
    }
  });
}

/// c (+)= a · b for many rows.
template <class S>
void wide_product(ThreadPool& pool, Left<S> a, const Weight<S>& b, View<S> c, Write write) {
  wide_sum<S>(pool, {{a, b}}, c, write);
}

/// c (+)= a · b for a few rows: b streams past once, as many packets of its columns at a time as
/// fit, then half as many, down to scalars.
template <int Rows, int Packets = 8 / Rows, class S, class Element>
TTT_INLINE void thin_columns(Index cols, Index depth, Left<S> a, const Element* b, Index b_stride,
                             S* c, Index c_stride, Write write) {
  Index j = 0;
  for (; j + Packets * lanes<S> <= cols; j += Packets * lanes<S>) {
    register_tile<Rows, Packets>(depth, a, b + j, b_stride, c + j, c_stride, write);
  }
  if constexpr (Packets > 1) {
    thin_columns<Rows, Packets / 2>(cols - j, depth, a, b + j, b_stride, c + j, c_stride, write);
  } else {
    for (; j < cols; ++j) {
      for (Index t = 0; t < Rows; ++t) {
        S sum = write == Write::Add ? c[t * c_stride + j] : S(0);
        for (Index k = 0; k < depth; ++k) {
          sum += a.data[t * a.row + k * a.depth] * static_cast<S>(b[k * b_stride + j]);
        }
        c[t * c_stride + j] = sum;
      }
    }
  }
}

/// y (+)= x · w for Rows <= thin_rows rows, w stored [in, out].
template <int Rows, class S, class Element>
inline void thin_product(ThreadPool& pool, View<const S> x, View<const Element> w, View<S> y,
                         Write write) {
  constexpr Index block = 8 * lanes<S>;
  pool.run((y.cols + block - 1) / block, [&](Index task) {
    const Index j = task * block;
    thin_columns<Rows>(std::min(block, y.cols - j), w.rows, Left<S>{x.data, x.stride, 1},
                       w.data + j, w.stride, &y(0, j), y.stride, write);
  });
}

/// y (+)= x · wᵀ for Rows <= thin_rows rows, w stored [out, in]: dot products along its rows.
template <int Rows, class S, class Element>
inline void thin_product_transposed(ThreadPool& pool, View<const S> x, View<const Element> w,
                                    View<S> y, Write write) {
  using P = Packet<S>;
  constexpr Index block = 64;
  constexpr int unroll = Rows == 1 ? 4 : 1;
  constexpr Index step = unroll * lanes<S>;
  pool.run((w.rows + block - 1) / block, [&](Index task) {
    for (Index j = task * block; j < std::min(w.rows, (task + 1) * block); ++j) {
      P sum[Rows][unroll];
      for (auto& row : sum) {
        for (P& s : row) s = broadcast<P>(S(0));
      }
      Index k = 0;
      for (; k + step <= w.cols; k += step) {
        for (int u = 0; u < unroll; ++u) {
          const P right = load<P>(w.row(j) + k + u * lanes<S>);
          for (int t = 0; t < Rows; ++t) {
            sum[t][u] = packet::pmadd(load<P>(x.row(t) + k + u * lanes<S>), right, sum[t][u]);
          }
        }
      }
      for (int t = 0; t < Rows; ++t) {
        P all = sum[t][0];
        for (int u = 1; u < unroll; ++u) all = packet::padd(all, sum[t][u]);
        S total = packet::predux(all);
        for (Index i = k; i < w.cols; ++i) total += x(t, i) * static_cast<S>(w(j, i));
        y(t, j) = write == Write::Add ? y(t, j) + total : total;
      }
    }
  });
}

template <int Rows, class S>
inline void thin_product(ThreadPool& pool, View<const S> x, const Weight<S>& w, View<S> y,
                         Write write) {
  w.visit([&](auto stored) {
    if (w.transposed) {
      thin_product_transposed<Rows>(pool, x, stored, y, write);
    } else {
      thin_product<Rows>(pool, x, stored, y, write);
    }
  });
}

/// y (+)= x · w.
template <class S>
void matmul(ThreadPool& pool, View<const S> x, const Weight<S>& w, View<S> y, Write write) {
  switch (x.rows) {
    case 0: return;
    case 1: return thin_product<1>(pool, x, w, y, write);
    case 2: return thin_product<2>(pool, x, w, y, write);
    default: return wide_product(pool, Left<S>{x.data, x.stride, 1}, w, y, write);
  }
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
