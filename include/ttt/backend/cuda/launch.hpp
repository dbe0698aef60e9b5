// SPDX-License-Identifier: MIT
/// \file
/// The seam between host and kernels: functions that put a kernel on a stream. Declared here for
/// any host compiler, defined in kernels/*.cuh for nvcc, instantiated in one unit.
#pragma once

#include <algorithm>
#include <span>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/cuda/stream.hpp>
#include <ttt/core/view.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// Values and, where they move, tangents. What is absent is zero.
template <class S>
struct Operand {
  View<const S> value;
  View<const S> tangent;
};

/// Keys and values of one block; rows of their tangents begin at the position of the queries.
template <class S, class C = S>
struct KeysAndValues {
  Cache<const C> keys, values;
  View<const S> tkeys, tvalues;
};

/// Whether two matrices share memory.
inline bool overlap(const View<const float>& a, const View<const float>& b) {
  if (a.empty() || b.empty() || a.rows == 0 || b.rows == 0) return false;
  return a.data < b.row(b.rows - 1) + b.cols && b.data < a.row(a.rows - 1) + a.cols;
}

/// Where a result goes: as it is, rounded for the products that will read it, or both.
template <class S>
struct Results {
  View<S> values;
  View<bfloat16> rounded;

  Results() = default;
  TTT_HD Results(View<S> values_, View<bfloat16> rounded_ = {})
      : values(values_), rounded(rounded_) {}
  TTT_HD bool empty() const { return values.empty() && rounded.empty(); }
};

/// A product of a few rows: y = x · w.
template <class S>
struct FewRows {
  View<const S> x;
  Weight<S> w;
  View<S> y;
};

/// A sum on the residual stream: out = h + x, or h + rms_norm(x).
template <class S>
struct ResidualSum {
  View<const S> h, x;
  View<S> out;
  bool has_norm = false;
  Norm<S> norm = {};
  View<S> inverse = {};
};

/// A sum, then y = rms_norm(sum.out). A counter a row.
template <class S>
struct SumAndNorm {
  ResidualSum<S> sum;
  Norm<S> norm;
  View<S> y, inverse;
  unsigned* counters = nullptr;
};

/// The angular frequencies of RoPE, passed to a kernel by value.
inline constexpr Index most_head_dim = 128;
struct Frequencies {
  double of[most_head_dim / 2];
};

/// A position in a document: one that the host knows or, in a graph that is put on the stream again
/// and again, one so far behind a number in the GPU's memory.
struct Place {
  Index position;
  const Index* base = nullptr;

  constexpr Place(Index position_ = 0, const Index* base_ = nullptr)
      : position(position_), base(base_) {}
  TTT_HD constexpr Index now() const { return base == nullptr ? position : *base + position; }
};

/// Which keys queries see that stand at such a place.
struct PlacedShape : AttentionShape {
  const Index* base = nullptr;

  constexpr PlacedShape(const AttentionShape& shape, const Index* base_ = nullptr)
      : AttentionShape(shape), base(base_) {}
  TTT_HD constexpr AttentionShape now() const {
    AttentionShape shape = *this;
    if (base != nullptr) shape.position += *base;
    return shape;
  }
  /// Where keys begin that lie `first` behind the first query, or before it, as far as that is
  /// seen.
  constexpr Index first_seen(Index first) const {
    return first < 0 ? std::max(first, first_key(position) - position) : first;
  }
};

/// What lies between the projections and attention: heads of queries and keys normed and turned,
/// keys and values stored.
template <class S>
struct Rotation {
  View<const S> q, k, v;
  Norm<S> q_norm, k_norm;
  View<const S> angles;
  RopeLayout layout;
  View<S> y, q_inverse, k_inverse;
  Cache<bfloat16> keys, values;
  Place place;
};

/// Rows that are a token each of some documents, whose keys and values lie by their places, `apart`
/// elements from one place to the next.
struct DocumentRows {
  static constexpr Index most = 32;

