// SPDX-License-Identifier: MIT
/// \file
/// What kernels compute with: a scalar S, or a Dual<S> whose tangent is the result. A kernel is a
/// template over the number, written once, so its tangent form is right when its value form is.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include <ttt/backend/cuda/launch.hpp>
#include <ttt/core/dual.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <class T>
struct NumberTraits {
  using Scalar = T;
  using Wide = double;
};
template <class S>
struct NumberTraits<Dual<S>> {
  using Scalar = S;
  using Wide = Dual<double>;
};
/// The scalar of a number, and the number in double: most of what multiplies a whole row is made in
/// that.
template <class T>
using ScalarOf = typename NumberTraits<T>::Scalar;
template <class T>
using Wide = typename NumberTraits<T>::Wide;

__device__ inline double widen(float x) {
  return static_cast<double>(x);
}
__device__ inline double widen(double x) {
  return x;
}
template <class S>
__device__ Dual<double> widen(Dual<S> x) {
  return {static_cast<double>(x.value), static_cast<double>(x.tangent)};
}
template <class T>
__device__ T narrow(double x) {
  return static_cast<T>(x);
}
template <class T>
__device__ T narrow(Dual<double> x) {
  return {static_cast<ScalarOf<T>>(x.value), static_cast<ScalarOf<T>>(x.tangent)};
}

template <class T>
__device__ ScalarOf<T> value_of(T x) {
  if constexpr (std::is_same_v<T, ScalarOf<T>>) {
    return x;
  } else {
    return x.value;
  }
}

/// What a kernel leaves behind: the value of a scalar, the tangent of a dual.
template <class T>
__device__ ScalarOf<T> result_of(T x) {
  if constexpr (std::is_same_v<T, ScalarOf<T>>) {
    return x;
  } else {
    return x.tangent;
  }
}
template <class T>
__device__ void put(ScalarOf<T>& place, T x, bool add = false) {
  place = add ? place + result_of(x) : result_of(x);
}

template <class T>
__device__ T load(const Operand<ScalarOf<T>>& x, Index i, Index j) {
  using S = ScalarOf<T>;
  const S value = x.value.data == nullptr ? S(0) : x.value.data[i * x.value.stride + j];
  if constexpr (std::is_same_v<T, S>) {
    return value;
  } else {
    return {value, x.tangent.data == nullptr ? S(0) : x.tangent.data[i * x.tangent.stride + j]};
  }
}

__device__ inline float element(const bfloat16* at) {
  return __uint_as_float(static_cast<unsigned>(at->bits) << 16);
}
__device__ inline float element(const float* at) {
  return *at;
}
__device__ inline double element(const double* at) {
  return *at;
}

template <class S>
__device__ void set(S& place, S x) {
  place = x;
}
__device__ inline void set(bfloat16& place, float x) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(place.bits) : "f"(x));
}

/// Element (i, j) of a weight, in any of its forms.
template <class S>
__device__ S load(const Weight<S>& w, Index i, Index j) {
  const Index at = w.transposed ? j * w.stride + i : i * w.stride + j;
  return w.narrow ? static_cast<S>(element(static_cast<const bfloat16*>(w.data) + at))
                  : static_cast<const S*>(w.data)[at];
}
/// A norm's factor of channel j.
template <class S>
__device__ S scale_at(const Norm<S>& norm, Index j) {
  return norm.scale.data == nullptr || norm.eps < 0 ? S(1) : load(norm.scale, 0, j);
}

/// Neighbours in a row that are moved at once: sixteen bytes of a scalar, or one.
template <class S>
constexpr int pack_size = 16 / static_cast<int>(sizeof(S));
template <class T, int N>
struct Pack {
  T at[N];
};
template <class S, int N>
struct alignas(N * sizeof(S)) RawPack {
  S at[N];
};

/// Elements (i, j) to (i, j + N - 1).
template <class T, int N, class S = ScalarOf<T>>
__device__ Pack<T, N> load_pack(const Operand<S>& x, Index i, Index j) {
  using Raw = RawPack<S, N>;
  Raw value = {}, tangent = {};
  if (x.value.data != nullptr) value = *reinterpret_cast<const Raw*>(x.value.row(i) + j);
  if constexpr (!std::is_same_v<T, S>) {
    if (x.tangent.data != nullptr) tangent = *reinterpret_cast<const Raw*>(x.tangent.row(i) + j);
  }
  Pack<T, N> out;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if constexpr (std::is_same_v<T, S>) {
      out.at[n] = value.at[n];
    } else {
      out.at[n] = {value.at[n], tangent.at[n]};
    }
  }
  return out;
}
template <class T, int N, class S = ScalarOf<T>>
__device__ void put_pack(const View<S>& to, Index i, Index j, const Pack<T, N>& x,
                         bool add = false) {
  using Raw = RawPack<S, N>;
  Raw* const place = reinterpret_cast<Raw*>(to.row(i) + j);
  Raw sum = {};
  if (add) sum = *place;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sum.at[n] = add ? sum.at[n] + result_of(x.at[n]) : result_of(x.at[n]);
  }
  *place = sum;
}

/// What a product will read, in bfloat16, where that is wanted.
template <class T, int N>
__device__ void put_rounded(const View<bfloat16>& to, Index i, Index j, const Pack<T, N>& x) {
  if constexpr (std::is_same_v<ScalarOf<T>, float>) {
    if (to.data == nullptr) return;
    RawPack<bfloat16, N> raw;
#pragma unroll
    for (int n = 0; n < N; ++n) set(raw.at[n], result_of(x.at[n]));
    *reinterpret_cast<RawPack<bfloat16, N>*>(to.row(i) + j) = raw;
  }
}

