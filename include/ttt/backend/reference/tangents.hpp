// SPDX-License-Identifier: MIT
/// \file
/// The tangent primitives of the oracle: by definition, the value primitives on dual numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <ttt/backend/concepts.hpp>
#include <ttt/core/dual.hpp>

namespace ttt::inline TTT_ABI {
namespace reference {

template <class S>
class Backend;

/// Gives a reference backend its tangent forms. Unlike a fast backend's they allocate: values and
/// tangents are zipped into matrices of duals, and what comes out is unzipped.
template <class S>
class Tangents {
  using D = Dual<S>;

  /// A matrix of duals of its own.
  class Lifted {
   public:
    Lifted(Index rows, Index cols)
        : numbers_(static_cast<std::size_t>(rows * cols)), rows_(rows), cols_(cols) {}
    explicit Lifted(View<const S> value, View<const S> tangent = {})
        : Lifted(value.rows, value.cols) {
      for (Index t = 0; t < rows_; ++t) {
        for (Index j = 0; j < cols_; ++j) {
          view()(t, j) = D(value(t, j), tangent.empty() ? S(0) : tangent(t, j));
        }
      }
    }
    View<D> view() { return {numbers_.data(), rows_, cols_}; }
    View<const D> view() const { return {numbers_.data(), rows_, cols_}; }

    void tangent(View<S> out, Write write = Write::Replace) const {
      if (out.empty()) return;
      for (Index t = 0; t < rows_; ++t) {
        for (Index j = 0; j < cols_; ++j) {
          out(t, j) = (write == Write::Add ? out(t, j) : S(0)) + view()(t, j).tangent;
        }
      }
    }

   private:
    std::vector<D> numbers_;
    Index rows_, cols_;
  };

  /// Constants, in the layout they had.
  static Lifted lift(const Weight<S>& w) {
    return w.visit([](auto stored) {
      Lifted out(stored.rows, stored.cols);
      for (Index i = 0; i < stored.rows; ++i) {
        for (Index j = 0; j < stored.cols; ++j) {
          out.view()(i, j) = D(static_cast<S>(stored(i, j)));
        }
      }
      return out;
    });
  }
  class LiftedNorm {
   public:
    explicit LiftedNorm(const Norm<S>& norm)
        : scale_(norm.scale.empty() ? Lifted(0, 0) : lift(norm.scale)), eps_(norm.eps) {}
    Norm<D> norm() const {
      const View<const D> view = scale_.view();
      return {view.rows == 0 ? Weight<D>() : Weight<D>(view), eps_};
    }

   private:
    Lifted scale_;
    double eps_;
  };
  /// A cache in which the rows from `position` on have tangents.
  class LiftedCache {
   public:
    LiftedCache(Cache<const S> values, View<const S> tangents, Index position)
        : numbers_(values.data, values.data + values.size()), cache_(values) {
      for (Index t = 0; t < tangents.rows; ++t) {
        for (Index j = 0; j < tangents.cols; ++j) {
          const S* at = values.at(j / values.head_dim, position + t) + j % values.head_dim;
          numbers_[static_cast<std::size_t>(at - values.data)].tangent = tangents(t, j);
        }
      }
    }
    Cache<const D> cache() const {
      return {numbers_.data(), cache_.heads, cache_.slots, cache_.head_dim};
    }

   private:
    std::vector<D> numbers_;
    Cache<const S> cache_;
  };

 public:
  void rms_norm_tangent(View<const S> x, View<const S> tx, Norm<S> norm, View<const S>,
                        View<const S> th, View<S> ty, View<S> tinverse) const {
    Lifted y(x.rows, x.cols), inverse(x.rows, 1);
    const Lifted h = th.empty() ? Lifted(x.rows, x.cols) : Lifted(th, th);
    lifted().add_rms_norm(h.view(), Lifted(x, tx).view(), LiftedNorm(norm).norm(), y.view(),
                          inverse.view());
    y.tangent(ty);
    inverse.tangent(tinverse);
  }

  void rms_norm_backward_tangent(View<const S> x, View<const S> tx, Norm<S> norm,
                                 View<const S> inverse, View<const S> tinverse, View<const S> dy,
                                 View<const S> tdy, View<S> tdx, Write write,
                                 View<S> tdscale) const {
    Lifted dx(x.rows, x.cols), dscale(1, x.cols);
    lifted().rms_norm_backward(Lifted(x, tx).view(), LiftedNorm(norm).norm(),
                               Lifted(inverse, tinverse).view(), Lifted(dy, tdy).view(), dx.view(),
                               Write::Replace, dscale.view());
    dx.tangent(tdx, write);
    dscale.tangent(tdscale, Write::Add);
  }

  void head_norm_rope_tangent(View<const S> x, View<const S> tx, Norm<S> norm,
                              View<const S> inverse, View<const S> angles, RopeLayout layout,
                              View<S> ty, View<S> tinverse) const {
    Lifted y(x.rows, x.cols), inv(inverse.rows, inverse.cols);
    lifted().head_norm_rope(Lifted(x, tx).view(), LiftedNorm(norm).norm(), Lifted(angles).view(),
                            layout, y.view(), inv.view());
    y.tangent(ty);
    inv.tangent(tinverse);
  }

