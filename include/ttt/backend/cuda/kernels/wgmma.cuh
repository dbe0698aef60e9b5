// SPDX-License-Identifier: MIT
/// \file
/// Hopper's own tensor-core instructions (wgmma, compute capability 9.0a): four warps multiply
/// tiles that lie in shared memory.
///
/// A tile is rows of D channels in bfloat16, in 16-byte chunks that are permuted as the hardware
/// wants them ("swizzled"). The same tile is a right operand along its channels (scores) and along
/// its rows (weighted sums).
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Whether what is being compiled may use these instructions; elsewhere kernels are empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool hopper_code = true;
#else
constexpr bool hopper_code = false;
#endif

/// Its shared memory tells which code the running GPU got.
template <class = void>
__global__ void hopper_probe_kernel(int* out) {
  __shared__ int mark[hopper_code ? 64 : 1];
  volatile int* const at = mark;
  *at = 1;
  *out = *at;
}
template <class T = void>
bool runs_hopper_code() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, hopper_probe_kernel<T>) == cudaSuccess) {
    return attributes.sharedSizeBytes >= 64 * sizeof(int);
  }
  static_cast<void>(cudaGetLastError());
  return false;
}

/// Threads that issue a product together.
constexpr int group_threads = 128;

/// Which 128 threads of the block this one belongs to, as a number the compiler knows to be the
/// same in a warp.
__device__ inline int group_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / group_threads, 0);
}

/// Where tiles may begin in memory that has 1024 bytes to spare.
__device__ inline unsigned aligned_address(const void* at) {
  return (shared_address(at) + 1023) / 1024 * 1024;
}

/// Where things lie in a tile in shared memory, which begins at a multiple of 8 · pitch bytes:
/// blocks of 64, 32 or 16 channels, of which each is all rows one after the other.
template <int D, int rows>
struct Tile {
  static_assert(D % 16 == 0 && rows % 16 == 0);
  static constexpr int chunks = D % 64 == 0 ? 8 : D % 32 == 0 ? 4 : 2;  // a row of a block
  static constexpr int pitch = 16 * chunks;
  static constexpr int block = rows * pitch;
  static constexpr int bytes = 2 * rows * D;
  static constexpr int channels = D;
  static constexpr unsigned layout = chunks == 8 ? 1 : chunks == 4 ? 2 : 3;

  /// The byte at which a chunk begins.
  __device__ static int at(int row, int chunk) {
    return chunk / chunks * block + row * pitch + 16 * (chunk % chunks ^ row * chunks / 8 % chunks);
  }
  /// A tile as an operand: the lower half of its descriptor. Steps of 16 channels or 16 rows of
  /// depth are a constant away, so that each costs one addition.
  __device__ static unsigned operand(unsigned tile) {
    return (tile & 0x3ffff) >> 4 | static_cast<unsigned>(block / 16) << 16;
  }
  __device__ static std::uint64_t along_channels(unsigned operand, int step) {
    return describe(operand +
                    static_cast<unsigned>(2 * step / chunks * block / 16 + 2 * step % chunks));
  }
  __device__ static std::uint64_t along_rows(unsigned operand, int step) {
    return describe(operand + static_cast<unsigned>(step * pitch));
  }
  /// As an operand along its rows that has eight ones behind its channels: where the channels are
  /// one block, the next is taken from 16 rows of ones, which lie behind the tile; else from rows
  /// of ones that follow the tile.
  static constexpr bool one_block = chunks * 8 == D;
  static constexpr int ones_bytes = one_block ? 16 * pitch : block;
  __device__ static unsigned operand_and_ones(unsigned tile, unsigned ones) {
    return one_block ? (tile & 0x3ffff) >> 4 | (ones - tile) >> 4 << 16 : operand(tile);
  }
  __device__ static std::uint64_t along_rows_and_ones(unsigned operand, int step) {
    constexpr unsigned each = one_block ? pitch - (unsigned{pitch} << 16) : pitch;
    return describe(operand + static_cast<unsigned>(step) * each);
  }

 private:
  __device__ static std::uint64_t describe(unsigned low) {
    std::uint64_t both;
    asm("mov.b64 %0, {%1, %2};"
        : "=l"(both)
        : "r"(low), "r"(static_cast<unsigned>(8 * pitch / 16 | layout << 30)));
    return both;
  }
};

// ---- products -----------------------------------------------------------------------------------
// Asynchronous: between `begin_products` and the `wait_products` that covers them, nothing may
// touch their sums and their operands in registers.

