// SPDX-License-Identifier: MIT
/// \file
/// The tangents of what works row by row: norms, rotary positions and SwiGLU, forwards and
/// backwards. All of it is bound by memory: every operand is read once or twice, while it is near.
#pragma once

#include <algorithm>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/eigen/attention.hpp>
#include <ttt/backend/eigen/rows.hpp>
#include <ttt/backend/eigen/simd.hpp>
#include <ttt/core/thread_pool.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

/// The tangent of 1 / sqrt(mean(x²) + eps): -inverse³ <x, tx> / size.
template <class S>
TTT_INLINE S inverse_rms_tangent(const S* x, const S* tx, S inverse, Index size) {
  const S dot = sum_lanes<S>(
      size, [&]<class P>(Index j) { return packet::pmul(load<P>(x + j), load<P>(tx + j)); });
  const double wide = static_cast<double>(inverse);
  return static_cast<S>(-wide * wide * wide * static_cast<double>(dot) / static_cast<double>(size));
}

/// scale * (inverse * tx + tinverse * x): the tangent of a norm's output.
template <class P, class S, class Element>
TTT_INLINE P norm_tangent(const S* x, const S* tx, const Element* scale, S inverse, S tinverse,
                          Index j) {
  const P along = packet::pmul(broadcast<P>(tinverse), load<P>(x + j));
  return scaled<P>(scale, j, packet::pmadd(broadcast<P>(inverse), load<P>(tx + j), along));
}

/// The tangent of norm_backward_row, with pull = inverse³ / size * <scale * dy, x>:
///
///     tpull = 3 inverse² tinverse / size * <scale * dy, x>
///           + inverse³ / size * (<scale * tdy, x> + <scale * dy, tx>)
///     tdx (+)= tinverse * scale * dy + inverse * scale * tdy - tx * pull - x * tpull
///
/// tdx may be tdy or dy.
template <class S, class Element>
TTT_INLINE void norm_backward_tangent_row(const S* x, const S* tx, const Element* scale, S inverse,
                                          S tinverse, const S* dy, const S* tdy, Index size, S* tdx,
                                          Write write) {
  const Two<S> dot = sum_two<S>(size, [&]<class P>(Index j) {
    const P at = load<P>(x + j), sdy = scaled<P>(scale, j, load<P>(dy + j));
    const P stdy = scaled<P>(scale, j, load<P>(tdy + j));
    return Two<P>{packet::pmul(sdy, at),
                  packet::pmadd(stdy, at, packet::pmul(sdy, load<P>(tx + j)))};
  });
  // Numbers that multiply whole rows: in double, as the norm itself has them.
  const double wide = static_cast<double>(inverse), first = static_cast<double>(dot.first);
  const double square = wide * wide / static_cast<double>(size);
  const S pull = static_cast<S>(-square * wide * first);
  const S tpull = static_cast<S>(-square * (3 * static_cast<double>(tinverse) * first +
                                            wide * static_cast<double>(dot.second)));
  for_lanes<S>(size, [&]<class P>(Index j) {
    P value = packet::pmadd(broadcast<P>(inverse), load<P>(tdy + j),
                            packet::pmul(broadcast<P>(tinverse), load<P>(dy + j)));
    value = packet::pmadd(broadcast<P>(pull), load<P>(tx + j), scaled<P>(scale, j, value));
    value = packet::pmadd(broadcast<P>(tpull), load<P>(x + j), value);
    store(tdx + j, write == Write::Add ? packet::padd(load<P>(tdx + j), value) : value);
  });
}

/// tdscale += tdy * x * inverse + dy * (tx * inverse + x * tinverse), for one row.
template <class S>
TTT_INLINE void scale_tangent_row(const S* x, const S* tx, S inverse, S tinverse, const S* dy,
                                  const S* tdy, Index size, S* tdscale) {
  for_lanes<S>(size, [&]<class P>(Index j) {
    const P at = load<P>(x + j);
    const P normed = packet::pmul(broadcast<P>(inverse), at);
    const P tnormed = packet::pmadd(broadcast<P>(inverse), load<P>(tx + j),
                                    packet::pmul(broadcast<P>(tinverse), at));
    const P sum = packet::pmadd(load<P>(tdy + j), normed, load<P>(tdscale + j));
    store(tdscale + j, packet::pmadd(load<P>(dy + j), tnormed, sum));
  });
}

