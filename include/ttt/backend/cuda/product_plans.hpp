// SPDX-License-Identifier: MIT
/// \file
/// Products of matrices in bfloat16 with sums in float, by cuBLASLt. Any host compiler reads this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include <ttt/backend/concepts.hpp>
#include <ttt/backend/cuda/cublas.hpp>
#include <ttt/backend/cuda/device.hpp>
#include <ttt/core/view.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {

/// Products that are computed as one, as many with operands and results at equal distances.
struct Batch {
  Index count = 1;
  Index left_apart = 0;  // elements from one to the next
  Index right_apart = 0;
  Index out_apart = 0;
};

/// How a product is computed is asked once a shape and then always the same, so the same GPU gives
/// the same bits. For one thread at a time.
class ProductPlans {
 public:
  explicit ProductPlans(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  /// cuBLASLt's matrices are column-major, so it is asked for cᵀ = bᵀ · aᵀ.
  void start(cudaStream_t stream, const Weight<float>& a, const Weight<float>& b, View<float> c,
             Write write, const Batch& batch) {
    const Plan& plan = plan_of(a, b, c, batch);
    if (workspace_.size() == 0) workspace_ = Buffer<std::uint8_t>(device_, workspace_bytes);
    const float one = 1, rest = write == Write::Add ? 1.0f : 0.0f;
    check(cublasLtMatmul(handle_.get(), plan.product.get(), &one, b.data, plan.left.get(), a.data,
                         plan.right.get(), &rest, c.data, plan.out.get(), c.data, plan.out.get(),
                         &plan.algorithm, workspace_.data(), workspace_bytes, stream),
          "a product");
  }

 private:
  static constexpr Index workspace_bytes = Index{32} << 20;

  /// What decides how a product is computed: sizes, strides, layouts, alignments.
  using Shape = std::array<Index, 15>;

  struct Plan {
    Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> product;
    Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> left, right, out;
    cublasLtMatmulAlgo_t algorithm;
  };

  static std::uint32_t alignment_of(const void* data) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    return address % 16 == 0 ? 16u : static_cast<std::uint32_t>(address & (~address + 1));
  }

  const Plan& plan_of(const Weight<float>& a, const Weight<float>& b, const View<float>& c,
                      const Batch& batch) {
    const std::uint32_t alignments[] = {alignment_of(a.data), alignment_of(b.data),
                                        alignment_of(c.data)};
    const Shape shape = {
        c.rows,        c.cols,      b.rows,           a.transposed,      b.transposed,
        a.stride,      b.stride,    c.stride,         alignments[0],     alignments[1],
        alignments[2], batch.count, batch.left_apart, batch.right_apart, batch.out_apart};
    const auto found = plans_.find(shape);
    if (found != plans_.end()) return *found->second;
    if (plans_.size() >= most_plans) plans_.clear();
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
    const auto layout = [&](auto& place, cudaDataType type, Index stored_rows, Index stored_cols,
                            Index stride, Index apart) {
      check(cublasLtMatrixLayoutCreate(place.place(), type, static_cast<std::uint64_t>(stored_cols),
                                       static_cast<std::uint64_t>(stored_rows), stride),
            "a matrix's layout");
      if (batch.count == 1) return;
      const auto times = static_cast<std::int32_t>(batch.count);
      check(cublasLtMatrixLayoutSetAttribute(place.get(), CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                             &times, sizeof times),
            "a matrix's layout");
      const std::int64_t to_next = apart;
      check(cublasLtMatrixLayoutSetAttribute(
                place.get(), CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &to_next, sizeof to_next),
            "a matrix's layout");
    };
    const auto stored_a = a.stored<bfloat16>(), stored_b = b.stored<bfloat16>();
    layout(plan->left, CUDA_R_16BF, stored_b.rows, stored_b.cols, b.stride, batch.right_apart);
    layout(plan->right, CUDA_R_16BF, stored_a.rows, stored_a.cols, a.stride, batch.left_apart);
    layout(plan->out, CUDA_R_32F, c.rows, c.cols, c.stride, batch.out_apart);

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
  Owned<cublasLtHandle_t, cublasLtDestroy> handle_;
  /// Shapes that are remembered: texts of any length, of several documents, have ever new ones.
  static constexpr std::size_t most_plans = 4096;
  std::map<Shape, std::unique_ptr<Plan>> plans_;
  Buffer<std::uint8_t> workspace_;
};

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
