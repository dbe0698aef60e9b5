// SPDX-License-Identifier: MIT
/// \file
/// Large products on Hopper whose results do not go to memory as they are: a product calls an End
/// with its sums. Pairs of blocks, each with a tile of 128 x 256 of its own below the other's, go
/// along the depth together; what is to their right comes once for both. One group of a block ends
/// its 64 rows while the other multiplies.
#pragma once

#include <ttt/backend/cuda/kernels/hopper_streams.cuh>
#include <ttt/backend/cuda/kernels/tensor_maps.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int product_tile_rows = 128, product_tile_columns = 256, product_tile_depth = 64;
constexpr int product_groups = product_tile_rows / 64;
constexpr int product_threads = (product_groups + 1) * group_threads;

/// A box on its way out: 64 rows of 128 bytes.
using OutTile = Tile<64, 64>;

/// Shared memory: a ring of tiles of both operands, then places for boxes on their way out. An
/// operand is stored with its depth along the channels of its rows, or along the rows.
template <Depth left, Depth right, int stages_, int places_>
struct ProductTiles {
  template <Depth depth, int count>
  using Operand = std::conditional_t<depth == Depth::Channels, Tile<product_tile_depth, count>,
                                     Tile<count, product_tile_depth>>;
  using Left = Operand<left, product_tile_rows>;
  using Right = Operand<right, product_tile_columns>;
  static constexpr int stages = stages_, places = places_;
  static constexpr int stage = Left::bytes + Right::bytes;
  static constexpr int bytes = stages * stage + product_groups * places * OutTile::bytes + 1024;

  template <Depth depth, class Of>
  __device__ static std::uint64_t step(unsigned operand, int n) {
    return depth == Depth::Channels ? Of::along_channels(operand, n) : Of::along_rows(operand, n);
  }
};

/// Operands whose depths lie behind each other: left[0] · right[0] + left[1] · right[1]; or, side
/// by side, whose columns do, 128 of each in turn: left[0] · (right[0] right[1]).
struct ProductMaps {
  CUtensorMap left[2], right[2];
  int steps[2] = {};
  bool side_by_side = false;
};

/// Which tiles a pair of blocks computes next: those that share columns follow each other.
struct ProductWork {
  int row_pairs, count;

  ProductWork(Index rows, Index columns)
      : row_pairs(static_cast<int>(blocks_for(rows, 2 * product_tile_rows))),
        count(row_pairs * static_cast<int>(blocks_for(columns, product_tile_columns))) {}
  __device__ int column_tile(int i) const { return i / row_pairs; }
  __device__ int row(int i, unsigned rank) const {
    return (2 * (i % row_pairs) + static_cast<int>(rank)) * product_tile_rows;
  }
};

/// Boxes on their way out of the memory of one group of threads.
template <int places>
class OutBoxes {
 public:
  __device__ OutBoxes(unsigned memory, int group) : memory_(memory), group_(group) {}
  /// The place of the n-th of a tile's boxes, which are whole rounds; nothing reads it any more.
  __device__ unsigned place(int n) {
    if (leads()) await_taken<places - 1>();
    meet(1 + group_, group_threads);
    return memory_ + static_cast<unsigned>(n % places * OutTile::bytes);
  }
  /// Two neighbours of row r of this thread's, rounded, into the j-th eight columns of a place.
  __device__ static void put(unsigned place, int r, int j, float low, float high) {
    const int byte = OutTile::at(group_row(2 * r), j) + static_cast<int>(threadIdx.x) % 4 * 4;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(place + static_cast<unsigned>(byte)),
                 "r"(rounded_pair(low, high))
                 : "memory");
  }
  /// Calls send, which takes a box out of the place, by one thread when all have written.
  template <class F>
  __device__ void send(const F& send) {
    show_copies();
    meet(1 + group_, group_threads);
    if (leads()) send();
  }
  __device__ void end() {
    if (leads()) await_written();
  }

 private:
  __device__ static bool leads() { return threadIdx.x % group_threads == 0; }

  unsigned memory_;
  int group_;
};

/// The thread that brings tiles: its own rows, and half of the columns for both blocks.
template <Depth left, Depth right, class Tiles>
__device__ void bring_operands(const ProductMaps& maps, const ProductWork& work, unsigned tiles,
                               std::uint64_t* full, std::uint64_t* empty) {
  const unsigned rank = blockIdx.x % 2;
  int stage = 0;
  unsigned round = 1;
  for (int i = static_cast<int>(blockIdx.x) / 2; i < work.count;
       i += static_cast<int>(gridDim.x) / 2) {
    constexpr int half = product_tile_columns / 2;
    const int row = work.row(i, rank), tile = work.column_tile(i);
    const int column = maps.side_by_side
                           ? tile * half
                           : tile * product_tile_columns + static_cast<int>(rank) * half;
    for (int k = 0; k < maps.steps[0] + maps.steps[1]; ++k) {
      const int which = k < maps.steps[0] ? 0 : 1;
      const int depth = (which == 0 ? k : k - maps.steps[0]) * product_tile_depth;
      barrier_wait(&empty[stage], round);
      expect_bytes(&full[stage], Tiles::stage);
      unsigned to = tiles + static_cast<unsigned>(stage * Tiles::stage);
      if constexpr (left == Depth::Channels) {
        bring_box(maps.left[which], row, depth, to, &full[stage]);
      } else {
#pragma unroll
        for (int n = 0; n < product_tile_rows / 64; ++n) {
          bring_box(maps.left[which], depth, row + 64 * n,
                    to + static_cast<unsigned>(n * Tiles::Left::block), &full[stage]);
        }
      }
      to += Tiles::Left::bytes + rank * (Tiles::Right::bytes / 2);
      const CUtensorMap& columns = maps.right[maps.side_by_side ? static_cast<int>(rank) : which];
      if constexpr (right == Depth::Channels) {
        bring_box_to_all(columns, column, depth, to, &full[stage], 3);
      } else {
#pragma unroll
        for (int n = 0; n < half / 64; ++n) {
          bring_box_to_all(columns, depth, column + 64 * n,
                           to + static_cast<unsigned>(n * Tiles::Right::block), &full[stage], 3);
        }
      }
      if (++stage == Tiles::stages) stage = 0, round ^= 1;
    }
  }
}

