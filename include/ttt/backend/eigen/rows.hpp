// SPDX-License-Identifier: MIT
/// \file
/// Everything that works row by row: norms, rotary positions, SwiGLU, sums and updates.
#pragma once

#include <algorithm>
#include <cmath>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/eigen/simd.hpp>
#include <ttt/core/thread_pool.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// Rows a task takes, and elements of a flat vector.
inline constexpr Index row_block = 16;
inline constexpr Index flat_block = 1 << 14;

/// Calls f(t) for every row, in blocks over the threads.
template <class F>
inline void for_rows(ThreadPool& pool, Index rows, const F& f) {
  pool.run((rows + row_block - 1) / row_block, [&](Index task) {
    for (Index t = task * row_block; t < std::min(rows, (task + 1) * row_block); ++t) f(t);
  });
}

/// Calls f with the norm's scale as a pointer to its elements, or to nullptr where all are one.
template <class S, class F>
inline void with_scale(const Norm<S>& norm, const F& f) {
  norm.scale.visit([&](auto stored) { f(stored.data); });
}

template <class P, class Element>
TTT_INLINE P scaled(const Element* scale, Index j, const P& value) {
  return scale == nullptr ? value : packet::pmul(load<P>(scale + j), value);
}

template <class S>
TTT_INLINE S inverse_rms(const S* x, Index size, double eps) {
  const S sum = sum_lanes<S>(size, [&]<class P>(Index j) {
    const P v = load<P>(x + j);
    return packet::pmul(v, v);
  });
  // One number a row multiplies all of it: in double it is right to the last bit, for nothing.
  return static_cast<S>(1 / std::sqrt(static_cast<double>(sum) / static_cast<double>(size) + eps));
}

/// dx (+)= inverse * scale * dy - x * inverse³ / size * <scale * dy, x>. dx may be dy.
template <class S, class Element>
TTT_INLINE void norm_backward_row(const S* x, const Element* scale, S inverse, const S* dy,
                                  Index size, S* dx, Write write) {
  const S dot = sum_lanes<S>(size, [&]<class P>(Index j) {
    return packet::pmul(scaled<P>(scale, j, load<P>(dy + j)), load<P>(x + j));
  });
  const double wide = static_cast<double>(inverse);
  const S pull =
      static_cast<S>(-wide * wide * wide * static_cast<double>(dot) / static_cast<double>(size));
  for_lanes<S>(size, [&]<class P>(Index j) {
    P value = packet::pmul(broadcast<P>(inverse), scaled<P>(scale, j, load<P>(dy + j)));
    value = packet::pmadd(broadcast<P>(pull), load<P>(x + j), value);
    store(dx + j, write == Write::Add ? packet::padd(load<P>(dx + j), value) : value);
  });
}

template <class S>
void rms_norm(ThreadPool& pool, View<const S> x, const Norm<S>& norm, View<S> y, View<S> inverse) {
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      const S inv = inverse_rms(x.row(t), x.cols, norm.eps);
      if (!inverse.empty()) inverse(t, 0) = inv;
      for_lanes<S>(x.cols, [&]<class P>(Index j) {
        store(y.row(t) + j,
              packet::pmul(scaled<P>(scale, j, broadcast<P>(inv)), load<P>(x.row(t) + j)));
      });
    });
  });
}

template <class S>
void add_rms_norm(ThreadPool& pool, View<const S> h, View<const S> x, const Norm<S>& norm,
                  View<S> out, View<S> inverse) {
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      const S inv = inverse_rms(x.row(t), x.cols, norm.eps);
      if (!inverse.empty()) inverse(t, 0) = inv;
      for_lanes<S>(x.cols, [&]<class P>(Index j) {
        const P normed = packet::pmul(broadcast<P>(inv), load<P>(x.row(t) + j));
        store(out.row(t) + j, packet::padd(load<P>(h.row(t) + j), scaled<P>(scale, j, normed)));
      });
    });
  });
}

template <class S>
void rms_norm_backward(ThreadPool& pool, View<const S> x, const Norm<S>& norm,
                       View<const S> inverse, View<const S> dy, View<S> dx, Write write,
                       View<S> dscale) {
  if (!dscale.empty()) {
    // Before dx: it may be dy. Columns are cut over the threads, rows are summed in order.
    constexpr Index block = 64;
    pool.run((x.cols + block - 1) / block, [&](Index task) {
      const Index first = task * block;
      const Index size = std::min(block, x.cols - first);
      S* sum = dscale.data + first;
      for (Index t = 0; t < x.rows; ++t) {
        for_lanes<S>(size, [&]<class P>(Index j) {
          const P normed = packet::pmul(broadcast<P>(inverse(t, 0)), load<P>(x.row(t) + first + j));
          store(sum + j, packet::pmadd(load<P>(dy.row(t) + first + j), normed, load<P>(sum + j)));
        });
      }
    });
  }
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      norm_backward_row(x.row(t), scale, inverse(t, 0), dy.row(t), x.cols, dx.row(t), write);
    });
  });
}

