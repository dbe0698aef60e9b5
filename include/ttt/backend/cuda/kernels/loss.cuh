// SPDX-License-Identifier: MIT
/// \file
/// The loss of a block of rows of logits, in the scalar's own precision: a logit is read three
/// times, for the greatest, the sum and the gradient, which is written in its place: 16 bytes. For
/// parity; head_hopper.cuh has no logits.
#pragma once

#include <limits>

#include <ttt/backend/cuda/kernels/overlap.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// exp(logit - most). A logit that is infinite is no number here, so that it shows.
template <class T>
__device__ T power(T logit, ScalarOf<T> most) {
  using std::exp;
  const T below = logit - T(most);
  return exp(below) + below * T(0);
}

/// One row of logits a block: its score, and the gradient in its place.
template <class T, class S = ScalarOf<T>>
__global__ void __launch_bounds__(512)
    softmax_loss_kernel(View<S> logits, View<S> tlogits, const Token* targets, const S* weights,
                        double seed, S* nll, bool want_gradient) {
  using std::log;
  const Index t = blockIdx.x, words = logits.cols;
  const Operand<S> z{logits, tlogits};
  S most = logits(t, 0);
  for (Index j = threadIdx.x; j < words; j += blockDim.x) {
    if (!(logits(t, j) <= most)) most = logits(t, j);
  }
  most = block_max(most);
  T sum(0);
  for (Index j = threadIdx.x; j < words; j += blockDim.x) {
    sum = sum + power(load<T>(z, t, j), most);
  }
  sum = block_sum(sum);
  const Index target = targets[t];
  if (nll != nullptr && threadIdx.x == 0) {
    nll[t] = (most - logits(t, target)) + log(value_of(sum));
  }
  if (!want_gradient) return;
  __syncthreads();  // the target's logit has been read
  T weight(weights[t]);
  if constexpr (!std::is_same_v<T, S>) weight.tangent = static_cast<S>(seed) * weights[t];
  for (Index j = threadIdx.x; j < words; j += blockDim.x) {
    const T share = power(load<T>(z, t, j), most) / sum;
    const T gradient = weight * (share - T(S(j == target ? 1 : 0)));
    logits(t, j) = value_of(gradient);
    if constexpr (!std::is_same_v<T, S>) tlogits(t, j) = gradient.tangent;
  }
}

/// What a part of a row of logits says of the next token.
template <class S>
struct NextPart {
  S most, sum;  // of powers below it
  int at;       // the first place of it
};
constexpr Index next_parts = 64, next_threads = 256;
constexpr int nowhere = std::numeric_limits<int>::max();

template <class S, int N>
__global__ void __launch_bounds__(next_threads)
    next_token_part_kernel(View<const S> logits, Index each, NextPart<S>* parts) {
  let_next_begin();
  wait_for_previous();
  const Index t = blockIdx.y, begin = each * blockIdx.x, step = N * static_cast<Index>(blockDim.x);
  const Index end = begin + each < logits.cols ? begin + each : logits.cols;
  const Operand<S> z{logits, {}};
  const auto over_part = [&](const auto& f) {
    for (Index j = begin + N * static_cast<Index>(threadIdx.x); j < end; j += step) {
      const auto pack = load_pack<S, N>(z, t, j);
#pragma unroll
      for (int n = 0; n < N; ++n) f(pack.at[n], j + n);
    }
  };
  S most = logits(t, begin), sum(0);
  over_part([&](S logit, Index) {
    if (!(logit <= most)) most = logit;
  });
  most = block_max(most);
  int at = nowhere;
  over_part([&](S logit, Index j) {
    sum += power(logit, most);
    if (logit == most && j < at) at = static_cast<int>(j);
  });
  sum = block_sum(sum);
  at = -block_max(-at);
  if (threadIdx.x == 0) parts[t * gridDim.x + blockIdx.x] = {most, sum, at};
}

template <class S>
__global__ void __launch_bounds__(next_parts)
    next_token_kernel(const NextPart<S>* parts, Index count, NextToken<S>* out) {
  using std::exp, std::log;
  wait_for_previous();
  const Index t = blockIdx.x, i = static_cast<Index>(threadIdx.x) < count ? threadIdx.x : 0;
  const NextPart<S> part = parts[t * count + i];
  const S most = block_max(part.most);
  const S sum = block_sum(threadIdx.x == i ? part.sum * exp(part.most - most) : S(0));
  const int at = part.most == most ? part.at : nowhere;
  const int first = -block_max(-at);
  if (threadIdx.x == 0) out[t] = {most + log(sum), most, static_cast<Token>(first)};
}

}  // namespace

template <class S>
Index Launch<S>::next_token_scratch(Index rows) {
  return rows * next_parts * static_cast<Index>(sizeof(NextPart<S>));
}

template <class S>
void Launch<S>::next_token(Stream stream, View<const S> logits, NextToken<S>* out, void* scratch) {
  if (logits.rows == 0) return;
  constexpr Index pack = pack_size<S>;
  const Index each = blocks_for(blocks_for(logits.cols, next_parts), pack) * pack;
  const Index parts = blocks_for(logits.cols, each);
  NextPart<S>* const part = static_cast<NextPart<S>*>(scratch);
  const auto kernel =
      in_packs(logits) ? next_token_part_kernel<S, pack> : next_token_part_kernel<S, 1>;
  start(stream, kernel, dim3(grid(parts), grid(logits.rows)), next_threads, logits, each, part);
  start(stream, next_token_kernel<S>, dim3(grid(logits.rows)), next_parts, part, parts, out);
}

template <class S>
void Launch<S>::softmax_loss(Stream stream, bool tangents, View<S> logits, View<S> tlogits,
                             const Token* targets, const S* weights, double seed, S* nll,
                             bool want_gradient) {
  if (logits.rows == 0) return;
  with_number<S>(tangents, [&]<class T>() {
    softmax_loss_kernel<T><<<grid(logits.rows), 512, 0, stream>>>(logits, tlogits, targets, weights,
                                                                  seed, nll, want_gradient);
  });
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
