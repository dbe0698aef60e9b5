// SPDX-License-Identifier: MIT
/// \file
/// Matrices in flat vectors of doubles, for differences of the reference's primitives.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <ttt/backend/reference/backend.hpp>

namespace ttt::test {

inline View<const double> as(const std::vector<double>& flat, Index rows, Index cols) {
  return {flat.data(), rows, cols};
}
inline View<double> as(std::vector<double>& flat, Index rows, Index cols) {
  return {flat.data(), rows, cols};
}
inline std::vector<double> zeros(Index size) {
  return std::vector<double>(static_cast<std::size_t>(size));
}
inline std::vector<double> ones(Index size) {
  return std::vector<double>(static_cast<std::size_t>(size), 1.0);
}

/// A block of queries behind earlier positions. The ring has exactly the slots that are needed, so
/// it wraps as soon as it can. Keys and values from `first` on have gradients: those of the block
/// and `before` earlier ones, as far as they are seen.
struct BlockInRing {
  struct Ring {
    std::vector<double> memory;
    Cache<double> cache;
  };

  Index rows;
  AttentionShape shape;
  Index before = 0;

  Index oldest() const { return shape.first_key(shape.position); }
  Index first() const { return std::max(oldest(), shape.position - before); }
  Index width() const { return shape.heads * shape.head_dim; }
  Index key_width() const { return shape.key_heads * shape.head_dim; }
  /// Rows of all keys before `first`, of those from there to the block, and of both and the block.
  Index constants() const { return first() - oldest(); }
  Index cached() const { return shape.position - first(); }
  Index slots() const { return shape.position + rows - oldest(); }

  /// The rows of `constant`, of `earlier` and of `own` one after the other.
  Ring ring(const std::vector<double>& constant, const std::vector<double>& earlier,
            const std::vector<double>& own) const {
    const reference::Backend<double> backend;
    Ring r{zeros(slots() * key_width()), {}};
    r.cache = {r.memory.data(), shape.key_heads, slots(), shape.head_dim};
    backend.store(as(constant, constants(), key_width()), r.cache, oldest());
    backend.store(as(earlier, cached(), key_width()), r.cache, first());
    backend.store(as(own, rows, key_width()), r.cache, shape.position);
    return r;
  }
};

}  // namespace ttt::test
