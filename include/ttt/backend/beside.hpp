// SPDX-License-Identifier: MIT
/// \file
/// Work that may go on beside a backend's other work.
#pragma once

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// Nothing goes on beside anything: what is put beside is done at once. A backend that knows better
/// has a member type Beside, which is used likewise; see cuda::Beside.
template <class B>
class PlainBeside {
 public:
  /// Whether anything is gained by cutting work into groups: how many are to be in flight.
  static constexpr Index groups = 1;

  /// With room for so many marks.
  PlainBeside(const B& backend, Index /*marks*/) : backend_(backend) {}

  /// Where to put what goes on beside. Memory is the other backend's.
  const B& backend() const { return backend_; }

  /// What is put beside from now on comes behind all that the other backend has been given.
  void begin() {}
  /// All that was put beside so far is mark n.
  void mark(Index /*n*/) {}
  /// What the other backend is given from now on comes behind mark n.
  void wait(Index /*n*/) {}
  /// ... behind all that was put beside.
  void join() noexcept {}

 private:
  const B& backend_;
};

namespace detail {
template <class B>
struct BesideType {
  using Type = PlainBeside<B>;
};
template <class B>
requires requires {
  typename B::Beside;
}
struct BesideType<B> {
  using Type = typename B::Beside;
};
}  // namespace detail

template <class B>
using BesideOf = typename detail::BesideType<B>::Type;

}  // namespace ttt::inline TTT_ABI
