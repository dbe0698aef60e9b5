// SPDX-License-Identifier: MIT
/// \file
/// What tells one pass from another that is the same work: see Steps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ttt/layers/parameters.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// What a pass is for.
enum class PassKind : std::uintptr_t { Score, ClosedForm, Gradient, Step, Next };

/// Where a pass looks, as far as that may change, and numbers that are no addresses but must not
/// change either.
class PassPlaces {
 public:
  void begin(PassKind kind) {
    all_.clear();
    add_number(static_cast<std::uintptr_t>(kind));
  }
  void add(const void* place) { all_.push_back(place); }
  void add(std::span<const void* const> places) {
    all_.insert(all_.end(), places.begin(), places.end());
  }
  /// Every leaf of a tree of the model's.
  template <class Model, class Tree>
  void add_leaves(const Tree& tree) {
    Model::each([&](const ParameterName&, const auto& leaf) { add(leaf.data); }, tree);
  }
  void add_number(std::uintptr_t number) {
    add(reinterpret_cast<const void*>(number));  // NOLINT(performance-no-int-to-ptr)
  }

  operator std::span<const void* const>() const { return all_; }

 private:
  std::vector<const void*> all_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
