// SPDX-License-Identifier: MIT
/// \file
/// ttt::Cuda: the primitives on an NVIDIA GPU. Any host compiler reads this; the kernels are in
/// the one unit that the target ttt::cuda adds to a program, or that a .cu file of one line makes:
/// #include <ttt/backend/cuda/instantiate.cuh>.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/cuda/beside.hpp>
#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>
#include <ttt/backend/cuda/logits.hpp>
#include <ttt/backend/cuda/products.hpp>
#include <ttt/backend/cuda/queue.hpp>
#include <ttt/backend/cuda/steps.hpp>
#include <ttt/backend/steps.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda {

/// Computes on a GPU in float or double.
///
/// All work goes to one stream, but for what is read ahead: see Beside. A primitive puts its
/// kernels there and returns; to_host, dot and synchronize wait, and throw what failed until then.
/// A copy shares the stream and its memory. Kernels add in an order of their own that never
/// changes, so the same GPU gives the same bits.
template <class S = float, Products products = Products::Exact>
class Backend : detail::Queue<S, products == Products::Bfloat16> {
  static_assert(products == Products::Exact || std::is_same_v<S, float>,
                "ttt: products in bfloat16 are for a backend in float");
  using Queue = detail::Queue<S, products == Products::Bfloat16>;
  using Queue::device_;
  using Queue::next;
  using Queue::product;
  using Queue::rounding;
  using Launch = detail::Launch<S>;
  using In = View<const S>;
  using Out = View<S>;
  using To = Factor<S>;
  using Operand = detail::Operand<S>;
  static constexpr bool fast = products == Products::Bfloat16;

 public:
  using Scalar = S;
  using CacheScalar = std::conditional_t<fast, bfloat16, S>;

 private:
  using CacheIn = Cache<const CacheScalar>;
  using Keys = detail::KeysAndValues<S, CacheScalar>;
  using Logits = detail::Logits<S, fast>;
  using Results = detail::Results<S>;

 public:
  static constexpr Index most_head_dim = detail::most_head_dim;

  /// A GPU, with a stream of its own. Throws cuda::Error when there is none of that number, or when
  /// the program was built for other architectures.
  explicit Backend(int device = 0)
      : Backend(std::make_shared<const detail::Device>(device), true) {}

  /// A stream of the caller's on that GPU, which must outlive the backend and its memory; null is
  /// CUDA's default stream.
  Backend(int device, cudaStream_t stream)
      : Backend(std::make_shared<const detail::Device>(device, stream), false) {}

  /// From then on nothing is remembered or put off: the caller may put anything in between.
  cudaStream_t stream() const { return Queue::stream_for_caller(); }

  /// Waits until everything put on the stream is done. Throws cuda::Error when something failed.
  void synchronize() const { Queue::wait(); }

  /// A step of a token, or of a chunk, is the same at every position but for that: see Steps.
  using Steps = std::conditional_t<fast, cuda::Steps<Backend>, PlainSteps<Backend>>;
  using Beside = cuda::Beside<Backend>;

  /// The most bytes that this backend and its copies have held at a time.
  Index peak_bytes() const { return device_->peak_bytes(); }

  /// The host puts one operation after the other on the stream.
  static constexpr int threads() { return 1; }
  template <class Task>
  void run(Index count, const Task& task) const {
    for (Index i = 0; i < count; ++i) task(i);
  }

  // ---- memory -----------------------------------------------------------------------------------

  static constexpr bool is_host = false;

  template <class T>
  using Buffer = cuda::Buffer<T>;

  using Queue::allocate;
  using Queue::copy;
  using Queue::fill;
  using Queue::narrow;
  using Queue::to_device;
  using Queue::to_host;
  void widen(Weight<S> w, Out out) const { Launch::widen(next(), w, out); }

  // ---- products ---------------------------------------------------------------------------------

  using Queue::rounds_factors;
  void matmul(Weight<S> x, Weight<S> w, Out y, Write write) const { product(x, w, y, write); }
  void matmul_gradient(Weight<S> x, Weight<S> dy, Out dw, Write write) const {
    product(x.transpose(), dy, dw, write);
  }

  /// y = x · w for each of several weights, at once. False, and nothing done, where one product
  /// after the other is as good: products that fill the GPU, weights that do not lie alike.
  template <std::size_t count>
  bool matmul_each(Weight<S> x, const std::array<Weight<S>, count>& w,
                   const std::array<Out, count>& y) const requires(fast) {
    return Queue::product_each(x, w, y);
  }
  using Queue::feed_forward;
  using Queue::gated;
  using Queue::matmul_gradient_parts;
  using Queue::matmul_gradient_sum;
  using Queue::matmul_parts;

  // ---- rows -------------------------------------------------------------------------------------