template <class S>
void add(ThreadPool& pool, View<const S> a, View<const S> b, View<S> out) {
  for_rows(pool, a.rows, [&](Index t) {
    for_lanes<S>(a.cols, [&]<class P>(Index j) {
      store(out.row(t) + j, packet::padd(load<P>(a.row(t) + j), load<P>(b.row(t) + j)));
    });
  });
}

template <class S>
void embed(ThreadPool& pool, const Weight<S>& table, const Token* tokens, View<S> out) {
  table.visit([&](auto stored) {
    for_rows(pool, out.rows, [&](Index t) {
      for_lanes<S>(out.cols, [&]<class P>(Index j) {
        store(out.row(t) + j, load<P>(stored.row(tokens[t]) + j));
      });
    });
  });
}

/// dtable[tokens[t]] += dout[t]. Tokens repeat: columns are cut over the threads, rows are added in
/// order.
template <class S>
void embed_backward(ThreadPool& pool, const Token* tokens, View<const S> dout, View<S> dtable) {
  constexpr Index block = 64;
  pool.run((dout.cols + block - 1) / block, [&](Index task) {
    const Index first = task * block;
    const Index size = std::min(block, dout.cols - first);
    for (Index t = 0; t < dout.rows; ++t) {
      const S* from = dout.row(t) + first;
      S* to = dtable.row(tokens[t]) + first;
      for_lanes<S>(size, [&]<class P>(Index j) {
        store(to + j, packet::padd(load<P>(to + j), load<P>(from + j)));
      });
    }
  });
}

template <class S>
void rope_angles(ThreadPool& pool, Index position, const double* frequencies, View<S> out) {
  const Index half = out.cols / 2;
  for_rows(pool, out.rows, [&](Index t) {
    for (Index i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position + t) * frequencies[i];
      out(t, i) = static_cast<S>(std::cos(angle));
      out(t, half + i) = static_cast<S>(std::sin(angle));
    }
  });
}

/// Turns the pairs of one head by their angles; Sign = -1 turns back. y may be x.
template <int Sign, class S>
TTT_INLINE void rotate(const S* x, const S* angles, Index d, RopeLayout layout, S* y) {
  const Index half = d / 2;
  if (layout == RopeLayout::HalfSplit) {
    for_lanes<S>(half, [&]<class P>(Index i) {
      const P u = load<P>(x + i), v = load<P>(x + half + i);
      const P c = load<P>(angles + i);
      const P s = packet::pmul(broadcast<P>(S(Sign)), load<P>(angles + half + i));
      store(y + i, packet::psub(packet::pmul(u, c), packet::pmul(v, s)));
      store(y + half + i, packet::pmadd(u, s, packet::pmul(v, c)));
    });
    return;
  }
  constexpr Index n = lanes<S>;
  Index i = 0;
  if constexpr (n > 1) {
    using P = Packet<S>;
    alignas(64) S signs[n];
    for (Index j = 0; j < n; ++j) signs[j] = static_cast<S>(j % 2 == 0 ? -Sign : Sign);
    const P sign = load<P>(signs);
    for (; i + n / 2 <= half; i += n / 2) {
      const P pairs = load<P>(x + 2 * i);
      const P c = packet::ploaddup<P>(angles + i);
      const P s = packet::pmul(sign, packet::ploaddup<P>(angles + half + i));
      store(y + 2 * i, packet::pmadd(swap_pairs(pairs), s, packet::pmul(pairs, c)));
    }
  }
  for (; i < half; ++i) {
    const S u = x[2 * i], v = x[2 * i + 1];
    const S c = angles[i], s = static_cast<S>(Sign) * angles[half + i];
    y[2 * i] = u * c - v * s;
    y[2 * i + 1] = u * s + v * c;
  }
}

template <class S>
void head_norm_rope(ThreadPool& pool, View<const S> x, const Norm<S>& norm, View<const S> angles,
                    RopeLayout layout, View<S> y, View<S> inverse) {
  const Index d = angles.cols;
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      for (Index h = 0; h * d < x.cols; ++h) {
        const S* in = x.row(t) + h * d;
        S* out = y.row(t) + h * d;
        if (norm.eps >= 0) {
          const S inv = inverse_rms(in, d, norm.eps);
          if (!inverse.empty()) inverse(t, h) = inv;
          for_lanes<S>(d, [&]<class P>(Index j) {
            store(out + j, scaled<P>(scale, j, packet::pmul(broadcast<P>(inv), load<P>(in + j))));
          });
          in = out;
        }
        rotate<1>(in, angles.row(t), d, layout, out);
      }
    });
  });
}