  Index apart = 0;
  Index places[most];
  Index behinds[most];  // how far it stands behind the first

  TTT_HD Index behind(Index row) const { return behinds[row]; }
  TTT_HD Index offset(Index row) const { return places[row] * apart; }
};

/// Elements of a row whose end is rounded up to where bfloat16s can be moved eight at a time.
constexpr Index in_whole_eights(Index count) {
  return (count + 7) / 8 * 8;
}

/// What the head's loss needs for a block of rows: powers of the logits in bfloat16, their sums
/// over each tile of words, and what was taken off the exponents.
struct HeadScratch {
  static constexpr Index tile = 256;  // words

  View<bfloat16> powers;
  View<float> sums;
  float* base = nullptr;

  HeadScratch(float* memory, Index rows, Index words)
      : powers(reinterpret_cast<bfloat16*>(memory), rows, words, in_whole_eights(words)),
        sums(memory + rows * in_whole_eights(words) / 2, rows, tiles(words)),
        base(sums.data + rows * tiles(words)) {}

  /// Scalars a row.
  static constexpr Index size(Index words) { return in_whole_eights(words) / 2 + tiles(words) + 1; }

 private:
  static constexpr Index tiles(Index words) { return (words + tile - 1) / tile; }
};

/// Kernels on scalars of S. Those with a form on dual numbers take `tangents`: then operands are
/// read with their tangents, and what is written or added to is the tangent of each result. They
/// are one template, instantiated twice.
template <class S>
struct [[gnu::visibility("hidden")]] Launch {
  /// c (+)= a · b of shapes (m, k) and (k, n).
  static void matmul(Stream, View<const S> a, bool a_transposed, Weight<S> b, View<S> c, Write);
  static void round(Stream, View<const S> from, View<bfloat16> to);
  /// Whether there are kernels for products of so many rows that end otherwise than in their sums.
  static bool has_large_products(Index rows);
  /// dw (+)= the sum of xᵀ · dy over at most two pairs. False, and nothing done, where there is no
  /// kernel for it.
  static bool gradient(Stream, std::span<const View<const bfloat16>> x,
                       std::span<const View<const bfloat16>> dy, View<S> dw, Write);
  /// out = silu(x · w1) * (x · w3), where there are such kernels; false likewise.
  static bool gated_rows(Stream, View<const bfloat16> x, Weight<S> w1, Weight<S> w3,
                         View<bfloat16> out);
  /// y (+)= x · w of a few rows; y written twice where there is a copy.
  static void matvec(Stream, View<const S> x, Weight<S> w, View<S> y, Write, View<S> copy = {});
  /// y = x · w for each of `count` weights. False, and nothing done, where they do not lie alike.
  /// Where x is still to be made, every block makes it for itself, and one writes it down: nothing
  /// that is read for it may lie where the products go, nor products or weights where it is
  /// written.
  static bool matvec_each(Stream, View<const S> x, const Weight<S>* w, const View<S>* y,
                          Index count, const SumAndNorm<S>* made_of = nullptr);
  /// gate = x · w1, up = x · w3, out = silu(gate) * up of a few rows; likewise.
  static bool gated(Stream, View<const S> x, Weight<S> w1, Weight<S> w3, View<S> gate, View<S> up,
                    View<S> out, const SumAndNorm<S>* made_of = nullptr);
  /// Whether a product can make its x of that, as far as widths go.
  static bool makes(const SumAndNorm<S>&);

