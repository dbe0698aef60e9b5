// SPDX-License-Identifier: MIT
/// \file
/// The last sum on the residual stream, kept until it is known what follows. Any host compiler
/// reads this.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// A sub-layer ends with a sum and the next one begins with a norm of it: one kernel, where one
/// would wait for the other twice. So a sum is put on the stream when the next thing is, with it if
/// that is its norm and before it if not. The bits are the same.
class PendingSum {
 public:
  /// Without `wait`, sums are put on the stream at once: a caller who has the stream may put
  /// kernels of his own behind them.
  PendingSum(std::shared_ptr<const Device> device, bool wait)
      : device_(std::move(device)), wait_(wait) {}

  void add(const ResidualSum<float>& sum) {
    const std::lock_guard lock(mutex_);
    start_pending();
    pending_ = sum;
    if (!wait_) start_pending();
  }

  /// y = rms_norm(x), with the sum that made x if that is still to be started.
  void norm(View<const float> x, Norm<float> norm, View<float> y, View<float> inverse,
            View<bfloat16> rounded) {
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    if (pending_ && is_result(x) && !writes_over_operand(y) && !writes_over_operand(inverse) &&
        Launch<float>::sum_and_norm(stream, *pending_, norm, y, inverse, rounded)) {
      pending_.reset();
      return;
    }
    start_pending();
    Launch<float>::rms_norm(stream, false, {x, {}}, norm, {}, y, inverse, rounded);
  }

  /// Something else is put on the stream, or somebody waits for it.
  void start() {
    const std::lock_guard lock(mutex_);
    start_pending();
  }
  void never_wait() {
    const std::lock_guard lock(mutex_);
    start_pending();
    wait_ = false;
  }

 private:
  void start_pending() {
    if (!pending_) return;
    const ResidualSum<float> sum = *std::exchange(pending_, {});
    const cudaStream_t stream = device_->stream();
    if (sum.has_norm) {
      Launch<float>::rms_norm(stream, false, {sum.x, {}}, sum.norm, {sum.h, {}}, sum.out,
                              sum.inverse);
    } else {
      Launch<float>::add(stream, sum.h, sum.x, sum.out);
    }
  }

  bool is_result(const View<const float>& x) const {
    const View<float>& out = pending_->out;
    return x.data == out.data && x.stride == out.stride && x.shape() == out.shape();
  }
  bool writes_over_operand(const View<float>& to) const {
    return overlap(to, pending_->h) || overlap(to, pending_->x) || overlap(to, pending_->out) ||
           overlap(to, pending_->inverse);
  }

  std::shared_ptr<const Device> device_;
  std::mutex mutex_;
  bool wait_;
  std::optional<ResidualSum<float>> pending_;
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
