// SPDX-License-Identifier: MIT
/// \file
/// ttt::Cpu: the primitives on this machine's processor, with Eigen's packets and our own threads.
#pragma once

#include <array>
#include <memory>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/eigen/attention.hpp>
#include <ttt/backend/eigen/gemm.hpp>
#include <ttt/backend/eigen/loss.hpp>
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
  static constexpr Index most_head_dim = detail::most_head_dim;

  /// threads: how many compute, the caller included; 0 means every processor of this process.
  explicit Backend(int threads = 0) : pool_(std::make_shared<ThreadPool>(threads)) {}

  int threads() const { return pool_->threads(); }

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
  void rms_norm(View<const S> x, Norm<S> norm, View<S> y, View<S> inverse) const {
    detail::rms_norm<S>(*pool_, x, norm, y, inverse);
  }
  void rms_norm_backward(View<const S> x, Norm<S> norm, View<const S> inverse, View<const S> dy,
                         View<S> dx, Write write, View<S> dscale) const {
    detail::rms_norm_backward<S>(*pool_, x, norm, inverse, dy, dx, write, dscale);
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
  void swiglu(View<const S> gate, View<const S> up, View<S> out) const {
    detail::swiglu<S>(*pool_, gate, up, out);
  }
  void swiglu_backward(View<const S> gate, View<const S> up, View<const S> dout, View<S> dgate,
                       View<S> dup) const {
    detail::swiglu_backward<S>(*pool_, gate, up, dout, dgate, dup);
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
                          View<const S> dout, View<S> dq, View<S> dkeys, View<S> dvalues) const {
    detail::attention_backward<S>(*pool_, q, keys, values, shape, o, lse, dout, dq, dkeys, dvalues);
  }
  Index cross_entropy_scratch(Index rows, Index vocabulary) const {
    return detail::loss_rows<S>(rows, vocabulary) * vocabulary;
  }
  void cross_entropy(View<const S> h, Weight<S> head, const Token* targets, const S* weights,
                     S* nll, View<S> dh, S* scratch) const {
    detail::cross_entropy<S>(*pool_, h, head, targets, weights, nll, dh, scratch);
  }

  double sum_of_squares(const S* x, Index size) const {
    constexpr Index stripes = 64;
    std::array<double, stripes> sums{};
    pool_->run(stripes, [&](Index stripe) {
      for (Index first = stripe * detail::flat_block; first < size;
           first += stripes * detail::flat_block) {
        const Index count = std::min(detail::flat_block, size - first);
        sums[static_cast<std::size_t>(stripe)] +=
            static_cast<double>(detail::sum_lanes<S>(count, [&]<class P>(Index j) {
              const P v = detail::load<P>(x + first + j);
              return detail::packet::pmul(v, v);
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

 private:
  std::shared_ptr<ThreadPool> pool_;
};

}  // namespace eigen

/// The machine most programs start with: this processor, in float, on all its cores.
using Cpu = eigen::Backend<float>;

}  // namespace ttt::inline TTT_ABI
