// SPDX-License-Identifier: MIT
/// \file
/// Linear maps without bias, and the residual sum.
#pragma once

#include <algorithm>
#include <array>

#include <ttt/ops/context.hpp>

namespace ttt::inline TTT_ABI {
namespace ops {

namespace detail {

/// y (+)= x · w, and dw (+)= xᵀ · dy with the weight to know whose gradient is where: every
/// sequence's rows by its own. A backend gets one product for all rows or one a sequence, unless it
/// has those of equal parts in one primitive, matmul_parts and matmul_gradient_parts.
template <class B>
void product(const B& backend, Factor<const typename B::Scalar> x,
             const StackedWeight<typename B::Scalar>& w, View<typename B::Scalar> y, Write write) {
  const Index n = w.sequences;
  if constexpr (requires { backend.matmul_parts(x, w, n, w.apart, y, write); }) {
    if (n > 1 && w.parts.empty() && backend.matmul_parts(x, w, n, w.apart, y, write)) return;
  }
  for (Index s = 0; s < n; ++s) {
    const SequencePart own = w.part(s, x.rows);
    backend.matmul(own.of(x), w.of(own.place), own.of(y), write);
  }
}
/// y = x · w of each weight. A backend may have them in one primitive, matmul_each, where one
/// sequence's rows are all.
template <class B, std::size_t count>
void products(const B& backend, Factor<const typename B::Scalar> x,
              const std::array<StackedWeight<typename B::Scalar>, count>& w,
              const std::array<View<typename B::Scalar>, count>& y) {
  if constexpr (count > 1 && requires(std::array<Weight<typename B::Scalar>, count> alone) {
                  backend.matmul_each(x, alone, y);
                }) {
    std::array<Weight<typename B::Scalar>, count> alone;
    std::copy(w.begin(), w.end(), alone.begin());
    const bool is_one =
        std::all_of(w.begin(), w.end(), [](const auto& each) { return each.sequences == 1; });
    if (is_one && backend.matmul_each(x, alone, y)) return;
  }
  for (std::size_t i = 0; i < count; ++i) product(backend, x, w[i], y[i], Write::Replace);
}
template <class B>
void product_gradient(const B& backend, Factor<const typename B::Scalar> x,
                      Factor<const typename B::Scalar> dy,
                      const StackedWeight<typename B::Scalar>& w, View<typename B::Scalar> dw,
                      Write write) {
  const Index n = w.sequences;
  if constexpr (requires { backend.matmul_gradient_parts(x, dy, n, w.apart, dw, write); }) {
    if (n > 1 && w.parts.empty() && backend.matmul_gradient_parts(x, dy, n, w.apart, dw, write))
      return;
  }
  for (Index s = 0; s < n; ++s) {
    const SequencePart own = w.part(s, x.rows);
    backend.matmul_gradient(own.of(x), own.of(dy), w.gradient_of(own.place, dw), write);
  }
}

/// dw += xᵀ · dy of two pairs, of which the second x may be absent. A backend may have them in one
/// primitive, matmul_gradient_sum.
template <class B>
void add_gradients(const B& backend, const std::array<Factor<const typename B::Scalar>, 2>& x,
                   const std::array<Factor<const typename B::Scalar>, 2>& dy,
                   const StackedWeight<typename B::Scalar>& w, View<typename B::Scalar> dw) {
  const std::array<Weight<typename B::Scalar>, 2> left{x[0], x[1]}, right{dy[0], dy[1]};
  if constexpr (requires { backend.matmul_gradient_sum(left, right, dw, Write::Add); }) {
    if (w.sequences == 1 && !x[1].empty()) {
      return backend.matmul_gradient_sum(left, right, w.gradient_of(0, dw), Write::Add);
    }
  }
  if (!x[1].empty()) product_gradient(backend, x[1], dy[1], w, dw, Write::Add);
  product_gradient(backend, x[0], dy[0], w, dw, Write::Add);
}

}  // namespace detail

/// x · w, (tokens, in) · (in, out). 2 · tokens · in · out operations.
template <class B>
View<typename B::Scalar> linear(Context<B>& c, Factor<const typename B::Scalar> x,
                                const StackedWeight<typename B::Scalar>& w) {
  const auto y = c.make(x.rows, w.cols);
  detail::product(c.backend, x, w, y, Write::Replace);
  return y;
}

/// y' = x' · w + x · w'.
template <class B>
DualView<typename B::Scalar> linear(TangentContext<B>& c, const DualFactor<typename B::Scalar>& x,
                                    const DualWeight<typename B::Scalar>& w) {
  const auto y = c.make(x.rows, w.cols, x.moves() || w.moves());
  if (x.moves()) detail::product(c.backend, x.tangent, w, y.tangent, Write::Replace);
  if (w.moves()) {
    const Write write = x.moves() ? Write::Add : Write::Replace;
    detail::product(c.backend, x.value, w.tangent, y.tangent, write);
  }
  return y;
}

/// x · w of each weight, as linear gives them one after the other, or at once.
template <class B, class... Weights>
std::array<View<typename B::Scalar>, sizeof...(Weights)> linears(Context<B>& c,
                                                                 Factor<const typename B::Scalar> x,
                                                                 const Weights&... weights) {
  constexpr std::size_t count = sizeof...(Weights);
  const std::array<StackedWeight<typename B::Scalar>, count> w{weights...};
  const std::array<View<typename B::Scalar>, count> y{c.make(x.rows, weights.cols)...};
  detail::products(c.backend, x, w, y);
  return y;
}
template <class B, class... Weights>
std::array<DualView<typename B::Scalar>, sizeof...(Weights)> linears(
    TangentContext<B>& c, const DualFactor<typename B::Scalar>& x, const Weights&... weights) {
  using Scalar = typename B::Scalar;
  constexpr std::size_t count = sizeof...(Weights);
  const std::array<DualWeight<Scalar>, count> w{weights...};
  const std::array<DualView<Scalar>, count> y{
      c.make(x.rows, weights.cols, x.moves() || weights.moves())...};
  if (x.moves()) {
    std::array<StackedWeight<Scalar>, count> values;
    std::array<View<Scalar>, count> tangents;
    std::copy(w.begin(), w.end(), values.begin());
    std::transform(y.begin(), y.end(), tangents.begin(), [](const auto& v) { return v.tangent; });
    detail::products(c.backend, x.tangent, values, tangents);
  }
  const Write write = x.moves() ? Write::Add : Write::Replace;
  for (std::size_t i = 0; i < count; ++i) {
    if (w[i].moves()) detail::product(c.backend, x.value, w[i].tangent, y[i].tangent, write);
  }
  return y;
}

/// dw = xᵀ · dy (replaced or added to, as the context says) and dx (+)= dy · wᵀ; an absent one is
/// not computed.
template <class B>
void linear_backward(Context<B>& c, Factor<const typename B::Scalar> x,
                     const StackedWeight<typename B::Scalar>& w,
                     Factor<const typename B::Scalar> dy, View<typename B::Scalar> dw,
                     View<typename B::Scalar> dx, Write write_dx = Write::Replace) {
  if (!dw.empty()) detail::product_gradient(c.backend, x, dy, w, dw, c.gradients);
  if (!dx.empty()) detail::product(c.backend, dy, w.transpose(), dx, write_dx);
}

/// dw += x'ᵀ · dy + xᵀ · dy' and dx' (+)= dy' · wᵀ + dy · w'ᵀ.
template <class B>
void linear_backward(TangentContext<B>& c, const DualFactor<typename B::Scalar>& x,
                     const DualWeight<typename B::Scalar>& w,
                     const DualFactor<typename B::Scalar>& dy, View<typename B::Scalar> dw,
                     const DualView<typename B::Scalar>& dx, Write write_dx = Write::Replace) {
  if (!dw.empty()) {
    detail::add_gradients(c.backend, {x.value, x.tangent}, {dy.tangent, dy.value}, w, dw);
  }
  detail::product(c.backend, dy.tangent, w.transpose(), dx.tangent, write_dx);
  if (w.moves()) {
    detail::product(c.backend, dy.value, w.tangent.transpose(), dx.tangent, Write::Add);
  }
}

/// a + b: a new matrix, or with `in_place` written over a.
template <class B>
View<typename B::Scalar> add(Context<B>& c, View<typename B::Scalar> a,
                             View<const typename B::Scalar> b, bool in_place = false) {
  const auto out = in_place ? a : c.make(a.rows, a.cols);
  c.backend.add(a, b, out);
  return out;
}
template <class B>
DualView<typename B::Scalar> add(TangentContext<B>& c, const DualView<typename B::Scalar>& a,
                                 const DualView<typename B::Scalar>& b, bool = false) {
  auto out = c.make(a.rows, a.cols, a.moves() && b.moves());
  if (a.moves() && b.moves()) {
    c.backend.add(a.tangent, b.tangent, out.tangent);
  } else {
    out.tangent = a.moves() ? a.tangent : b.tangent;
  }
  return out;
}

}  // namespace ops
}  // namespace ttt::inline TTT_ABI
