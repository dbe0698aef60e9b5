// SPDX-License-Identifier: MIT
/// \file
/// Where a product of few rows has its x from: memory or, behind a sum on the residual stream and a
/// norm, every block's own hands. To make it, a block reads 8 bytes an element from the L2 cache
/// and adds twice over a row, which takes 2 us; to have one block make it for all, behind the
/// product that it is made of, took 5 to 7: a fence, a counter, the last block's reading and
/// writing.
#pragma once

#include <ttt/backend/cuda/kernels/norms.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// Some bytes on the way into shared memory; those that this thread asked for are there.
template <int bytes>
__device__ void ask_copy(void* to, const void* from) {
  const unsigned at = shared_address(to);
  if constexpr (bytes == 16) {  // past the L1 cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(bytes)
                 : "memory");
  }
}
__device__ inline void wait_for_asked() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// Rows that lie in memory. Of each source: `makes` says whether it takes registers to have them,
/// prepare() may only touch weights, row() comes behind wait_for_previous(), write_down() at the
/// end; all are for whole blocks.
struct GivenX {
  View<const float> x;

  struct InBlock {
    static constexpr bool makes = false;

    const float* at;
    __device__ InBlock(const GivenX& from, Index row) : at(from.x.row(row)) {}
    __device__ void prepare() const {}
    __device__ const float* row() const { return at; }
    __device__ void write_down() const {}
  };
};

/// Whether a norm's factors can be copied four at a time.
inline bool scales_in_fours(const Norm<float>& norm) {
  const Weight<float>& w = norm.scale;
  const bool are_neighbours = !w.transposed || w.stride == 1;
  return w.data == nullptr ||
         (are_neighbours && reinterpret_cast<std::uintptr_t>(w.data) % (w.narrow ? 8 : 16) == 0);
}

constexpr Index most_made = held_packs * Index{pack_size<float>} * row_threads;  // a row's elements

/// Rows of rms_norm(h + x) or of rms_norm(h + rms_norm(x)), made as sum_and_norm_kernel makes them.
/// The sum may be h itself: the block that is the last to have read is the one that writes.
struct MadeX {
  SumAndNorm<float> all;

  class InBlock {
   public:
    static constexpr bool makes = true;

    __device__ InBlock(const MadeX& from, Index row) : all_(from.all), row_(row) {
      __shared__ float4 rows[2][most_made / 4];
      made_ = reinterpret_cast<float*>(rows[0]);
      sum_ = reinterpret_cast<float*>(rows[1]);
    }

    /// The factors of the norms are on their way, as they lie, to where this thread will put what
    /// it makes with them.
    __device__ void prepare() {
      for_own([&](int, Index j) {
        ask_scales(made_, j, all_.norm);
        if (all_.sum.has_norm) ask_scales(sum_, j, all_.sum.norm);
      });
    }

    __device__ const float* row() {
      const ResidualSum<float>& sum = all_.sum;
      const Index width = sum.x.cols;
      Pack<float, pack> x[held_packs], h[held_packs];
      for_own([&](int i, Index j) {
        x[i] = load_pack<float, pack>({sum.x, {}}, row_, j);
        h[i] = load_pack<float, pack>({sum.h, {}}, row_, j);
      });
      if (sum.has_norm) {
        sum_inverse_ = inverse_rms(row_sum<0>(sum_of_squares(width, x)), width, sum.norm.eps);
      }
      wait_for_asked();
      for_own([&](int i, Index j) {
        h[i] = residual_sum(sum.has_norm, h[i], x[i], sum_inverse_, scales(sum_, j, sum.norm));
        put(sum_, j, h[i]);
      });
      const float squares = row_sum<1>(sum_of_squares(width, h));
      // What was read has come, or there were no sum: no fence. Who has come is not asked yet.
      if (threadIdx.x == 0) before_ = atomicInc(all_.counters + row_, gridDim.x - 1);
      inverse_ = inverse_rms(squares, width, all_.norm.eps);
      for_own([&](int i, Index j) {
        put(made_, j, scaled(h[i], inverse_, scales(made_, j, all_.norm)));
      });
      __syncthreads();
      return made_;
    }

    /// Writes all that the sum and the norm leave, if every block has read.
    __device__ void write_down() {
      __shared__ bool is_last[1];
      if (threadIdx.x == 0) is_last[0] = before_ == gridDim.x - 1;
      __syncthreads();
      if (!is_last[0]) return;
      for_own([&](int, Index j) {
        put_pack(all_.sum.out, row_, j, own(sum_, j));
        put_pack(all_.y, row_, j, own(made_, j));
      });
      if (threadIdx.x > 0) return;
      if (all_.sum.has_norm && !all_.sum.inverse.empty()) all_.sum.inverse(row_, 0) = sum_inverse_;
      if (!all_.inverse.empty()) all_.inverse(row_, 0) = inverse_;
    }

   private:
    static constexpr int pack = pack_size<float>;

    template <class F>
    __device__ void for_own(const F& f) const {
      for_held<pack, held_packs>(all_.sum.x.cols, f);
    }
    static __device__ void put(float* to, Index j, const Pack<float, pack>& x) {
      put_pack(View<float>(to, 1, most_made), 0, j, x);
    }
    static __device__ void ask_scales(float* to, Index j, const Norm<float>& norm) {
      const Weight<float>& w = norm.scale;
      if (w.narrow) {
        ask_copy<8>(to + j, static_cast<const bfloat16*>(w.data) + j);
      } else if (w.data != nullptr) {
        ask_copy<16>(to + j, static_cast<const float*>(w.data) + j);
      }
    }
    static __device__ Pack<float, pack> scales(const float* from, Index j,
                                               const Norm<float>& norm) {
      if (norm.scale.data == nullptr) return {{1, 1, 1, 1}};
      if (!norm.scale.narrow) return own(from, j);
      const auto raw = *reinterpret_cast<const RawPack<bfloat16, pack>*>(from + j);
      Pack<float, pack> out;
#pragma unroll
      for (int n = 0; n < pack; ++n) out.at[n] = element(&raw.at[n]);
      return out;
    }
    static __device__ Pack<float, pack> own(const float* from, Index j) {
      return load_pack<float, pack>({View<const float>(from, 1, most_made), {}}, 0, j);
    }

    const SumAndNorm<float>& all_;
    Index row_;
    float *made_, *sum_;
    float sum_inverse_ = 1, inverse_ = 1;
    unsigned before_ = 0;
  };
};

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
