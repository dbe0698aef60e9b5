// SPDX-License-Identifier: MIT
/// \file
/// Matrix products on tensor cores: operands in bfloat16, sums in float (cuBLASLt). Any host
/// compiler reads this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <cublasLt.h>

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

inline void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  ttt::detail::fail<Error>(std::string("cuBLASLt: ") + what + ": " +
                           cublasLtGetStatusString(status));
}

/// A cuBLASLt object and what destroys it.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  ~Owned() {
    if (handle_ != nullptr) static_cast<void>(destroy(handle_));
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Handle* place() { return &handle_; }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

/// What a backend needs for work on tensor cores, one thing at a time: scratch, and cuBLASLt.
///
/// Operands of products in float are rounded into scratch, then cuBLASLt multiplies. How it does
/// that is asked once a shape and then always the same, so the same GPU gives the same bits.
/// Everything of a backend is on one stream, so scratch is free again for the next kernels as soon
/// as these are on it. Until something else is, products find the operands they share rounded.
class TensorCores {
 public:
  /// Rows up to which a product reads its weights at the speed of the memory, without this.
  static constexpr Index few_rows = 8;

  /// Without `remember`, every product rounds anew: a caller who has the stream may put kernels of
  /// his own between them.
  TensorCores(const std::shared_ptr<const Device>& device, bool remember)
      : device_(device), remember_(remember) {}

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

  /// Calls f with a place for a rounded copy of each result, which the kernels that f puts on the
  /// stream are to fill and products will find; with none where none is wanted. They may write
  /// `written` and nothing else: other copies stay good. Throws Error when there is no room.
  template <std::size_t count, class F>
  auto rounding(const View<float> (&results)[count], std::initializer_list<View<float>> written,
                const F& f) {
    const std::lock_guard lock(mutex_);
    for (const View<float>& to : written) forget_in(to);
    Index bytes = 0;
    for (const View<float>& result : results) bytes += copy_bytes(result);
    if (used_bytes() + bytes > scratch_.size()) {
      rounded_.clear();
      grow(bytes + bytes / 2);  // and what they are multiplied with
    }
    if constexpr (count == 1) {
      return f(place_for(results[0]));
    } else {
      static_assert(count == 2);
      const auto first = place_for(results[0]);
      return f(first, place_for(results[1]));
    }
  }

  /// c (+)= a · b; either may be stored in float or in bfloat16. Throws Error when there is no room
  /// for rounded operands.
  void multiply(Weight<float> a, Weight<float> b, View<float> c, Write write) {
    if (c.rows == 0 || c.cols == 0) return;
    const std::lock_guard lock(mutex_);
    const cudaStream_t stream = device_->stream();
    if (!remember_) rounded_.clear();
    if (used_bytes() + missing_bytes(a) + missing_bytes(b) > scratch_.size()) {
      rounded_.clear();
      grow(rounded_bytes(a) + rounded_bytes(b));
    }
    const Weight<float> left = rounded(stream, a), right = rounded(stream, b);
    start(stream, left, right, c, write);
    forget_in(c);
  }

 private:
  static constexpr Index workspace_bytes = Index{32} << 20;
  static constexpr Index row_alignment = 8;  // elements: 16 bytes

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

  static Index rounded_stride(const View<const float>& v) {
    return (v.cols + row_alignment - 1) / row_alignment * row_alignment;
  }
  static Index rounded_bytes(const Weight<float>& w) {
    constexpr Index alignment = 256;
    if (w.narrow) return 0;
    const View<const float> from = w.stored<float>();
    return (from.rows * rounded_stride(from) * 2 + alignment - 1) / alignment * alignment;
  }

  /// The copy of an operand, or null.
  const Rounded* find(const View<const float>& from) const {
    for (const Rounded& one : rounded_) {
      if (one.from.data == from.data && one.from.stride == from.stride &&
          one.from.shape() == from.shape()) {
        return &one;
      }
    }
    return nullptr;
  }
  Index missing_bytes(const Weight<float>& w) const {
    return w.narrow || find(w.stored<float>()) != nullptr ? 0 : rounded_bytes(w);
  }

  bool wants_copy(const View<float>& result) const {
    return remember_ && !result.empty() && result.rows > few_rows;
  }
  Index copy_bytes(const View<float>& result) const {
    return wants_copy(result) ? rounded_bytes(View<const float>(result)) : 0;
  }
  View<bfloat16> place_for(const View<float>& result) {
    return wants_copy(result) ? place(result) : View<bfloat16>();
  }
  /// What lies there is written over.
  void forget_in(const View<float>& written) {
    std::erase_if(rounded_, [&](const Rounded& one) { return overlap(one.from, written); });
  }
  View<bfloat16> place(const View<const float>& from) {
    const Index begin = used_bytes();
    const View<bfloat16> to(reinterpret_cast<bfloat16*>(scratch_.data() + begin), from.rows,
                            from.cols, rounded_stride(from));
    rounded_.push_back({from, View<const bfloat16>(to), begin + rounded_bytes(from)});
    return to;
  }

