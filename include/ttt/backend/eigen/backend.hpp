// SPDX-License-Identifier: MIT
/// \file
/// ttt::Cpu: the primitives on this machine's processor, with Eigen's packets and our own threads.
#pragma once

#include <array>
#include <memory>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/eigen/attention.hpp>
#include <ttt/backend/eigen/attention_tangents.hpp>
#include <ttt/backend/eigen/conv.hpp>
#include <ttt/backend/eigen/gemm.hpp>
#include <ttt/backend/eigen/loss.hpp>
#include <ttt/backend/eigen/row_tangents.hpp>
#include <ttt/backend/eigen/rows.hpp>
#include <ttt/backend/host_memory.hpp>
#include <ttt/core/thread_pool.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen {

/// Computes on the processor in float or double.
///
/// A copy shares the threads. Sessions on several threads may share one backend: one at a time gets
/// the pool, the others compute on their own thread. Every result has the same bits for any number
/// of threads: work is cut by shape, and threads only choose who does which piece.
template <class S = float>
class Backend : public HostMemory {
 public:
  using Scalar = S;
  using CacheScalar = S;
  static constexpr Index most_head_dim = detail::most_head_dim;

  /// threads: how many compute, the caller included; 0 means every processor of this process.
  explicit Backend(int threads = 0) : pool_(std::make_shared<ThreadPool>(threads)) {}

  int threads() const { return pool_->threads(); }

  /// Calls task(i) for every i in [0, count) on the threads; what a task computes here in turn, it
  /// computes on its own thread. Tasks must not throw.
  template <class Task>
  void run(Index count, const Task& task) const {
    pool_->run(count, task);
  }

  /// The vector instructions this build uses, as Eigen names them.
  static const char* instruction_sets() { return Eigen::SimdInstructionSetsInUse(); }

