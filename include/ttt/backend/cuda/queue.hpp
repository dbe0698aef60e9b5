// SPDX-License-Identifier: MIT
/// \file
/// What a backend puts on its stream, one thing behind the other. Any host compiler reads this.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>
#include <ttt/backend/cuda/pending_work.hpp>
#include <ttt/backend/cuda/tensor_cores.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// The stream of a backend. A `fast` one, with products in bfloat16, remembers between one thing
/// and the next: operands that are rounded, and work that may become one with what follows. So
/// everything goes through here. Copies share all of it.
template <class S, bool fast>
class Queue {
  using In = View<const S>;
  using Out = View<S>;

 protected:
  Queue(std::shared_ptr<const Device> device, bool own_stream) : device_(std::move(device)) {
    if constexpr (fast) {
      tensor_cores_ = std::make_shared<TensorCores>(device_, own_stream);
      pending_ = std::make_shared<PendingWork>(device_, own_stream);
    }
  }

  std::shared_ptr<const Device> device_;

  /// The stream, for a caller who may put anything on it at any time.
  cudaStream_t stream_for_caller() const {
    if constexpr (fast) {
      pending_->never_wait();
      tensor_cores_->never_remember();
    }
    return device_->stream();
  }

  /// The stream, for anything but a product.
  Stream next() const {
    start_pending();
    if constexpr (fast) tensor_cores_->forget();
    return device_->stream();
  }

  void wait() const {
    start_pending();
    device_->synchronize();
  }

  /// Memory of the GPU. Throws cuda::Error when there is no room.
  template <class T>
  cuda::Buffer<T> allocate(Index size) const {
    return cuda::Buffer<T>(device_, size);
  }
  /// Copies `size` elements from the host, and waits, so that they may be changed.
  template <class T>
  void to_device(const T* host, T* to, Index size) const {
    device_->copy(next(), host, to, size, cudaMemcpyHostToDevice);
    check(cudaStreamSynchronize(next()), "a kernel failed");
  }
  /// Copies `size` elements to the host, and waits for them. Throws cuda::Error when something on
  /// the stream failed.
  template <class T>
  void to_host(const T* from, T* host, Index size) const {
    if (size == 0) return;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    // What is small comes to memory that needs no help of the driver's, unless another thread
    // has it.
    const auto lock = bytes <= Device::result_bytes ? device_->try_results_lock()
                                                    : std::unique_lock<std::mutex>();
    if (!lock) {
      device_->copy(next(), from, host, size, cudaMemcpyDeviceToHost);
      return wait();
    }
    device_->copy(next(), from, static_cast<T*>(device_->results()), size, cudaMemcpyDeviceToHost);
    wait();
    std::memcpy(host, device_->results(), bytes);
  }
  template <class T>
  void copy(const T* from, T* to, Index size) const {
    device_->copy(next(), from, to, size, cudaMemcpyDeviceToDevice);
  }

  /// Rounds `size` elements.
  void narrow(const S* from, bfloat16* to, Index size) const requires(fast) {
    Launch<S>::round(next(), In(from, 1, size), View<bfloat16>(to, 1, size));
  }
  void fill(S value, S* to, Index size) const { Launch<S>::fill(next(), value, to, size); }
  void fill(bfloat16 value, bfloat16* to, Index size) const requires(fast) {
    Launch<S>::fill(next(), value, to, size);
  }

  /// Calls start(the places of each result), which puts the kernels that fill them on the stream;
  /// beside these they write nothing but `written`.
  template <std::size_t count, class F>
  auto rounding(const Factor<S> (&results)[count], std::initializer_list<Out> written,
                const F& start) const {
    start_pending();
    if constexpr (fast) {
      return tensor_cores_->rounding(results, written, start);
    } else if constexpr (count == 1) {
      return start(Results<S>(results[0]));
    } else {
      return start(Results<S>(results[0]), Results<S>(results[1]));
    }
  }

  /// c (+)= a · b; under Bfloat16 either may be in that already.
  void product(Weight<S> a, Weight<S> b, Out c, Write write) const {
    if constexpr (fast) {
      if (is_few(a) && !a.transposed) {
        tensor_cores_->forget();
        return pending_->product({a.template stored<S>(), b, c}, write);
      }
      start_pending();
      tensor_cores_->multiply(a, b, c, write);
    } else {
      if (a.narrow)
        ttt::detail::fail<Error>("CUDA: exact products have no left operand in bfloat16");
      Launch<S>::matmul(next(), a.template stored<S>(), a.transposed, b, c, write);
    }
  }

