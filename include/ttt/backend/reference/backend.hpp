// SPDX-License-Identifier: MIT
/// \file
/// The oracle: every primitive as a plain loop, on any scalar, as the formulas are written.
#pragma once

#include <cmath>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/host_memory.hpp>
#include <ttt/backend/reference/conv.hpp>
#include <ttt/backend/reference/tangents.hpp>

namespace ttt::inline TTT_ABI {
namespace reference {

/// Computes what the formulas say in the order they say it. Slow on purpose: other backends are
/// tested against it, and it is tested against finite differences.
template <class S = double>
class Backend : public HostMemory, public Tangents<S> {
 public:
  using Scalar = S;
  using CacheScalar = S;
  static constexpr Index most_head_dim = Index{1} << 20;

  /// Independent pieces of work that can go on at a time.
  static constexpr int threads() { return 1; }
  template <class Task>
  void run(Index count, const Task& task) const {
    for (Index i = 0; i < count; ++i) task(i);
  }

  /// y (+)= x · w.
  void matmul(View<const S> x, Weight<S> w, View<S> y, Write write) const {
    w.visit([&](auto stored) {
      for (Index t = 0; t < x.rows; ++t) {
        for (Index j = 0; j < w.cols; ++j) {
          S sum = 0;
          for (Index k = 0; k < w.rows; ++k) {
            sum += x(t, k) * static_cast<S>(w.transposed ? stored(j, k) : stored(k, j));
          }
          y(t, j) = write == Write::Add ? y(t, j) + sum : sum;
        }
      }
    });
  }

  /// dw (+)= xᵀ · dy.
  void matmul_gradient(View<const S> x, View<const S> dy, View<S> dw, Write write) const {
    for (Index i = 0; i < dw.rows; ++i) {
      for (Index j = 0; j < dw.cols; ++j) {
        S sum = 0;
        for (Index t = 0; t < x.rows; ++t) sum += x(t, i) * dy(t, j);
        dw(i, j) = write == Write::Add ? dw(i, j) + sum : sum;
      }
    }
  }

  /// out[t] = table[tokens[t]].
  void embed(Weight<S> table, const Token* tokens, View<S> out) const {
    table.visit([&](auto stored) {
      for (Index t = 0; t < out.rows; ++t) {
        for (Index j = 0; j < out.cols; ++j) out(t, j) = static_cast<S>(stored(tokens[t], j));
      }
    });
  }

  /// dtable[tokens[t]] += dout[t].
  void embed_backward(const Token* tokens, View<const S> dout, View<S> dtable) const {
    for (Index t = 0; t < dout.rows; ++t) {
      for (Index j = 0; j < dout.cols; ++j) dtable(tokens[t], j) += dout(t, j);
    }
  }

  /// y = x * inverse * scale with inverse = 1 / sqrt(mean(x²) + eps), one a row.
  void rms_norm(View<const S> x, Norm<S> norm, View<S> y, View<S> inverse) const {
    for (Index t = 0; t < x.rows; ++t) {
      const S inv = inverse_rms(x.row(t), x.cols, norm.eps);
      for (Index j = 0; j < x.cols; ++j) y(t, j) = x(t, j) * inv * scale_of(norm, j);
      if (!inverse.empty()) inverse(t, 0) = inv;
    }
  }

  /// dx (+)= the gradient; dscale, where wanted, is added to.
  void rms_norm_backward(View<const S> x, Norm<S> norm, View<const S> inverse, View<const S> dy,
                         View<S> dx, Write write, View<S> dscale) const {
    for (Index t = 0; t < x.rows; ++t) {
      const S inv = inverse(t, 0);
      const S pull = norm_pull(x.row(t), norm, inv, dy.row(t), x.cols);
      for (Index j = 0; j < x.cols; ++j) {
        const S value = inv * scale_of(norm, j) * dy(t, j) - x(t, j) * pull;
        if (!dscale.empty()) dscale(0, j) += dy(t, j) * x(t, j) * inv;
        dx(t, j) = write == Write::Add ? dx(t, j) + value : value;
      }
    }
  }

  /// out = a + b. `out` may be `a`.
  void add(View<const S> a, View<const S> b, View<S> out) const {
    for (Index t = 0; t < a.rows; ++t) {
      for (Index j = 0; j < a.cols; ++j) out(t, j) = a(t, j) + b(t, j);
    }
  }

  /// out = h + rms_norm(x). `out` may be `h`.
  void add_rms_norm(View<const S> h, View<const S> x, Norm<S> norm, View<S> out,
                    View<S> inverse) const {
    for (Index t = 0; t < x.rows; ++t) {
      const S inv = inverse_rms(x.row(t), x.cols, norm.eps);
      for (Index j = 0; j < x.cols; ++j) out(t, j) = h(t, j) + x(t, j) * inv * scale_of(norm, j);
      if (!inverse.empty()) inverse(t, 0) = inv;
    }
  }

