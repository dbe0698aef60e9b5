// SPDX-License-Identifier: MIT
/// \file
/// Tiles on their way into shared memory on Hopper: some threads copy, others wait for full places
/// of a ring and give empty ones back.
#pragma once

#include <ttt/backend/cuda/kernels/cluster.cuh>
#include <ttt/backend/cuda/kernels/wgmma.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Shows barriers that one thread has made to all threads of the block.
__device__ inline void share_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
}
__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// Arrives when all that this thread copies has arrived. Whoever waits for it calls `show_copies`
/// before the tensor cores read.
__device__ inline void arrive_with_copies(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// Waits for the end of a phase: the first has parity 0.
__device__ inline void barrier_wait(std::uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nretry:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra retry;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// `threads` threads in all meet at a barrier of the block; some only say that they came by.
__device__ inline void meet(int barrier, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void pass(int barrier, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
/// Groups that multiply in turn, one while the others do what is between products. Each takes its
/// turn, puts its products to the tensor cores, and passes.
template <int groups>
struct Turns {
  int group;

  /// The last group begins by passing to the first.
  __device__ explicit Turns(int group_) : group(group_) {
    if (group == groups - 1) pass_on();
  }
  __device__ void take() const { meet(1 + group, 2 * group_threads); }
  __device__ void pass_on() const { pass(1 + (group + 1) % groups, 2 * group_threads); }
};
/// Registers of a thread from here on: those that bring tiles give theirs to those that multiply.
template <int registers>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

/// Full and empty places of a ring of tiles; both sides go round it alike.
template <int stages>
struct RingBarriers {
  std::uint64_t full[stages], empty[stages];

  __device__ void init(int consumer_warps) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(&full[i], group_threads);
      barrier_init(&empty[i], consumer_warps);
    }
  }
  /// The barrier of place n.
  __device__ static constexpr unsigned place(int n) { return static_cast<unsigned>(n) % stages; }
  __device__ static constexpr unsigned round(int n) {
    return static_cast<unsigned>(n) / stages % 2;
  }
  __device__ void wait_full(int n) { barrier_wait(&full[place(n)], round(n)); }
  __device__ void wait_empty(int n) { barrier_wait(&empty[place(n)], round(n) ^ 1); }
  /// When what this thread copies has arrived.
  __device__ void fill(int n) { arrive_with_copies(&full[place(n)]); }
  /// By a whole warp that is done with what it waited for.
  __device__ void release(int n) {
    if (threadIdx.x % 32 == 0) barrier_arrive(&empty[place(n)]);
  }
};

// ---- tiles into shared memory -------------------------------------------------------------------

/// Copies 16 bytes behind the caller's back, or zeros.
__device__ inline void copy_chunk(unsigned to, const void* from, bool there = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void show_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Rows of D channels in bfloat16, one after the other, as they come into a tile: shared among 128
/// threads so that neighbours read neighbouring memory and write to different banks.
template <int D, int rows>
class TileCopy {
  using To = Tile<D, rows>;
  static constexpr int chunks = To::chunks;

 public:
  __device__ TileCopy() {
    const int thread = static_cast<int>(threadIdx.x) % group_threads, lane = thread % 32;
    if constexpr (D == 80) {  // four blocks of four rows, then the fifth of sixteen
      const int row = thread / 32 * 16;
      from_ = (row + lane % 8 / 2) * D + lane / 8 * 16 + lane % 2 * 8;
      to_ = To::at(row + lane % 8 / 2, lane / 8 * 2 + lane % 2);
      last_from_ = (row + lane / 2) * D + 64 + lane % 2 * 8;
      last_to_ = To::at(row + lane / 2, 8 + lane % 2);
    } else {
      from_ = thread / chunks * D + thread % chunks * 8;
      to_ = To::at(thread / chunks, thread % chunks);
    }
  }

  __device__ void all(unsigned tile, const bfloat16* first) const {
    const unsigned to = tile + static_cast<unsigned>(to_);
    const bfloat16* const from = first + from_;
    if constexpr (D == 80) {
      const unsigned last_to = tile + static_cast<unsigned>(last_to_);
      const bfloat16* const last_from = first + last_from_;
      const int warp_row = static_cast<int>(threadIdx.x) % group_threads / 32 * 16;
#pragma unroll
      for (int r = 0; r < rows; r += 64) {
        if (rows % 64 != 0 && r + warp_row >= rows) break;
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
          copy_chunk((i % 8 == 0 ? to : to ^ 16) + (r + i) * To::pitch, from + (r + i) * D);
        }
        copy_chunk(last_to + r * To::pitch, last_from + r * D);
      }
    } else {
#pragma unroll
      for (int r = 0; r < rows; r += group_threads / chunks) {
#pragma unroll
        for (int c = 0; c < D / 8; c += chunks) {
          copy_chunk(to + r * To::pitch + c / chunks * To::block, from + r * D + c * 8);
        }
      }
    }
  }

  /// Only rows from `begin` to `end`, of which row i is at row_at(i); the others become zeros.
  template <class RowAt>
  __device__ void some(unsigned tile, int begin, int end, const RowAt& row_at) const {
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x) % group_threads; e < rows * D / 8;
         e += group_threads) {
      const int row = e / (D / 8), chunk = e % (D / 8);
      const bool there = row >= begin && row < end;
      copy_chunk(tile + static_cast<unsigned>(To::at(row, chunk)),
                 row_at(there       ? row
                        : begin > 0 ? begin
                                    : 0) +
                     chunk * 8,
                 there);
    }
  }

 private:
  int from_, to_, last_from_ = 0, last_to_ = 0;
};

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
