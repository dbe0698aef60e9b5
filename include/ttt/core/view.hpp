// SPDX-License-Identifier: MIT
/// \file
/// Views of matrices somebody else owns: plain ones, and weights as they lie in a file.
#pragma once

#include <string>
#include <type_traits>

#include <ttt/core/dtype.hpp>
#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// Rows and columns. A vector is one row.
struct Shape {
  Index rows = 0;
  Index cols = 0;

  constexpr Index size() const { return rows * cols; }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

inline std::string to_string(const Shape& shape) {
  return "(" + std::to_string(shape.rows) + ", " + std::to_string(shape.cols) + ")";
}

/// A row-major matrix in memory somebody else owns: one row a token, `stride` elements apart.
///
/// Copying copies the view. A view without data stands for "not there": a gradient nobody wants, a
/// tangent that is zero.
template <class T>
struct View {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;

  constexpr View() = default;
  TTT_HD constexpr View(T* data_, Index rows_, Index cols_) : View(data_, rows_, cols_, cols_) {}
  TTT_HD constexpr View(T* data_, Index rows_, Index cols_, Index stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}

  /// A view to write through can be read through.
  TTT_HD constexpr operator View<const T>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }

  TTT_HD constexpr bool empty() const { return data == nullptr; }
  constexpr Shape shape() const { return {rows, cols}; }
  TTT_HD constexpr T* row(Index i) const { return data + i * stride; }
  TTT_HD constexpr T& operator()(Index i, Index j) const { return data[i * stride + j]; }
  constexpr View rows_at(Index first, Index count) const {
    return {row(first), count, cols, stride};
  }
  /// Part i of the rows, cut into as many equal ones: those of one sequence of several.
  constexpr View part(Index i, Index parts) const {
    return rows_at(i * (rows / parts), rows / parts);
  }
  constexpr View cols_at(Index first, Index count) const {
    return {data + first, rows, count, stride};
  }
};

/// A weight matrix [rows, cols] = [in, out] as it lies in memory: of the arithmetic's own type or
/// in bfloat16, stored [in, out] (the authors) or [out, in] (Hugging Face, and a tied embedding
/// used as the head). Nothing is copied to use it.
template <class Scalar>
struct Weight {
  const void* data = nullptr;
  Index rows = 0;           // in
  Index cols = 0;           // out
  Index stride = 0;         // elements between stored rows
  bool transposed = false;  // stored [out, in]
  bool narrow = false;      // stored as bfloat16

  constexpr Weight() = default;
  constexpr Weight(View<const Scalar> v)
      : data(v.data), rows(v.rows), cols(v.cols), stride(v.stride) {}
  constexpr Weight(View<Scalar> v) : Weight(View<const Scalar>(v)) {}
  constexpr Weight(View<const bfloat16> v)
      : data(v.data), rows(v.rows), cols(v.cols), stride(v.stride), narrow(true) {}

  TTT_HD constexpr bool empty() const { return data == nullptr; }
  constexpr Shape shape() const { return {rows, cols}; }

  /// The same memory read as [out, in].
  constexpr Weight transpose() const {
    Weight other = *this;
    other.rows = cols;
    other.cols = rows;
    other.transposed = !transposed;
    return other;
  }

  /// The stored matrix, as `Element`: [in, out], or [out, in] when transposed.
  template <class Element>
  constexpr View<const Element> stored() const {
    return {static_cast<const Element*>(data), transposed ? cols : rows, transposed ? rows : cols,
            stride};
  }

  /// Calls f with the stored matrix in its own element type.
  template <class F>
  constexpr decltype(auto) visit(F&& f) const {
    return narrow ? f(stored<bfloat16>()) : f(stored<Scalar>());
  }
};

/// A matrix that products multiply and nobody else reads, one row a token, in memory somebody else
/// owns: of the arithmetic's own type or, where a backend's products round what they multiply, in
/// bfloat16 already (docs/numerics.md); then it cannot be had as a View, and asking for one throws.
/// Copying copies the view.
template <class T>
struct Factor {
  using Scalar = std::remove_const_t<T>;
  using Narrow = std::conditional_t<std::is_const_v<T>, const bfloat16, bfloat16>;

  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;     // elements of the type that is stored
  bool narrow = false;  // stored as bfloat16

  constexpr Factor() = default;
  template <class U>
  requires std::is_convertible_v<View<U>, View<T>>
  constexpr Factor(View<U> v) : data(v.data), rows(v.rows), cols(v.cols), stride(v.stride) {}
  template <class U>
  requires std::is_convertible_v<View<U>, View<T>>
  constexpr Factor(const Factor<U>& f)
      : data(f.data), rows(f.rows), cols(f.cols), stride(f.stride), narrow(f.narrow) {}
  /// In memory with as many columns, or with fewer: then as many bfloat16s.
  constexpr Factor(View<T> memory, Index cols_) : Factor(memory) {
    if (memory.empty() || cols_ == memory.cols) return;
    narrow = true;
    cols = cols_;
    stride = memory.stride * scalar_size / narrow_size;
  }
  /// The columns of scalars that so many bfloat16s take.
  static constexpr Index narrow_cols(Index cols) {
    return (cols * narrow_size + scalar_size - 1) / scalar_size;
  }

  constexpr bool empty() const { return data == nullptr; }
  constexpr Shape shape() const { return {rows, cols}; }
  /// As it is stored; absent where it is stored in the other type.
  constexpr View<T> values() const {
    return narrow ? View<T>() : View<T>(data, rows, cols, stride);
  }
  View<Narrow> rounded() const {
    return narrow ? View<Narrow>(reinterpret_cast<Narrow*>(data), rows, cols, stride)
                  : View<Narrow>();
  }
  /// The memory it takes, whatever is stored there.
  constexpr View<T> memory() const {
    return narrow ? View<T>(data, rows, narrow_cols(cols), stride * narrow_size / scalar_size)
                  : values();
  }

  constexpr operator View<T>() const { return scalars(); }
  constexpr operator View<const T>() const requires(!std::is_const_v<T>) { return scalars(); }
  operator Weight<Scalar>() const {
    return narrow ? Weight<Scalar>(View<const bfloat16>(rounded()))
                  : Weight<Scalar>(View<const Scalar>(values()));
  }

  constexpr Factor rows_at(Index first, Index count) const {
    return {memory().rows_at(first, count), cols};
  }
  /// Part i of the rows, cut into as many equal ones: those of one sequence of several.
  constexpr Factor part(Index i, Index parts) const {
    return rows_at(i * (rows / parts), rows / parts);
  }

 private:
  static constexpr Index scalar_size = sizeof(T), narrow_size = sizeof(bfloat16);

  constexpr View<T> scalars() const {
    if (narrow) detail::fail("Factor: it is stored in bfloat16, and cannot be read as scalars");
    return values();
  }
};

namespace detail {

/// Throws unless both shapes are the same. `what` names the operation and the operand.
inline void check_shape(const char* what, Shape got, Shape expected) {
  if (!(got == expected)) {
    fail<ShapeError>(std::string(what) + ": the shape is " + to_string(got) + ", expected " +
                     to_string(expected));
  }
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
