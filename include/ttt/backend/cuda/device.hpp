// SPDX-License-Identifier: MIT
/// \file
/// A GPU, a stream of work on it, and its memory. Any host compiler reads this.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include <cuda_runtime_api.h>

#include <ttt/backend/cuda/stream.hpp>
#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda {

/// What a GPU refused or failed at. Behind a kernel that failed, the process's GPU is lost: CUDA
/// answers everything with the same error until the process ends.
class Error : public ttt::Error {
 public:
  using ttt::Error::Error;
};

namespace detail {

/// Throws Error unless a call succeeded. A refused call is no reason to refuse the next.
inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  ttt::detail::fail<Error>("CUDA: " + what + ": " + cudaGetErrorString(status));
}

/// What the unit with the kernels says of itself; defined in instantiate.cuh. Like all that is
/// defined there it is hidden: a library brings its own kernels, for its own architectures.
template <class = void>
struct [[gnu::visibility("hidden")]] Unit {
  /// Those it was compiled for, as "800,900".
  static const char* architectures();
  /// Throws Error when it cannot be found out.
  static bool has_code_for_current_device();
};
extern template struct Unit<>;

/// What a stream of a Device's own is for.
enum class StreamFor : std::uint8_t {
  Work,
  Graphs,  // is recorded on it; kernels may overlap: see Stream
  Beside,  // has what the others leave room for
};

/// One GPU and one stream on it; memory comes from a pool in the stream's order, so that taking and
/// giving back waits for nothing.
class Device {
 public:
  /// Makes a stream of its own. Throws Error when there is no such GPU, or none that this program
  /// has kernels for.
  explicit Device(int index, StreamFor purpose = StreamFor::Work)
      : Device(index, nullptr, &purpose) {}
  /// Uses a stream of the caller's.
  Device(int index, cudaStream_t stream) : Device(index, stream, nullptr) {}
  ~Device() { close(); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int index() const { return index_; }

  /// The stream, with the calling thread turned to this GPU.
  Stream stream() const {
    static_cast<void>(cudaSetDevice(index_));
    return {stream_, overlaps_};
  }

  /// Waits until everything is done; throws Error when something failed, be it the start of a
  /// kernel by this thread.
  void synchronize() const {
    check(cudaStreamSynchronize(stream()), "a kernel failed");
    check_started();
  }
  /// Throws Error when this thread could not start a kernel since it was last asked.
  static void check_started() {
    const cudaError_t status = cudaGetLastError();  // of anything, a caller's own question too
    if (status != cudaErrorNotReady) check(status, "a kernel could not be started");
  }

  /// Throws Error when the GPU has no room.
  void* allocate(std::size_t bytes) const {
    void* memory = nullptr;
    const cudaError_t status = cudaMallocFromPoolAsync(&memory, bytes, pool_, stream());
    if (status == cudaSuccess) return memory;
    static_cast<void>(cudaGetLastError());
    std::size_t free = 0, total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    ttt::detail::fail<Error>("out of memory: GPU " + std::to_string(index_) + " has no room for " +
                             std::to_string(bytes) + " bytes (" + std::to_string(free) + " of " +
                             std::to_string(total) + " are free): " + cudaGetErrorString(status));
  }
  Index peak_bytes() const {
    std::uint64_t most = 0;
    check(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &most), "a memory pool");
    return static_cast<Index>(most);
  }
  void deallocate(void* memory) const {
    {
      const std::lock_guard lock(put_off_mutex_);
      if (start_put_off_ != nullptr) start_put_off_(put_off_);
    }
    static_cast<void>(cudaFreeAsync(memory, stream()));
  }
  /// start(work) is to be called before memory is given back, which the work may use; null: nothing
  /// is. No virtual function: it would be that of whichever library was loaded first.
  void puts_off(void* work, void (*start)(void*)) const {
    const std::lock_guard lock(put_off_mutex_);
    put_off_ = work;
    start_put_off_ = start;
  }

