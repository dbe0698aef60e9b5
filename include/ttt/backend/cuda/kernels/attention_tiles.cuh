// SPDX-License-Identifier: MIT
/// \file
/// What the attention kernels on tensor cores share: tiles of rows on their way into shared memory,
/// and products with them.
#pragma once

#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int flash_rows = 64, flash_threads = 128;

template <int D>
constexpr int flash_pitch = D + tile_pad;
template <int D>
constexpr int flash_tile = flash_rows* flash_pitch<D>;

/// Fragments of 16 rows of a left operand, and sums of 16 x 8 n.
template <int D>
using Rows = unsigned[D / 16][4];
template <int N>
using Sums = float[N][4];

/// `count` rows of floats into a tile of `rows`, rounded, zeros behind. `row_at(i)` points to row
/// i's channels, or nowhere for zeros.
template <int D, int rows = flash_rows, int threads = flash_threads, class RowAt>
__device__ void bring_tile(std::uint16_t* tile, int count, float factor, const RowAt& row_at) {
  constexpr int parts = rows * (D / 4);
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < parts; e += threads) {
    const int row = e / (D / 4), channel = 4 * (e % (D / 4));
    float4 v = {};
    if (row < count) {
      if (const float* const from = row_at(row)) {
        v = *reinterpret_cast<const float4*>(from + channel);
      }
    }
    *reinterpret_cast<uint2*>(tile + row * flash_pitch<D> + channel) =
        make_uint2(pack(v.x * factor, v.y * factor), pack(v.z * factor, v.w * factor));
  }
}

/// The part of each tile of `rows` of bfloat16 that a thread copies: parts of one row, every
/// `sharing`th. Which row is such that eight neighbours write to different banks. Made anew for
/// each tile: registers are for the products, and what does not fit there is far away.
template <int D, int rows = flash_rows, int threads = flash_threads>
class TilePart {
 public:
  __device__ TilePart() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // not once for all tiles
    const int group = thread / sharing, eighth = group % 8;
    part_ = thread % sharing;
    row_ = group - eighth + eighth % (8 / sharing) * sharing + eighth / (8 / sharing);
  }
  __device__ int row() const { return row_; }
  /// Elements from the start of the row.
  __device__ int channel() const { return 8 * part_; }

  /// Puts the copy on its way; zeros where `there` is false.
  __device__ void send(const bfloat16* from, bool there, std::uint16_t* tile) const {
    const auto to =
        static_cast<unsigned>(__cvta_generic_to_shared(tile + row_ * flash_pitch<D> + 8 * part_));
    const int bytes = there ? 16 : 0;
#pragma unroll
    for (int n = 0; n < (parts + sharing - 1) / sharing; ++n) {
      if (parts % sharing != 0 && part_ + n * sharing >= parts) break;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + 16 * n * sharing),
                   "l"(from + 8 * n * sharing), "r"(bytes)
                   : "memory");
    }
  }

 private:
  static constexpr int sharing = threads / rows, parts = D / 8;
  static_assert(threads % rows == 0 && (sharing == 2 || sharing == 4 || sharing == 8));
  int row_, part_;
};

/// Closes a group of copies; waits until at most the last `open` groups are under way.
__device__ inline void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int open = 0>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory");
}

/// Goes along the keys and values of one head of a ring in tiles. Lies in shared memory.
template <int D, int threads = flash_threads>
class RingCursor {
 public:
  /// By all threads, and a barrier behind it.
  __device__ void start(const Cache<const bfloat16>& cache, Index head, Index position) {
    const TilePart<D, flash_rows, threads> part;
    const int size = static_cast<int>(cache.slots) * D;
    int at = (static_cast<int>(position % cache.slots) + part.row()) * D + part.channel();
    while (at >= size) at -= size;
    at_[threadIdx.x] = at;
    if (threadIdx.x == 0) from_ = head * cache.slots * D;
  }

  /// Sends the `count` rows from here on, zeros behind, and goes on.
  __device__ void send(const Cache<const bfloat16>& keys, const Cache<const bfloat16>& values,
                       int count, std::uint16_t* key_tile, std::uint16_t* value_tile) {
    const TilePart<D, flash_rows, threads> part;
    const int size = static_cast<int>(keys.slots) * D;
    int at = at_[threadIdx.x];
    const bool there = part.row() < count;
    const Index from = from_ + at;
    part.send(keys.data + from, there, key_tile);
    part.send(values.data + from, there, value_tile);
    at += flash_rows * D;
    while (at >= size) at -= size;
    at_[threadIdx.x] = at;
  }

 private:
  Index from_;       // the head's start
  int at_[threads];  // of each thread's row
};

/// This warp's 16 rows of a tile as a left operand.
template <int D>
__device__ void load_rows(const std::uint16_t* tile, Rows<D>& out) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    load_matrices<true, true, flash_pitch<D>>(tile, 16 * warp, 16 * k, out[k]);
  }
}

/// sums = rows · tileᵀ, 16 x 64, along the channels.
template <int D>
__device__ void along_channels(const Rows<D>& rows, const std::uint16_t* tile, Sums<8>& sums) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0;
  }
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      unsigned b[4];
      load_matrices<true, false, flash_pitch<D>>(tile, 16 * j, 16 * k, b);
      multiply_add(rows[k], b[0], b[1], sums[2 * j]);
      multiply_add(rows[k], b[2], b[3], sums[2 * j + 1]);
    }
  }
}

