// SPDX-License-Identifier: MIT
/// \file
/// A second stream, for work that fills the GPU where that of the first leaves room. Any host
/// compiler reads this.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include <ttt/backend/cuda/device.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda {

namespace detail {

/// A place on a stream: behind all that was there.
class Event {
 public:
  /// On the current GPU.
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "an event"); }
  ~Event() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;

  cudaError_t record(cudaStream_t stream) const { return cudaEventRecord(event_, stream); }
  /// What is put on the stream from now on waits for what was recorded last.
  cudaError_t hold(cudaStream_t stream) const { return cudaStreamWaitEvent(stream, event_, 0); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace detail

/// Work beside a backend's: put on a stream of its own, by a backend with scratch of its own, so
/// that nothing but what begin, mark, wait and join say orders the two. The stream may be the
/// caller's; it is ordered by events, like any other. Where both have blocks to run, the GPU takes
/// those of the backend's stream first, unless that is a caller's of the lowest priority.
///
/// Memory that both use is the first backend's, which takes it before begin() and gives it back
/// behind join(), in the order of its stream: so whoever put something beside joins before he lets
/// go of anything.
template <class B>
class Beside {
 public:
  /// Groups of a work in flight: the first one has nothing to go on beside, so it should be short;
  /// but short ones are small products.
  static constexpr Index groups = 4;

  /// Takes a stream; scratch when work asks for it. Keeps a reference to the backend.
  Beside(const B& backend, Index marks)
      : backend_(backend),
        beside_(new B(std::make_shared<const detail::Device>(backend.device_->index(),
                                                             detail::StreamFor::Beside),
                      true)),
        marks_(static_cast<std::size_t>(marks)) {}
  ~Beside() { join(); }
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  /// Where to put what goes on beside.
  const B& backend() const { return *beside_; }

  /// What is put beside from now on comes behind all that the backend has been given.
  void begin() {
    detail::check(begun_.record(backend_.next()), "an event");
    detail::check(begun_.hold(beside_->next()), "an event");
  }
  /// All that was put beside so far is mark n. Nothing of it waits on the host any more.
  void mark(Index n) {
    detail::check(marks_[static_cast<std::size_t>(n)].record(beside_->next()), "an event");
  }
  /// What the backend is given from now on comes behind mark n.
  void wait(Index n) {
    detail::check(marks_[static_cast<std::size_t>(n)].hold(backend_.next()), "an event");
  }
  /// ... behind all that was put beside. What failed there is told by whoever waits next.
  void join() noexcept {
    if (joined_.record(beside_->next()) == cudaSuccess &&
        joined_.hold(backend_.next()) == cudaSuccess) {
      return;
    }
    static_cast<void>(cudaStreamSynchronize(beside_->next()));
    static_cast<void>(cudaGetLastError());
  }

 private:
  const B& backend_;
  std::unique_ptr<B> beside_;
  detail::Event begun_, joined_;
  std::vector<detail::Event> marks_;
};

}  // namespace cuda
}  // namespace ttt::inline TTT_ABI