/// Puts a pack wherever a result goes; adds it to the values only.
template <class T, int N, class S = ScalarOf<T>>
__device__ void put_pack(const Results<S>& to, Index i, Index j, const Pack<T, N>& x,
                         bool add = false) {
  if (!to.values.empty()) put_pack(to.values, i, j, x, add);
  put_rounded(to.rounded, i, j, x);
}

/// Rows that begin where sixteen bytes can be moved at once.
template <class T>
bool in_sixteens(const View<T>& v) {
  constexpr Index each = 16 / static_cast<Index>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && v.stride % each == 0;
}
/// Whether a row of each can be taken in packs.
template <class S>
bool in_packs(const View<const S>& v) {
  return v.data == nullptr || (in_sixteens(v) && v.cols % pack_size<S> == 0);
}
template <class S>
bool in_packs(const Operand<S>& x) {
  return in_packs(x.value) && in_packs(x.tangent);
}

template <class T>
__device__ T shuffle_xor(T x, int mask) {
  if constexpr (std::is_same_v<T, ScalarOf<T>>) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
  } else {
    return {__shfl_xor_sync(0xffffffffu, x.value, mask),
            __shfl_xor_sync(0xffffffffu, x.tangent, mask)};
  }
}

/// The sum over groups of `width` neighbouring lanes, in every one of them.
template <class T>
__device__ T lanes_sum(T x, int width = 32) {
  for (int mask = width / 2; mask > 0; mask /= 2) x = x + shuffle_xor(x, mask);
  return x;
}

/// The sum over a block of at most 1024 threads, whole warps, in every one of them.
template <class T>
__device__ T block_sum(T x) {
  __shared__ T parts[32];
  const int warps = static_cast<int>(blockDim.x) / 32;
  x = lanes_sum(x);
  __syncthreads();  // parts may still be read from the last time
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = parts[0];
  for (int i = 1; i < warps; ++i) sum = sum + parts[i];
  return sum;
}
template <class S>
__device__ S block_max(S x) {
  __shared__ S parts[32];
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int mask = 16; mask > 0; mask /= 2) {
    const S other = shuffle_xor(x, mask);
    if (!(other <= x)) x = other;  // a NaN wins, mostly; sums of what is left show it anyway
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  S most = parts[0];
  for (int i = 1; i < warps; ++i) {
    if (!(parts[i] <= most)) most = parts[i];
  }
  return most;
}

constexpr float log2_e = 1.44269504f;

/// f over four neighbouring lanes, in each of them.
template <class F>
__device__ float quad_reduce(float x, const F& f) {
  x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// 1 / (1 + exp(-x)), by the exponential that cannot overflow: infinity has no tangent.
template <class T>
__device__ T sigmoid(T x) {
  using std::exp;
  if (!(value_of(x) < ScalarOf<T>(0))) return T(1) / (T(1) + exp(-x));
  const T power = exp(x);
  return power / (T(1) + power);
}

/// Whether the query at p sees the key at j.
__device__ inline bool sees(const AttentionShape& shape, Index p, Index j) {
  return j <= p && j >= shape.first_key(p);
}

/// Calls f.template operator()<T>() with the number that kernels are to compute with.
template <class S, class F>
void with_number(bool tangents, const F& f) {
  if (tangents) {
    f.template operator()<Dual<S>>();
  } else {
    f.template operator()<S>();
  }
}

/// The same, and how many neighbours a thread is to take at once.
template <class S, class F>
void with_packs(bool tangents, bool aligned, const F& f) {
  with_number<S>(tangents, [&]<class T>() {
    if (aligned) {
      f.template operator()<T, pack_size<S>>();
    } else {
      f.template operator()<T, 1>();
    }
  });
}

// The sizes of heads that have kernels on tensor cores. A unit may define fewer, to compile faster.
#if !defined(TTT_CUDA_HEAD_DIMS)
#define TTT_CUDA_HEAD_DIMS 64, 80, 96, 128
#endif

/// Calls f with the head size as a type, if there are kernels for it; says whether there are and f,
/// unless it returns nothing, says so too.
template <class F>
bool with_head_dim(Index d, const F& f) {
  const auto call = [&](auto dim) {
    if constexpr (std::is_void_v<decltype(f(dim))>) {
      f(dim);
      return true;
    } else {
      return f(dim);
    }
  };
  return [&]<int... dims>(std::integer_sequence<int, dims...>) {
    return ((d == dims && call(std::integral_constant<int, dims>())) || ...);
  }
  (std::integer_sequence<int, TTT_CUDA_HEAD_DIMS>());
}

/// Threads that share a row.
constexpr unsigned row_threads = 256;

/// Where something lies in shared memory, as instructions name it.
__device__ inline unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

/// The L2 cache is to have what lies there: the sector, or a multiple of sixteen bytes.
__device__ inline void bring_nearer(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}
__device__ inline void bring_nearer([[maybe_unused]] const void* at, [[maybe_unused]] int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (bytes > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes));
#endif
}

constexpr Index blocks_for(Index size, Index each) {
  return (size + each - 1) / each;
}
inline unsigned grid(Index blocks) {
  return static_cast<unsigned>(blocks);
}

}  // namespace
}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
