// SPDX-License-Identifier: MIT
/// \file
/// ttt::Cuda: the primitives on an NVIDIA GPU. Any host compiler reads this; the kernels are in
/// the one unit that the target ttt::cuda adds to a program, or that a .cu file of one line makes:
/// #include <ttt/backend/cuda/instantiate.cuh>.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda {

/// Policy: what the products of a backend are computed in. Everything else is in the backend's
/// scalar.
enum class Products : std::uint8_t {
  Exact,     // in the scalar: the results of the other backends, to rounding
  Bfloat16,  // operands rounded to bfloat16, sums in float, on tensor cores: fast
};

/// Computes on a GPU in float or double.
///
/// All work goes to one stream. A primitive puts its kernels there and returns; to_host, dot and
/// synchronize wait, and throw what failed until then. A copy shares the stream and its memory.
/// Kernels add in an order of their own that never changes, so the same GPU gives the same bits.
template <class S = float, Products products = Products::Exact>
class Backend {
  static_assert(products == Products::Exact || std::is_same_v<S, float>,
                "ttt: products in bfloat16 are for a backend in float");
  using Launch = detail::Launch<S>;
  using In = View<const S>;
  using Out = View<S>;
  using CacheIn = Cache<const S>;

 public:
  using Scalar = S;
  static constexpr Index most_head_dim = detail::most_head_dim;

  /// The GPU of that number, with a stream of its own. Throws cuda::Error when there is none, or
  /// when the program was built for other architectures.
  explicit Backend(int device = 0) : device_(std::make_shared<const detail::Device>(device)) {}

  /// A stream of the caller's on that GPU, which must outlive the backend and its memory; null is
  /// CUDA's default stream.
  Backend(int device, cudaStream_t stream)
      : device_(std::make_shared<const detail::Device>(device, stream)) {}

  cudaStream_t stream() const { return device_->stream(); }

  /// Waits until everything put on the stream is done. Throws cuda::Error when something failed.
  void synchronize() const { device_->synchronize(); }

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

  /// Memory of the GPU. Throws cuda::Error when there is no room.
  template <class T>
  Buffer<T> allocate(Index size) const {
    return Buffer<T>(device_, size);
  }
  /// Copies `size` elements from the host, and waits, so that they may be changed.
  template <class T>
  void to_device(const T* host, T* to, Index size) const {
    move(host, to, size, cudaMemcpyHostToDevice);
    detail::check(cudaStreamSynchronize(stream()), "a kernel failed");
  }
  /// Copies `size` elements to the host, and waits for them. Throws cuda::Error when something on
  /// the stream failed.
  template <class T>
  void to_host(const T* from, T* host, Index size) const {
    if (size == 0) return;
    detail::check(cudaMemcpyAsync(host, from, bytes<T>(size), cudaMemcpyDeviceToHost, stream()),
                  "a copy to the host");
    synchronize();
  }
  template <class T>
  void copy(const T* from, T* to, Index size) const {
    move(from, to, size, cudaMemcpyDeviceToDevice);
  }
  void widen(Weight<S> w, Out out) const { Launch::widen(stream(), w, out); }
  void fill(S value, S* to, Index size) const { Launch::fill(stream(), value, to, size); }

  // ---- products ---------------------------------------------------------------------------------

  void matmul(In x, Weight<S> w, Out y, Write write) const { product(x, false, w, y, write); }
  void matmul_gradient(In x, In dy, Out dw, Write write) const { product(x, true, dy, dw, write); }

  // ---- rows -------------------------------------------------------------------------------------