/// ty = [th +] scale * (inverse * tx + tinverse * x), tinverse = -inverse³ <x, tx> / width, one a
/// row. ty may be th.
template <class S>
void rms_norm_tangent(ThreadPool& pool, View<const S> x, View<const S> tx,
                             const Norm<S>& norm, View<const S> inverse, View<const S> th,
                             View<S> ty, View<S> tinverse) {
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      const S inv = inverse(t, 0);
      const S tinv = inverse_rms_tangent(x.row(t), tx.row(t), inv, x.cols);
      if (!tinverse.empty()) tinverse(t, 0) = tinv;
      if (ty.empty()) return;
      for_lanes<S>(x.cols, [&]<class P>(Index j) {
        P value = norm_tangent<P>(x.row(t), tx.row(t), scale, inv, tinv, j);
        if (!th.empty()) value = packet::padd(load<P>(th.row(t) + j), value);
        store(ty.row(t) + j, value);
      });
    });
  });
}

/// tdx (+)= the tangent of rms_norm_backward's dx, and tdscale, where wanted, is added to:
/// norm_backward_tangent_row and scale_tangent_row. tdx may be tdy.
template <class S>
void rms_norm_backward_tangent(ThreadPool& pool, View<const S> x, View<const S> tx,
                                      const Norm<S>& norm, View<const S> inverse,
                                      View<const S> tinverse, View<const S> dy, View<const S> tdy,
                                      View<S> tdx, Write write, View<S> tdscale) {
  if (!tdscale.empty()) {
    // Before tdx: it may be tdy. Columns are cut over the threads, rows are summed in order.
    constexpr Index block = 64;
    pool.run((x.cols + block - 1) / block, [&](Index task) {
      const Index first = task * block;
      const Index size = std::min(block, x.cols - first);
      for (Index t = 0; t < x.rows; ++t) {
        scale_tangent_row(x.row(t) + first, tx.row(t) + first, inverse(t, 0), tinverse(t, 0),
                          dy.row(t) + first, tdy.row(t) + first, size, tdscale.data + first);
      }
    });
  }
  if (tdx.empty()) return;
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      norm_backward_tangent_row(x.row(t), tx.row(t), scale, inverse(t, 0), tinverse(t, 0),
                                dy.row(t), tdy.row(t), x.cols, tdx.row(t), write);
    });
  });
}

/// Per head: ty = rope(scale * (inverse * tx + tinverse * x)), tinverse as in rms_norm_tangent. The
/// norm is never absent: RoPE alone is its own tangent.
template <class S>
void head_norm_rope_tangent(ThreadPool& pool, View<const S> x, View<const S> tx,
                                   const Norm<S>& norm, View<const S> inverse, View<const S> angles,
                                   RopeLayout layout, View<S> ty, View<S> tinverse) {
  const Index d = angles.cols;
  with_scale(norm, [&](auto* scale) {
    for_rows(pool, x.rows, [&](Index t) {
      for (Index h = 0; h * d < x.cols; ++h) {
        const S* in = x.row(t) + h * d;
        const S* tin = tx.row(t) + h * d;
        const S tinv = inverse_rms_tangent(in, tin, inverse(t, h), d);
        if (!tinverse.empty()) tinverse(t, h) = tinv;
        if (ty.empty()) continue;
        S* out = ty.row(t) + h * d;
        for_lanes<S>(d, [&]<class P>(Index j) {
          store(out + j, norm_tangent<P>(in, tin, scale, inverse(t, h), tinv, j));
        });
        rotate<1>(out, angles.row(t), d, layout, out);
      }
    });
  });
}

