// SPDX-License-Identifier: MIT
/// \file
/// Depthwise convolutions along a chunk's tokens.
#pragma once

#include <algorithm>

#include <ttt/backend/eigen/rows.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// Channels a task takes, whose taps it holds side by side.
inline constexpr Index conv_channels = 64;

/// y(t, c) (+)= sum over k of taps(c, k) * x(t + sign * (k - half), c), over the rows of t's chunk.
template <int Sign, class S>
inline void convolve(ThreadPool& pool, View<const S> x, const Weight<S>& taps, Index chunk,
                     View<S> y, Write write) {
  const Index blocks = (x.cols + conv_channels - 1) / conv_channels;
  const Index chunks = (x.rows + chunk - 1) / chunk, half = taps.cols / 2;
  pool.run(blocks * chunks, [&](Index task) {
    const Index c = task % blocks * conv_channels, size = std::min(conv_channels, x.cols - c);
    const Index first = task / blocks * chunk, last = std::min(x.rows, first + chunk);
    alignas(64) S factors[most_taps * conv_channels];
    taps.visit([&](auto stored) {
      for (Index k = 0; k < taps.cols; ++k) {
        for (Index j = 0; j < size; ++j) {
          factors[k * conv_channels + j] =
              static_cast<S>(taps.transposed ? stored(k, c + j) : stored(c + j, k));
        }
      }
    });
    for (Index t = first; t < last; ++t) {
      for_lanes<S>(size, [&]<class P>(Index j) {
        P sum = broadcast<P>(S(0));
        for (Index k = 0; k < taps.cols; ++k) {
          const Index from = t + Sign * (k - half);
          if (from < first || from >= last) continue;
          sum = packet::pmadd(load<P>(factors + k * conv_channels + j),
                              load<P>(x.row(from) + c + j), sum);
        }
        S* const to = y.row(t) + c + j;
        store(to, write == Write::Add ? packet::padd(load<P>(to), sum) : sum);
      });
    }
  });
}

template <class S>
void chunk_conv(ThreadPool& pool, View<const S> x, const Weight<S>& taps, Index chunk, View<S> y) {
  convolve<1>(pool, x, taps, chunk, y, Write::Replace);
}

/// Channels are cut over the threads; every tap's rows are summed in order.
template <class S>
void chunk_conv_backward(ThreadPool& pool, View<const S> x, const Weight<S>& taps, Index chunk,
                         View<const S> dy, View<S> dx, Write write, View<S> dtaps) {
  if (!dtaps.empty()) {
    const Index half = taps.cols / 2;
    pool.run((x.cols + conv_channels - 1) / conv_channels, [&](Index task) {
      const Index c = task * conv_channels, size = std::min(conv_channels, x.cols - c);
      alignas(64) S sums[conv_channels];
      for (Index k = 0; k < taps.cols; ++k) {
        std::fill_n(sums, conv_channels, S(0));
        for (Index t = 0; t < x.rows; ++t) {
          const Index from = t + k - half;
          if (from < 0 || from >= x.rows || from / chunk != t / chunk) continue;
          for_lanes<S>(size, [&]<class P>(Index j) {
            store(sums + j, packet::pmadd(load<P>(dy.row(t) + c + j), load<P>(x.row(from) + c + j),
                                          load<P>(sums + j)));
          });
        }
        for (Index j = 0; j < size; ++j) dtaps(c + j, k) += sums[j];
      }
    });
  }
  if (!dx.empty()) convolve<-1>(pool, dy, taps, chunk, dx, write);
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