  using Queue::embed;
  using Queue::embed_backward;
  void rms_norm(In x, Norm<S> norm, To y, Out inverse) const { Queue::norm(x, norm, y, inverse); }
  void rms_norm_backward(In x, Norm<S> norm, In inverse, In dy, To dx, Write write,
                         Out dscale) const {
    norm_backward(false, {x, {}}, norm, {inverse, {}}, {dy, {}}, dx, write, dscale);
  }
  void rms_norm_tangent(In x, In tx, Norm<S> norm, In, In th, To ty, Out tinverse) const {
    rounding({ty}, {tinverse}, [&](const Results& to) {
      Launch::rms_norm(device_->stream(), true, {x, tx}, norm, {{}, th}, to, tinverse);
    });
  }
  void rms_norm_backward_tangent(In x, In tx, Norm<S> norm, In inverse, In tinverse, In dy, In tdy,
                                 To tdx, Write write, Out tdscale) const {
    norm_backward(true, {x, tx}, norm, {inverse, tinverse}, {dy, tdy}, tdx, write, tdscale);
  }
  void add(In a, In b, Out out) const { Queue::sum({a, b, out}); }
  void add_rms_norm(In h, In x, Norm<S> norm, Out out, Out inverse) const {
    Queue::sum({h, x, out, true, norm, inverse});
  }
  void rope_angles(Index position, const double* frequencies, Out out) const {
    detail::Frequencies all = {};
    std::copy_n(frequencies, out.cols / 2, all.of);
    Launch::rope_angles(next(), place(position), all, out);
  }
  void head_norm_rope(In x, Norm<S> norm, In angles, RopeLayout layout, Out y, Out inverse) const {
    Launch::head_norm_rope(next(), false, {x, {}}, norm, angles, layout, y, inverse);
  }
  void head_norm_rope_backward(In x, Norm<S> norm, In inverse, In angles, RopeLayout layout, In dy,
                               To dx, Out dscale) const {
    heads_backward(false, {x, {}}, norm, {inverse, {}}, angles, layout, {dy, {}}, dx, dscale);
  }
  void head_norm_rope_tangent(In x, In tx, Norm<S> norm, In, In angles, RopeLayout layout, Out ty,
                              Out tinverse) const {
    Launch::head_norm_rope(next(), true, {x, tx}, norm, angles, layout, ty, tinverse);
  }
  void head_norm_rope_backward_tangent(In x, In tx, Norm<S> norm, In inverse, In tinverse,
                                       In angles, RopeLayout layout, In dy, In tdy, To tdx,
                                       Out tdscale) const {
    heads_backward(true, {x, tx}, norm, {inverse, tinverse}, angles, layout, {dy, tdy}, tdx,
                   tdscale);
  }
  void swiglu(In gate, In up, To out) const {
    rounding({out}, {}, [&](const Results& to) {
      Launch::swiglu(device_->stream(), false, {gate, {}}, {up, {}}, to);
    });
  }
  void swiglu_backward(In gate, In up, In dout, To dgate, To dup) const {
    rounding({dgate, dup}, {}, [&](const Results& to_gate, const Results& to_up) {
      Launch::swiglu_backward(device_->stream(), false, {gate, {}}, {up, {}}, {dout, {}}, to_gate,
                              to_up);
    });
  }
  void swiglu_tangent(In gate, In tgate, In up, In tup, To tout) const {
    rounding({tout}, {}, [&](const Results& to) {
      Launch::swiglu(device_->stream(), true, {gate, tgate}, {up, tup}, to);
    });
  }
  void swiglu_backward_tangent(In gate, In tgate, In up, In tup, In dout, In tdout, To tdgate,
                               To tdup) const {
    rounding({tdgate, tdup}, {}, [&](const Results& to_gate, const Results& to_up) {
      Launch::swiglu_backward(device_->stream(), true, {gate, tgate}, {up, tup}, {dout, tdout},
                              to_gate, to_up);
    });
  }

  void chunk_conv(In x, Weight<S> taps, Index chunk, Out y) const {
    Launch::chunk_conv(next(), x, taps, chunk, y);
  }
  void chunk_conv_backward(In x, Weight<S> taps, Index chunk, In dy, Out dx, Write write,
                           Out dtaps) const {
    Launch::chunk_conv_backward(next(), x, taps, chunk, dy, dx, write, dtaps);
  }

  // ---- attention --------------------------------------------------------------------------------

  /// head_norm_rope of queries and keys and store of keys and values, at once. False, and nothing
  /// done, where there is no kernel for it.
  bool rotate_and_store(In q, In k, In v, Norm<S> q_norm, Norm<S> k_norm, In angles,
                        RopeLayout layout, Out y, Out q_inverse, Out k_inverse,
                        Cache<CacheScalar> keys, Cache<CacheScalar> values, Index position) const
      requires(fast) {
    return Queue::rotate({q, k, v, q_norm, k_norm, angles, layout, y, q_inverse, k_inverse, keys,
                          values, place(position)});
  }