  template <class T>
  void copy(cudaStream_t stream, const T* from, T* to, Index size, cudaMemcpyKind kind) const {
    if (size == 0) return;
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(size) * sizeof(T), kind, stream),
          "a copy");
  }

  /// Calls f(memory) with at least so many bytes for kernels that f puts on the stream; behind them
  /// they are others'. Throws Error when there is no room.
  template <class F>
  decltype(auto) with_scratch(Index bytes, const F& f) const {
    const std::lock_guard lock(scratch_mutex_);
    const auto size = static_cast<std::size_t>(bytes);
    if (size > scratch_size_) {
      if (scratch_ != nullptr) deallocate(scratch_);
      scratch_ = nullptr;
      scratch_size_ = 0;
      scratch_ = allocate(size);
      scratch_size_ = size;
    }
    return f(scratch_);
  }

  /// Counters that kernels find at zero and leave at zero, to know their last block by.
  static constexpr Index counters = 4096;
  unsigned* counter() const { return counters_; }

  /// Blocks of the first stage of a sum, and where their results go.
  static constexpr int sum_blocks = 512;
  double* partial_sums() const { return partial_sums_; }
  /// Memory of the host that the GPU can write to by itself, for results that are waited for. Held
  /// while `results_lock` is; `try_results_lock` may hold nothing.
  static constexpr std::size_t result_bytes = 4096;
  void* results() const { return results_; }
  std::unique_lock<std::mutex> results_lock() const { return std::unique_lock(results_mutex_); }
  std::unique_lock<std::mutex> try_results_lock() const {
    return std::unique_lock(results_mutex_, std::try_to_lock);
  }

 private:
  /// With a `purpose`, makes the stream.
  Device(int index, cudaStream_t stream, const StreamFor* purpose)
      : index_(index), stream_(stream) {
    int count = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count == 0) {
      static_cast<void>(cudaGetLastError());
      ttt::detail::fail<Error>("CUDA: this machine has no GPU that can be used: " +
                               std::string(cudaGetErrorString(found)));
    }
    if (index < 0 || index >= count) {
      ttt::detail::fail<Error>("CUDA: there is no GPU " + std::to_string(index) +
                               ": this machine has " + std::to_string(count));
    }
    check(cudaSetDevice(index), "GPU " + std::to_string(index));
    if (!Unit<>::has_code_for_current_device()) {
      int major = 0, minor = 0;
      static_cast<void>(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
      static_cast<void>(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
      ttt::detail::fail<Error>(
          "CUDA: this program has no kernels for GPU " + std::to_string(index) + " (sm_" +
          std::to_string(10 * major + minor) + "); it was built for " + Unit<>::architectures());
    }
    try {
      if (purpose != nullptr) {
        check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority(*purpose)),
              "a new stream");
        owns_stream_ = true;
        overlaps_ = *purpose == StreamFor::Graphs;
      }
      cudaMemPoolProps properties = {};
      properties.allocType = cudaMemAllocationTypePinned;
      properties.location.type = cudaMemLocationTypeDevice;
      properties.location.id = index;
      check(cudaMemPoolCreate(&pool_, &properties), "a memory pool");
      std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
      check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep),
            "a memory pool");
      counters_ = static_cast<unsigned*>(allocate(counters * sizeof(unsigned)));
      check(cudaMemsetAsync(counters_, 0, counters * sizeof(unsigned), stream_), "zeros");
      partial_sums_ = static_cast<double*>(allocate(sum_blocks * sizeof(double)));
      check(cudaMallocHost(&results_, result_bytes), "memory of the host");
    } catch (...) {
      close();
      throw;
    }
  }

  /// A smaller number goes first. The last place is that of streams nobody has given one, so work
  /// that is waited for needs a better one.
  static int priority(StreamFor purpose) {
    int last = 0, first = 0;
    check(cudaDeviceGetStreamPriorityRange(&last, &first), "priorities");
    return purpose == StreamFor::Beside ? last : std::max(first, last - 1);
  }

  /// Errors are ignored: at the end of a process the driver may be gone already.
  void close() {
    if (counters_ != nullptr) deallocate(counters_);
    if (partial_sums_ != nullptr) deallocate(partial_sums_);
    if (scratch_ != nullptr) deallocate(scratch_);
    static_cast<void>(cudaStreamSynchronize(stream()));
    if (results_ != nullptr) static_cast<void>(cudaFreeHost(results_));
    if (pool_ != nullptr) static_cast<void>(cudaMemPoolDestroy(pool_));
    if (owns_stream_) static_cast<void>(cudaStreamDestroy(stream_));
    static_cast<void>(cudaGetLastError());
  }

  int index_;
  cudaStream_t stream_;
  bool owns_stream_ = false, overlaps_ = false;
  cudaMemPool_t pool_ = nullptr;
  unsigned* counters_ = nullptr;
  double* partial_sums_ = nullptr;
  void* results_ = nullptr;
  mutable std::mutex results_mutex_, scratch_mutex_, put_off_mutex_;
  mutable void* put_off_ = nullptr;
  mutable void (*start_put_off_)(void*) = nullptr;
  mutable void* scratch_ = nullptr;
  mutable std::size_t scratch_size_ = 0;
};

}  // namespace detail

/// Owned memory of a GPU, not initialised. Moves; copying is a named operation of the backend.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  /// Throws Error when there is no room for `size` elements.
  Buffer(std::shared_ptr<const detail::Device> device, Index size) : device_(std::move(device)) {
    if (size < 0 || static_cast<std::size_t>(size) > most) {
      ttt::detail::fail<Error>("out of memory: no room for " + std::to_string(size) +
                               " elements of " + std::to_string(sizeof(T)) + " bytes");
    }
    if (size == 0) return;
    data_ = static_cast<T*>(device_->allocate(static_cast<std::size_t>(size) * sizeof(T)));
    size_ = size;
  }
  Buffer(Buffer&& other) noexcept
      : device_(std::move(other.device_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) device_->deallocate(data_);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  Index size() const { return size_; }

 private:
  static constexpr std::size_t most = std::numeric_limits<Index>::max() / sizeof(T);

  std::shared_ptr<const detail::Device> device_;
  T* data_ = nullptr;
  Index size_ = 0;
};

}  // namespace cuda
}  // namespace ttt::inline TTT_ABI
