// SPDX-License-Identifier: MIT
/// \file
/// Products on tensor cores: operands in float are rounded to bfloat16 on their way into shared
/// memory, sums are float.
///
/// A block makes 128 x 128 of the result, 8 warps of 64 x 32, in steps of 32 along the depth, with
/// two tiles of each operand in flight. A step reads 2 x 16 KB of float for 1 MFLOP, so where
/// operands come out of L2 its bandwidth is the limit, not the tensor cores.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int tensor_tile = 128, tensor_depth = 32, tensor_threads = 256;
constexpr int tensor_parts = tensor_tile * tensor_depth / 4 / tensor_threads;  // of 4 a thread

/// One operand's tile in shared memory, as the operand lies: rows of depth (Deep), or of the other
/// index.
template <bool Deep>
struct TensorTile {
  static constexpr int width = Deep ? tensor_depth : tensor_tile;
  static constexpr int pitch = width + tile_pad;
  static constexpr int size = (Deep ? tensor_tile : tensor_depth) * pitch;
};

/// Four neighbours as they lie, and rounded.
template <class Element>
struct Four;
template <>
struct Four<float> {
  float4 raw;
  __device__ uint2 rounded() const { return {pack(raw.x, raw.y), pack(raw.z, raw.w)}; }
};
template <>
struct Four<bfloat16> {
  uint2 raw;
  __device__ uint2 rounded() const { return raw; }
};

__device__ inline float4 four_of(const float (&v)[4]) {
  return {v[0], v[1], v[2], v[3]};
}
__device__ inline uint2 four_of(const bfloat16 (&v)[4]) {
  const auto pair = [](bfloat16 low, bfloat16 high) {
    return static_cast<unsigned>(low.bits) | static_cast<unsigned>(high.bits) << 16;
  };
  return {pair(v[0], v[1]), pair(v[2], v[3])};
}

/// An operand: element (i, k) at data + i * stride + k (Deep) or data + k * stride + i.
template <class Element>
struct TensorOperand {
  const Element* data;
  Index stride;
  Index rows, depth;
  bool aligned;  // neighbours come in fours that can be read at once
};

