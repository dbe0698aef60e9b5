// SPDX-License-Identifier: MIT
/// \file
/// What every operation is given: the machine to run on and the scratch memory to put results in.
#pragma once

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/workspace.hpp>

namespace ttt::inline TTT_ABI {

/// Operations allocate their results here, so a composition of them reads like the formula. What a
/// forward pass takes must stay until the backward pass has used it: see Scope.
///
/// The operations come in forms that differ in the type of their activations only. `View` is the
/// value form: a matrix is its values. A layer is a template over that type, written once.
template <class B>
struct Context {
  using Scalar = typename B::Scalar;
  using Tensor = View<Scalar>;  // the activations of the value form

  const B& backend;
  Workspace<B>& workspace;
  Write gradients = Write::Replace;  // what weight gradients do to their place

  Tensor make(Index rows, Index cols) { return workspace.matrix(rows, cols); }
};

}  // namespace ttt::inline TTT_ABI