  /// y = x · w for each of several weights, at once. False, and nothing done, where there is no way
  /// that is better than one after the other.
  template <std::size_t count>
  bool product_each(Weight<S> x, const std::array<Weight<S>, count>& w,
                    const std::array<Out, count>& y) const requires(fast) {
    if (is_few(x)) {
      tensor_cores_->forget();
      return pending_->products(x.template stored<S>(), w, y);
    }
    if constexpr (count > 1) {
      start_pending();
      return tensor_cores_->multiply_each(x, w, y);
    }
    return false;
  }

  /// A gate, what it gates and swiglu of both; false likewise.
  bool gated(Weight<S> x, Weight<S> w1, Weight<S> w3, Out gate, Out up, Factor<S> out) const
      requires(fast) {
    if (!is_few(x) || out.narrow) return false;
    tensor_cores_->forget();
    return pending_->gated(x.template stored<S>(), w1, w3, gate, up, out);
  }
  /// Heads turned and stored, and attention of few rows; false where there is no kernel.
  bool rotate(const Rotation<S>& rotation) const requires(fast) {
    tensor_cores_->forget();
    return pending_->rotate(rotation);
  }
  bool attention_of_few(In q, Cache<const bfloat16> keys, Cache<const bfloat16> values,
                        const AttentionShape& shape, const Place& place, Out o, Out lse) const
      requires(fast) {
    constexpr Index few = 8;  // more have a kernel that shares the keys among them
    if (q.rows > few || q.rows * shape.heads > Device::counters) return false;
    tensor_cores_->forget();
    return device_->with_scratch(
        Launch<S>::attention_decode_scratch(shape, keys.slots, q.rows), [&](void* scratch) {
          return pending_->attention(q, keys, values, shape, place, o, lse, scratch);
        });
  }

  /// Both, of a row of each of some documents; false likewise. They are listed by `parts`, the keys
  /// and values of the rotation are those of place 0, and lse is document by document.
  template <class Parts>
  bool attend_each(const Rotation<S>& rotation, AttentionShape shape, const Parts& parts,
                   Index apart, Out o, Out lse) const requires(fast) {
    const Index count = std::ssize(parts);
    if (count * shape.heads > Device::counters || !Launch<S>::rotates(rotation)) return false;
    const Stream stream = next();
    const auto start = [&](Index first, Index rows, void* scratch) {
      Rotation<S> own = rotation;
      DocumentRows documents{apart, {}, {}};
      for (Index i = 0; i < rows; ++i) {
        const auto& part = parts[static_cast<std::size_t>(first + i)];
        documents.places[i] = part.place;
        documents.behinds[i] = part.position - parts[0].position;
      }
      const auto rows_of = [&](auto& view) {
        if (!view.empty()) view = view.rows_at(first, rows);
      };
      rows_of(own.q), rows_of(own.k), rows_of(own.v), rows_of(own.angles), rows_of(own.y);
      rows_of(own.q_inverse), rows_of(own.k_inverse);
      return Launch<S>::attention_decode(stream, own.y, own.keys, own.values, shape, own.place,
                                         o.rows_at(first, rows), lse.rows_at(first, rows), scratch,
                                         device_->counter(), &own, &documents);
    };
    for (Index first = 0; first < count; first += DocumentRows::most) {
      const Index rows = std::min(count - first, DocumentRows::most);
      const Index scratch =
          Launch<S>::attention_decode_scratch(shape, rotation.keys.slots, rows, true);
      const bool done =
          device_->with_scratch(scratch, [&](void* to) { return start(first, rows, to); });
      if (!done) return false;  // for the first, or for none
    }
    return true;
  }

  /// y (+)= x · w of each of `parts` equal parts of the rows, by weights that lie `apart` elements
  /// from each other, at once; and dw (+)= xᵀ · dy of each. False likewise.
  bool matmul_parts(Weight<S> x, Weight<S> w, Index parts, Index apart, Out y, Write write) const
      requires(fast) {
    if (x.rows / parts <= TensorCores::few_rows && !x.narrow) return false;
    start_pending();
    return tensor_cores_->multiply_parts(x, w, parts, apart, y, write);
  }
  bool matmul_gradient_parts(Weight<S> x, Weight<S> dy, Index parts, Index apart, Out dw,
                             Write write) const requires(fast) {
    start_pending();
    return tensor_cores_->multiply_gradient_parts(x, dy, parts, apart, dw, write);
  }