  void embed(Weight<S> table, const Token* tokens, Out out) const {
    Launch::embed(stream(), table, tokens, out);
  }
  void embed_backward(const Token* tokens, In dout, Out dtable) const {
    Launch::embed_backward(stream(), tokens, dout, dtable);
  }
  void rms_norm(In x, Norm<S> norm, Out y, Out inverse) const {
    Launch::rms_norm(stream(), false, {x, {}}, norm, {}, y, inverse);
  }
  void rms_norm_backward(In x, Norm<S> norm, In inverse, In dy, Out dx, Write write,
                         Out dscale) const {
    Launch::rms_norm_backward(stream(), false, {x, {}}, norm, {inverse, {}}, {dy, {}}, dx, write,
                              dscale);
  }
  void rms_norm_tangent(In x, In tx, Norm<S> norm, In, In th, Out ty, Out tinverse) const {
    Launch::rms_norm(stream(), true, {x, tx}, norm, {{}, th}, ty, tinverse);
  }
  void rms_norm_backward_tangent(In x, In tx, Norm<S> norm, In inverse, In tinverse, In dy, In tdy,
                                 Out tdx, Write write, Out tdscale) const {
    Launch::rms_norm_backward(stream(), true, {x, tx}, norm, {inverse, tinverse}, {dy, tdy}, tdx,
                              write, tdscale);
  }
  void add(In a, In b, Out out) const { Launch::add(stream(), a, b, out); }
  void add_rms_norm(In h, In x, Norm<S> norm, Out out, Out inverse) const {
    Launch::rms_norm(stream(), false, {x, {}}, norm, {h, {}}, out, inverse);
  }
  void rope_angles(Index position, const double* frequencies, Out out) const {
    detail::Frequencies all = {};
    std::copy_n(frequencies, out.cols / 2, all.of);
    Launch::rope_angles(stream(), position, all, out);
  }
  void head_norm_rope(In x, Norm<S> norm, In angles, RopeLayout layout, Out y, Out inverse) const {
    Launch::head_norm_rope(stream(), false, {x, {}}, norm, angles, layout, y, inverse);
  }
  void head_norm_rope_backward(In x, Norm<S> norm, In inverse, In angles, RopeLayout layout, In dy,
                               Out dx, Out dscale) const {
    Launch::head_norm_rope_backward(stream(), false, {x, {}}, norm, {inverse, {}}, angles, layout,
                                    {dy, {}}, dx, dscale);
  }
  void head_norm_rope_tangent(In x, In tx, Norm<S> norm, In, In angles, RopeLayout layout, Out ty,
                              Out tinverse) const {
    Launch::head_norm_rope(stream(), true, {x, tx}, norm, angles, layout, ty, tinverse);
  }
  void head_norm_rope_backward_tangent(In x, In tx, Norm<S> norm, In inverse, In tinverse,
                                       In angles, RopeLayout layout, In dy, In tdy, Out tdx,
                                       Out tdscale) const {
    Launch::head_norm_rope_backward(stream(), true, {x, tx}, norm, {inverse, tinverse}, angles,
                                    layout, {dy, tdy}, tdx, tdscale);
  }
  void swiglu(In gate, In up, Out out) const {
    Launch::swiglu(stream(), false, {gate, {}}, {up, {}}, out);
  }
  void swiglu_backward(In gate, In up, In dout, Out dgate, Out dup) const {
    Launch::swiglu_backward(stream(), false, {gate, {}}, {up, {}}, {dout, {}}, dgate, dup);
  }
  void swiglu_tangent(In gate, In tgate, In up, In tup, Out tout) const {
    Launch::swiglu(stream(), true, {gate, tgate}, {up, tup}, tout);
  }
  void swiglu_backward_tangent(In gate, In tgate, In up, In tup, In dout, In tdout, Out tdgate,
                               Out tdup) const {
    Launch::swiglu_backward(stream(), true, {gate, tgate}, {up, tup}, {dout, tdout}, tdgate, tdup);
  }

  void chunk_conv(In x, Weight<S> taps, Index chunk, Out y) const {
    Launch::chunk_conv(stream(), x, taps, chunk, y);
  }
  void chunk_conv_backward(In x, Weight<S> taps, Index chunk, In dy, Out dx, Write write,
                           Out dtaps) const {
    Launch::chunk_conv_backward(stream(), x, taps, chunk, dy, dx, write, dtaps);
  }

  // ---- attention --------------------------------------------------------------------------------

  void store(In rows, Cache<S> cache, Index position) const {
    Launch::store(stream(), rows, cache, position);
  }
  void attention(In q, CacheIn keys, CacheIn values, AttentionShape shape, Out o, Out lse) const {
    if constexpr (products == Products::Bfloat16) {
      if (Launch::attention_bfloat16(stream(), q, keys, values, shape, o, lse)) return;
    }
    Launch::attention(stream(), false, {q, {}}, {keys, values, {}, {}}, shape, o, lse);
  }
  void attention_backward(In q, CacheIn keys, CacheIn values, AttentionShape shape, In o, In lse,
                          In dout, Out dq, Out dkeys, Out dvalues, Index first) const {
    if constexpr (products == Products::Bfloat16) {
      if (Launch::attention_backward_bfloat16(stream(), q, keys, values, shape, o, lse, dout, dq,
                                              dkeys, dvalues, first)) {
        return;
      }
    }
    Launch::attention_backward(stream(), false, {q, {}}, {keys, values, {}, {}}, shape, {o, {}},
                               {lse, {}}, {dout, {}}, dq, dkeys, dvalues, first);
  }
  void attention_tangent(In q, In tq, CacheIn keys, CacheIn values, In tkeys, In tvalues,
                         AttentionShape shape, In, In, Out to, Out tlse) const {
    Launch::attention(stream(), true, {q, tq}, {keys, values, tkeys, tvalues}, shape, to, tlse);
  }
  void attention_backward_tangent(In q, In tq, CacheIn keys, CacheIn values, In tkeys, In tvalues,
                                  AttentionShape shape, In o, In to, In lse, In tlse, In dout,
                                  In tdout, Out tdq, Out tdkeys, Out tdvalues, Index first) const {
    Launch::attention_backward(stream(), true, {q, tq}, {keys, values, tkeys, tvalues}, shape,
                               {o, to}, {lse, tlse}, {dout, tdout}, tdq, tdkeys, tdvalues, first);
  }