template <class S>
void head_norm_rope_backward(ThreadPool& pool, View<const S> x, const Norm<S>& norm,
                             View<const S> inverse, View<const S> angles, RopeLayout layout,
                             View<const S> dy, View<S> dx, View<S> dscale) {
  const Index d = angles.cols;
  for_rows(pool, x.rows, [&](Index t) {
    for (Index h = 0; h * d < x.cols; ++h) {
      rotate<-1>(dy.row(t) + h * d, angles.row(t), d, layout, dx.row(t) + h * d);
    }
  });
  if (norm.eps < 0) return;
  if (!dscale.empty()) {
    for (Index t = 0; t < x.rows; ++t) {
      for (Index h = 0; h * d < x.cols; ++h) {
        const S* in = x.row(t) + h * d;
        const S* out = dx.row(t) + h * d;
        for_lanes<S>(d, [&]<class P>(Index j) {
          const P normed = packet::pmul(broadcast<P>(inverse(t, h)), load<P>(in + j));
          store(dscale.data + j, packet::pmadd(load<P>(out + j), normed, load<P>(dscale.data + j)));
        });
      }
    }
  }
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      for (Index h = 0; h * d < x.cols; ++h) {
        S* out = dx.row(t) + h * d;
        norm_backward_row(x.row(t) + h * d, scale, inverse(t, h), out, d, out, Write::Replace);
      }
    });
  });
}

template <class P>
TTT_INLINE P one_plus_exp(const P& x) {
  return packet::padd(broadcast<P>(typename packet::unpacket_traits<P>::type(1)), exp(x));
}

/// 1 / (1 + exp(-x)).
template <class P>
TTT_INLINE P sigmoid(const P& x) {
  const P one = broadcast<P>(typename packet::unpacket_traits<P>::type(1));
  return packet::pdiv(one, one_plus_exp(packet::pnegate(x)));
}

template <class S>
void swiglu(ThreadPool& pool, View<const S> gate, View<const S> up, View<S> out) {
  for_rows(pool, gate.rows, [&](Index t) {
    for_lanes<S>(gate.cols, [&]<class P>(Index j) {
      const P g = load<P>(gate.row(t) + j);
      const P product = packet::pmul(g, load<P>(up.row(t) + j));
      store(out.row(t) + j, packet::pdiv(product, one_plus_exp(packet::pnegate(g))));
    });
  });
}

template <class S>
void swiglu_backward(ThreadPool& pool, View<const S> gate, View<const S> up, View<const S> dout,
                     View<S> dgate, View<S> dup) {
  for_rows(pool, gate.rows, [&](Index t) {
    for_lanes<S>(gate.cols, [&]<class P>(Index j) {
      const P one = broadcast<P>(S(1));
      const P g = load<P>(gate.row(t) + j);
      const P d = load<P>(dout.row(t) + j);
      const P s = sigmoid(g);
      const P ds = packet::pmul(d, s);
      const P slope = packet::pmadd(g, packet::psub(one, s), one);
      store(dgate.row(t) + j, packet::pmul(packet::pmul(ds, load<P>(up.row(t) + j)), slope));
      store(dup.row(t) + j, packet::pmul(ds, g));
    });
  });
}

/// With b = 0, y is written and never read.
template <class S>
void axpby(ThreadPool& pool, double a, const S* x, double b, S* y, Index size) {
  pool.run((size + flat_block - 1) / flat_block, [&](Index task) {
    const Index first = task * flat_block;
    for_lanes<S>(std::min(flat_block, size - first), [&]<class P>(Index j) {
      const P ax = packet::pmul(broadcast<P>(static_cast<S>(a)), load<P>(x + first + j));
      if (b == 0) {
        store(y + first + j, ax);
      } else {
        const P old = load<P>(y + first + j);
        store(y + first + j, packet::pmadd(broadcast<P>(static_cast<S>(b)), old, ax));
      }
    });
  });
}

/// One step of Adam, every element read and written once: with g = scale * gradient,
///
///     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g²,
///     weights -= rate * (m * unbias1) / (sqrt(v * unbias2) + eps)
template <class S>
void adam(ThreadPool& pool, const AdamStep& step, const S* gradient, S* m, S* v, S* weights,
          Index size) {
  const S scale = static_cast<S>(step.scale), eps = static_cast<S>(step.eps);
  const S beta1 = static_cast<S>(step.beta1), new1 = static_cast<S>(1 - step.beta1);
  const S beta2 = static_cast<S>(step.beta2), new2 = static_cast<S>(1 - step.beta2);
  const S rate = static_cast<S>(-step.rate * step.unbias1);
  const S unbias2 = static_cast<S>(step.unbias2);
  pool.run((size + flat_block - 1) / flat_block, [&](Index task) {
    const Index first = task * flat_block;
    for_lanes<S>(std::min(flat_block, size - first), [&]<class P>(Index i) {
      const Index j = first + i;
      const P g = packet::pmul(broadcast<P>(scale), load<P>(gradient + j));
      const P mean =
          packet::pmadd(broadcast<P>(beta1), load<P>(m + j), packet::pmul(broadcast<P>(new1), g));
      const P square = packet::pmadd(broadcast<P>(beta2), load<P>(v + j),
                                     packet::pmul(broadcast<P>(new2), packet::pmul(g, g)));
      const P root = packet::psqrt(packet::pmul(broadcast<P>(unbias2), square));
      const P change = packet::pdiv(packet::pmul(broadcast<P>(rate), mean),
                                    packet::padd(root, broadcast<P>(eps)));
      store(m + j, mean);
      store(v + j, square);
      store(weights + j, packet::padd(load<P>(weights + j), change));
    });
  });
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
