// SPDX-License-Identifier: MIT
/// \file
/// Steps of one token, of one of each of some documents, or of a chunk: the same work again and
/// again, which a backend may prepare for.
#pragma once

#include <span>

#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

namespace detail {
struct BringNothing {
  void operator()() const {}
};
}  // namespace detail

/// Takes every step as it comes. A backend that knows better has a member type Steps, which is
/// called likewise; see cuda::Steps.
template <class B>
class PlainSteps {
 public:
  explicit PlainSteps(const B& backend) : backend_(backend) {}

  /// Writes the tokens, if there are any, to `to`, in the backend's memory, calls bring(), which
  /// puts there what else is new and may be written over, then step(backend). The step must be the
  /// same whenever `memory`, all addresses it uses that may change, is: but for what is brought,
  /// and for `position` where it hands that, or one as far from it as ever, to a primitive. Throws
  /// what the step throws.
  template <class Step, class Bring = detail::BringNothing>
  void operator()(std::span<const void* const> /*memory*/, std::span<const Token> tokens, Token* to,
                  Index /*position*/, const Step& step, const Bring& bring = {}) {
    if (!tokens.empty()) backend_.to_device(tokens.data(), to, std::ssize(tokens));
    bring();
    step(backend_);
  }

 private:
  const B& backend_;
};

namespace detail {
template <class B>
struct StepsType {
  using Type = PlainSteps<B>;
};
template <class B>
requires requires {
  typename B::Steps;
}
struct StepsType<B> {
  using Type = typename B::Steps;
};
}  // namespace detail

template <class B>
using StepsOf = typename detail::StepsType<B>::Type;

}  // namespace ttt::inline TTT_ABI