  Weight<float> rounded(cudaStream_t stream, Weight<float> w) {
    if (w.narrow) return w;
    const View<const float> from = w.stored<float>();
    if (const Rounded* const one = find(from)) return w.transposed ? one->to.transpose() : one->to;
    const View<bfloat16> to = place(from);
    Launch<float>::round(stream, from, to);
    return w.transposed ? rounded_.back().to.transpose() : rounded_.back().to;
  }

  /// What decides how a product is computed: sizes, strides, layouts, alignments.
  using Shape = std::array<Index, 11>;

  struct Plan {
    Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> product;
    Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> left, right, out;
    cublasLtMatmulAlgo_t algorithm;
  };

  /// cuBLASLt's matrices are column-major, so it is asked for cᵀ = bᵀ · aᵀ.
  void start(cudaStream_t stream, const Weight<float>& a, const Weight<float>& b, View<float> c,
             Write write) {
    const Plan& plan = plan_of(a, b, c);
    if (workspace_.size() == 0) workspace_ = Buffer<std::uint8_t>(device_, workspace_bytes);
    const float one = 1, rest = write == Write::Add ? 1.0f : 0.0f;
    check(cublasLtMatmul(handle_.get(), plan.product.get(), &one, b.data, plan.left.get(), a.data,
                         plan.right.get(), &rest, c.data, plan.out.get(), c.data, plan.out.get(),
                         &plan.algorithm, workspace_.data(), workspace_bytes, stream),
          "a product");
  }

  static std::uint32_t alignment_of(const void* data) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    return address % 16 == 0 ? 16u : static_cast<std::uint32_t>(address & (~address + 1));
  }

  const Plan& plan_of(const Weight<float>& a, const Weight<float>& b, const View<float>& c) {
    const std::uint32_t alignments[] = {alignment_of(a.data), alignment_of(b.data),
                                        alignment_of(c.data)};
    const Shape shape = {c.rows,   c.cols,   b.rows,        a.transposed,  b.transposed, a.stride,
                         b.stride, c.stride, alignments[0], alignments[1], alignments[2]};
    const auto found = plans_.find(shape);
    if (found != plans_.end()) return *found->second;
    if (handle_.get() == nullptr) check(cublasLtCreate(handle_.place()), "no handle");
    auto plan = std::make_unique<Plan>();
    check(cublasLtMatmulDescCreate(plan->product.place(), CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "a product's description");
    const auto set = [&](cublasLtMatmulDescAttributes_t what, const auto& value) {
      check(cublasLtMatmulDescSetAttribute(plan->product.get(), what, &value, sizeof value),
            "a product's description");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    const auto layout = [](auto& place, cudaDataType type, Index stored_rows, Index stored_cols,
                           Index stride) {
      check(cublasLtMatrixLayoutCreate(place.place(), type, static_cast<std::uint64_t>(stored_cols),
                                       static_cast<std::uint64_t>(stored_rows), stride),
            "a matrix's layout");
    };
    const auto stored_a = a.stored<bfloat16>(), stored_b = b.stored<bfloat16>();
    layout(plan->left, CUDA_R_16BF, stored_b.rows, stored_b.cols, b.stride);
    layout(plan->right, CUDA_R_16BF, stored_a.rows, stored_a.cols, a.stride);
    layout(plan->out, CUDA_R_32F, c.rows, c.cols, c.stride);

    Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> wish;
    check(cublasLtMatmulPreferenceCreate(wish.place()), "a preference");
    const auto ask = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(wish.get(), what, &value, sizeof value),
            "a preference");
    };
    ask(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::size_t>(workspace_bytes));
    ask(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments[1]);
    ask(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments[0]);
    ask(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments[2]);
    ask(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments[2]);
    cublasLtMatmulHeuristicResult_t best = {};
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle_.get(), plan->product.get(), plan->left.get(),
                                         plan->right.get(), plan->out.get(), plan->out.get(),
                                         wish.get(), 1, &best, &count),
          "no way to compute a product");
    check(count > 0 ? best.state : CUBLAS_STATUS_NOT_SUPPORTED, "no way to compute a product");
    plan->algorithm = best.algo;
    return *plans_.emplace(shape, std::move(plan)).first->second;
  }

  std::shared_ptr<const Device> device_;
  std::mutex mutex_;
  bool remember_;
  Owned<cublasLtHandle_t, cublasLtDestroy> handle_;
  std::map<Shape, std::unique_ptr<Plan>> plans_;
  Buffer<std::uint8_t> scratch_;
  std::vector<Rounded> rounded_;  // one behind the other in scratch
  Buffer<std::uint8_t> workspace_;
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
