// SPDX-License-Identifier: MIT
/// \file
/// Dual numbers: a value and its derivative in one direction, carried through arithmetic together.
#pragma once

#include <cmath>
#include <type_traits>

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// value + tangent · ε with ε² = 0 (Clifford 1873): whatever is computed from duals carries the
/// exact derivative along the direction that the inputs' tangents give.
///
/// On `reference::Backend<Dual<double>>` the code of every layer, forwards and backwards, yields
/// the derivative of a gradient along a direction, which is what a gradient through gradient steps
/// needs. Slow, exact, and nothing written by hand: the oracle of everything that has tangents.
template <class S>
struct Dual {
  S value = 0;
  S tangent = 0;

  constexpr Dual() = default;
  /// A constant.
  template <class T>
  requires(!std::is_same_v<T, Dual> && std::is_convertible_v<T, S>) TTT_HD constexpr Dual(T value_)
      : value(static_cast<S>(value_)) {}
  TTT_HD constexpr Dual(S value_, S tangent_) : value(value_), tangent(tangent_) {}

  /// The value alone.
  TTT_HD constexpr explicit operator S() const { return value; }

  TTT_HD constexpr Dual operator-() const { return {-value, -tangent}; }
  TTT_HD friend constexpr Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.tangent + b.tangent};
  }
  TTT_HD friend constexpr Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.tangent - b.tangent};
  }
  TTT_HD friend constexpr Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
  }
  TTT_HD friend constexpr Dual operator/(Dual a, Dual b) {
    const S quotient = a.value / b.value;
    return {quotient, (a.tangent - quotient * b.tangent) / b.value};
  }
  TTT_HD constexpr Dual& operator+=(Dual b) { return *this = *this + b; }
  TTT_HD constexpr Dual& operator-=(Dual b) { return *this = *this - b; }
  TTT_HD constexpr Dual& operator*=(Dual b) { return *this = *this * b; }
  TTT_HD constexpr Dual& operator/=(Dual b) { return *this = *this / b; }

  /// Order is that of the values: a maximum is a choice, not a computation.
  TTT_HD friend constexpr bool operator<(Dual a, Dual b) { return a.value < b.value; }
  TTT_HD friend constexpr bool operator>(Dual a, Dual b) { return a.value > b.value; }

  TTT_HD friend Dual sqrt(Dual a) {
    const S root = std::sqrt(a.value);
    return {root, a.tangent / (2 * root)};
  }
  TTT_HD friend Dual exp(Dual a) {
    const S power = std::exp(a.value);
    return {power, power * a.tangent};
  }
  TTT_HD friend Dual log(Dual a) { return {std::log(a.value), a.tangent / a.value}; }
};

}  // namespace ttt::inline TTT_ABI
