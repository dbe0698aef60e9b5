// SPDX-License-Identifier: MIT
/// \file
/// A GPU that takes memory of the host: what the tests of primitives, written for host memory, run
/// on a GPU with.
#pragma once

#include <map>
#include <type_traits>
#include <utility>
#include <vector>

#include <ttt/backend/cuda/backend.hpp>

namespace ttt::test {

/// The copies of one call; the end of it copies back.
template <class B>
class StagedCall {
 public:
  explicit StagedCall(const B& gpu) : gpu_(gpu) {}
  ~StagedCall() noexcept(false) {
    for (const auto& [host, copy] : copies_) {
      if (copy.written) {
        gpu_.to_host(copy.memory.data(), static_cast<unsigned char*>(const_cast<void*>(host)),
                     copy.memory.size());
      }
    }
  }
  StagedCall(const StagedCall&) = delete;
  StagedCall& operator=(const StagedCall&) = delete;

  template <class T>
  const T* in(const T* host, Index size) {
    return host == nullptr || size <= 0 ? host : place(host, size).template as<T>();
  }
  template <class T>
  T* out(T* host, Index size) {
    if (host == nullptr || size <= 0) return host;
    Copy& copy = place(host, size);
    copy.written = true;
    return copy.template as<T>();
  }

  template <class T>
  View<T> operator()(const View<T>& v) {
    const Index size = v.rows == 0 ? 0 : (v.rows - 1) * v.stride + v.cols;
    if constexpr (std::is_const_v<T>) {
      return {in(v.data, size), v.rows, v.cols, v.stride};
    } else {
      return {out(v.data, size), v.rows, v.cols, v.stride};
    }
  }
  template <class T>
  Factor<T> operator()(const Factor<T>& f) {  // on the host none is rounded
    return (*this)(f.values());
  }
  template <class T>
  Weight<T> operator()(Weight<T> w) {
    if (w.data != nullptr)
      w.data = w.visit([&](auto stored) -> const void* { return (*this)(stored).data; });
    return w;
  }
  template <class T>
  Norm<T> operator()(Norm<T> norm) {
    return {(*this)(norm.scale), norm.eps};
  }
  template <class T>
  Cache<T> operator()(Cache<T> cache) {
    if constexpr (std::is_const_v<T>) {
      cache.data = in(cache.data, cache.size());
    } else {
      cache.data = out(cache.data, cache.size());
    }
    return cache;
  }
  template <class T>
  requires(std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_same_v<T, AttentionShape>) T
  operator()(T other) {
    return other;
  }

 private:
  struct Copy {
    cuda::Buffer<unsigned char> memory;
    bool written = false;
    template <class T>
    std::remove_const_t<T>* as() {
      return reinterpret_cast<std::remove_const_t<T>*>(memory.data());
    }
  };

  template <class T>
  Copy& place(const T* host, Index size) {
    const Index bytes = size * static_cast<Index>(sizeof(T));
    const auto found = copies_.find(host);
    if (found != copies_.end() && found->second.memory.size() >= bytes) return found->second;
    Copy copy{gpu_.template allocate<unsigned char>(bytes)};
    gpu_.to_device(reinterpret_cast<const unsigned char*>(host), copy.memory.data(), bytes);
    if (found != copies_.end()) retired_.push_back(std::move(found->second));
    return copies_[host] = std::move(copy);
  }

  const B& gpu_;
  std::map<const void*, Copy> copies_;
  std::vector<Copy> retired_;  // too small for a later operand at the same place
};

template <auto Member>
class StagedPrimitive;
/// A primitive as an object that is called like it.
template <class B, class... Arguments, void (B::*member)(Arguments...) const>
class StagedPrimitive<member> {
 public:
  explicit StagedPrimitive(const B& gpu) : gpu_(gpu) {}
  void operator()(Arguments... arguments) const {
    StagedCall<B> call(gpu_);
    (gpu_.*member)(call(arguments)...);
  }

 private:
  B gpu_;
};

/// Copies what a primitive is given to the GPU, runs it there, and copies back what it may have
/// written, the gaps between rows included. One place on the host is one place on the GPU, so an
/// output may be an input here too.
template <class B>
class Staged {
  using Call = StagedCall<B>;
  template <auto Member>
  using Primitive = StagedPrimitive<Member>;
  B gpu_;

 public:
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  static constexpr Index most_head_dim = B::most_head_dim;

  static constexpr int threads() { return 1; }