/// This thread's parts of the tile that begins at (i0, k0), zeros outside. They are rounded when
/// they are kept: nothing waits for them here.
template <bool Deep, class Element>
__device__ void fetch(const TensorOperand<Element>& x, Index i0, Index k0,
                      Four<Element> (&parts)[tensor_parts]) {
  constexpr int width = TensorTile<Deep>::width;
  constexpr int lines = 4 * tensor_threads / width;  // of a tile, from one part to the next
  const int at = 4 * static_cast<int>(threadIdx.x);
  const Index row = (Deep ? i0 : k0) + at / width, col = (Deep ? k0 : i0) + at % width;
  const Index rows = Deep ? x.rows : x.depth, cols = Deep ? x.depth : x.rows;
  const Element* from = x.data + row * x.stride + col;
  const Index step = lines * x.stride;
  if (x.aligned) {
    const bool inside = col < cols;
#pragma unroll
    for (int n = 0; n < tensor_parts; ++n, from += step) {
      parts[n].raw = {};
      if (inside && row + n * lines < rows) {
        parts[n].raw = *reinterpret_cast<const decltype(parts[n].raw)*>(from);
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < tensor_parts; ++n, from += step) {
    Element four[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (row + n * lines < rows && col + j < cols) four[j] = from[j];
    }
    parts[n].raw = four_of(four);
  }
}

template <bool Deep, class Element>
__device__ void keep(const Four<Element> (&parts)[tensor_parts], std::uint16_t* tile) {
  constexpr int width = TensorTile<Deep>::width;
#pragma unroll
  for (int n = 0; n < tensor_parts; ++n) {
    const int at = 4 * (static_cast<int>(threadIdx.x) + n * tensor_threads);
    *reinterpret_cast<uint2*>(tile + at / width * TensorTile<Deep>::pitch + at % width) =
        parts[n].rounded();
  }
}

/// c (+)= a · b, with the right operand given as (columns, depth).
template <bool DeepA, bool DeepB, class Element>
__global__ void __launch_bounds__(tensor_threads)
    matmul_bfloat16_kernel(TensorOperand<float> a, TensorOperand<Element> b, View<float> c,
                           bool add) {
  __shared__ __align__(16) std::uint16_t left[2][TensorTile<DeepA>::size];
  __shared__ __align__(16) std::uint16_t right[2][TensorTile<DeepB>::size];
  const Index i0 = static_cast<Index>(blockIdx.x) * tensor_tile;
  const Index j0 = static_cast<Index>(blockIdx.y) * tensor_tile;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int wi = warp / 4 * 64, wj = warp % 4 * 32;
  float sum[4][4][4] = {};
  Four<float> parts_a[tensor_parts];
  Four<Element> parts_b[tensor_parts];
  fetch<DeepA>(a, i0, 0, parts_a);
  fetch<DeepB>(b, j0, 0, parts_b);
  int now = 0;
  for (Index k0 = 0; k0 < a.depth; k0 += tensor_depth, now ^= 1) {
    keep<DeepA>(parts_a, left[now]);
    keep<DeepB>(parts_b, right[now]);
    __syncthreads();  // the other pair of tiles was last read before the barrier before
    if (k0 + tensor_depth < a.depth) {
      fetch<DeepA>(a, i0, k0 + tensor_depth, parts_a);
      fetch<DeepB>(b, j0, k0 + tensor_depth, parts_b);
    }
#pragma unroll
    for (int k = 0; k < tensor_depth; k += 16) {
      unsigned rows[4][4], cols[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_matrices<DeepA, true, TensorTile<DeepA>::pitch>(left[now], wi + 16 * i, k, rows[i]);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        load_matrices<DeepB, false, TensorTile<DeepB>::pitch>(right[now], wj + 16 * j, k, cols[j]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          multiply_add(rows[i], cols[j / 2][2 * (j % 2)], cols[j / 2][2 * (j % 2) + 1], sum[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Index row = i0 + wi + 16 * i + lane / 4 + 8 * (n / 2);
        const Index col = j0 + wj + 8 * j + 2 * (lane % 4) + n % 2;
        if (row < c.rows && col < c.cols) put(c(row, col), sum[i][j][n], add);
      }
    }
  }
}

template <bool Deep, class Element>
TensorOperand<Element> tensor_operand(const void* data, Index stride, Index rows, Index depth) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % (4 * sizeof(Element)) == 0 &&
                       stride % 4 == 0 && (Deep ? depth : rows) % 4 == 0;
  return {static_cast<const Element*>(data), stride, rows, depth, aligned};
}

/// Calls f with a type whose `value` is `flag`.
template <class F>
void with_flag(bool flag, const F& f) {
  if (flag) {
    f(std::true_type());
  } else {
    f(std::false_type());
  }
}

}  // namespace

template <class S>
void Launch<S>::matmul_bfloat16(Stream stream, View<const S> a, bool a_transposed, Weight<S> b,
                                View<S> c, Write write) {
  if constexpr (std::is_same_v<S, float>) {
    if (c.rows == 0 || c.cols == 0) return;
    const dim3 blocks(grid(blocks_for(c.rows, tensor_tile)), grid(blocks_for(c.cols, tensor_tile)));
    with_flag(!a_transposed, [&](auto deep_a) {
      const auto left = tensor_operand<deep_a(), float>(a.data, a.stride, c.rows, b.rows);
      with_flag(b.transposed, [&](auto deep_b) {
        const auto launch = [&]<class Element>(Element) {
          const auto right = tensor_operand<deep_b(), Element>(b.data, b.stride, c.cols, b.rows);
          matmul_bfloat16_kernel<deep_a(), deep_b(), Element>
              <<<blocks, tensor_threads, 0, stream>>>(left, right, c, write == Write::Add);
        };
        if (b.narrow) {
          launch(bfloat16());
        } else {
          launch(float());
        }
      });
    });
  }
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
