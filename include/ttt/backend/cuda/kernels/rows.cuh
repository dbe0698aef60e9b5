// SPDX-License-Identifier: MIT
/// \file
/// What else works row by row: SwiGLU, sums, embeddings.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

template <class T, class S = ScalarOf<T>>
__global__ void swiglu_kernel(Operand<S> gate, Operand<S> up, View<S> out) {
  const Index t = blockIdx.x;
  for (Index j = threadIdx.x; j < out.cols; j += blockDim.x) {
    const T g = load<T>(gate, t, j);
    put(out(t, j), g * sigmoid(g) * load<T>(up, t, j));
  }
}

template <class T, class S = ScalarOf<T>>
__global__ void swiglu_backward_kernel(Operand<S> gate, Operand<S> up, Operand<S> dout,
                                       View<S> dgate, View<S> dup) {
  const Index t = blockIdx.x;
  for (Index j = threadIdx.x; j < gate.value.cols; j += blockDim.x) {
    const T g = load<T>(gate, t, j), d = load<T>(dout, t, j), u = load<T>(up, t, j);
    const T s = sigmoid(g);
    if (!dup.empty()) put(dup(t, j), d * g * s);
    if (!dgate.empty()) put(dgate(t, j), d * u * s * (T(1) + g * (T(1) - s)));
  }
}

template <class S>
__global__ void add_kernel(View<const S> a, View<const S> b, View<S> out) {
  const Index t = blockIdx.x;
  for (Index j = threadIdx.x; j < out.cols; j += blockDim.x) out(t, j) = a(t, j) + b(t, j);
}

template <class S>
__global__ void embed_kernel(Weight<S> table, const Token* tokens, View<S> out) {
  const Index t = blockIdx.x;
  for (Index j = threadIdx.x; j < out.cols; j += blockDim.x) {
    out(t, j) = load(table, static_cast<Index>(tokens[t]), j);
  }
}

/// dtable[tokens[t]] += dout[t]. The block of a token's first row adds all of that token's rows, in
/// order; the others find that they are not the first, and leave.
template <class S>
__global__ void embed_backward_kernel(const Token* tokens, View<const S> dout, View<S> dtable) {
  const Index t = blockIdx.x;
  const Token token = tokens[t];
  bool earlier = false;
  for (Index i = threadIdx.x; i < t; i += blockDim.x) earlier = earlier || tokens[i] == token;
  if (__syncthreads_or(earlier) != 0) return;
  for (Index j = threadIdx.x; j < dout.cols; j += blockDim.x) {
    S sum = dtable(token, j);
    for (Index i = t; i < dout.rows; ++i) {
      if (tokens[i] == token) sum += dout(i, j);
    }
    dtable(token, j) = sum;
  }
}

}  // namespace

template <class S>
void Launch<S>::embed(Stream stream, Weight<S> table, const Token* tokens, View<S> out) {
  if (out.rows == 0) return;
  embed_kernel<<<grid(out.rows), row_threads, 0, stream>>>(table, tokens, out);
}

template <class S>
void Launch<S>::embed_backward(Stream stream, const Token* tokens, View<const S> dout,
                               View<S> dtable) {
  if (dout.rows == 0) return;
  embed_backward_kernel<<<grid(dout.rows), row_threads, 0, stream>>>(tokens, dout, dtable);
}

template <class S>
void Launch<S>::swiglu(Stream stream, bool tangents, Operand<S> gate, Operand<S> up, View<S> out) {
  if (out.rows == 0) return;
  with_number<S>(tangents, [&]<class T>() {
    swiglu_kernel<T><<<grid(out.rows), row_threads, 0, stream>>>(gate, up, out);
  });
}

template <class S>
void Launch<S>::swiglu_backward(Stream stream, bool tangents, Operand<S> gate, Operand<S> up,
                                Operand<S> dout, View<S> dgate, View<S> dup) {
  if (gate.value.rows == 0) return;
  with_number<S>(tangents, [&]<class T>() {
    swiglu_backward_kernel<T>
        <<<grid(gate.value.rows), row_threads, 0, stream>>>(gate, up, dout, dgate, dup);
  });
}

template <class S>
void Launch<S>::add(Stream stream, View<const S> a, View<const S> b, View<S> out) {
  if (out.rows > 0) add_kernel<<<grid(out.rows), row_threads, 0, stream>>>(a, b, out);
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