__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// What is computed before stays before, what comes after stays after.
template <int n>
__device__ void keep_order(float (&values)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
/// Waits until at most `left` of the groups committed are not done; `sums` are those of a done one.
template <int left, int n>
__device__ void wait_products(float (&sums)[n]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
  keep_order(sums);
}

/// sums (+)= a · b for 64 rows, 16 of depth: row 16 w + l / 4 + 8 (i / 2 % 2) of warp w, lane l,
/// and column 8 (i / 4) + 2 (l % 4) + i % 2 of sums[i]. Rows says along what the tile b is.
enum class Depth : int { Channels = 0, Rows = 1 };

#define TTT_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define TTT_16(i) TTT_4(i), TTT_4(i + 4), TTT_4(i + 8), TTT_4(i + 12)
#define TTT_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TTT_NAMES_24 TTT_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define TTT_NAMES_32 TTT_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define TTT_NAMES_40 TTT_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define TTT_NAMES_48 TTT_NAMES_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define TTT_NAMES_64 TTT_NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TTT_NAMES_96                                                                            \
  TTT_NAMES_64                                                                                  \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86," \
  "%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define TTT_NAMES_128                                                                           \
  TTT_NAMES_96                                                                                  \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114," \
  "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define TTT_SUMS_16 TTT_16(0)
#define TTT_SUMS_24 TTT_SUMS_16, TTT_4(16), TTT_4(20)
#define TTT_SUMS_32 TTT_SUMS_16, TTT_16(16)
#define TTT_SUMS_40 TTT_SUMS_32, TTT_4(32), TTT_4(36)
#define TTT_SUMS_48 TTT_SUMS_32, TTT_16(32)
#define TTT_SUMS_64 TTT_SUMS_48, TTT_16(48)
#define TTT_SUMS_128 TTT_SUMS_64, TTT_16(64), TTT_16(80), TTT_16(96), TTT_16(112)

#define TTT_WGMMA(columns, size, p0, p1, p2, p3, p4, p5, p6)                                       \
  template <Depth depth, Depth left = Depth::Channels>                                             \
  __device__ void multiply_add(float(&sums)[size], std::uint64_t a, std::uint64_t b, bool add) {   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2                                          \
                 ", 0;\n"                                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" #columns                                      \
                 "k16.f32.bf16.bf16 "                                                              \
                 "{" TTT_NAMES_##size "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";\n}"     \
                 : TTT_SUMS_##size                                                                 \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(left)),        \
                   "n"(static_cast<int>(depth)));                                                  \
  }                                                                                                \
  template <Depth depth>                                                                           \
  __device__ void multiply_add(float(&sums)[size], const unsigned(&a)[4], std::uint64_t b,         \
                               bool add) {                                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5                                          \
                 ", 0;\n"                                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" #columns                                      \
                 "k16.f32.bf16.bf16 "                                                              \
                 "{" TTT_NAMES_##size "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4         \
                                      ", p, 1, 1, %" #p6 ";\n}"                                    \
                 : TTT_SUMS_##size                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), \
                   "n"(static_cast<int>(depth)));                                                  \
  }
TTT_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
TTT_WGMMA(48, 24, 24, 25, 26, 27, 28, 29, 30)
TTT_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
TTT_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
TTT_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
TTT_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
TTT_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)
#undef TTT_WGMMA

/// The same with a left operand in registers, for a right one with ones behind its channels: those
/// of its columns come into more[0] to more[3], as those of the first.
#define TTT_WGMMA(columns, size, p0, p1, p2, p3, p4, p5, p6)                                       \
  template <Depth depth>                                                                           \
  __device__ void multiply_add(float(&sums)[size], float(&more)[4], const unsigned(&a)[4],         \
                               std::uint64_t b, bool add) {                                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5                                          \
                 ", 0;\n"                                                                          \
                 "wgmma.mma_async.sync.aligned.m64n" #columns                                      \
                 "k16.f32.bf16.bf16 "                                                              \
                 "{" TTT_NAMES_##size TTT_MORE_##size "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3    \
                                                      "}, %" #p4 ", p, 1, 1, %" #p6 ";\n}"         \
                 : TTT_SUMS_##size, "+f"(more[0]), "+f"(more[1]), "+f"(more[2]), "+f"(more[3])     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), \
                   "n"(static_cast<int>(depth)));                                                  \
  }