  /// out(t, i), out(t, d/2 + i) = cos, sin of (position + t) * frequencies[i], reduced in double.
  void rope_angles(Index position, const double* frequencies, View<S> out) const {
    const Index half = out.cols / 2;
    for (Index t = 0; t < out.rows; ++t) {
      for (Index i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position + t) * frequencies[i];
        out(t, i) = static_cast<S>(std::cos(angle));
        out(t, half + i) = static_cast<S>(std::sin(angle));
      }
    }
  }

  /// Per head: y = rope(norm(x)), one inverse a row and head; without a norm (eps < 0), y = rope(x)
  /// and no inverse is written.
  void head_norm_rope(View<const S> x, Norm<S> norm, View<const S> angles, RopeLayout layout,
                      View<S> y, View<S> inverse) const {
    const Index d = angles.cols;
    for (Index t = 0; t < x.rows; ++t) {
      for (Index h = 0; h * d < x.cols; ++h) {
        const S* in = x.row(t) + h * d;
        const S inv = norm.eps < 0 ? S(1) : inverse_rms(in, d, norm.eps);
        if (norm.eps >= 0 && !inverse.empty()) inverse(t, h) = inv;
        for (Index i = 0; i < d / 2; ++i) {
          const auto [a, b] = rope_pair(layout, i, d);
          const S u = in[a] * inv * scale_of(norm, a), v = in[b] * inv * scale_of(norm, b);
          const S c = angles(t, i), s = angles(t, d / 2 + i);
          y(t, h * d + a) = u * c - v * s;
          y(t, h * d + b) = u * s + v * c;
        }
      }
    }
  }

  /// dx = the gradient; dscale, where wanted, is added to.
  void head_norm_rope_backward(View<const S> x, Norm<S> norm, View<const S> inverse,
                               View<const S> angles, RopeLayout layout, View<const S> dy,
                               View<S> dx, View<S> dscale) const {
    const Index d = angles.cols;
    for (Index t = 0; t < x.rows; ++t) {
      for (Index h = 0; h * d < x.cols; ++h) {
        const S* in = x.row(t) + h * d;
        S* out = dx.row(t) + h * d;
        for (Index i = 0; i < d / 2; ++i) {
          const auto [a, b] = rope_pair(layout, i, d);
          const S u = dy(t, h * d + a), v = dy(t, h * d + b);
          const S c = angles(t, i), s = angles(t, d / 2 + i);
          out[a] = u * c + v * s;
          out[b] = v * c - u * s;
        }
        if (norm.eps < 0) continue;
        const S inv = inverse(t, h);
        const S pull = norm_pull(in, norm, inv, out, d);
        for (Index j = 0; j < d; ++j) {
          if (!dscale.empty()) dscale(0, j) += out[j] * in[j] * inv;
          out[j] = inv * scale_of(norm, j) * out[j] - in[j] * pull;
        }
      }
    }
  }

  /// out = silu(gate) * up.
  void swiglu(View<const S> gate, View<const S> up, View<S> out) const {
    for (Index t = 0; t < gate.rows; ++t) {
      for (Index j = 0; j < gate.cols; ++j) {
        out(t, j) = gate(t, j) * sigmoid(gate(t, j)) * up(t, j);
      }
    }
  }

  void swiglu_backward(View<const S> gate, View<const S> up, View<const S> dout, View<S> dgate,
                       View<S> dup) const {
    for (Index t = 0; t < gate.rows; ++t) {
      for (Index j = 0; j < gate.cols; ++j) {
        const S g = gate(t, j), u = up(t, j), d = dout(t, j), s = sigmoid(g);
        dup(t, j) = d * g * s;
        dgate(t, j) = d * u * s * (S(1) + g * (S(1) - s));
      }
    }
  }

  /// y(t, c) = sum over k of taps(c, k) * x(t + k - half, c), over the rows of t's own chunk, of
  /// which the first begins at row 0; `half` is half the number of taps.
  void chunk_conv(View<const S> x, Weight<S> taps, Index chunk, View<S> y) const {
    detail::for_taps<S>(x.rows, taps, chunk, [&](Index t, Index c, Index k, Index from, S tap) {
      y(t, c) = (k == 0 ? S(0) : y(t, c)) + (from < 0 ? S(0) : tap * x(from, c));
    });
  }

