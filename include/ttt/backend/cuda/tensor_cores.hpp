// SPDX-License-Identifier: MIT
/// \file
/// Matrix products on tensor cores: operands in bfloat16, sums in float (cuBLASLt). Any host
/// compiler reads this.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>
#include <ttt/backend/cuda/product_plans.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// What a backend needs for work on tensor cores, one thing at a time: scratch, and cuBLASLt.
///
/// Operands of products in float are rounded into scratch, then cuBLASLt multiplies. How it does
/// that is asked once a shape and then always the same, so the same GPU gives the same bits.
/// Everything of a backend is on one stream, so scratch is free again for the next kernels as soon
/// as these are on it. Until something else is, products find the operands they share rounded.
class TensorCores {
 public:
  /// Rows up to which products are without this, at the speed of the memory: weights are read once
  /// a row. On an H200 two documents of the 125m preset decode faster so by a sixth, two of the 3b
  /// preset slower by as much; from three on the tensor cores win.
  static constexpr Index few_rows = 2;
  static constexpr Index row_alignment = 8;  // elements: 16 bytes

  /// Without `remember`, every product rounds anew: a caller who has the stream may put kernels of
  /// his own between them.
  TensorCores(const std::shared_ptr<const Device>& device, bool remember)
      : device_(device), plans_(device), remember_(remember) {}

  /// Something else than a product is put on the stream.
  void forget() {
    const std::lock_guard lock(mutex_);
    rounded_.clear();
  }
  void never_remember() {
    const std::lock_guard lock(mutex_);
    remember_ = false;
    rounded_.clear();
  }

  /// Calls f with the places of each result, which the kernels that f puts on the stream are to
  /// fill: its own and, unless that is rounded, one for a rounded copy, which products will find;
  /// none of the latter where none is wanted or there is no room. They may write these and
  /// `written`, and nothing else: other copies stay good.
  template <std::size_t count, class F>
  auto rounding(const Factor<float> (&results)[count], std::initializer_list<View<float>> written,
                const F& f) {
    const std::lock_guard lock(mutex_);
    Index bytes = 0;
    for (const View<float>& to : written) forget_what_was_in(to);
    for (const Factor<float>& result : results) {
      forget_what_was_in(result.memory());
      bytes += copy_bytes(result.values());
    }
    if (used_bytes() + bytes > scratch_.size()) {
      rounded_.clear();
      try {
        grow(bytes + bytes / 2);  // and what they are multiplied with
      } catch (const Error&) {    // then products round what they need, a little at a time
      }
    }
    const auto places = [&](const Factor<float>& result) {
      return result.narrow ? Results<float>({}, result.rounded())
                           : Results<float>(result.values(), place_for(result.values()));
    };
    if constexpr (count == 1) {
      return f(places(results[0]));
    } else {
      static_assert(count == 2);
      const auto first = places(results[0]);
      return f(first, places(results[1]));
    }
  }

  /// c (+)= a · b; either may be stored in float or in bfloat16. Throws Error when there is no room
  /// for rounded operands.
  void multiply(Weight<float> a, Weight<float> b, View<float> c, Write write) {
    if (c.rows == 0 || c.cols == 0) return;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    const Weight<float> both[] = {a, b};
    make_room(both);
    const Weight<float> left = rounded(stream, a), right = rounded(stream, b);
    forget_what_was_in(c);
    plans_.start(stream, left, right, c, write, {});
  }

