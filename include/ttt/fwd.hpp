// SPDX-License-Identifier: MIT
/// \file
/// The few names everything else is written in: sizes, tokens, and "known only at run time".
#pragma once

#include <cstddef>
#include <cstdint>

#include <ttt/version.hpp>

/// Marks the few helpers that kernels on a GPU share with the host.
#if defined(__CUDACC__)
#define TTT_HD __host__ __device__
#pragma nv_diag_suppress 554  // nvcc takes a constrained conversion for one that cannot be used
#else
#define TTT_HD
#endif

namespace ttt::inline TTT_ABI {

/// Sizes, positions and counts. Signed, so that differences are safe.
using Index = std::ptrdiff_t;

/// One element of a vocabulary.
using Token = std::int32_t;

/// A size that is not part of the type: it comes from the Config or from the file.
inline constexpr std::size_t dynamic = static_cast<std::size_t>(-1);

}  // namespace ttt::inline TTT_ABI
