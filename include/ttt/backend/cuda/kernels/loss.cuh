// SPDX-License-Identifier: MIT
/// \file
/// The loss of a block of rows of logits.
#pragma once

#include <ttt/backend/cuda/kernels/number.cuh>

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

template <class S, int N>
__global__ void __launch_bounds__(1024) log_sum_exp_kernel(View<const S> logits, View<S> out) {
  using std::log;
  const Index t = blockIdx.x, words = logits.cols, step = N * static_cast<Index>(blockDim.x);
  const Operand<S> z{logits, {}};
  const auto over_row = [&](const auto& f) {
#pragma unroll 8
    for (Index j = N * static_cast<Index>(threadIdx.x); j < words; j += step) {
      const auto each = load_pack<S, N>(z, t, j);
#pragma unroll
      for (int n = 0; n < N; ++n) f(each.at[n]);
    }
  };
  S most = logits(t, 0), sum(0);
  over_row([&](S logit) {
    if (!(logit <= most)) most = logit;
  });
  most = block_max(most);
  over_row([&](S logit) { sum += power(logit, most); });
  sum = block_sum(sum);
  if (threadIdx.x == 0) out(t, 0) = most + log(sum);
}

}  // namespace

template <class S>
void Launch<S>::log_sum_exp(Stream stream, View<const S> logits, View<S> out) {
  if (logits.rows == 0) return;
  const auto kernel =
      in_packs(logits) ? log_sum_exp_kernel<S, pack_size<S>> : log_sum_exp_kernel<S, 1>;
  kernel<<<grid(logits.rows), 1024, 0, stream>>>(logits, out);
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