  // ---- the loss ---------------------------------------------------------------------------------

  Index cross_entropy_scratch(Index rows, Index vocabulary) const {
    return loss_rows(rows, vocabulary) * vocabulary;
  }
  void cross_entropy(In h, Weight<S> head, const Token* targets, const S* weights, S* nll, Out dh,
                     S* scratch) const {
    for_loss_rows(h.rows, head.cols, [&](Index first, Index rows) {
      const Out logits(scratch, rows, head.cols);
      matmul(h.rows_at(first, rows), head, logits, Write::Replace);
      Launch::softmax_loss(stream(), false, logits, {}, targets + first,
                           dh.empty() ? nullptr : weights + first, 0, nll + first, !dh.empty());
      if (dh.empty()) return;
      matmul(logits, head.transpose(), dh.rows_at(first, rows), Write::Replace);
    });
  }
  Index cross_entropy_tangent_scratch(Index rows, Index vocabulary) const {
    return 2 * cross_entropy_scratch(rows, vocabulary);
  }
  void cross_entropy_tangent(In h, In th, Weight<S> head, const Token* targets, const S* weights,
                             double seed, Out tdh, Out tdhead, S* scratch) const {
    for_loss_rows(h.rows, head.cols, [&](Index first, Index rows) {
      const Out z(scratch, rows, head.cols), tz(scratch + rows * head.cols, rows, head.cols);
      const In x = h.rows_at(first, rows), tx = th.empty() ? th : th.rows_at(first, rows);
      matmul(x, head, z, Write::Replace);
      if (tx.empty()) {
        fill(S(0), tz.data, tz.shape().size());
      } else {
        matmul(tx, head, tz, Write::Replace);
      }
      Launch::softmax_loss(stream(), true, z, tz, targets + first, weights + first, seed, nullptr,
                           true);
      if (!tdh.empty()) matmul(tz, head.transpose(), tdh.rows_at(first, rows), Write::Replace);
      if (tdhead.empty()) return;
      const auto both = [&](In hidden, In logits) {
        if (is_embedding(tdhead, head)) {
          matmul_gradient(logits, hidden, tdhead, Write::Add);
        } else {
          matmul_gradient(hidden, logits, tdhead, Write::Add);
        }
      };
      both(x, tz);
      if (!tx.empty()) both(tx, z);
    });
  }

  // ---- flat vectors -----------------------------------------------------------------------------

  /// Waits for the result. Throws cuda::Error when something on the stream failed.
  double dot(const S* x, const S* y, Index size) const {
    const auto lock = device_->sum_lock();
    Launch::dot(stream(), x, y, size, device_->partial_sums(), detail::Device::sum_blocks,
                device_->sum());
    synchronize();
    return *device_->sum();
  }
  void axpby(double a, const S* x, double b, S* y, Index size) const {
    Launch::axpby(stream(), a, x, b, y, size);
  }
  void adam(const AdamStep& step, const S* gradient, S* m, S* v, S* weights, Index size) const {
    Launch::adam(stream(), step, gradient, m, v, weights, size);
  }

 private:
  void product(In a, bool a_transposed, Weight<S> b, Out c, Write write) const {
    if constexpr (products == Products::Bfloat16) {
      Launch::matmul_bfloat16(stream(), a, a_transposed, b, c, write);
    } else {
      Launch::matmul(stream(), a, a_transposed, b, c, write);
    }
  }
  template <class T>
  static std::size_t bytes(Index size) {
    return static_cast<std::size_t>(size) * sizeof(T);
  }
  template <class T>
  void move(const T* from, T* to, Index size, cudaMemcpyKind kind) const {
    if (size == 0) return;
    detail::check(cudaMemcpyAsync(to, from, bytes<T>(size), kind, stream()), "a copy");
  }

  /// Rows whose logits exist at a time: as many as make large products, in bounded memory.
  static Index loss_rows(Index rows, Index vocabulary) {
    constexpr Index most = Index{1} << 25;
    return std::min(rows, std::max<Index>(16, most / vocabulary));
  }
  template <class F>
  static void for_loss_rows(Index rows, Index vocabulary, const F& f) {
    const Index block = loss_rows(rows, vocabulary);
    for (Index first = 0; first < rows; first += block) f(first, std::min(block, rows - first));
  }

  std::shared_ptr<const detail::Device> device_;
};

}  // namespace cuda

/// The machine for long documents: an NVIDIA GPU, in float.
using Cuda = cuda::Backend<float>;

}  // namespace ttt::inline TTT_ABI