  static void embed(Stream, Weight<S> table, const Token* tokens, View<S> out);
  static void embed_backward(Stream, const Token* tokens, View<const S> dout, View<S> dtable);
  static void rms_norm(Stream, bool tangents, Operand<S> x, Norm<S>, Operand<S> h, Results<S> y,
                       View<S> inverse);
  /// A sum, and y = rms_norm of it, to the bits that one after the other would give. False, and
  /// nothing done, where there is no kernel: rows that do not lie in fours of floats or are long.
  static bool sum_and_norm(Stream, const SumAndNorm<S>&, View<bfloat16> rounded = {});
  static void rms_norm_backward(Stream, bool tangents, Operand<S> x, Norm<S>, Operand<S> inverse,
                                Operand<S> dy, Results<S> dx, Write, View<S> dscale, void* scratch);
  /// Bytes of scratch that a gradient of scales needs: sums over so many rows.
  static Index column_scratch(Index rows, Index cols);
  static void rope_angles(Stream, Place, const Frequencies&, View<S> out);
  static void head_norm_rope(Stream, bool tangents, Operand<S> x, Norm<S>, View<const S> angles,
                             RopeLayout, View<S> y, View<S> inverse);
  static void head_norm_rope_backward(Stream, bool tangents, Operand<S> x, Norm<S>,
                                      Operand<S> inverse, View<const S> angles, RopeLayout,
                                      Operand<S> dy, Results<S> dx, View<S> dscale, void* scratch);
  static void swiglu(Stream, bool tangents, Operand<S> gate, Operand<S> up, Results<S> out);
  static void swiglu_backward(Stream, bool tangents, Operand<S> gate, Operand<S> up,
                              Operand<S> dout, Results<S> dgate, Results<S> dup);

  static void chunk_conv(Stream, View<const S> x, Weight<S> taps, Index chunk, View<S> y);
  static void chunk_conv_backward(Stream, View<const S> x, Weight<S> taps, Index chunk,
                                  View<const S> dy, View<S> dx, Write, View<S> dtaps);

  /// Whether there is a kernel for it: rows and heads that lie in fours.
  static bool rotates(const Rotation<S>&);
  static void rotate_and_store(Stream, const Rotation<S>&);
  template <class C>
  static void store(Stream, View<const S> rows, Cache<C>, Place);
  template <class C>
  static void attention(Stream, bool tangents, Operand<S> q, KeysAndValues<S, C>, PlacedShape,
                        View<S> o, View<S> lse);
  /// Gradients of keys and values begin `first` behind the first query.
  template <class C>
  static void attention_backward(Stream, bool tangents, Operand<S> q, KeysAndValues<S, C>,
                                 PlacedShape, Operand<S> o, Operand<S> lse, Operand<S> dout,
                                 View<S> dq, View<S> dkeys, View<S> dvalues, Index first);

  /// A few queries' attention, at the speed of the memory; they stand at the place, whatever the
  /// shape says. False, and nothing done, where there is no kernel: heads whose size is no multiple
  /// of 8. A counter a row and head. With a rotation, of one row, it makes its q by itself and
  /// stores that token's key and value: all that the rotation writes must lie apart from all that
  /// it reads, as o and lse must. Or of a row of each of some documents, whose places lie as
  /// `documents` says, the first of them by keys and values; then lse is (rows, heads).
  static bool attention_decode(
      Stream, View<const S> q, Cache<const bfloat16> keys, Cache<const bfloat16> values,
      AttentionShape, Place, View<S> o, View<S> lse, void* scratch, unsigned* counters,
      const Rotation<S>* rotation = nullptr, const DocumentRows* documents = nullptr);
  static Index attention_decode_scratch(AttentionShape, Index slots, Index rows,
                                        bool documents = false);  // bytes

  /// On tensor cores, what is multiplied rounded to bfloat16. False, and nothing done, where there
  /// are no kernels: other heads than 64, 80, 96 and 128, rows that do not lie in fours of floats.
  /// Scratch, as many bytes as a function says, begins at a multiple of 16.
  static bool attention_bfloat16(Stream, View<const S> q, Cache<const bfloat16> keys,
                                 Cache<const bfloat16> values, PlacedShape, View<S> o, View<S> lse,
                                 View<bfloat16> rounded = {});
  static Index attention_backward_scratch(AttentionShape, Index rows);  // bytes
  static bool attention_backward_bfloat16(
      Stream, View<const S> q, Cache<const bfloat16> keys, Cache<const bfloat16> values,
      PlacedShape, View<const S> o, View<const S> lse, View<const S> dout, View<S> dq,
      View<S> dkeys, View<S> dvalues, Index first, void* scratch);