  /// The same of a row of each of some documents, listed by `parts`, and their attention: keys and
  /// values are those of place 0, the next place's lie `apart` scalars on; lse is document by
  /// document. All lie apart. False likewise.
  template <class Parts>
  bool attend_each(In q, In k, In v, Norm<S> q_norm, Norm<S> k_norm, In angles, RopeLayout layout,
                   Out y, Out q_inverse, Out k_inverse, Cache<CacheScalar> keys,
                   Cache<CacheScalar> values, Index apart, const Parts& parts, AttentionShape shape,
                   Out o, Out lse) const requires(fast) {
    return Queue::attend_each({q, k, v, q_norm, k_norm, angles, layout, y, q_inverse, k_inverse,
                               keys, values, place(parts[0].position)},
                              shape, parts, apart, o, lse);
  }

  void store(In rows, Cache<CacheScalar> cache, Index position) const {
    Launch::store(next(), rows, cache, place(position));
  }
  void attention(In q, CacheIn keys, CacheIn values, AttentionShape shape, Out o, Out lse) const {
    if constexpr (fast) {
      if (Queue::attention_of_few(q, keys, values, shape, place(shape.position), o, lse)) return;
      const bool done = rounding({o}, {lse}, [&](const Results& to) {
        return Launch::attention_bfloat16(device_->stream(), q, keys, values, placed(shape), o, lse,
                                          to.rounded);
      });
      if (done) return;
    }
    Launch::attention(next(), false, {q, {}}, Keys{keys, values, {}, {}}, placed(shape), o, lse);
  }
  void attention_backward(In q, CacheIn keys, CacheIn values, AttentionShape shape, In o, In lse,
                          In dout, Out dq, Out dkeys, Out dvalues, Index first) const {
    const Index behind = behind_queries(first, shape);
    if constexpr (fast) {
      const auto start = [&](void* scratch) {
        return Launch::attention_backward_bfloat16(next(), q, keys, values, placed(shape), o, lse,
                                                   dout, dq, dkeys, dvalues, behind, scratch);
      };
      if (device_->with_scratch(Launch::attention_backward_scratch(shape, q.rows), start)) return;
    }
    Launch::attention_backward(next(), false, {q, {}}, Keys{keys, values, {}, {}}, placed(shape),
                               {o, {}}, {lse, {}}, {dout, {}}, dq, dkeys, dvalues, behind);
  }
  void attention_tangent(In q, In tq, CacheIn keys, CacheIn values, In tkeys, In tvalues,
                         AttentionShape shape, In o, In lse, Out to, Out tlse) const {
    if constexpr (fast) {
      const bool done = Launch::attention_tangent_bfloat16(next(), {q, tq}, keys, values, tkeys,
                                                           tvalues, shape, o, lse, to, tlse);
      if (done) return;
    }
    Launch::attention(next(), true, {q, tq}, Keys{keys, values, tkeys, tvalues}, shape, to, tlse);
  }
  void attention_backward_tangent(In q, In tq, CacheIn keys, CacheIn values, In tkeys, In tvalues,
                                  AttentionShape shape, In o, In to, In lse, In tlse, In dout,
                                  In tdout, Out tdq, Out tdkeys, Out tdvalues, Index first) const {
    if constexpr (fast) {
      const auto start = [&](void* scratch) {
        return Launch::attention_backward_tangent_bfloat16(
            next(), {q, tq}, keys, values, tkeys, tvalues, shape, {o, to}, {lse, tlse},
            {dout, tdout}, tdq, tdkeys, tdvalues, first, scratch);
      };
      const Index scratch = Launch::attention_backward_tangent_scratch(shape, q.rows);
      if (device_->with_scratch(scratch, start)) return;
    }
    Launch::attention_backward(next(), true, {q, tq}, Keys{keys, values, tkeys, tvalues}, shape,
                               {o, to}, {lse, tlse}, {dout, tdout}, tdq, tdkeys, tdvalues,
                               behind_queries(first, shape));
  }

  // ---- the loss ---------------------------------------------------------------------------------

