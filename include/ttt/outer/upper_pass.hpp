// SPDX-License-Identifier: MIT
/// \file
/// The part of a model that learns at test time, over one chunk: forwards, the inner gradient, and
/// the outer gradient as the tangent of both.
#pragma once

#include <vector>

#include <ttt/model/language_model.hpp>
#include <ttt/ops/cross_entropy.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// One chunk of a sequence, as both passes over it are given it; or of several, one sequence's rows
/// under the other's.
template <class Scalar>
struct UpperInput {
  View<const Scalar> h;  // (sequences * chunk, width): the lower half's result
  Index position = 0;    // of every sequence's first row
  const Token* targets = nullptr;
  const Scalar* loss_weights = nullptr;  // of every target in its sequence's chunk's loss
  Index sequences = 1;
  View<Scalar> dy = {};  // where the gradient of the scores stays for another pass, if anywhere
  bool scored = false;   // this is that pass
};

/// Some rows of every sequence, one sequence's under the other's.
template <class B>
View<typename B::Scalar> stack_rows(const B& backend, Workspace<B>& workspace,
                                    const std::vector<View<typename B::Scalar>>& of, Index first,
                                    Index rows) {
  if (of.size() == 1) return of.front().rows_at(first, rows);
  const Index n = static_cast<Index>(of.size());
  const auto all = workspace.matrix(n * rows, of.front().cols);
  for (Index s = 0; s < n; ++s) {
    const auto own = of[static_cast<std::size_t>(s)].rows_at(first, rows);
    backend.copy(own.data, all.part(s, n).data, own.shape().size());
  }
  return all;
}

/// What the first pass leaves for the second.
template <class Model, class Scalar>
struct UpperRecord {
  Tape<Scalar> tape;
  std::size_t forward = 0;  // how much of it the forward pass recorded
  Positions<Scalar> at;
  typename Model::template Saved<View<Scalar>> saved;
  typename Model::template Saved<DualView<Scalar>> moved;

  explicit UpperRecord(const Model& model)
      : saved(model.template saved<View<Scalar>>()),
        moved(model.template saved<DualView<Scalar>>()) {}

  /// Makes what was recorded of one sequence's inner gradient zero: of a step that was not taken,
  /// nobody asks for it, but it may not be finite, and its rows stand among others'.
  template <class B>
  void forget_gradient(const B& backend, Index s, Index sequences) {
    for (std::size_t i = forward; i < tape.size(); ++i) {
      const View<Scalar> rows = tape[i].part(s, sequences);
      if (!rows.empty()) backend.fill(Scalar(0), rows.data, rows.shape().size());
    }
  }
};

/// How much of the first pass is recorded.
enum class Recorded : std::uint8_t { Nothing, Forward, All };

/// Scores the chunk, unless that is done; with `gradients`, also the gradient of its loss with
/// respect to what those have places for. The second pass needs as much recorded as it has tangents
/// for.
template <class Model, class B, class Tree, class Gradients, class Caches>
void upper_values(Context<B> c, const Model& model, const Tree& p,
                  const UpperInput<typename B::Scalar>& in, const Caches& caches,
                  const Gradients* gradients, Recorded recorded, typename B::Scalar* nll,
                  UpperRecord<Model, typename B::Scalar>& out) {
  using Scalar = typename B::Scalar;
  out.tape.clear();
  out.at = model.positions(c, in.position, in.h.rows, in.sequences);
  if (recorded != Recorded::Nothing) c.tape = &out.tape;
  // Kept, so nothing is written over h.
  const View<Scalar> h(const_cast<Scalar*>(in.h.data), in.h.rows, in.h.cols, in.h.stride);
  const auto y = model.upper_forward(c, p, h, true, out.saved, out.at, caches);
  out.forward = out.tape.size();
  if (recorded != Recorded::All) c.tape = nullptr;
  const bool stays = gradients != nullptr && !in.dy.empty();
  const auto dy = stays ? c.record(in.dy) : c.adjoint(y, gradients != nullptr);
  if (!in.scored) {
    ops::cross_entropy(c, y, model.head(p), in.targets, in.loss_weights, nll, dy);
  }
  if (gradients == nullptr) return;
  model.upper_backward(c, p, out.saved, dy, *gradients, false, out.at, caches);
}

/// The outer gradient of the chunk: adds to `d` and to the gradients of the keys and values, and
/// returns that of in.h, good until the workspace is released. `p` has tangents along which the
/// chunk's loss is differentiated a second time, or none; `seed` is the weight of its loss in the
/// outer one.
template <class Model, class B, class Tree, class Gradients, class Caches>
View<typename B::Scalar> upper_tangents(const B& backend, Workspace<B>& workspace,
                                        const Model& model, const Tree& p,
                                        const UpperInput<typename B::Scalar>& in,
                                        const Caches& caches, double seed, const Gradients& d,
                                        UpperRecord<Model, typename B::Scalar>& record) {
  using Scalar = typename B::Scalar;
  TangentContext<B> c{backend, workspace, record.tape};
  const View<Scalar> value(const_cast<Scalar*>(in.h.data), in.h.rows, in.h.cols, in.h.stride);
  const DualView<Scalar> h{value, {}, in.h.rows, in.h.cols};
  const auto y = model.upper_forward(c, p, h, true, record.moved, record.at, caches);
  const auto dy = ops::cross_entropy(c, y, model.head(p), in.targets, in.loss_weights, seed,
                                     Model::has_tied_head ? d.embedding : d.head);
  return model.upper_backward(c, p, record.moved, dy, d, true, record.at, caches).tangent;
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