  void head_norm_rope_backward_tangent(View<const S> x, View<const S> tx, Norm<S> norm,
                                       View<const S> inverse, View<const S> tinverse,
                                       View<const S> angles, RopeLayout layout, View<const S> dy,
                                       View<const S> tdy, View<S> tdx, View<S> tdscale) const {
    Lifted dx(x.rows, x.cols), dscale(1, angles.cols);
    lifted().head_norm_rope_backward(Lifted(x, tx).view(), LiftedNorm(norm).norm(),
                                     Lifted(inverse, tinverse).view(), Lifted(angles).view(),
                                     layout, Lifted(dy, tdy).view(), dx.view(), dscale.view());
    dx.tangent(tdx);
    dscale.tangent(tdscale, Write::Add);
  }

  void swiglu_tangent(View<const S> gate, View<const S> tgate, View<const S> up, View<const S> tup,
                      View<S> tout) const {
    Lifted out(gate.rows, gate.cols);
    lifted().swiglu(Lifted(gate, tgate).view(), Lifted(up, tup).view(), out.view());
    out.tangent(tout);
  }

  void swiglu_backward_tangent(View<const S> gate, View<const S> tgate, View<const S> up,
                               View<const S> tup, View<const S> dout, View<const S> tdout,
                               View<S> tdgate, View<S> tdup) const {
    Lifted dgate(gate.rows, gate.cols), dup(gate.rows, gate.cols);
    lifted().swiglu_backward(Lifted(gate, tgate).view(), Lifted(up, tup).view(),
                             Lifted(dout, tdout).view(), dgate.view(), dup.view());
    dgate.tangent(tdgate);
    dup.tangent(tdup);
  }

  void attention_tangent(View<const S> q, View<const S> tq, Cache<const S> keys,
                         Cache<const S> values, View<const S> tkeys, View<const S> tvalues,
                         AttentionShape shape, View<const S>, View<const S>, View<S> to,
                         View<S> tlse) const {
    Lifted o(q.rows, q.cols), lse(shape.heads, q.rows);
    lifted().attention(Lifted(q, tq).view(), LiftedCache(keys, tkeys, shape.position).cache(),
                       LiftedCache(values, tvalues, shape.position).cache(), shape, o.view(),
                       lse.view());
    o.tangent(to);
    lse.tangent(tlse);
  }

  void attention_backward_tangent(View<const S> q, View<const S> tq, Cache<const S> keys,
                                  Cache<const S> values, View<const S> tkeys, View<const S> tvalues,
                                  AttentionShape shape, View<const S> o, View<const S> to,
                                  View<const S> lse, View<const S> tlse, View<const S> dout,
                                  View<const S> tdout, View<S> tdq, View<S> tdkeys,
                                  View<S> tdvalues, Index first) const {
    const Index rows = std::max<Index>(0, shape.position + q.rows - first);
    Lifted dq(q.rows, q.cols), dkeys(rows, shape.key_heads * shape.head_dim), dvalues = dkeys;
    lifted().attention_backward(
        Lifted(q, tq).view(), LiftedCache(keys, tkeys, shape.position).cache(),
        LiftedCache(values, tvalues, shape.position).cache(), shape, Lifted(o, to).view(),
        Lifted(lse, tlse).view(), Lifted(dout, tdout).view(), dq.view(), dkeys.view(),
        dvalues.view(), first);
    dq.tangent(tdq);
    dkeys.tangent(tdkeys, Write::Add);
    dvalues.tangent(tdvalues, Write::Add);
  }

  Index cross_entropy_tangent_scratch(Index, Index) const { return 0; }

  void cross_entropy_tangent(View<const S> h, View<const S> th, Weight<S> head,
                             const Token* targets, const S* weights, double seed, View<S> tdh,
                             View<S> tdhead, S*) const {
    using std::exp;
    const Lifted hidden(h, th), stored = lift(head);
    const Weight<D> w =
        head.transposed ? Weight<D>(stored.view()).transpose() : Weight<D>(stored.view());
    Lifted logits(h.rows, head.cols), dh(h.rows, h.cols);
    lifted().matmul(hidden.view(), w, logits.view(), Write::Replace);
    for (Index t = 0; t < h.rows; ++t) {
      const View<D> row = logits.view().rows_at(t, 1);
      D most = row(0, 0), sum = 0;
      for (Index j = 1; j < row.cols; ++j) {
        if (row(0, j) > most) most = row(0, j);
      }
      for (Index j = 0; j < row.cols; ++j) sum += exp(row(0, j) - most);
      const D weight(weights[t], static_cast<S>(seed) * weights[t]);
      for (Index j = 0; j < row.cols; ++j) {
        row(0, j) = weight * (exp(row(0, j) - most) / sum - D(j == targets[t] ? 1 : 0));
      }
    }
    if (!tdh.empty()) {
      lifted().matmul(logits.view(), w.transpose(), dh.view(), Write::Replace);
      dh.tangent(tdh);
    }
    if (tdhead.empty()) return;
    Lifted dhead(tdhead.rows, tdhead.cols);
    const bool turned = is_embedding(tdhead, head);
    const Lifted& left = turned ? logits : hidden;
    const Lifted& right = turned ? hidden : logits;
    lifted().matmul_gradient(left.view(), right.view(), dhead.view(), Write::Replace);
    dhead.tangent(tdhead, Write::Add);
  }

 protected:
  Tangents() = default;
  ~Tangents() = default;
  Tangents(const Tangents&) = default;
  Tangents& operator=(const Tangents&) = default;

 private:
  static Backend<D> lifted() { return Backend<D>(); }
};

}  // namespace reference
}  // namespace ttt::inline TTT_ABI