  void matmul(View<const S> x, Weight<S> w, View<S> y, Write write) const {
    detail::matmul<S>(*pool_, x, w, y, write);
  }
  void matmul_gradient(View<const S> x, View<const S> dy, View<S> dw, Write write) const {
    detail::wide_product<S>(*pool_, {x.data, 1, x.stride}, Weight<S>(dy), dw, write);
  }
  void embed(Weight<S> table, const Token* tokens, View<S> out) const {
    detail::embed<S>(*pool_, table, tokens, out);
  }
  void embed_backward(const Token* tokens, View<const S> dout, View<S> dtable) const {
    detail::embed_backward<S>(*pool_, tokens, dout, dtable);
  }
  void rms_norm(View<const S> x, Norm<S> norm, View<S> y, View<S> inverse) const {
    detail::rms_norm<S>(*pool_, x, norm, y, inverse);
  }
  void rms_norm_backward(View<const S> x, Norm<S> norm, View<const S> inverse, View<const S> dy,
                         View<S> dx, Write write, View<S> dscale) const {
    detail::rms_norm_backward<S>(*pool_, x, norm, inverse, dy, dx, write, dscale);
  }
  void rms_norm_tangent(View<const S> x, View<const S> tx, Norm<S> norm, View<const S> inverse,
                        View<const S> th, View<S> ty, View<S> tinverse) const {
    detail::rms_norm_tangent<S>(*pool_, x, tx, norm, inverse, th, ty, tinverse);
  }
  void rms_norm_backward_tangent(View<const S> x, View<const S> tx, Norm<S> norm,
                                 View<const S> inverse, View<const S> tinverse, View<const S> dy,
                                 View<const S> tdy, View<S> tdx, Write write,
                                 View<S> tdscale) const {
    detail::rms_norm_backward_tangent<S>(*pool_, x, tx, norm, inverse, tinverse, dy, tdy, tdx,
                                         write, tdscale);
  }
  void add(View<const S> a, View<const S> b, View<S> out) const {
    detail::add<S>(*pool_, a, b, out);
  }
  void add_rms_norm(View<const S> h, View<const S> x, Norm<S> norm, View<S> out,
                    View<S> inverse) const {
    detail::add_rms_norm<S>(*pool_, h, x, norm, out, inverse);
  }
  void rope_angles(Index position, const double* frequencies, View<S> out) const {
    detail::rope_angles<S>(*pool_, position, frequencies, out);
  }
  void head_norm_rope(View<const S> x, Norm<S> norm, View<const S> angles, RopeLayout layout,
                      View<S> y, View<S> inverse) const {
    detail::head_norm_rope<S>(*pool_, x, norm, angles, layout, y, inverse);
  }
  void head_norm_rope_backward(View<const S> x, Norm<S> norm, View<const S> inverse,
                               View<const S> angles, RopeLayout layout, View<const S> dy,
                               View<S> dx, View<S> dscale) const {
    detail::head_norm_rope_backward<S>(*pool_, x, norm, inverse, angles, layout, dy, dx, dscale);
  }
  void head_norm_rope_tangent(View<const S> x, View<const S> tx, Norm<S> norm,
                              View<const S> inverse, View<const S> angles, RopeLayout layout,
                              View<S> ty, View<S> tinverse) const {
    detail::head_norm_rope_tangent<S>(*pool_, x, tx, norm, inverse, angles, layout, ty, tinverse);
  }
  void head_norm_rope_backward_tangent(View<const S> x, View<const S> tx, Norm<S> norm,
                                       View<const S> inverse, View<const S> tinverse,
                                       View<const S> angles, RopeLayout layout, View<const S> dy,
                                       View<const S> tdy, View<S> tdx, View<S> tdscale) const {
    detail::head_norm_rope_backward_tangent<S>(*pool_, x, tx, norm, inverse, tinverse, angles,
                                               layout, dy, tdy, tdx, tdscale);
  }
  void swiglu(View<const S> gate, View<const S> up, View<S> out) const {
    detail::swiglu<S>(*pool_, gate, up, out);
  }
  void swiglu_backward(View<const S> gate, View<const S> up, View<const S> dout, View<S> dgate,
                       View<S> dup) const {
    detail::swiglu_backward<S>(*pool_, gate, up, dout, dgate, dup);
  }
  void swiglu_tangent(View<const S> gate, View<const S> tgate, View<const S> up, View<const S> tup,
                      View<S> tout) const {
    detail::swiglu_tangent<S>(*pool_, gate, tgate, up, tup, tout);
  }
  void swiglu_backward_tangent(View<const S> gate, View<const S> tgate, View<const S> up,
                               View<const S> tup, View<const S> dout, View<const S> tdout,
                               View<S> tdgate, View<S> tdup) const {
    detail::swiglu_backward_tangent<S>(*pool_, gate, tgate, up, tup, dout, tdout, tdgate, tdup);
  }
  void chunk_conv(View<const S> x, Weight<S> taps, Index chunk, View<S> y) const {
    detail::chunk_conv<S>(*pool_, x, taps, chunk, y);
  }
  void chunk_conv_backward(View<const S> x, Weight<S> taps, Index chunk, View<const S> dy,
                           View<S> dx, Write write, View<S> dtaps) const {
    detail::chunk_conv_backward<S>(*pool_, x, taps, chunk, dy, dx, write, dtaps);
  }
  void store(View<const S> rows, Cache<S> cache, Index position) const {
    const Index d = cache.head_dim;
    for (Index t = 0; t < rows.rows; ++t) {
      for (Index h = 0; h < cache.heads; ++h) {
        std::copy_n(rows.row(t) + h * d, d, cache.at(h, position + t));
      }
    }
  }
  void attention(View<const S> q, Cache<const S> keys, Cache<const S> values, AttentionShape shape,
                 View<S> o, View<S> lse) const {
    detail::attention<S>(*pool_, q, keys, values, shape, o, lse);
  }
  void attention_backward(View<const S> q, Cache<const S> keys, Cache<const S> values,
                          AttentionShape shape, View<const S> o, View<const S> lse,
                          View<const S> dout, View<S> dq, View<S> dkeys, View<S> dvalues,
                          Index first) const {
    detail::attention_backward<S>(*pool_, q, keys, values, shape, o, lse, dout, dq, dkeys, dvalues,
                                  first);
  }
  void attention_tangent(View<const S> q, View<const S> tq, Cache<const S> keys,
                         Cache<const S> values, View<const S> tkeys, View<const S> tvalues,
                         AttentionShape shape, View<const S> o, View<const S> lse, View<S> to,
                         View<S> tlse) const {
    detail::attention_tangent<S>(*pool_, q, tq, keys, values, tkeys, tvalues, shape, o, lse, to,
                                 tlse);
  }
  void attention_backward_tangent(View<const S> q, View<const S> tq, Cache<const S> keys,
                                  Cache<const S> values, View<const S> tkeys, View<const S> tvalues,
                                  AttentionShape shape, View<const S> o, View<const S> to,
                                  View<const S> lse, View<const S> tlse, View<const S> dout,
                                  View<const S> tdout, View<S> tdq, View<S> tdkeys,
                                  View<S> tdvalues, Index first) const {
    detail::attention_backward_tangent<S>(
        *pool_, {q, tq, keys, values, tkeys, tvalues, shape, o, to, lse, tlse, dout, tdout, tdq,
                 tdkeys, tdvalues, first});
  }
  void next_token(View<const S> logits, NextToken<S>* out) const {
    for (Index t = 0; t < logits.rows; ++t) {
      const S* const row = logits.row(t);
      const S most = detail::max_lanes(logits.cols, row, row[0]);
      out[t] = {detail::log_sum_exp(row, logits.cols, most), most,
                static_cast<Token>(std::find(row, row + logits.cols - 1, most) - row)};
    }
  }
  Index cross_entropy_scratch(Index rows, Index vocabulary) const {
    return detail::loss_rows<S>(rows, vocabulary) * vocabulary;
  }
  void cross_entropy(View<const S> h, Weight<S> head, const Token* targets, const S* weights,
                     S* nll, View<S> dh, S* scratch) const {
    detail::cross_entropy<S>(*pool_, h, head, targets, weights, nll, dh, scratch);
  }
  Index cross_entropy_tangent_scratch(Index rows, Index vocabulary) const {
    return detail::loss_tangent_scratch<S>(rows, vocabulary);
  }
  void cross_entropy_tangent(View<const S> h, View<const S> th, Weight<S> head,
                             const Token* targets, const S* weights, double seed, View<S> tdh,
                             View<S> tdhead, S* scratch) const {
    detail::cross_entropy_tangent<S>(*pool_, h, th, head, targets, weights, static_cast<S>(seed),
                                     tdh, tdhead, scratch);
  }