  /// dw (+)= x0ᵀ · dy0 + x1ᵀ · dy1, of both pairs at once where the gradient is large: it is
  /// written once. Throws Error when there is no room for rounded operands.
  void multiply_pairs(const std::array<Weight<float>, 2>& x, const std::array<Weight<float>, 2>& dy,
                      View<float> dw, Write write) {
    if (dw.rows == 0 || dw.cols == 0) return;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    const Weight<float> operands[] = {x[0], dy[0], x[1], dy[1]};
    for ([[maybe_unused]] const Weight<float>& w : operands) TTT_ASSERT(!w.transposed);
    make_room(operands);
    std::array<View<const bfloat16>, 2> left, right;
    for (std::size_t i = 0; i < 2; ++i) {
      left[i] = rounded(stream, x[i]).stored<bfloat16>();
      right[i] = rounded(stream, dy[i]).stored<bfloat16>();
    }
    forget_what_was_in(dw);
    if (is_large(dw) && Launch<float>::gradient(stream, left, right, dw, write)) return;
    for (std::size_t i = 0; i < 2; ++i) {
      plans_.start(stream, Weight<float>(left[i]).transpose(), right[i], dw,
                   i == 0 ? write : Write::Add, {});
    }
  }

  /// y = (silu(x · w1) * (x · w3)) · w2 of many rows, with memory for as many bfloat16s as lie
  /// between the products. False where there is too little work for it, or rows do not lie in
  /// eights. Throws Error when there is no room for rounded operands.
  bool feed_forward(const Weight<float>& x, const Weight<float>& w1, const Weight<float>& w3,
                    const Weight<float>& w2, float* memory, const View<float>& y) {
    const View<bfloat16> hidden(reinterpret_cast<bfloat16*>(memory), x.rows, w1.cols);
    if (!is_large({memory, x.rows, 2 * w1.cols})) return false;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    const Weight<float> operands[] = {x, w1, w3, w2};
    make_room(operands);
    const View<const bfloat16> left = rounded(stream, x).stored<bfloat16>();
    const Weight<float> gate = rounded(stream, w1), up = rounded(stream, w3),
                        down = rounded(stream, w2);
    if (!Launch<float>::gated_rows(stream, left, gate, up, hidden)) return false;
    forget_what_was_in({memory, x.rows, w1.cols});
    forget_what_was_in(y);
    plans_.start(stream, View<const bfloat16>(hidden), down, y, Write::Replace, {});
    return true;
  }

  /// nll[t] = -log softmax(h[t] · head)[targets[t]] and, unless it is absent, dh = the gradient of
  /// sum of weights[t] · nll[t], in `scratch` of HeadScratch::size(words) a row. False, and nothing
  /// done, where there is no kernel for it. Throws Error when there is no room for rounded
  /// operands.
  bool head_loss(const View<const float>& h, const Weight<float>& head, const Token* targets,
                 const float* weights, float* nll, const View<float>& dh, float* scratch) {
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    const Weight<float> operands[] = {h, head};
    make_room(operands);
    const View<const bfloat16> left = rounded(stream, h).stored<bfloat16>();
    const Weight<float> right = rounded(stream, head);
    const HeadScratch at(scratch, h.rows, head.cols);
    forget_what_was_in({scratch, 1, h.rows * HeadScratch::size(head.cols)});
    if (!Launch<float>::head_powers(stream, left, right, targets, at, !dh.empty())) return false;
    if (!dh.empty()) {
      forget_what_was_in(dh);
      plans_.start(stream, View<const bfloat16>(at.powers), right.transpose(), dh, Write::Replace,
                   {});
    }
    Launch<float>::head_loss(stream, left, right, targets, weights, at, nll, dh);
    return true;
  }

  /// y = x · w for each of several weights, as one product where their memory allows it. False, and
  /// nothing done, where they differ, results do not lie alike, or each is enough for a GPU. Throws
  /// Error when there is no room for rounded operands.
  template <std::size_t count>
  bool multiply_each(Weight<float> x, const std::array<Weight<float>, count>& w,
                     const std::array<View<float>, count>& y) {
    const View<float>& first = y[0];
    if (!is_small(first)) return false;
    for (std::size_t i = 1; i < count; ++i) {
      if (w[i].stride != w[0].stride || w[i].transposed != w[0].transposed ||
          w[i].narrow != w[0].narrow || !(w[i].shape() == w[0].shape()) ||
          y[i].stride != first.stride || !(y[i].shape() == first.shape())) {
        return false;
      }
    }
    Batch batch{count};
    batch.out_apart = distance<float>(y);
    if (batch.out_apart == 0) return false;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    std::array<Weight<float>, count + 1> operands{x};
    std::copy(w.begin(), w.end(), operands.begin() + 1);
    make_room(operands);
    const Weight<float> left = rounded(stream, x);
    std::array<Weight<float>, count> right;
    for (std::size_t i = 0; i < count; ++i) right[i] = rounded(stream, w[i]);
    batch.right_apart = distance<bfloat16>(right);
    for (const View<float>& each : y) forget_what_was_in(each);
    if (batch.right_apart > 0) {
      plans_.start(stream, left, right[0], first, Write::Replace, batch);
    } else {
      for (std::size_t i = 0; i < count; ++i)
        plans_.start(stream, left, right[i], y[i], Write::Replace, {});
    }
    return true;
  }

  /// y (+)= x · w of each of `parts` equal parts of the rows, by weights in bfloat16 that lie
  /// `apart` elements from each other, as one product. False likewise.
  bool multiply_parts(const Weight<float>& x, const Weight<float>& w, Index parts, Index apart,
                      const View<float>& y, Write write) {
    const View<float> first = y.part(0, parts);
    const Index out_apart = first.rows * first.stride;
    if (!w.narrow || !is_small(first) || apart % 8 != 0 || out_apart % 4 != 0) return false;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    const Weight<float> operands[] = {x};
    make_room(operands);
    const View<const bfloat16> left = first_part(stream, x, parts);
    forget_what_was_in(y);
    plans_.start(stream, left, w, first, write, {parts, left.rows * left.stride, apart, out_apart});
    return true;
  }
  /// dw (+)= xᵀ · dy of each part likewise, where gradients lie so far apart.
  bool multiply_gradient_parts(const Weight<float>& x, const Weight<float>& dy, Index parts,
                               Index apart, const View<float>& dw, Write write) {
    if (!is_small(dw) || apart % 4 != 0) return false;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    const Weight<float> operands[] = {x, dy};
    make_room(operands);
    const View<const bfloat16> left = first_part(stream, x, parts);
    const View<const bfloat16> right = first_part(stream, dy, parts);
    for (Index i = 0; i < parts; ++i) {
      forget_what_was_in({dw.data + i * apart, dw.rows, dw.cols, dw.stride});
    }
    plans_.start(stream, Weight<float>(left).transpose(), right, dw, write,
                 {parts, left.rows * left.stride, right.rows * right.stride, apart});
    return true;
  }

 private:
  /// Tiles of a product that keep a GPU's multiprocessors busy, four for each of an H200's: then
  /// one product after the other is as good.
  static constexpr Index filling_tiles = 4 * 132;
  static Index tiles(const View<float>& c) { return (c.rows + 127) / 128 * ((c.cols + 127) / 128); }
  static bool is_small(const View<float>& c) { return tiles(c) > 0 && tiles(c) < filling_tiles; }
  /// Enough tiles of 128 x 256 for a GPU's multiprocessors.
  static bool is_large(const View<float>& c) { return tiles(c) >= filling_tiles / 2; }

  /// Elements from one matrix to the next, if the same everywhere, forwards, and in alignment; else
  /// 0.
  template <class Element, class Matrices>
  static Index distance(const Matrices& all) {
    const auto address = [&](std::size_t i) {
      return static_cast<Index>(reinterpret_cast<std::uintptr_t>(all[i].data));
    };
    const Index apart = address(1) - address(0);
    for (std::size_t i = 2; i < all.size(); ++i) {
      if (address(i) - address(i - 1) != apart) return 0;
    }
    return apart > 0 && apart % 16 == 0 ? apart / static_cast<Index>(sizeof(Element)) : 0;
  }

  /// An operand in float, and the scratch with its copy.
  struct Rounded {
    View<const float> from;
    Weight<float> to;
    Index end;  // bytes of scratch
  };

  void grow(Index bytes) {
    if (bytes <= scratch_.size()) return;
    scratch_ = {};
    scratch_ = Buffer<std::uint8_t>(device_, bytes);
  }
  Index used_bytes() const { return rounded_.empty() ? 0 : rounded_.back().end; }
  /// For the copies of operands that have none yet; forgets the others where there is too little.
  void make_room(std::span<const Weight<float>> operands) {
    if (!remember_) rounded_.clear();
    const auto missing = [&] {
      Index bytes = 0;
      for (const Weight<float>& w : operands) bytes += find(w).empty() ? rounded_bytes(w) : 0;
      return bytes;
    };
    if (used_bytes() + missing() <= scratch_.size()) return;
    rounded_.clear();
    grow(missing());
  }

  void forget_what_was_in(const View<float>& c) {
    std::erase_if(rounded_, [&](const Rounded& one) { return overlap(one.from, c); });
  }

  static Index rounded_stride(const View<const float>& v) {
    return (v.cols + row_alignment - 1) / row_alignment * row_alignment;
  }
  static Index rounded_bytes(const Weight<float>& w) {
    constexpr Index alignment = 256;
    if (w.narrow) return 0;
    const View<const float> from = w.stored<float>();
    return (from.rows * rounded_stride(from) * 2 + alignment - 1) / alignment * alignment;
  }

  /// Of a copy for products to find; 0 where none is wanted.
  Index copy_bytes(const View<float>& result) const {
    const bool wanted = remember_ && !result.empty() && result.rows > few_rows;
    return wanted ? rounded_bytes(View<const float>(result)) : 0;
  }
  View<bfloat16> place_for(const View<float>& result) {
    const Index bytes = copy_bytes(result);
    return bytes > 0 && used_bytes() + bytes <= scratch_.size() ? place(result) : View<bfloat16>();
  }
  View<bfloat16> place(const View<const float>& from) {
    const Index begin = used_bytes();
    const View<bfloat16> to(reinterpret_cast<bfloat16*>(scratch_.data() + begin), from.rows,
                            from.cols, rounded_stride(from));
    rounded_.push_back({from, View<const bfloat16>(to), begin + rounded_bytes(from)});
    return to;
  }

  /// The copy of an operand, or of the rows of one; without data where there is none.
  Weight<float> find(const Weight<float>& w) const {
    if (w.narrow) return w;
    const View<const float> from = w.stored<float>();
    const auto address = [](const float* data) { return reinterpret_cast<std::uintptr_t>(data); };
    for (const Rounded& one : rounded_) {
      if (address(from.data) < address(one.from.data) || one.from.stride != from.stride ||
          one.from.cols != from.cols) {
        continue;
      }
      const auto behind = static_cast<Index>(address(from.data) - address(one.from.data));
      const Index row_bytes = from.stride * static_cast<Index>(sizeof(float));
      const Index first = row_bytes == 0 ? 0 : behind / row_bytes;
      if (behind != first * row_bytes || first + from.rows > one.from.rows) continue;
      const Weight<float> to = one.to.stored<bfloat16>().rows_at(first, from.rows);
      return w.transposed ? to.transpose() : to;
    }
    return {};
  }

  Weight<float> rounded(cudaStream_t stream, const Weight<float>& w) {
    const Weight<float> found = find(w);
    if (!found.empty()) return found;
    const View<const float> from = w.stored<float>();
    const View<bfloat16> to = place(from);
    Launch<float>::round(stream, from, to);
    return w.transposed ? rounded_.back().to.transpose() : rounded_.back().to;
  }

  View<const bfloat16> first_part(cudaStream_t stream, const Weight<float>& x, Index parts) {
    return rounded(stream, x).stored<bfloat16>().part(0, parts);
  }

  std::shared_ptr<const Device> device_;
  std::mutex mutex_;
  ProductPlans plans_;
  bool remember_;
  Buffer<std::uint8_t> scratch_;
  std::vector<Rounded> rounded_;  // one behind the other in scratch
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
