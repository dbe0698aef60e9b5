// SPDX-License-Identifier: MIT
/// \file
/// All kernels, for the one unit of a program that nvcc compiles. The target ttt::cuda adds that
/// unit by itself; without CMake, compile a .cu file that includes this and nothing else.
#pragma once

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/kernels/attention.cuh>
#include <ttt/backend/cuda/kernels/attention_backward.cuh>
#include <ttt/backend/cuda/kernels/attention_backward_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/attention_backward_tangent_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/attention_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/attention_decode.cuh>
#include <ttt/backend/cuda/kernels/attention_tangent_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/conv.cuh>
#include <ttt/backend/cuda/kernels/flat.cuh>
#include <ttt/backend/cuda/kernels/gated_hopper.cuh>
#include <ttt/backend/cuda/kernels/gradient_hopper.cuh>
#include <ttt/backend/cuda/kernels/head_hopper.cuh>
#include <ttt/backend/cuda/kernels/loss.cuh>
#include <ttt/backend/cuda/kernels/loss_bfloat16.cuh>
#include <ttt/backend/cuda/kernels/matmul.cuh>
#include <ttt/backend/cuda/kernels/matvec.cuh>
#include <ttt/backend/cuda/kernels/norms.cuh>
#include <ttt/backend/cuda/kernels/rope.cuh>
#include <ttt/backend/cuda/kernels/rotate.cuh>
#include <ttt/backend/cuda/kernels/rounding.cuh>
#include <ttt/backend/cuda/kernels/rows.cuh>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "ttt: the kernels need compute capability 8.0 or newer; set CMAKE_CUDA_ARCHITECTURES"
#endif

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <class = void>  // so that two units of a program may have it
__global__ void probe_kernel() {}

}  // namespace

#define TTT_TEXT(...) #__VA_ARGS__
#define TTT_EXPANDED_TEXT(...) TTT_TEXT(__VA_ARGS__)
template <class T>
const char* Unit<T>::architectures() {
  return TTT_EXPANDED_TEXT(__CUDA_ARCH_LIST__);
}
#undef TTT_EXPANDED_TEXT
#undef TTT_TEXT

template <class T>
bool Unit<T>::has_code_for_current_device() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel<>);
  const bool found = status != cudaErrorNoKernelImageForDevice &&
                     status != cudaErrorInvalidDeviceFunction &&
                     status != cudaErrorUnsupportedPtxVersion;
  if (found) check(status, "the kernels could not be loaded");
  static_cast<void>(cudaGetLastError());
  return found;
}

template struct Unit<>;
template struct Launch<float>;
template struct Launch<double>;

#define TTT_CACHED(S, C)                                                                        \
  template void Launch<S>::store<C>(Stream, View<const S>, Cache<C>, Place);                    \
  template void Launch<S>::attention<C>(Stream, bool, Operand<S>, KeysAndValues<S, C>,          \
                                        PlacedShape, View<S>, View<S>);                         \
  template void Launch<S>::attention_backward<C>(Stream, bool, Operand<S>, KeysAndValues<S, C>, \
                                                 PlacedShape, Operand<S>, Operand<S>,           \
                                                 Operand<S>, View<S>, View<S>, View<S>, Index)
TTT_CACHED(float, float);
TTT_CACHED(double, double);
TTT_CACHED(float, bfloat16);
#undef TTT_CACHED

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