  /// dw (+)= x0ᵀ · dy0 + x1ᵀ · dy1.
  void matmul_gradient_sum(const std::array<Weight<S>, 2>& x, const std::array<Weight<S>, 2>& dy,
                           Out dw, Write write) const requires(fast) {
    start_pending();
    tensor_cores_->multiply_pairs(x, dy, dw, write);
  }
  /// A feed-forward of which nothing but y is needed. False, and nothing done, where there is no
  /// kernel for it.
  bool feed_forward(Weight<S> x, Weight<S> w1, Weight<S> w3, Weight<S> w2, S* memory, Out y) const
      requires(fast) {
    if (!Launch<S>::has_large_products(x.rows)) return false;
    start_pending();
    return tensor_cores_->feed_forward(x, w1, w3, w2, memory, y);
  }
  /// Head and loss of rows without their logits; false likewise.
  bool head_loss(In h, Weight<S> head, const Token* targets, const S* weights, S* nll, Out dh,
                 S* scratch) const requires(fast) {
    if (!Launch<S>::has_large_products(h.rows)) return false;
    start_pending();
    return tensor_cores_->head_loss(h, head, targets, weights, nll, dh, scratch);
  }

  void embed(Weight<S> table, const Token* tokens, Out out) const {
    Launch<S>::embed(next(), table, tokens, out);
  }
  void embed_backward(const Token* tokens, In dout, Out dtable) const {
    Launch<S>::embed_backward(next(), tokens, dout, dtable);
  }
  void next_token(In logits, NextToken<S>* out) const {
    device_->with_scratch(Launch<S>::next_token_scratch(logits.rows), [&](void* scratch) {
      Launch<S>::next_token(next(), logits, out, scratch);
    });
  }
  /// Waits for the result. Throws cuda::Error when something on the stream failed.
  double dot(const S* x, const S* y, Index size) const {
    const auto lock = device_->results_lock();
    auto* const sum = static_cast<double*>(device_->results());
    Launch<S>::dot(next(), x, y, size, device_->partial_sums(), Device::sum_blocks, sum);
    wait();
    return *sum;
  }
  /// Throws cuda::Error when something before it could not be started: nothing has moved then.
  void gradient_scale(const S* gradient, Index size, double clip, In scores,
                      GradientScale* found) const {
    const auto lock = device_->results_lock();  // of the partial sums, too
    device_->check_started();
    Launch<S>::gradient_scale(next(), gradient, size, clip, scores, device_->partial_sums(),
                              Device::sum_blocks, found);
  }
  void adam(const AdamStep& step, const S* gradient, S* m, S* v, S* weights, Index size) const {
    Launch<S>::adam(next(), step, gradient, m, v, weights, size);
  }
  void axpby(double a, const S* x, double b, S* y, Index size) const {
    Launch<S>::axpby(next(), a, x, b, y, size);
  }
  /// And a copy of y, rounded.
  void axpby(double a, const S* x, double b, S* y, Index size, bfloat16* copy) const
      requires(fast) {
    Launch<S>::axpby(next(), a, x, b, y, size, copy);
  }
  /// The same, with a copy unless that is null, and `times` a; y stays where that is not a number.
  void axpby(double a, const S* x, double b, S* y, Index size, bfloat16* copy,
             const double* times) const {
    Launch<S>::axpby(next(), a, x, b, y, size, copy, times);
  }

  /// A sum on the residual stream, which may wait for what comes next.
  void sum(const ResidualSum<S>& sum) const {
    if constexpr (fast) {
      tensor_cores_->forget();
      pending_->add(sum);
    } else {
      start_sum(next(), sum);
    }
  }
  /// y = rms_norm(x), of that sum or of anything else.
  void norm(In x, Norm<S> norm, Factor<S> y, Out inverse) const {
    if constexpr (fast) {
      tensor_cores_->rounding({y}, {inverse}, [&](const Results<S>& to) {
        pending_->norm(x, norm, to.values, inverse, to.rounded);
      });
    } else {
      Launch<S>::rms_norm(next(), false, {x, {}}, norm, {}, {y}, inverse);
    }
  }

  /// Whether what products multiply, of that shape, is to be in bfloat16 already: rows that lie in
  /// eights, more than a few.
  static constexpr bool rounds_factors(Index rows, Index cols) requires(fast) {
    return rows > TensorCores::few_rows && cols % TensorCores::row_alignment == 0;
  }

 private:
  /// Rows that multiply weights where they lie.
  static bool is_few(const Weight<S>& x) { return x.rows <= TensorCores::few_rows && !x.narrow; }
  void start_pending() const {
    if constexpr (fast) pending_->start();
  }

  std::shared_ptr<TensorCores> tensor_cores_;  // these under Bfloat16
  std::shared_ptr<PendingWork> pending_;
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
