// SPDX-License-Identifier: MIT
/// \file
/// The backends that a test program is about: the processor's, or with TTT_TEST_CUDA a GPU's.
#pragma once

#include <support/kernels.hpp>
#include <type_traits>
#include <vector>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>

#if defined(TTT_TEST_CUDA)
#include <support/staged.hpp>

#include <ttt/backend/cuda/backend.hpp>
#endif

namespace ttt::test {

#if defined(TTT_TEST_CUDA)

#define TTT_TEST_BACKENDS cuda::Backend<float>, cuda::Backend<double>

/// For tests of primitives, which use host memory: some that must agree to the bit.
template <class S>
const std::vector<Staged<cuda::Backend<S>>>& machines() {
  static const std::vector<Staged<cuda::Backend<S>>> all(3);
  return all;
}

#else

#define TTT_TEST_BACKENDS eigen::Backend<float>, eigen::Backend<double>, reference::Backend<double>

/// One for each number of threads that makes a difference.
template <class S>
const std::vector<eigen::Backend<S>>& machines() {
  static const std::vector<eigen::Backend<S>> all{eigen::Backend<S>(1), eigen::Backend<S>(2),
                                                  eigen::Backend<S>(3)};
  return all;
}

#endif

template <class S>
inline constexpr Index most_head_dim = std::decay_t<decltype(machines<S>().front())>::most_head_dim;

/// A copy on the host of memory of a backend.
template <class B, class T>
std::vector<T> on_host(const B& backend, const T* data, Index size) {
  std::vector<T> copy(static_cast<std::size_t>(size));
  backend.to_host(data, copy.data(), size);
  return copy;
}

}  // namespace ttt::test