#define TTT_MORE_32 ",%32,%33,%34,%35"
#define TTT_MORE_40 ",%40,%41,%42,%43"
#define TTT_MORE_48 ",%48,%49,%50,%51"
#define TTT_MORE_64 ",%64,%65,%66,%67"
TTT_WGMMA(72, 32, 36, 37, 38, 39, 40, 41, 42)
TTT_WGMMA(88, 40, 44, 45, 46, 47, 48, 49, 50)
TTT_WGMMA(104, 48, 52, 53, 54, 55, 56, 57, 58)
TTT_WGMMA(136, 64, 68, 69, 70, 71, 72, 73, 74)
#undef TTT_MORE_64
#undef TTT_MORE_48
#undef TTT_MORE_40
#undef TTT_MORE_32
#undef TTT_WGMMA
#undef TTT_SUMS_128
#undef TTT_SUMS_64
#undef TTT_SUMS_48
#undef TTT_SUMS_40
#undef TTT_SUMS_32
#undef TTT_SUMS_24
#undef TTT_SUMS_16
#undef TTT_NAMES_128
#undef TTT_NAMES_96
#undef TTT_NAMES_64
#undef TTT_NAMES_48
#undef TTT_NAMES_40
#undef TTT_NAMES_32
#undef TTT_NAMES_24
#undef TTT_NAMES_16
#undef TTT_16
#undef TTT_4

/// A left operand of 64 x 16 k in registers.
template <int k>
using LeftOperand = unsigned[k][4];

/// Two floats, rounded; the first in the lower half.
__device__ inline unsigned rounded_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ inline float rounded(float x) {
  return __uint_as_float(rounded_pair(0.0f, x) & 0xffff0000u);
}
/// Sums, rounded, as the left operand of the next product.
template <int n>
__device__ void round_sums(const float (&sums)[n], LeftOperand<n / 8>& out) {
#pragma unroll
  for (int i = 0; i < n / 2; ++i) {
    out[i / 4][i % 4] = rounded_pair(sums[2 * i], sums[2 * i + 1]);
  }
}
/// The first channels of 64 rows of a tile as a left operand in registers: read once, where a tile
/// would be read again for every product.
template <class From, int k>
__device__ void load_left_rows(unsigned tile, LeftOperand<k>& out) {
  static_assert(From::channels >= 16 * k);
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 4 * k; ++i) {
    const int row = static_cast<int>(threadIdx.x) % group_threads / 32 * 16 + lane / 4 + i % 2 * 8;
    asm volatile("ld.shared.b32 %0, [%1];"
                 : "=r"(out[i / 4][i % 4])
                 : "r"(tile + static_cast<unsigned>(From::at(row, i / 2) + lane % 4 * 4)));
  }
}
/// sums = left · tileᵀ, along the channels.
template <class Right, int n, int k>
__device__ void multiply_channels(float (&sums)[n], const LeftOperand<k>& left, unsigned tile) {
  static_assert(Right::channels == 16 * k);
  const unsigned right = Right::operand(tile);
#pragma unroll
  for (int i = 0; i < k; ++i) {
    multiply_add<Depth::Channels>(sums, left[i], Right::along_channels(right, i), i > 0);
  }
}
/// The same for 64 rows of a tile; the sums may be added to.
template <class Left, class Right, int n>
__device__ void multiply_channels(float (&sums)[n], unsigned left_tile, unsigned tile,
                                  bool add = false) {
  unsigned left = Left::operand(left_tile);
  asm volatile("" : "+r"(left));  // or the descriptors of all steps are kept in registers
  const unsigned right = Right::operand(tile);
#pragma unroll
  for (int i = 0; i < Right::channels / 16; ++i) {
    multiply_add<Depth::Channels>(sums, Left::along_channels(left, i),
                                  Right::along_channels(right, i), add || i > 0);
  }
}
/// sums += left · tile, along the tile's rows.
template <class Right, int n, int k>
__device__ void add_products_of_rows(float (&sums)[n], const LeftOperand<k>& left, unsigned tile) {
  const unsigned right = Right::operand(tile);
#pragma unroll
  for (int i = 0; i < k; ++i) {
    multiply_add<Depth::Rows>(sums, left[i], Right::along_rows(right, i), true);
  }
}
/// The same, and more += the sums of rows of `left`; see Tile::operand_and_ones.
template <class Right, int n, int k>
__device__ void add_products_and_sums_of_rows(float (&sums)[n], float (&more)[4],
                                              const LeftOperand<k>& left, unsigned tile,
                                              unsigned ones) {
  const unsigned right = Right::operand_and_ones(tile, ones);
#pragma unroll
  for (int i = 0; i < k; ++i) {
    multiply_add<Depth::Rows>(sums, more, left[i], Right::along_rows_and_ones(right, i), true);
  }
}

/// 2^x, flushing what is subnormal.
__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