  /// dx (+)= the gradient; dtaps, where wanted, is added to.
  void chunk_conv_backward(View<const S> x, Weight<S> taps, Index chunk, View<const S> dy,
                           View<S> dx, Write write, View<S> dtaps) const {
    if (!dx.empty() && write == Write::Replace) {
      for (Index t = 0; t < dx.rows; ++t) {
        for (Index j = 0; j < dx.cols; ++j) dx(t, j) = 0;
      }
    }
    detail::for_taps<S>(x.rows, taps, chunk, [&](Index t, Index c, Index k, Index from, S tap) {
      if (from < 0) return;
      if (!dx.empty()) dx(from, c) += tap * dy(t, c);
      if (!dtaps.empty()) dtaps(c, k) += dy(t, c) * x(from, c);
    });
  }

  /// Puts rows into the cache at their positions.
  void store(View<const S> rows, Cache<S> cache, Index position) const {
    for (Index t = 0; t < rows.rows; ++t) {
      for (Index h = 0; h < cache.heads; ++h) {
        for (Index j = 0; j < cache.head_dim; ++j) {
          cache.at(h, position + t)[j] = rows(t, h * cache.head_dim + j);
        }
      }
    }
  }

  /// o = softmax(q·kᵀ / sqrt(d))·v over the keys each query sees; lse(h, t) = log of the row's sum.
  void attention(View<const S> q, Cache<const S> keys, Cache<const S> values, AttentionShape shape,
                 View<S> o, View<S> lse) const {
    using std::exp, std::log;
    const Index d = shape.head_dim;
    for (Index h = 0; h < shape.heads; ++h) {
      const Index kh = h / (shape.heads / shape.key_heads);
      for (Index t = 0; t < q.rows; ++t) {
        const Index p = shape.position + t;
        S most = 0;
        for (Index j = shape.first_key(p); j <= p; ++j) {
          const S s = score(q.row(t) + h * d, keys.at(kh, j), d);
          if (j == shape.first_key(p) || s > most) most = s;
        }
        S sum = 0;
        for (Index i = 0; i < d; ++i) o(t, h * d + i) = 0;
        for (Index j = shape.first_key(p); j <= p; ++j) {
          const S weight = exp(score(q.row(t) + h * d, keys.at(kh, j), d) - most);
          sum += weight;
          for (Index i = 0; i < d; ++i) o(t, h * d + i) += weight * values.at(kh, j)[i];
        }
        for (Index i = 0; i < d; ++i) o(t, h * d + i) /= sum;
        if (!lse.empty()) lse(h, t) = most + log(sum);
      }
    }
  }

  /// Replaces dq and adds to dkeys and dvalues, whose row r belongs to position first + r. Keys and
  /// values before `first` are constants.
  void attention_backward(View<const S> q, Cache<const S> keys, Cache<const S> values,
                          AttentionShape shape, View<const S> o, View<const S> lse,
                          View<const S> dout, View<S> dq, View<S> dkeys, View<S> dvalues,
                          Index first) const {
    using std::exp, std::sqrt;
    const Index d = shape.head_dim;
    const S scale = S(1) / sqrt(static_cast<S>(d));
    for (Index t = 0; t < q.rows; ++t) {
      for (Index i = 0; i < dq.cols; ++i) dq(t, i) = 0;
    }
    for (Index h = 0; h < shape.heads; ++h) {
      const Index kh = h / (shape.heads / shape.key_heads);
      for (Index t = 0; t < q.rows; ++t) {
        const Index p = shape.position + t;
        S delta = 0;
        for (Index i = h * d; i < (h + 1) * d; ++i) delta += dout(t, i) * o(t, i);
        for (Index j = shape.first_key(p); j <= p; ++j) {
          const S* k = keys.at(kh, j);
          const S weight = exp(score(q.row(t) + h * d, k, d) - lse(h, t));
          S dweight = 0;
          for (Index i = 0; i < d; ++i) dweight += dout(t, h * d + i) * values.at(kh, j)[i];
          const S dscore = weight * (dweight - delta) * scale;
          for (Index i = 0; i < d; ++i) dq(t, h * d + i) += dscore * k[i];
          if (j < first) continue;
          for (Index i = 0; i < d; ++i) {
            dkeys(j - first, kh * d + i) += dscore * q(t, h * d + i);
            dvalues(j - first, kh * d + i) += weight * dout(t, h * d + i);
          }
        }
      }
    }
  }

  Index cross_entropy_scratch(Index, Index vocabulary) const { return vocabulary; }

