// SPDX-License-Identifier: MIT
/// \file
/// What every operation is given: the machine to run on and the scratch memory to put results in.
#pragma once

#include <span>
#include <vector>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/workspace.hpp>

namespace ttt::inline TTT_ABI {

/// The results of a pass in the order they were made, for a TangentContext to find again. A result
/// that was not wanted leaves an empty view.
template <class Scalar>
using Tape = std::vector<View<Scalar>>;

/// An operand that is not there.
template <class B>
inline constexpr View<typename B::Scalar> absent{};

namespace detail {

/// The columns of scalars that a factor takes in memory: half as many where the backend says that
/// its products round factors of that shape.
template <class B>
Index factor_cols(const B& backend, Index rows, Index cols) {
  if constexpr (requires { backend.rounds_factors(rows, cols); }) {
    using Stored = Factor<typename B::Scalar>;
    return backend.rounds_factors(rows, cols) ? Stored::narrow_cols(cols) : cols;
  } else {
    return cols;
  }
}

}  // namespace detail

/// Operations allocate their results here, so a composition of them reads like the formula. What a
/// forward pass takes must stay until the backward pass has used it: see Scope.
///
/// The operations come in forms that differ in the type of their activations only: a layer is a
/// template over the context, written once. This is the value form: a matrix is its values. The
/// other is TangentContext.
template <class B>
struct Context {
  using Machine = B;
  using Scalar = typename B::Scalar;
  using Tensor = View<Scalar>;

  const B& backend;
  Workspace<B>& workspace;
  Write gradients = Write::Replace;  // what weight gradients do to their place
  Tape<Scalar>* tape = nullptr;      // where results are recorded; then all of them stay

  Tensor make(Index rows, Index cols) { return record(workspace.matrix(rows, cols)); }
  Factor<Scalar> make_factor(Index rows, Index cols) {
    return {make(rows, detail::factor_cols(backend, rows, cols)), cols};
  }

  /// A place for the gradient of `of`; an absent one if nobody wants it.
  Tensor adjoint(const auto& of, bool wanted = true) {
    return wanted ? make(of.rows, of.cols) : record({});
  }
  Factor<Scalar> adjoint_factor(const auto& of) { return make_factor(of.rows, of.cols); }

  /// A place for what is added to t: t itself, unless both are to be remembered.
  Tensor over(const Tensor& t) {
    if (tape == nullptr) return t;
    const Tensor copy = make(t.rows, t.cols);
    backend.copy(t.data, copy.data, t.rows * t.cols);
    return copy;
  }

  /// A result that lies somewhere already.
  Tensor record(Tensor t) {
    if (tape != nullptr) tape->push_back(t);
    return t;
  }

  bool keeps() const { return tape != nullptr; }
};

/// A matrix of dual numbers: values, and tangents, which say how the values change when something
/// moves. An absent tangent is zero; an absent value is one that nobody needs.
template <class Scalar>
struct DualView {
  View<Scalar> value;
  View<Scalar> tangent;
  Index rows = 0;
  Index cols = 0;

  bool moves() const { return !tangent.empty(); }
  bool empty() const { return value.empty() && tangent.empty(); }
};

/// Factors of products likewise.
template <class Scalar>
struct DualFactor {
  Factor<Scalar> value;
  Factor<Scalar> tangent;
  Index rows = 0;
  Index cols = 0;

  DualFactor() = default;
  DualFactor(const DualView<Scalar>& v)
      : value(v.value), tangent(v.tangent), rows(v.rows), cols(v.cols) {}
  DualFactor(Factor<Scalar> value_, Factor<Scalar> tangent_, Index rows_, Index cols_)
      : value(value_), tangent(tangent_), rows(rows_), cols(cols_) {}

  bool moves() const { return !tangent.empty(); }
};

namespace detail {
template <class Tensor>
struct FactorFor;
template <class Scalar>
struct FactorFor<View<Scalar>> {
  using Type = Factor<Scalar>;
};
template <class Scalar>
struct FactorFor<DualView<Scalar>> {
  using Type = DualFactor<Scalar>;
};
}  // namespace detail

/// What a form of the operations has for a matrix that products multiply and nobody else reads.
template <class Tensor>
using FactorOf = typename detail::FactorFor<Tensor>::Type;

/// One sequence's rows among those of several.
struct SequencePart {
  Index place = 0;  // which of the sequences it is: what it has of its own lies by this
  Index first = 0;  // row
  Index rows = 0;
  Index position = 0;  // of the first row, in the sequence's document

  /// Part s of several: as the list says or, without one, an equal part of the rows.
  static SequencePart find(std::span<const SequencePart> parts, Index s, Index sequences,
                           Index rows, Index position = 0) {
    if (!parts.empty()) return parts[static_cast<std::size_t>(s)];
    const Index each = rows / sequences;
    return {s, s * each, each, position};
  }