/// Per head, with u and tu the rows of dy and tdy turned back: tdx and tdscale as in
/// rms_norm_backward_tangent, of u and tu. Rows are cut into as many stripes for any number of
/// threads, each with a sum of tdscale of its own.
template <class S>
void head_norm_rope_backward_tangent(ThreadPool& pool, View<const S> x, View<const S> tx,
                                            const Norm<S>& norm, View<const S> inverse,
                                            View<const S> tinverse, View<const S> angles,
                                            RopeLayout layout, View<const S> dy, View<const S> tdy,
                                            View<S> tdx, View<S> tdscale) {
  constexpr Index stripes = 16;
  const Index d = angles.cols;
  const Index stripe_rows = (x.rows + stripes - 1) / stripes;
  alignas(64) S sums[stripes * most_head_dim];
  if (!tdscale.empty()) std::fill_n(sums, stripes * d, S(0));
  with_scale(norm, [&](auto* scale) {
    pool.run(stripes, [&](Index stripe) {
      alignas(64) S u[most_head_dim], tu[most_head_dim];
      for (Index t = stripe * stripe_rows; t < std::min(x.rows, (stripe + 1) * stripe_rows); ++t) {
        for (Index h = 0; h * d < x.cols; ++h) {
          const S* in = x.row(t) + h * d;
          const S* tin = tx.row(t) + h * d;
          const S inv = inverse(t, h), tinv = tinverse(t, h);
          rotate<-1>(dy.row(t) + h * d, angles.row(t), d, layout, u);
          rotate<-1>(tdy.row(t) + h * d, angles.row(t), d, layout, tu);
          if (!tdscale.empty()) {
            scale_tangent_row(in, tin, inv, tinv, u, tu, d, sums + stripe * d);
          }
          if (tdx.empty()) continue;
          norm_backward_tangent_row(in, tin, scale, inv, tinv, u, tu, d, tdx.row(t) + h * d,
                                    Write::Replace);
        }
      }
    });
  });
  if (tdscale.empty()) return;
  for (Index stripe = 0; stripe < stripes; ++stripe) {
    for (Index j = 0; j < d; ++j) tdscale(0, j) += sums[stripe * d + j];
  }
}

/// silu(g) = g sigmoid(g) and its first two derivatives, at the price of one exponential: with
/// s = sigmoid(g), s (1 + g (1 - s)) and s (1 - s) (2 + g (1 - 2 s)).
template <class P>
struct Silu {
  P value, slope, bend;

  TTT_INLINE explicit Silu(const P& g) {
    using S = typename packet::unpacket_traits<P>::type;
    const P one = broadcast<P>(S(1)), s = sigmoid(g), rest = packet::psub(one, s);
    value = packet::pmul(g, s);
    slope = packet::pmul(s, packet::pmadd(g, rest, one));
    bend = packet::pmul(packet::pmul(s, rest),
                        packet::pmadd(g, packet::psub(rest, s), broadcast<P>(S(2))));
  }
};

/// tout = silu'(gate) * tgate * up + silu(gate) * tup.
template <class S>
void swiglu_tangent(ThreadPool& pool, View<const S> gate, View<const S> tgate,
                           View<const S> up, View<const S> tup, View<S> tout) {
  for_rows(pool, gate.rows, [&](Index t) {
    for_lanes<S>(gate.cols, [&]<class P>(Index j) {
      const Silu<P> silu(load<P>(gate.row(t) + j));
      const P from_gate =
          packet::pmul(packet::pmul(silu.slope, load<P>(tgate.row(t) + j)), load<P>(up.row(t) + j));
      store(tout.row(t) + j, packet::pmadd(silu.value, load<P>(tup.row(t) + j), from_gate));
    });
  });
}

/// tdup = tdout * silu(gate) + dout * silu'(gate) * tgate, and
/// tdgate = (tdout * up + dout * tup) * silu'(gate) + dout * up * silu''(gate) * tgate.
template <class S>
void swiglu_backward_tangent(ThreadPool& pool, View<const S> gate, View<const S> tgate,
                                    View<const S> up, View<const S> tup, View<const S> dout,
                                    View<const S> tdout, View<S> tdgate, View<S> tdup) {
  for_rows(pool, gate.rows, [&](Index t) {
    for_lanes<S>(gate.cols, [&]<class P>(Index j) {
      const Silu<P> silu(load<P>(gate.row(t) + j));
      const P tg = load<P>(tgate.row(t) + j);
      const P d = load<P>(dout.row(t) + j), td = load<P>(tdout.row(t) + j);
      if (!tdup.empty()) {
        store(tdup.row(t) + j,
              packet::pmadd(td, silu.value, packet::pmul(d, packet::pmul(silu.slope, tg))));
      }
      if (tdgate.empty()) return;
      const P u = load<P>(up.row(t) + j);
      const P product = packet::pmadd(td, u, packet::pmul(d, load<P>(tup.row(t) + j)));
      const P curved = packet::pmul(packet::pmul(d, u), packet::pmul(silu.bend, tg));
      store(tdgate.row(t) + j, packet::pmadd(product, silu.slope, curved));
    });
  });
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI
