// SPDX-License-Identifier: MIT
/// \file
/// The end of a sub-layer, kept until it is known what follows. Any host compiler reads this.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
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

/// What a step of few rows puts off, since what follows it can do it on the way; each would be a
/// kernel, for which the next one waits. A sub-layer ends with a product and its sum with the
/// residual stream, the next one begins with a norm of that and products by it: the products make
/// the sum and the norm. Projections are turned and stored, then attended with: attention does it.
/// Where something else follows, a sum with its norm is a kernel, or each one, before it. The bits
/// are the same.
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

  /// y = rms_norm(x), or that rounded, or both, with what made x if that is still to be started.
  void norm(View<const float> x, Norm<float> norm, View<float> y, View<float> inverse,
            View<bfloat16> rounded) {
    const std::lock_guard lock(mutex_);
    const View<float> to = y.empty() ? memory_of(rounded) : y;
    if (sum_ && same(x, sum_->out) && !is_operand(inverse) && !is_kept(to) && !is_part_of_x(to)) {
      SumAndNorm<float> all{*sum_, norm, y, inverse, device_->counter()};
      if (product_ && rounded.empty() && wait_to_make(all)) return;
      start_product();
      if (Launch<float>::sum_and_norm(device_->stream(), all, rounded)) return sum_.reset();
    }
    start_all();
    Launch<float>::rms_norm(device_->stream(), false, {x, {}}, norm, {}, {y, rounded}, inverse);
  }

  /// y = x · w of few rows for each of some weights; false where they do not lie alike.
  bool products(View<const float> x, std::span<const Weight<float>> w,
                std::span<const View<float>> y) {
    const std::lock_guard lock(mutex_);
    return with_x(x, y, [&](const SumAndNorm<float>* made_of) {
      return Launch<float>::matvec_each(device_->stream(), x, w.data(), y.data(),
                                        static_cast<Index>(w.size()), made_of);
    });
  }
  /// The same, gate = x · w1, up = x · w3 and swiglu of them.
  bool gated(View<const float> x, Weight<float> w1, Weight<float> w3, View<float> gate,
             View<float> up, View<float> out) {
    const std::lock_guard lock(mutex_);
    return with_x(x, std::array{gate, up, out}, [&](const SumAndNorm<float>* made_of) {
      return Launch<float>::gated(device_->stream(), x, w1, w3, gate, up, out, made_of);
    });
  }

  /// False, and nothing done, where there is no kernel.
  bool rotate(const Rotation<float>& rotation) {
    const std::lock_guard lock(mutex_);
    if (!Launch<float>::rotates(rotation)) return false;
    start_all();
    rotation_ = rotation;
    if (!wait_ || rotation.q.rows > 1 || !lies_apart(rotation)) start_all();
    return true;
  }
  /// Attention of few rows; false likewise.
  bool attention(View<const float> q, Cache<const bfloat16> keys, Cache<const bfloat16> values,
                 const AttentionShape& shape, const Place& place, View<float> o, View<float> lse,
                 void* scratch) {
    const std::lock_guard lock(mutex_);
    const auto touches = [&](const View<float>& to) {
      const auto& r = *rotation_;
      return reads(r, to) || overlap(to, r.y) || overlap(to, r.q_inverse) ||
             overlap(to, r.k_inverse);
    };
    const bool rotates = rotation_ && same(q, rotation_->y) && same(keys, rotation_->keys) &&
                         same(values, rotation_->values) &&
                         place.position == rotation_->place.position && !touches(o) &&
                         !touches(lse);
    if (!rotates) start_all();
    const bool done = Launch<float>::attention_decode(device_->stream(), q, keys, values, shape,
                                                      place, o, lse, scratch, device_->counter(),
                                                      rotates ? &*rotation_ : nullptr);
    if (done) rotation_.reset();
    start_all();
    return done;
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
  static constexpr Index most_sums = 2 * 4096;  // elements: few rows of a model's width

  void start_product() {
    if (!product_) return;
    const auto [x, w, y] = *std::exchange(product_, {});
    Launch<float>::matvec(device_->stream(), x, w, y, Write::Replace);
  }
  void start_all() {
    start_product();
    const Stream stream = device_->stream();
    if (sum_) start_sum(stream, *std::exchange(sum_, {}));
    if (normed_) Launch<float>::sum_and_norm(stream, *std::exchange(normed_, {}));
    if (rotation_) Launch<float>::rotate_and_store(stream, *std::exchange(rotation_, {}));
  }

  /// Starts the product, and leaves its sum and norm to the products that follow. They may write
  /// over it before all of them have read it, so they read a copy.
  bool wait_to_make(SumAndNorm<float>& all) {
    const auto [x, w, y] = *product_;
    if (!Launch<float>::makes(all) || y.rows * y.cols > most_sums) return false;
    try {
      if (sums_.size() == 0) sums_ = Buffer<float>(device_, most_sums);
    } catch (const Error&) {  // no room, and no need
      return false;
    }
    const View<float> copy(sums_.data(), y.rows, y.cols);
    Launch<float>::matvec(device_->stream(), x, w, y, Write::Replace, copy);
    all.sum.x = copy;
    normed_ = all;
    product_.reset();
    sum_.reset();
    return true;
  }
  /// Calls f with what x is to be made of, where it is; else everything is started before.
  template <class F>
  bool with_x(const View<const float>& x, std::span<const View<float>> results, const F& f) {
    const bool makes =
        normed_ && same(x, normed_->y) && std::ranges::none_of(results, [&](const View<float>& to) {
          const auto& [sum, norm, y, inverse, counters] = *normed_;
          return overlap(to, sum.h) || overlap(to, sum.out) || overlap(to, y) ||
                 overlap(to, inverse) || overlap(to, sum.inverse);
        });
    if (makes && f(&*normed_)) {
      normed_.reset();
      return true;
    }
    start_all();
    return f(nullptr);
  }

  static bool same(const View<const float>& a, const View<const float>& b) {
    return a.data == b.data && a.stride == b.stride && a.shape() == b.shape();
  }
  static bool same(const Cache<const bfloat16>& a, const Cache<bfloat16>& b) {
    return a.data == b.data && a.heads == b.heads && a.slots == b.slots && a.head_dim == b.head_dim;
  }
  /// Whether something of the sum lies there, which a norm in its kernel would write over.
  bool is_operand(const View<float>& to) const { return is_kept(to) || overlap(to, sum_->x); }
  bool is_kept(const View<float>& to) const {
    return overlap(to, sum_->h) || overlap(to, sum_->out) || overlap(to, sum_->inverse);
  }
  static View<float> memory_of(const View<bfloat16>& rounded) {
    return {reinterpret_cast<float*>(rounded.data), rounded.rows, (rounded.cols + 1) / 2,
            rounded.stride / 2};
  }
  /// Whether its x lies there in another way than row on row.
  bool is_part_of_x(const View<float>& to) const {
    return overlap(to, sum_->x) && !same(sum_->x, to);
  }
  static bool reads(const Rotation<float>& r, const View<float>& to) {
    return overlap(to, r.q) || overlap(to, r.k) || overlap(to, r.v) || overlap(to, r.angles);
  }
  /// Whether blocks may read all of it while one of them writes what comes of it.
  static bool lies_apart(const Rotation<float>& r) {
    return !reads(r, r.y) && !reads(r, r.q_inverse) && !reads(r, r.k_inverse);
  }

  std::shared_ptr<const Device> device_;
  std::mutex mutex_;
  bool wait_;
  // Of this library, also where another's destructor is called.
  void (*start_)(void*) = [](void* work) { static_cast<PendingWork*>(work)->start(); };
  std::optional<FewRows<float>> product_;
  std::optional<ResidualSum<float>> sum_;  // of the product, where that waits too
  std::optional<SumAndNorm<float>> normed_;
  std::optional<Rotation<float>> rotation_;
  cuda::Buffer<float> sums_;  // what is still to be normed
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