  double dot(const S* x, const S* y, Index size) const {
    constexpr Index stripes = 64;
    std::array<double, stripes> sums{};
    pool_->run(stripes, [&](Index stripe) {
      for (Index first = stripe * detail::flat_block; first < size;
           first += stripes * detail::flat_block) {
        const Index count = std::min(detail::flat_block, size - first);
        sums[static_cast<std::size_t>(stripe)] +=
            static_cast<double>(detail::sum_lanes<S>(count, [&]<class P>(Index j) {
              return detail::packet::pmul(detail::load<P>(x + first + j),
                                          detail::load<P>(y + first + j));
            }));
      }
    });
    double sum = 0;
    for (double s : sums) sum += s;
    return sum;
  }
  void axpby(double a, const S* x, double b, S* y, Index size) const {
    detail::axpby<S>(*pool_, a, x, b, y, size);
  }
  void adam(const AdamStep& step, const S* gradient, S* m, S* v, S* weights, Index size) const {
    detail::adam<S>(*pool_, step, gradient, m, v, weights, size);
  }

 private:
  std::shared_ptr<ThreadPool> pool_;
};

}  // namespace eigen

/// The machine most programs start with: this processor, in float, on all its cores.
using Cpu = eigen::Backend<float>;

}  // namespace ttt::inline TTT_ABI
