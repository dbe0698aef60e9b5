// SPDX-License-Identifier: MIT
/// \file
/// A reference to something callable, for callbacks that need not outlive a call.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include <ttt/version.hpp>

namespace ttt::inline TTT_ABI {

template <class Signature>
class FunctionRef;

/// Refers to a callable it does not own: use it as a parameter, never store it. Empty by default.
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  FunctionRef() = default;

  // The constraint says what F may not be, so this hides no copy.
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> &&
           !std::is_function_v<std::remove_reference_t<F>> &&
           std::is_invocable_r_v<Result, F&, Arguments...>)
      FunctionRef(F&& f)  // NOLINT(bugprone-forwarding-reference-overload)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Arguments... arguments) -> Result {
          return static_cast<Result>((*static_cast<std::remove_reference_t<F>*>(object))(
              std::forward<Arguments>(arguments)...));
        }) {}

  /// A plain function, which is no object to point to.
  FunctionRef(Result (*f)(Arguments...)) : object_(reinterpret_cast<void*>(f)) {
    if (f == nullptr) return;
    call_ = [](void* object, Arguments... arguments) -> Result {
      return reinterpret_cast<Result (*)(Arguments...)>(object)(
          std::forward<Arguments>(arguments)...);
    };
  }

  explicit operator bool() const { return call_ != nullptr; }
  Result operator()(Arguments... arguments) const {
    return call_(object_, std::forward<Arguments>(arguments)...);
  }

 private:
  void* object_ = nullptr;
  Result (*call_)(void*, Arguments...) = nullptr;
};

}  // namespace ttt::inline TTT_ABI
