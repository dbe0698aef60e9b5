// SPDX-License-Identifier: MIT
/// \file
/// Clusters: blocks that run together and reach each other's shared memory (compute capability
/// 9.0; on older GPUs a block is a cluster by itself).
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define TTT_CUDA_CLUSTERS 1
#else
#define TTT_CUDA_CLUSTERS 0
#endif
#if TTT_CUDA_CLUSTERS && CUDART_VERSION >= 12010  // before, no assembler knew how to send
#define TTT_CUDA_SENDS 1
#else
#define TTT_CUDA_SENDS 0
#endif

/// Which block of its cluster this is, of how many, and which cluster along x.
__device__ inline unsigned cluster_rank() {
  unsigned rank = 0;
#if TTT_CUDA_CLUSTERS
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
__device__ inline unsigned cluster_size() {
  unsigned size = 1;
#if TTT_CUDA_CLUSTERS
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}
__device__ inline unsigned cluster_index() {
  unsigned index = blockIdx.x;
#if TTT_CUDA_CLUSTERS
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
#endif
  return index;
}

/// Says that this thread has come, and waits for those of the cluster. What blocks wrote before
/// they came, in each other's memory too, is seen behind. For whole warps.
__device__ inline void come_in_cluster() {
#if TTT_CUDA_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void await_cluster() {
#if TTT_CUDA_CLUSTERS
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/// *place = x in the shared memory of another block of the cluster.
__device__ inline void put_in_cluster([[maybe_unused]] const float* place,
                                      [[maybe_unused]] unsigned block, [[maybe_unused]] float x) {
#if TTT_CUDA_CLUSTERS
  asm volatile(
      "{\n.reg .u32 at;\n"
      "mapa.shared::cluster.u32 at, %0, %1;\n"
      "st.shared::cluster.f32 [at], %2;\n}" ::"r"(shared_address(place)),
      "r"(block), "f"(x)
      : "memory");
#endif
}

/// A barrier in shared memory, and one whose phase ends when so many bytes have come, too, behind
/// this arrival.
__device__ inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ inline void expect_bytes(std::uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Brings `count` numbers of every other block to the first one's shared memory. Every thread makes
/// one of these as its kernel begins, and meets before the first is given. Numbers are sent, and
/// who sends ends: were they written before all meet again, a step of the 3b preset would take 7 %
/// more.
template <int count>
class Gathered {
 public:
  __device__ Gathered() {
    __shared__ std::uint64_t arrived[1];
    __shared__ float parts[most - 1][count];
    arrived_ = arrived;
    parts_ = parts;
#if TTT_CUDA_CLUSTERS
    if (expects()) {
      barrier_init(arrived, 1);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
#endif
    come_in_cluster();
  }
  /// Waits until all blocks have begun. For whole warps.
  __device__ void meet() const {
    await_cluster();
#if TTT_CUDA_CLUSTERS
    constexpr int each = count * int{sizeof(float)};
    if (expects()) expect_bytes(arrived_, (static_cast<int>(cluster_size()) - 1) * each);
#endif
  }

  /// Gives this block's i-th number, which is not the first; nobody waits for it.
  __device__ void give([[maybe_unused]] int i, [[maybe_unused]] float x) const {
#if TTT_CUDA_SENDS
    asm volatile(
        "{\n.reg .u32 to, barrier;\n"
        "mapa.shared::cluster.u32 to, %0, 0;\n"
        "mapa.shared::cluster.u32 barrier, %1, 0;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %2, [barrier];\n}" ::
            "r"(shared_address(&parts_[cluster_rank() - 1][i])),
        "r"(shared_address(arrived_)), "r"(__float_as_uint(x))
        : "memory");
#endif
  }

  /// In the first block: waits until all others have given all.
  __device__ void await() const {
#if TTT_CUDA_CLUSTERS
    asm volatile(
        "{\n.reg .pred done;\nretry:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra retry;\n}" ::"r"(shared_address(arrived_))
        : "memory");
#endif
  }
  /// Then: the sum of the blocks' i-th numbers, in their order; the first's own is given here.
  __device__ float sum(int i, float own) const {
    for (unsigned block = 1; block < cluster_size(); ++block) own += parts_[block - 1][i];
    return own;
  }

 private:
  static constexpr int most = 8;  // blocks of a cluster, on any GPU that has them

  static __device__ bool expects() {
    return threadIdx.x == 0 && cluster_rank() == 0;
  }

  std::uint64_t* arrived_;
  float (*parts_)[count];
};
#undef TTT_CUDA_SENDS
#undef TTT_CUDA_CLUSTERS

/// Says that so many blocks along x are a cluster.
inline cudaLaunchAttribute in_clusters(unsigned blocks) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  return cluster;
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
