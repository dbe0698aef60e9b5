// SPDX-License-Identifier: MIT
/// \file
/// What the products of a GPU backend are computed in. Any host compiler reads this.
#pragma once

#include <cstdint>

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda {

/// Policy: what the products of a backend are computed in. Everything else is in the backend's
/// scalar.
enum class Products : std::uint8_t {
  Exact,     // in the scalar: the results of the other backends, to rounding
  Bfloat16,  // operands, keys and values rounded to bfloat16, sums in float, on tensor cores: fast
};

}  // namespace cuda
}  // namespace ttt::inline TTT_ABI
