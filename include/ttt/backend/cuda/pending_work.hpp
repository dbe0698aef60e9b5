// SPDX-License-Identifier: MIT
/// \file
/// The end of a sub-layer, kept until it is known what follows. Any host compiler reads this.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

template <class S>
void start_sum(cudaStream_t stream, const ResidualSum<S>& sum) {
  if (sum.has_norm) {
    Launch<S>::rms_norm(stream, false, {sum.x, {}}, sum.norm, {sum.h, {}}, sum.out, sum.inverse);
  } else {
    Launch<S>::add(stream, sum.h, sum.x, sum.out);
  }
}

/// A sub-layer ends with a product and its sum with the residual stream, and the next one begins
/// with a norm of that: one kernel, or two where rows are many, of which each would wait for the
/// one before. So a product of few rows and a sum are put on the stream when the next thing is:
/// with it, or before it where it is something else. The bits are the same.
class PendingWork {
 public:
  /// Without `wait`, everything is put on the stream at once: a caller who has the stream may put
  /// kernels of his own behind it.
  PendingWork(std::shared_ptr<const Device> device, bool wait)
      : device_(std::move(device)), wait_(wait) {
    device_->puts_off(this, start_);
  }
  ~PendingWork() {
    start_(this);
    device_->puts_off(nullptr, nullptr);
  }
  PendingWork(const PendingWork&) = delete;
  PendingWork& operator=(const PendingWork&) = delete;

  /// y (+)= x · w of few rows.
  void product(const FewRows<float>& product, Write write) {
    const std::lock_guard lock(mutex_);
    start_all();
    if (wait_ && write == Write::Replace && product.x.rows > 0 && product.w.cols > 0) {
      product_ = product;
    } else {
      const auto& [x, w, y] = product;
      Launch<float>::matvec(device_->stream(), x, w, y, write);
    }
  }

  void add(const ResidualSum<float>& sum) {
    const std::lock_guard lock(mutex_);
    if (sum_ || !product_ || !same(sum.x, product_->y)) start_all();
    sum_ = sum;
    if (!wait_) start_all();
  }

  /// y = rms_norm(x), with what made x if that is still to be started.
  void norm(View<const float> x, Norm<float> norm, View<float> y, View<float> inverse,
            View<bfloat16> rounded) {
    const std::lock_guard lock(mutex_);
    const Stream stream = device_->stream();
    const bool behind_sum =
        sum_ && same(x, sum_->out) && !is_operand(inverse) && !is_kept(y) && !is_part_of_x(y);
    // Where one block's rows are not another's, a row may be written over the x that it is made of.
    if (behind_sum && product_ && !overlap(y, sum_->x) && !is_input(sum_->out) &&
        !is_input(sum_->inverse) && !is_input(y) && !is_input(inverse) &&
        Launch<float>::product_sum_and_norm(stream, *product_, *sum_, norm, y, inverse,
                                            device_->counter())) {
      product_.reset();
      sum_.reset();
      return;
    }
    start_product();
    if (behind_sum && Launch<float>::sum_and_norm(stream, *sum_, norm, y, inverse, rounded)) {
      sum_.reset();
      return;
    }
    start_all();
    Launch<float>::rms_norm(stream, false, {x, {}}, norm, {}, y, inverse, rounded);
  }

  /// Something else is put on the stream, or somebody waits for it.
  void start() {
    const std::lock_guard lock(mutex_);
    start_all();
  }
  void never_wait() {
    const std::lock_guard lock(mutex_);
    start_all();
    wait_ = false;
  }

 private:
  void start_product() {
    if (!product_) return;
    const auto [x, w, y] = *std::exchange(product_, {});
    Launch<float>::matvec(device_->stream(), x, w, y, Write::Replace);
  }
  void start_all() {
    start_product();
    if (!sum_) return;
    start_sum(device_->stream(), *std::exchange(sum_, {}));
  }

  static bool same(const View<const float>& a, const View<float>& b) {
    return a.data == b.data && a.stride == b.stride && a.shape() == b.shape();
  }
  /// Whether something of the sum lies there, which a norm in its kernel would write over.
  bool is_operand(const View<float>& to) const { return is_kept(to) || overlap(to, sum_->x); }
  bool is_kept(const View<float>& to) const {
    return overlap(to, sum_->h) || overlap(to, sum_->out) || overlap(to, sum_->inverse);
  }
  /// Whether its x lies there in another way than row on row.
  bool is_part_of_x(const View<float>& to) const {
    return overlap(to, sum_->x) && !same(sum_->x, to);
  }
  /// Whether the product's x lies there, of which one row may be read when another is finished.
  bool is_input(const View<float>& to) const { return overlap(to, product_->x); }

  std::shared_ptr<const Device> device_;
  std::mutex mutex_;
  bool wait_;
  // Of this library, also where another's destructor is called.
  void (*start_)(void*) = [](void* work) { static_cast<PendingWork*>(work)->start(); };
  std::optional<FewRows<float>> product_;
  std::optional<ResidualSum<float>> sum_;  // of the product, where that waits too
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
