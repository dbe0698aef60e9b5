// SPDX-License-Identifier: MIT
/// \file
/// Gradients of large weights on Hopper: dw (+)= xᵀ · dy, of one pair of operands or of two. Adding
/// is done by the L2 cache, once an element and kernel, so that its order never changes. 2 · rows
/// operations an element and pair, 4 bytes out and as many for what is there: two pairs of 1,024
/// rows for 2,560 x 5,632 take an H200 111 us, 530 TFLOP/s.
#pragma once

#include <ttt/backend/cuda/kernels/product_hopper.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Sums go out as floats, 32 columns at a time.
struct GradientEnd {
  static constexpr int stages = 4, places = 2;

  CUtensorMap map;
  bool add;

  template <int n, class Boxes>
  __device__ void operator()(float (&sums)[n], int row, int column_tile, Boxes& boxes) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int part = 0; part < product_tile_columns / 32; ++part) {
      const unsigned to = boxes.place(part);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int e = 16 * part + 4 * j + 2 * r;
          asm volatile(
              "st.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                  to + static_cast<unsigned>(OutTile::at(group_row(2 * r), 2 * j + lane % 4 / 2) +
                                             lane % 2 * 8)),
              "f"(sums[e]), "f"(sums[e + 1])
              : "memory");
        }
      }
      boxes.send([&] {
        const int column = column_tile * product_tile_columns + 32 * part;
        if (add) {
          add_box(map, row, column, to);
        } else {
          take_box(map, row, column, to);
        }
      });
    }
  }
};

}  // namespace

template <class S>
bool Launch<S>::gradient(Stream stream, std::span<const View<const bfloat16>> x,
                         std::span<const View<const bfloat16>> dy, View<S> dw, Write write) {
  if constexpr (std::is_same_v<S, float>) {
    constexpr Index most = Index{1} << 30;
    if (dw.rows > most || dw.cols > most || x.size() > 2 || !runs_hopper_code()) return false;
    ProductMaps maps = {};
    for (std::size_t i = 0; i < x.size(); ++i) {
      const int which = static_cast<int>(i);
      if (!describe_left<Depth::Rows>(x[i], which, maps) ||
          !describe_right<Depth::Rows>(dy[i], which, maps)) {
        return false;
      }
    }
    GradientEnd end{{}, write == Write::Add};
    return describe_boxes(dw, 64, end.map) &&
           start_product<Depth::Rows, Depth::Rows>(stream, maps, dw.rows, dw.cols, end);
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
