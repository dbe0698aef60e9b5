// SPDX-License-Identifier: MIT
/// \file
/// The first half of a feed-forward on Hopper: silu(x · w1) * (x · w3) as one product, of which 2
/// bytes an element go to memory, where two products in float and what gates them move 22.
#pragma once

#include <ttt/backend/cuda/kernels/product_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// A tile's first 128 columns are gates, the others what they gate.
struct GatedEnd {
  static constexpr int stages = 4, places = 2;

  CUtensorMap map;

  template <int n, class Boxes>
  __device__ void operator()(float (&sums)[n], int row, int column_tile, Boxes& boxes) const {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const unsigned to = boxes.place(part);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int e = 32 * part + 4 * j + 2 * r;
          const auto gated = [&](int at) {
            const float gate = sums[at];
            return __fdividef(gate, 1 + exp2_of(-log2_e * gate)) * sums[n / 2 + at];
          };
          boxes.put(to, r, j, gated(e), gated(e + 1));
        }
      }
      boxes.send([&] { take_box(map, row, 128 * column_tile + 64 * part, to); });
    }
  }
};

}  // namespace

template <class S>
bool Launch<S>::gated_rows(Stream stream, View<const bfloat16> x, Weight<S> w1, Weight<S> w3,
                           View<bfloat16> out) {
  if constexpr (std::is_same_v<S, float>) {
    constexpr Index most = Index{1} << 30;
    if (out.rows > most || out.cols > most || w1.transposed != w3.transposed) {
      return false;
    }
    ProductMaps maps = {};
    maps.side_by_side = true;
    GatedEnd end{};
    if (!describe_boxes(out, 64, end.map) || !describe_left<Depth::Channels>(x, 0, maps)) {
      return false;
    }
    return with_depth(w1, [&]<Depth right>(std::integral_constant<Depth, right>) {
      return describe_right<right>(w1.template stored<bfloat16>(), 0, maps) &&
             describe_right<right>(w3.template stored<bfloat16>(), 1, maps) &&
             start_product<Depth::Channels, right>(stream, maps, out.rows, 2 * out.cols, end);
    });
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
