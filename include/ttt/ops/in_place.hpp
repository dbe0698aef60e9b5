// SPDX-License-Identifier: MIT
/// \file
/// A linear map that learns in closed form along a sequence (In-Place TTT, arXiv 2604.06169), and
/// the convolution that says what it learns.
///
/// Ordinary reverse mode only: nothing here is differentiated a second time, so these operations
/// have no form on tangents.
#pragma once

#include <algorithm>

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

/// v[t] = sum over k of taps[:, k] * x[t + k - half], channel by channel, over the rows of t's own
/// chunk only: chunks of `chunk` rows begin at row 0.
template <class B>
View<typename B::Scalar> chunk_conv(Context<B>& c, View<const typename B::Scalar> x,
                                    Weight<typename B::Scalar> taps, Index chunk) {
  const auto v = c.make(x.rows, x.cols);
  c.backend.chunk_conv(x, taps, chunk, v);
  return v;
}

/// dx (+)= the gradient and dtaps += theirs; an absent one is not computed.
template <class B>
void chunk_conv_backward(Context<B>& c, View<const typename B::Scalar> x,
                         Weight<typename B::Scalar> taps, Index chunk,
                         View<const typename B::Scalar> dy, View<typename B::Scalar> dx,
                         Write write, View<typename B::Scalar> dtaps) {
  if (!dtaps.empty() && c.gradients == Write::Replace) {
    c.backend.fill(typename B::Scalar(0), dtaps.data, dtaps.shape().size());
  }
  c.backend.chunk_conv_backward(x, taps, chunk, dy, dx, write, dtaps);
}

/// How far a sequence learns in closed form: chunk i of `chunk` rows is mapped by W_i, and
///
///     W_{i+1} = W_i + rate * h_iᵀ v_i,   W_0 = w
///
/// Without a chunk nothing learns.
struct InPlaceRule {
  Index chunk = 0;
  double rate = 0;

  /// Whether rows that follow one another learn from each other.
  bool learns(Index rows) const { return chunk > 0 && rows > chunk; }
};

namespace detail {

/// Calls f(first row, rows, whether later chunks learn from them) for every chunk, in order or the
/// other way round.
template <class F>
void for_chunks(Index rows, Index chunk, bool backwards, const F& f) {
  const Index chunks = (rows + chunk - 1) / chunk;
  for (Index n = 0; n < chunks; ++n) {
    const Index i = backwards ? chunks - 1 - n : n;
    f(i * chunk, std::min(chunk, rows - i * chunk), i + 1 < chunks);
  }
}

template <class B>
View<typename B::Scalar> scaled(Context<B>& c, View<const typename B::Scalar> v, double rate) {
  const auto out = c.workspace.matrix(v.rows, v.cols);
  c.backend.axpby(rate, v.data, 0.0, out.data, v.rows * v.cols);
  return out;
}

}  // namespace detail

/// y_i = h_i W_i for every chunk. 4 · rows · in · out operations. The weights of a chunk are the
/// sum of what all chunks before it add, so only that sum goes along the sequence; the products of
/// different chunks do not wait for each other's results.
template <class B>
View<typename B::Scalar> in_place_linear(Context<B>& c, Factor<const typename B::Scalar> h,
                                         Weight<typename B::Scalar> w,
                                         View<const typename B::Scalar> v, InPlaceRule rule) {
  using Scalar = typename B::Scalar;
  const auto y = c.make(h.rows, w.cols);
  if (!rule.learns(h.rows)) {
    c.backend.matmul(h, w, y, Write::Replace);
    return y;
  }
  const Index mark = c.workspace.used();
  const View<Scalar> now = c.workspace.matrix(w.rows, w.cols);
  const View<Scalar> steps = detail::scaled(c, v, rule.rate);
  c.backend.widen(w, now);
  detail::for_chunks(h.rows, rule.chunk, false, [&](Index first, Index rows, bool teaches) {
    const auto part = h.rows_at(first, rows);
    c.backend.matmul(part, now, y.rows_at(first, rows), Write::Replace);
    if (teaches) c.backend.matmul_gradient(part, steps.rows_at(first, rows), now, Write::Add);
  });
  c.workspace.release(mark);
  return y;
}

/// Replaces dh and dv, and dw as the context says; an absent dw is not computed. With G_i the
/// gradient of W_{i+1}, the sum of h_jᵀ dy_j over the chunks j behind i:
///
///     dh_i = dy_i W_iᵀ + rate * v_i G_iᵀ,   dv_i = rate * h_i G_i
template <class B>
void in_place_linear_backward(Context<B>& c, Factor<const typename B::Scalar> h,
                              Weight<typename B::Scalar> w, View<const typename B::Scalar> v,
                              InPlaceRule rule, View<const typename B::Scalar> dy,
                              View<typename B::Scalar> dw, View<typename B::Scalar> dh,
                              View<typename B::Scalar> dv) {
  using Scalar = typename B::Scalar;
  const Index mark = c.workspace.used(), size = w.rows * w.cols;
  const View<Scalar> sum = c.workspace.matrix(w.rows, w.cols);  // W_i, then G_i
  const View<Scalar> steps = detail::scaled(c, v, rule.rate);
  c.backend.widen(w, sum);
  detail::for_chunks(h.rows, rule.chunk, false, [&](Index first, Index rows, bool teaches) {
    c.backend.matmul(dy.rows_at(first, rows), Weight<Scalar>(sum).transpose(),
                     dh.rows_at(first, rows), Write::Replace);
    if (!teaches) return;
    c.backend.matmul_gradient(h.rows_at(first, rows), steps.rows_at(first, rows), sum, Write::Add);
  });
  c.backend.fill(Scalar(0), sum.data, size);
  c.backend.fill(Scalar(0), dv.data, dv.shape().size());
  detail::for_chunks(h.rows, rule.chunk, true, [&](Index first, Index rows, bool teaches) {
    const auto part = h.rows_at(first, rows);
    if (teaches) {
      c.backend.matmul(part, sum, dv.rows_at(first, rows), Write::Replace);
      c.backend.matmul(steps.rows_at(first, rows), Weight<Scalar>(sum).transpose(),
                       dh.rows_at(first, rows), Write::Add);
    }
    c.backend.matmul_gradient(part, dy.rows_at(first, rows), sum, Write::Add);
  });
  c.backend.axpby(rule.rate, dv.data, 0.0, dv.data, dv.shape().size());
  if (!dw.empty()) {
    c.backend.axpby(1.0, sum.data, c.gradients == Write::Add ? 1.0 : 0.0, dw.data, size);
  }
  c.workspace.release(mark);
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