  /// nll[t] = -log softmax(h[t] · head)[targets[t]]; dh = d(sum of weights[t] * nll[t]) / dh.
  void cross_entropy(View<const S> h, Weight<S> head, const Token* targets, const S* weights,
                     S* nll, View<S> dh, S* scratch) const {
    using std::exp, std::log;
    const Index words = head.cols;
    for (Index t = 0; t < h.rows; ++t) {
      View<S> logits(scratch, 1, words);
      matmul(h.rows_at(t, 1), head, logits, Write::Replace);
      S most = logits(0, 0), sum = 0;
      for (Index j = 1; j < words; ++j) {
        if (logits(0, j) > most) most = logits(0, j);
      }
      for (Index j = 0; j < words; ++j) sum += exp(logits(0, j) - most);
      nll[t] = most + log(sum) - logits(0, targets[t]);
      if (dh.empty()) continue;
      for (Index j = 0; j < words; ++j) {
        logits(0, j) = weights[t] * (exp(logits(0, j) - most) / sum - S(j == targets[t] ? 1 : 0));
      }
      matmul(logits, head.transpose(), dh.rows_at(t, 1), Write::Replace);
    }
  }

  /// out[t] = what the row logits[t] says of its token.
  void next_token(View<const S> logits, NextToken<S>* out) const {
    using std::exp, std::log;
    for (Index t = 0; t < logits.rows; ++t) {
      S most = logits(t, 0), sum = 0;
      Token likeliest = 0;
      for (Index j = 1; j < logits.cols; ++j) {
        if (!(logits(t, j) > most)) continue;
        most = logits(t, j);
        likeliest = static_cast<Token>(j);
      }
      for (Index j = 0; j < logits.cols; ++j) {
        const S below = logits(t, j) - most;
        sum += exp(below) + below * S(0);
      }
      out[t] = {most + log(sum), most, likeliest};
    }
  }

  double dot(const S* x, const S* y, Index size) const {
    double sum = 0;
    for (Index i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    return sum;
  }

  /// y = a x + b y; with b = 0, y is written and never read.
  void axpby(double a, const S* x, double b, S* y, Index size) const {
    for (Index i = 0; i < size; ++i) {
      y[i] = static_cast<S>(a) * x[i] + (b == 0 ? S(0) : static_cast<S>(b) * y[i]);
    }
  }

  /// One step on flat vectors, as AdamStep says.
  void adam(const AdamStep& s, const S* gradient, S* m, S* v, S* weights, Index size) const {
    using std::sqrt;
    for (Index i = 0; i < size; ++i) {
      const S g = static_cast<S>(s.scale) * gradient[i];
      m[i] = static_cast<S>(s.beta1) * m[i] + static_cast<S>(1 - s.beta1) * g;
      v[i] = static_cast<S>(s.beta2) * v[i] + static_cast<S>(1 - s.beta2) * g * g;
      weights[i] -= static_cast<S>(s.rate) * (static_cast<S>(s.unbias1) * m[i]) /
                    (sqrt(static_cast<S>(s.unbias2) * v[i]) + static_cast<S>(s.eps));
    }
  }

 private:
  static S scale_of(const Norm<S>& norm, Index j) {
    if (norm.scale.empty() || norm.eps < 0) return S(1);
    return norm.scale.visit([&](auto stored) { return static_cast<S>(stored(0, j)); });
  }

  static S inverse_rms(const S* x, Index size, double eps) {
    using std::sqrt;
    S sum = 0;
    for (Index j = 0; j < size; ++j) sum += x[j] * x[j];
    return S(1) / sqrt(sum / static_cast<S>(size) + static_cast<S>(eps));
  }

  /// 1 / (1 + exp(-x)), by the exponential that cannot overflow: on duals infinity has no tangent.
  static S sigmoid(S x) {
    using std::exp;
    if (!(x < S(0))) return S(1) / (S(1) + exp(-x));
    const S power = exp(x);
    return power / (S(1) + power);
  }

  /// What every dx loses along x: inverse³ / size * <scale * dy, x>.
  static S norm_pull(const S* x, const Norm<S>& norm, S inverse, const S* dy, Index size) {
    S dot = 0;
    for (Index j = 0; j < size; ++j) dot += scale_of(norm, j) * dy[j] * x[j];
    return inverse * inverse * inverse * dot / static_cast<S>(size);
  }

  struct Pair {
    Index first, second;
  };
  static Pair rope_pair(RopeLayout layout, Index i, Index d) {
    return layout == RopeLayout::Interleaved ? Pair{2 * i, 2 * i + 1} : Pair{i, i + d / 2};
  }

  static S score(const S* q, const S* k, Index d) {
    using std::sqrt;
    S sum = 0;
    for (Index i = 0; i < d; ++i) sum += q[i] * k[i];
    return sum / sqrt(static_cast<S>(d));
  }
};

}  // namespace reference
}  // namespace ttt::inline TTT_ABI