  Index cross_entropy_scratch(Index rows, Index vocabulary) const {
    const Index block = Logits::rows_at_once(rows, vocabulary);
    return std::max(Logits::size(block, vocabulary), block * detail::HeadScratch::size(vocabulary));
  }
  void cross_entropy(In h, Weight<S> head, const Token* targets, const S* weights, S* nll, Out dh,
                     S* scratch) const {
    Logits::for_blocks(h.rows, head.cols, [&](Index first, Index rows) {
      const In x = h.rows_at(first, rows);
      const Out dx = dh.empty() ? dh : dh.rows_at(first, rows);
      const S* const of_rows = dh.empty() ? nullptr : weights + first;
      if constexpr (fast) {
        if (Queue::head_loss(x, head, targets + first, of_rows, nll + first, dx, scratch)) return;
      }
      const Logits z(scratch, rows, head.cols);
      matmul(x, head, z.value, Write::Replace);
      z.loss(next(), {}, targets + first, of_rows, 0, nll + first, !dx.empty());
      if (!dx.empty()) product(z.gradient(), head.transpose(), dx, Write::Replace);
    });
  }
  Index cross_entropy_tangent_scratch(Index rows, Index vocabulary) const {
    return 2 * cross_entropy_scratch(rows, vocabulary);
  }
  void cross_entropy_tangent(In h, In th, Weight<S> head, const Token* targets, const S* weights,
                             double seed, Out tdh, Out tdhead, S* scratch) const {
    Logits::for_blocks(h.rows, head.cols, [&](Index first, Index rows) {
      const Logits z(scratch, rows, head.cols);
      const Logits tz(scratch + Logits::size(rows, head.cols), rows, head.cols);
      const In x = h.rows_at(first, rows), tx = th.empty() ? th : th.rows_at(first, rows);
      matmul(x, head, z.value, Write::Replace);
      if (tx.empty()) {
        fill(S(0), tz.value.data, tz.value.shape().size());
      } else {
        matmul(tx, head, tz.value, Write::Replace);
      }
      z.loss(next(), tz, targets + first, weights + first, seed, nullptr, true);
      if (!tdh.empty()) {
        product(tz.gradient(), head.transpose(), tdh.rows_at(first, rows), Write::Replace);
      }
      if (tdhead.empty()) return;
      std::array<Weight<S>, 2> hidden{x, tx}, dlogits{tz.gradient(), z.gradient()};
      if (is_embedding(tdhead, head)) std::swap(hidden, dlogits);
      if constexpr (fast) {
        if (!tx.empty()) return this->matmul_gradient_sum(hidden, dlogits, tdhead, Write::Add);
      }
      for (std::size_t i = 0; i < (tx.empty() ? 1 : 2); ++i) {
        product(hidden[i].transpose(), dlogits[i], tdhead, Write::Add);
      }
    });
  }

  using Queue::next_token;

  // ---- flat vectors -----------------------------------------------------------------------------

  using Queue::adam;
  using Queue::axpby;
  using Queue::dot;
  using Queue::gradient_scale;

 private:
  friend cuda::Steps<Backend>;
  friend cuda::Beside<Backend>;

  detail::Place place(Index position) const { return {position - recorded_, base_}; }
  detail::PlacedShape placed(AttentionShape shape) const {
    shape.position -= recorded_;
    return {shape, base_};
  }
  /// How far the first position of a gradient lies behind the queries'. A graph cannot know how
  /// many of those before them are there.
  Index behind_queries(Index first, const AttentionShape& shape) const {
    if (base_ != nullptr && first < shape.position) {
      ttt::detail::fail<Error>("CUDA: no graph of such a step");
    }
    return first - shape.position;
  }

  Backend(std::shared_ptr<const detail::Device> device, bool own_stream)
      : Queue(std::move(device), own_stream) {}

  void norm_backward(bool tangents, const Operand& x, Norm<S> norm, const Operand& inverse,
                     const Operand& dy, To dx, Write write, Out dscale) const {
    const bool add = write == Write::Add;
    with_column_scratch(dscale, x.value.rows, [&](void* scratch) {
      rounding({add ? To() : dx}, {dx.memory(), dscale}, [&](const Results& to) {
        Launch::rms_norm_backward(device_->stream(), tangents, x, norm, inverse, dy,
                                  add ? Results(dx) : to, write, dscale, scratch);
      });
    });
  }
  void heads_backward(bool tangents, const Operand& x, Norm<S> norm, const Operand& inverse,
                      In angles, RopeLayout layout, const Operand& dy, To dx, Out dscale) const {
    with_column_scratch(dscale, x.value.rows * (x.value.cols / angles.cols), [&](void* scratch) {
      rounding({dx}, {dscale}, [&](const Results& to) {
        Launch::head_norm_rope_backward(device_->stream(), tangents, x, norm, inverse, angles,
                                        layout, dy, to, dscale, scratch);
      });
    });
  }
  template <class F>
  void with_column_scratch(Out dscale, Index rows, const F& f) const {
    device_->with_scratch(dscale.empty() ? 0 : Launch::column_scratch(rows, dscale.cols), f);
  }

  Index recorded_ = 0;
  const Index* base_ = nullptr;
};

}  // namespace cuda

/// The machine for long documents: an NVIDIA GPU, in float.
using Cuda = cuda::Backend<float>;

}  // namespace ttt::inline TTT_ABI