  /// The tangents of both, likewise; o and lse are what the value forms gave.
  static bool attention_tangent_bfloat16(Stream, Operand<S> q, Cache<const bfloat16> keys,
                                         Cache<const bfloat16> values, View<const S> tkeys,
                                         View<const S> tvalues, AttentionShape, View<const S> o,
                                         View<const S> lse, View<S> to, View<S> tlse);
  static Index attention_backward_tangent_scratch(AttentionShape, Index rows);  // bytes
  static bool attention_backward_tangent_bfloat16(
      Stream, Operand<S> q, Cache<const bfloat16> keys, Cache<const bfloat16> values,
      View<const S> tkeys, View<const S> tvalues, AttentionShape, Operand<S> o, Operand<S> lse,
      Operand<S> dout, View<S> tdq, View<S> tdkeys, View<S> tdvalues, Index first, void* scratch);

  /// Logits become the gradient of sum of weights[t] · nll[t]; with `tangents`, theirs become its
  /// tangent when the weights move by `seed` times themselves.
  static void softmax_loss(Stream, bool tangents, View<S> logits, View<S> tlogits,
                           const Token* targets, const S* weights, double seed, S* nll,
                           bool want_gradient);
  /// The same with the gradients in bfloat16, in rows that have room for whole eights; absent
  /// tangents are not computed.
  static void softmax_loss_bfloat16(Stream, View<const S> logits, View<const S> tlogits,
                                    const Token* targets, const S* weights, double seed, S* nll,
                                    View<bfloat16> dlogits, View<bfloat16> tdlogits);

  /// Powers of h · head relative to the targets' own, which get none, and their sums with it.
  /// False, and nothing done, where there is no kernel for it. Then, with the product of powers and
  /// words in dh, or without any, the losses and the gradient.
  static bool head_powers(Stream, View<const bfloat16> h, Weight<S> head, const Token* targets,
                          const HeadScratch&, bool want_powers);
  static void head_loss(Stream, View<const bfloat16> h, Weight<S> head, const Token* targets,
                        const S* weights, const HeadScratch&, S* nll, View<S> dh);

  static void next_token(Stream, View<const S> logits, NextToken<S> * out, void* scratch);
  static Index next_token_scratch(Index rows);  // bytes

  /// What a step in a graph begins with: its position, and its token if there is a place for it.
  static void begin_step(Stream, Token, Token * token, Index position, Index * place);

  static void add(Stream, View<const S> a, View<const S> b, View<S> out);
  static void widen(Stream, Weight<S> w, View<S> out);
  static void fill(Stream, S value, S * to, Index size);
  static void fill(Stream, bfloat16 value, bfloat16 * to, Index size);
  /// The sum of x · y into *sum, through `blocks` partial sums, in an order that never changes.
  static void dot(Stream, const S* x, const S* y, Index size, double* partial, int blocks,
                  double* sum);
  /// Of a gradient, and of scores that must be finite; through partial sums likewise.
  static void gradient_scale(Stream, const S* gradient, Index size, double clip,
                             View<const S> scores, double* partial, int blocks,
                             GradientScale* found);
  /// With `times`, a is a times that, and y stays where it is not a number.
  static void axpby(Stream, double a, const S* x, double b, S* y, Index size,
                    bfloat16* copy = nullptr, const double* times = nullptr);
  static void adam(Stream, const AdamStep&, const S* gradient, S* m, S* v, S* weights, Index size);
};

extern template struct Launch<float>;
extern template struct Launch<double>;

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