  void fill(Scalar value, Scalar* to, Index size) const {
    Call call(gpu_);
    gpu_.fill(value, call.out(to, size), size);
  }
  double dot(const Scalar* x, const Scalar* y, Index size) const {
    Call call(gpu_);
    return gpu_.dot(call.in(x, size), call.in(y, size), size);
  }
  void axpby(double a, const Scalar* x, double b, Scalar* y, Index size) const {
    Call call(gpu_);
    Scalar* const to = call.out(y, size);
    gpu_.axpby(a, call.in(x, size), b, to, size);
  }
  void adam(const AdamStep& step, const Scalar* gradient, Scalar* m, Scalar* v, Scalar* weights,
            Index size) const {
    Call call(gpu_);
    gpu_.adam(step, call.in(gradient, size), call.out(m, size), call.out(v, size),
              call.out(weights, size), size);
  }
  void embed(Weight<Scalar> table, const Token* tokens, View<Scalar> out) const {
    Call call(gpu_);
    gpu_.embed(call(table), call.in(tokens, out.rows), call(out));
  }
  void embed_backward(const Token* tokens, View<const Scalar> dout, View<Scalar> dtable) const {
    Call call(gpu_);
    gpu_.embed_backward(call.in(tokens, dout.rows), call(dout), call(dtable));
  }
  void rope_angles(Index position, const double* frequencies, View<Scalar> out) const {
    Call call(gpu_);
    gpu_.rope_angles(position, frequencies, call(out));
  }
  Index cross_entropy_scratch(Index rows, Index vocabulary) const {
    return gpu_.cross_entropy_scratch(rows, vocabulary);
  }
  Index cross_entropy_tangent_scratch(Index rows, Index vocabulary) const {
    return gpu_.cross_entropy_tangent_scratch(rows, vocabulary);
  }
  void cross_entropy(View<const Scalar> h, Weight<Scalar> head, const Token* targets,
                     const Scalar* weights, Scalar* nll, View<Scalar> dh, Scalar* scratch) const {
    Call call(gpu_);
    gpu_.cross_entropy(call(h), call(head), call.in(targets, h.rows), call.in(weights, h.rows),
                       call.out(nll, h.rows), call(dh),
                       call.out(scratch, cross_entropy_scratch(h.rows, head.cols)));
  }
  void next_token(View<const Scalar> logits, NextToken<Scalar>* out) const {
    Call call(gpu_);
    gpu_.next_token(call(logits), call.out(out, logits.rows));
  }
  void cross_entropy_tangent(View<const Scalar> h, View<const Scalar> th, Weight<Scalar> head,
                             const Token* targets, const Scalar* weights, double seed,
                             View<Scalar> tdh, View<Scalar> tdhead, Scalar* scratch) const {
    Call call(gpu_);
    gpu_.cross_entropy_tangent(call(h), call(th), call(head), call.in(targets, h.rows),
                               call.in(weights, h.rows), seed, call(tdh), call(tdhead),
                               call.out(scratch, cross_entropy_tangent_scratch(h.rows, head.cols)));
  }

  // The others take nothing whose size their other operands would have to tell.
  Primitive<&B::widen> widen{gpu_};
  Primitive<&B::matmul> matmul{gpu_};
  Primitive<&B::matmul_gradient> matmul_gradient{gpu_};
  Primitive<&B::rms_norm> rms_norm{gpu_};
  Primitive<&B::rms_norm_backward> rms_norm_backward{gpu_};
  Primitive<&B::rms_norm_tangent> rms_norm_tangent{gpu_};
  Primitive<&B::rms_norm_backward_tangent> rms_norm_backward_tangent{gpu_};
  Primitive<&B::add> add{gpu_};
  Primitive<&B::add_rms_norm> add_rms_norm{gpu_};
  Primitive<&B::head_norm_rope> head_norm_rope{gpu_};
  Primitive<&B::head_norm_rope_backward> head_norm_rope_backward{gpu_};
  Primitive<&B::head_norm_rope_tangent> head_norm_rope_tangent{gpu_};
  Primitive<&B::head_norm_rope_backward_tangent> head_norm_rope_backward_tangent{gpu_};
  Primitive<&B::swiglu> swiglu{gpu_};
  Primitive<&B::swiglu_backward> swiglu_backward{gpu_};
  Primitive<&B::swiglu_tangent> swiglu_tangent{gpu_};
  Primitive<&B::swiglu_backward_tangent> swiglu_backward_tangent{gpu_};
  Primitive<&B::chunk_conv> chunk_conv{gpu_};
  Primitive<&B::chunk_conv_backward> chunk_conv_backward{gpu_};
  Primitive<&B::store> store{gpu_};
  Primitive<&B::attention> attention{gpu_};
  Primitive<&B::attention_backward> attention_backward{gpu_};
  Primitive<&B::attention_tangent> attention_tangent{gpu_};
  Primitive<&B::attention_backward_tangent> attention_backward_tangent{gpu_};
};

}  // namespace ttt::test
