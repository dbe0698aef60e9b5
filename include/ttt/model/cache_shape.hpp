// SPDX-License-Identifier: MIT
/// \file
/// The keys and values of all blocks of a model in one stretch of memory.
#pragma once

#include <ttt/ops/attention.hpp>

namespace ttt::inline TTT_ABI {

/// Caches of one block for every block of a model, in one stretch of memory.
template <class Scalar, class CacheScalar = Scalar>
struct CacheShape {
  Index blocks = 0;
  Index heads = 0;
  Index slots = 0;
  Index head_dim = 0;

  Index size() const { return 2 * blocks * heads * slots * head_dim; }
  ops::KeyValues<Scalar, CacheScalar> at(CacheScalar* data, Index block) const {
    const Index half = heads * slots * head_dim;
    CacheScalar* const first = data + 2 * block * half;
    return {{first, heads, slots, head_dim}, {first + half, heads, slots, head_dim}};
  }
};

namespace detail {
/// How many scalars are as many bytes as `count` of another type, rounded up.
template <class Scalar, class Other>
constexpr Index scalars_of(Index count) {
  constexpr Index scalar = sizeof(Scalar), other = sizeof(Other);
  return (count * other + scalar - 1) / scalar;
}
}  // namespace detail

}  // namespace ttt::inline TTT_ABI