/// end(sums, row, column tile, boxes) by each group of 128 threads for its 64 rows from `row` on.
template <Depth left, Depth right, class End>
__global__ void __launch_bounds__(product_threads, 1)
    product_hopper_kernel(const __grid_constant__ ProductMaps maps, ProductWork work,
                          const __grid_constant__ End end) {
  if constexpr (hopper_code) {
    using Tiles = ProductTiles<left, right, End::stages, End::places>;
    constexpr int stages = Tiles::stages;
    extern __shared__ unsigned char memory[];
    __shared__ std::uint64_t full[stages], empty[stages];
    const unsigned tiles = aligned_address(memory);
    const int group = group_index() - 1;
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        barrier_init(&full[i], 1);
        barrier_init(&empty[i], 2 * 4 * product_groups);  // by every warp of both blocks
      }
    }
    share_barriers();
    come_in_cluster();
    await_cluster();
    if (group < 0) {
      give_registers<40>();
      if (threadIdx.x == 0) bring_operands<left, right, Tiles>(maps, work, tiles, full, empty);
    } else {
      take_registers<232>();
      OutBoxes<Tiles::places> boxes(
          tiles +
              static_cast<unsigned>(stages * Tiles::stage + group * Tiles::places * OutTile::bytes),
          group);
      const int steps = maps.steps[0] + maps.steps[1];
      int stage = 0;
      unsigned round = 0;
      const auto release_last = [&] {
        const int last = stage == 0 ? stages - 1 : stage - 1;
        const unsigned lane = threadIdx.x % 32;
        if (lane < 2) arrive_in_cluster(&empty[last], lane);
      };
      float sums[product_tile_columns / 2];
      for (int i = static_cast<int>(blockIdx.x) / 2; i < work.count;
           i += static_cast<int>(gridDim.x) / 2) {
        for (int k = 0; k < steps; ++k) {
          barrier_wait(&full[stage], round);
          const unsigned from = tiles + static_cast<unsigned>(stage * Tiles::stage);
          const unsigned a = Tiles::Left::operand(
                             from + static_cast<unsigned>(group * Tiles::Left::bytes / 2)),
                         b = Tiles::Right::operand(from + Tiles::Left::bytes);
          begin_products();
#pragma unroll
          for (int n = 0; n < product_tile_depth / 16; ++n) {
            multiply_add<right, left>(sums, Tiles::template step<left, typename Tiles::Left>(a, n),
                                      Tiles::template step<right, typename Tiles::Right>(b, n),
                                      k + n > 0);
          }
          commit_products();
          if (k > 0) {
            wait_products<1>(sums);
            release_last();
          }
          if (++stage == stages) stage = 0, round ^= 1;
        }
        wait_products<0>(sums);
        release_last();
        end(sums, work.row(i, blockIdx.x % 2) + 64 * group, work.column_tile(i), boxes);
      }
      boxes.end();
    }
    __syncwarp();
    come_in_cluster();  // nobody leaves whom the other block may still send something
    await_cluster();
  }
}

/// False, and nothing done, where there is no room for a cluster.
template <Depth left, Depth right, class End>
bool start_product(cudaStream_t stream, const ProductMaps& maps, Index rows, Index columns,
                   const End& end) {
  using Tiles = ProductTiles<left, right, End::stages, End::places>;
  const auto kernel = product_hopper_kernel<left, right, End>;
  if (!with_shared_memory(kernel, Tiles::bytes)) return false;
  const ProductWork work(rows, columns);
  const Index pairs = multiprocessors() / 2;
  cudaLaunchAttribute cluster = in_clusters(2);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid(2 * (work.count < pairs ? Index{work.count} : pairs)));
  config.blockDim = dim3(product_threads);
  config.dynamicSmemBytes = Tiles::bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  if (cudaLaunchKernelEx(&config, kernel, maps, work, end) == cudaSuccess) return true;
  static_cast<void>(cudaGetLastError());
  return false;
}

/// Describes an operand: a box is all rows of a tile or, to the right, half of its columns.
template <Depth left>
bool describe_left(const View<const bfloat16>& a, int which, ProductMaps& maps) {
  constexpr bool channels = left == Depth::Channels;
  maps.steps[which] = static_cast<int>(blocks_for(channels ? a.cols : a.rows, product_tile_depth));
  return describe_boxes(a, channels ? product_tile_rows : product_tile_depth, maps.left[which]);
}
template <Depth right>
bool describe_right(const View<const bfloat16>& b, int which, ProductMaps& maps) {
  constexpr int box = right == Depth::Channels ? product_tile_columns / 2 : product_tile_depth;
  return describe_boxes(b, box, maps.right[which]);
}

/// Calls f with where a weight has its depth, as a number the compiler knows.
template <class F>
bool with_depth(const Weight<float>& w, const F& f) {
  return w.transposed ? f(std::integral_constant<Depth, Depth::Channels>())
                      : f(std::integral_constant<Depth, Depth::Rows>());
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
