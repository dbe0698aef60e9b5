// SPDX-License-Identifier: MIT
/// \file
/// cuBLASLt's errors and objects. Any host compiler reads this.
#pragma once

#include <string>

#include <cublasLt.h>

#include <ttt/backend/cuda/device.hpp>

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

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