/// Sums of 16 x 16, rounded, as a left operand.
__device__ inline void round_sums(const float (&w)[2][4], unsigned (&out)[4]) {
  out[0] = pack(w[0][0], w[0][1]);
  out[1] = pack(w[0][2], w[0][3]);
  out[2] = pack(w[1][0], w[1][1]);
  out[3] = pack(w[1][2], w[1][3]);
}

/// sums += a · b for 16 x 16 of both.
__device__ inline void multiply_add_16(const unsigned (&a)[4], const unsigned (&b)[4],
                                       float (&sums)[2][4]) {
  multiply_add(a, b[0], b[1], sums[0]);
  multiply_add(a, b[2], b[3], sums[1]);
}

/// sums += weights · tile for 16 of the tile's rows.
template <int D>
__device__ void add_rows(const unsigned (&weights)[4], const std::uint16_t* tile, int row,
                         Sums<D / 8>& sums) {
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    unsigned b[4];
    load_matrices<false, false, flash_pitch<D>>(tile, 16 * c, row, b);
    multiply_add(weights, b[0], b[1], sums[2 * c]);
    multiply_add(weights, b[2], b[3], sums[2 * c + 1]);
  }
}

/// sums += weights · tile, 16 x D, along the tile's rows; the weights are rounded.
template <int D>
__device__ void along_rows(const Sums<8>& weights, const std::uint16_t* tile, Sums<D / 8>& sums) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    unsigned a[4];
    round_sums(*reinterpret_cast<const Sums<2>*>(&weights[2 * k]), a);
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      unsigned b[4];
      load_matrices<false, false, flash_pitch<D>>(tile, 16 * j, 16 * k, b);
      multiply_add(a, b[0], b[1], sums[2 * j]);
      multiply_add(a, b[2], b[3], sums[2 * j + 1]);
    }
  }
}

/// The two floats of a pack.
__device__ inline float low(unsigned packed) {
  return __uint_as_float(packed << 16);
}
__device__ inline float high(unsigned packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

/// Of element e of a 16 x 8 sum: its row and its column.
__device__ inline int row_of(int e) {
  return static_cast<int>(threadIdx.x) % 32 / 4 + 8 * (e / 2);
}
__device__ inline int col_of(int e) {
  return 2 * (static_cast<int>(threadIdx.x) % 4) + e % 2;
}

/// 2^x, 0 where that is no normal number.
__device__ inline float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
__device__ inline float exp_of(float x) {
  return power_of_two(x * log2_e);
}
__device__ inline float quad_sum(float x) {
  return quad_reduce(x, [](float a, float b) { return a + b; });
}

/// Whether each of `queries` queries from p on sees each of `keys` keys from j on.
__device__ inline bool all_seen(const AttentionShape& shape, Index p, Index j,
                                int queries = flash_rows, int keys = flash_rows) {
  return j + keys - 1 <= p && j >= shape.first_key(p + queries - 1);
}

/// The mask in int: a query sees a key that lies `distance` before it.
class Window {
 public:
  __device__ explicit Window(const AttentionShape& shape)
      : size_(shape.window < largest ? static_cast<int>(shape.window) : largest) {}
  __device__ bool has(int distance) const {
    return static_cast<unsigned>(distance) < static_cast<unsigned>(size_);
  }
  /// Whether it has any distance of those from `least` to `most`.
  __device__ bool reaches(int least, int most) const { return most >= 0 && least < size_; }

 private:
  static constexpr int largest = 0x7fffffff;
  int size_;
};

/// The keys that a block of `queries` queries goes along, counted from the first that one of them
/// sees: where the first query is among them, where they end, and which tiles need no mask and come
/// before any key that moves (those from the `moving`th on).
struct alignas(16) KeyRange {
  int here, end, inside_begin, inside_end;

  __device__ static KeyRange of(const AttentionShape& shape, Index begin, Index position, int count,
                                int queries, Index moving) {
    const int here = static_cast<int>(position - begin), last = here + queries;
    const int still = (moving < here + 1 ? static_cast<int>(moving) : here + 1) - flash_rows + 1;
    return {here, here + count, shape.window < last ? last - static_cast<int>(shape.window) : 0,
            still};
  }
  __device__ bool inside(int tile) const { return tile >= inside_begin && tile < inside_end; }
};

/// Caches that can be read eight bfloat16s at a time.
inline bool in_eights(const Cache<const bfloat16>& cache) {
  return reinterpret_cast<std::uintptr_t>(cache.data) % 16 == 0 &&
         cache.slots * cache.head_dim < Index{1} << 30;
}

/// Starts a kernel with `bytes` of dynamic shared memory, which it may always have.
template <class... Parameters, class... Arguments>
void start_tiles(void (*kernel)(Parameters...), dim3 blocks, int threads, int bytes,
                 cudaStream_t stream, const Arguments&... arguments) {
  static_cast<void>(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<blocks, static_cast<unsigned>(threads), static_cast<std::size_t>(bytes), stream>>>(
      arguments...);
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