  /// Those of a matrix, or of a view of one.
  template <class Tensor>
  Tensor of(const Tensor& all) const {
    return all.rows_at(first, rows);
  }
};

/// A weight for the rows of several sequences, one sequence's under the other's. What learns at
/// test time every sequence has of its own, the next one's `apart` elements behind, and their
/// tangents and gradients lie as far apart; any other weight is one for all rows.
///
/// Sequences have equal parts of the rows, unless `parts` lists what each has. The list is looked
/// at, not copied.
template <class Scalar>
struct StackedWeight : Weight<Scalar> {
  Index sequences = 1;  // that have one of their own
  Index apart = 0;
  std::span<const SequencePart> parts = {};

  StackedWeight() = default;
  StackedWeight(Weight<Scalar> first, Index sequences_ = 1, Index apart_ = 0,
                std::span<const SequencePart> parts_ = {})
      : Weight<Scalar>(first), sequences(sequences_), apart(apart_), parts(parts_) {}

  /// Part s of so many rows.
  SequencePart part(Index s, Index of_rows) const {
    return SequencePart::find(parts, s, sequences, of_rows);
  }

  /// That of one sequence.
  Weight<Scalar> of(Index s) const {
    Weight<Scalar> own = *this;
    if (s > 0) {
      own.data = own.narrow
                     ? static_cast<const void*>(static_cast<const bfloat16*>(own.data) + s * apart)
                     : static_cast<const Scalar*>(own.data) + s * apart;
    }
    return own;
  }
  /// The place of its gradient, when `first` is that of the first one's.
  View<Scalar> gradient_of(Index s, View<Scalar> first) const {
    return {first.data + s * apart, first.rows, first.cols, first.stride};
  }
  StackedWeight transpose() const { return {Weight<Scalar>::transpose(), sequences, apart, parts}; }
};

/// A weight and its tangent, which only what learns at test time has.
template <class Scalar>
struct DualWeight : StackedWeight<Scalar> {
  StackedWeight<Scalar> tangent;

  DualWeight() = default;
  DualWeight(StackedWeight<Scalar> value, StackedWeight<Scalar> tangent_ = {})
      : StackedWeight<Scalar>(value), tangent(tangent_) {}

  bool moves() const { return !tangent.empty(); }
  DualWeight transpose() const {
    return {StackedWeight<Scalar>::transpose(), moves() ? tangent.transpose() : tangent};
  }
};

/// The dual form, for a second pass over what a Context has recorded: every operation finds the
/// values it computed then, and computes tangents only, none where nothing moves.
///
/// Going backwards, the value of a gradient is that of the recorded pass, and its tangent is the
/// gradient of the outer loss (docs/outer_loop.md): tangents are seeded, sums of them are kept,
/// and values are only looked at. Values beyond the end of the tape are absent: a pass that was
/// recorded forwards only is good for an ordinary backward pass, in which nothing moves.
template <class B>
struct TangentContext {
  using Machine = B;
  using Scalar = typename B::Scalar;
  using Tensor = DualView<Scalar>;

  const B& backend;
  Workspace<B>& workspace;
  const Tape<Scalar>& tape;
  std::size_t next = 0;

  /// The next recorded value, with room for a tangent if it has one.
  Tensor make(Index rows, Index cols, bool moves) {
    return {recall(rows, cols), moves ? workspace.matrix(rows, cols) : View<Scalar>(), rows, cols};
  }
  DualFactor<Scalar> make_factor(Index rows, Index cols, bool moves) {
    const Tensor memory = make(rows, detail::factor_cols(backend, rows, cols), moves);
    return {{memory.value, cols}, {memory.tangent, cols}, rows, cols};
  }
  /// The outer gradient of anything is wanted, whether it moves or not.
  Tensor adjoint(const auto& of, bool = true) { return make(of.rows, of.cols, true); }
  DualFactor<Scalar> adjoint_factor(const auto& of) { return make_factor(of.rows, of.cols, true); }
  Tensor over(const Tensor& t) { return {recall(t.rows, t.cols), t.tangent, t.rows, t.cols}; }

  static constexpr bool keeps() { return false; }

 private:
  View<Scalar> recall(Index rows, Index cols) {
    if (next == tape.size()) return {};
    const View<Scalar> value = tape[next++];
    if (!value.empty())
      detail::check_shape("tangents: recorded value", value.shape(), {rows, cols});
    return value;
  }
};

/// Gives back what was taken from a context's workspace since; keeps everything while it records.
template <class C>
class Scope {
 public:
  explicit Scope(C& context) : context_(context), mark_(context.workspace.used()) {}
  ~Scope() {
    if (!context_.keeps()) context_.workspace.release(mark_);
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  C& context_;
  Index mark_;
};

}  // namespace ttt::inline TTT_ABI
