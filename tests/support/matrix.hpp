// SPDX-License-Identifier: MIT
/// \file
/// Matrices that own their memory and notice when a primitive strays from its view.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <support/random.hpp>
#include <vector>

#include <ttt/core/view.hpp>

namespace ttt::test {

/// A strided matrix between guards. What lies outside the view, the gap between columns and stride
/// included, holds one value: not a number around inputs, so that using it shows in the result; a
/// number around outputs, so that writing or adding to it shows in `guarded()`. An input's last row
/// ends with its memory, where a sanitizer watches.
template <class T>
class Matrix {
 public:
  static Matrix input(Index rows, Index cols, Index gap = 0) {
    return {rows, cols, cols + gap, 0, std::numeric_limits<double>::quiet_NaN()};
  }
  static Matrix input(Random& random, Index rows, Index cols, Index gap = 0, double scale = 1) {
    Matrix out = input(rows, cols, gap);
    fill(random, out.view(), scale);
    return out;
  }
  static Matrix output(Index rows, Index cols, Index gap = 0) {
    return {rows, cols, cols + gap, margin, -777.25};
  }
  static Matrix output(Random& random, Index rows, Index cols, Index gap = 0) {
    Matrix out = output(rows, cols, gap);
    fill(random, out.view());
    return out;
  }

  View<T> view() { return {memory_.data() + margin, rows_, cols_, stride_}; }
  View<const T> view() const { return {memory_.data() + margin, rows_, cols_, stride_}; }
  T& operator()(Index i, Index j) { return view()(i, j); }
  const T& operator()(Index i, Index j) const { return view()(i, j); }

  /// The same values, as near as U comes to them, between the same guards.
  template <class U>
  Matrix<U> as() const {
    Matrix<U> other(rows_, cols_, stride_, behind_, guard_);
    for (Index i = 0; i < rows_; ++i) {
      for (Index j = 0; j < cols_; ++j) other(i, j) = cast<U>(static_cast<double>((*this)(i, j)));
    }
    return other;
  }

  /// Whether nothing outside the view was written to.
  bool guarded() const {
    const T guard = cast<T>(guard_);
    const auto size = static_cast<Index>(memory_.size());
    for (Index i = 0; i < size; ++i) {
      const Index at = i - margin;
      const bool inside = at >= 0 && cols_ > 0 && at / stride_ < rows_ && at % stride_ < cols_;
      if (!inside && std::memcmp(&memory_[static_cast<std::size_t>(i)], &guard, sizeof(T)) != 0) {
        return false;
      }
    }
    return true;
  }

  bool same_bits(const Matrix& other) const {
    return memory_.size() == other.memory_.size() &&
           std::memcmp(memory_.data(), other.memory_.data(), memory_.size() * sizeof(T)) == 0;
  }

 private:
  template <class U>
  friend class Matrix;
  static constexpr Index margin = 16;

  Matrix(Index rows, Index cols, Index stride, Index behind, double guard)
      : rows_(rows),
        cols_(cols),
        stride_(stride),
        behind_(behind),
        guard_(guard),
        memory_(static_cast<std::size_t>(margin + rows * stride - (rows > 0 ? stride - cols : 0) +
                                         behind),
                cast<T>(guard)) {}

  Index rows_, cols_, stride_, behind_;
  double guard_;
  std::vector<T> memory_;
};

/// A weight in one of its four forms: the scalar or bfloat16, [in, out] or [out, in].
template <class S>
class StoredWeight {
 public:
  StoredWeight(Random& random, Shape shape, bool transposed, bool narrow, Index gap = 0,
               double scale = 1)
      : transposed_(transposed),
        narrow_(narrow),
        wide_(Matrix<S>::input(0, 0)),
        brief_(Matrix<bfloat16>::input(0, 0)) {
    if (transposed) shape = {shape.cols, shape.rows};
    if (narrow) {
      brief_ = Matrix<bfloat16>::input(random, shape.rows, shape.cols, gap, scale);
    } else {
      wide_ = Matrix<S>::input(random, shape.rows, shape.cols, gap, scale);
    }
  }

  Weight<S> weight() const {
    const Weight<S> stored = narrow_ ? Weight<S>(brief_.view()) : Weight<S>(wide_.view());
    return transposed_ ? stored.transpose() : stored;
  }

  template <class U>
  StoredWeight<U> as() const {
    return {transposed_, narrow_, wide_.template as<U>(), brief_};
  }

 private:
  template <class U>
  friend class StoredWeight;

  StoredWeight(bool transposed, bool narrow, Matrix<S> wide, Matrix<bfloat16> brief)
      : transposed_(transposed),
        narrow_(narrow),
        wide_(std::move(wide)),
        brief_(std::move(brief)) {}

  bool transposed_, narrow_;
  Matrix<S> wide_;
  Matrix<bfloat16> brief_;
};

}  // namespace ttt::test
