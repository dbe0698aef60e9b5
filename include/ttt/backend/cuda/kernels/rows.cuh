// SPDX-License-Identifier: MIT
/// \file
/// What else works row by row, bytes and nothing else. An element of SwiGLU reads 8 and writes 4,
/// or 2 where it is only multiplied; its gradient 12 and 8, or 4; a sum 8 and 4; an embedding the
/// table's 2 or 4, and 4. With the norms these are 15 % of reading 3b.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// The element that a thread begins at where a grid of (rows, column_blocks) covers a matrix.
template <int N>
__device__ Index own_column() {
  return N * (static_cast<Index>(blockIdx.y) * blockDim.x + threadIdx.x);
}
/// A grid in which a thread has N neighbours of one row.
inline dim3 row_grid(const Shape& shape, int n) {
  return {grid(shape.rows), grid(blocks_for(shape.cols, n * static_cast<Index>(row_threads)))};
}

template <class T, int N, class S = ScalarOf<T>>
__global__ void swiglu_kernel(Operand<S> gate, Operand<S> up, Results<S> out) {
  const Index t = blockIdx.x, j = own_column<N>();
  if (j >= gate.value.cols) return;
  const auto g = load_pack<T, N>(gate, t, j), u = load_pack<T, N>(up, t, j);
  Pack<T, N> y;
#pragma unroll
  for (int n = 0; n < N; ++n) y.at[n] = g.at[n] * sigmoid(g.at[n]) * u.at[n];
  put_pack(out, t, j, y);
}

template <class T, int N, class S = ScalarOf<T>>
__global__ void swiglu_backward_kernel(Operand<S> gate, Operand<S> up, Operand<S> dout,
                                       Results<S> dgate, Results<S> dup) {
  const Index t = blockIdx.x, j = own_column<N>();
  if (j >= gate.value.cols) return;
  const auto g = load_pack<T, N>(gate, t, j), u = load_pack<T, N>(up, t, j),
             d = load_pack<T, N>(dout, t, j);
  Pack<T, N> dg, du;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const T s = sigmoid(g.at[n]);
    du.at[n] = d.at[n] * g.at[n] * s;
    dg.at[n] = d.at[n] * u.at[n] * s * (T(1) + g.at[n] * (T(1) - s));
  }
  put_pack(dup, t, j, du);
  put_pack(dgate, t, j, dg);
}

template <class S, int N>
__global__ void add_kernel(View<const S> a, View<const S> b, View<S> out) {
  const Index t = blockIdx.x, j = own_column<N>();
  if (j >= out.cols) return;
  const auto x = load_pack<S, N>({a, {}}, t, j), y = load_pack<S, N>({b, {}}, t, j);
  Pack<S, N> sum;
#pragma unroll
  for (int n = 0; n < N; ++n) sum.at[n] = x.at[n] + y.at[n];
  put_pack(out, t, j, sum);
}

template <class S>
__global__ void embed_kernel(Weight<S> table, const Token* tokens, View<S> out) {
  const Index t = blockIdx.x;
  for (Index j = threadIdx.x; j < out.cols; j += blockDim.x) {
    out(t, j) = load(table, static_cast<Index>(tokens[t]), j);
  }
}

/// dtable[tokens[t]] += dout[t]. The block of a token's first row adds all of that token's rows, in
/// order, a blockful of tokens at a time; the others find that they are not the first, and leave.
template <class S>
__global__ void __launch_bounds__(row_threads)
    embed_backward_kernel(const Token* tokens, View<const S> dout, View<S> dtable) {
  __shared__ Index found[row_threads];
  __shared__ unsigned votes[row_threads / 32];
  const Index t = blockIdx.x;
  const Token token = tokens[t];
  bool earlier = false;
  for (Index i = threadIdx.x; i < t; i += row_threads) earlier = earlier || tokens[i] == token;
  if (__syncthreads_or(earlier) != 0) return;
  const unsigned warp = threadIdx.x / 32, below = (1u << threadIdx.x % 32) - 1;
  for (Index first = t; first < dout.rows; first += row_threads) {
    const Index mine = first + threadIdx.x;
    const bool same = mine < dout.rows && tokens[mine] == token;
    if (__syncthreads_or(same) == 0) continue;
    const unsigned vote = __ballot_sync(0xffffffffu, same);
    votes[warp] = vote;
    __syncthreads();
    Index before = 0, count = 0;
    for (unsigned w = 0; w < row_threads / 32; ++w) {
      if (w == warp) before = count + __popc(vote & below);
      count += __popc(votes[w]);
    }
    if (same) found[before] = mine;
    __syncthreads();
    for (Index j = threadIdx.x; j < dout.cols; j += row_threads) {
      S sum = dtable(token, j);
      for (Index i = 0; i < count; ++i) sum += dout(found[i], j);
      dtable(token, j) = sum;
    }
  }
}

template <class = void>  // so that two units of a program may have it
__global__ void begin_step_kernel(Token token, Token* token_to, Index position, Index* place) {
  if (token_to != nullptr) *token_to = token;
  *place = position;
}

}  // namespace

template <class S>
void Launch<S>::begin_step(Stream stream, Token token, Token* token_to, Index position,
                           Index* place) {
  begin_step_kernel<><<<1, 1, 0, stream>>>(token, token_to, position, place);
}

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
void Launch<S>::swiglu(Stream stream, bool tangents, Operand<S> gate, Operand<S> up,
                       Results<S> out) {
  if (gate.value.rows == 0) return;
  const bool aligned = in_packs(gate) && in_packs(up) && in_packs<S>(out.values);
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    swiglu_kernel<T, N><<<row_grid(gate.value.shape(), N), row_threads, 0, stream>>>(gate, up, out);
  });
}

template <class S>
void Launch<S>::swiglu_backward(Stream stream, bool tangents, Operand<S> gate, Operand<S> up,
                                Operand<S> dout, Results<S> dgate, Results<S> dup) {
  if (gate.value.rows == 0) return;
  const bool aligned = in_packs(gate) && in_packs(up) && in_packs(dout) &&
                       in_packs<S>(dgate.values) && in_packs<S>(dup.values);
  with_packs<S>(tangents, aligned, [&]<class T, int N>() {
    swiglu_backward_kernel<T, N>
        <<<row_grid(gate.value.shape(), N), row_threads, 0, stream>>>(gate, up, dout, dgate, dup);
  });
}

template <class S>
void Launch<S>::add(Stream stream, View<const S> a, View<const S> b, View<S> out) {
  if (out.rows == 0) return;
  const bool aligned = in_packs(a) && in_packs(b) && in_packs<S>(out);
  const int n = aligned ? pack_size<S> : 1;
  const auto kernel = aligned ? add_kernel<S, pack_size<S>> : add_kernel<S, 1>;
  kernel<<<row_grid(out.shape(), n), row_threads, 0, stream>>>(a, b, out);
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
