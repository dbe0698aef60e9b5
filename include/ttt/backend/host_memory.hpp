// SPDX-License-Identifier: MIT
/// \file
/// Memory of backends that compute on the host: aligned buffers, and copies that are plain copies.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include <ttt/core/error.hpp>
#include <ttt/core/view.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// Owned memory, aligned to a cache line, not initialised. Moves; copying is a named operation.
template <class T>
class HostBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  HostBuffer() = default;

  /// Throws Error when there is no memory for `size` elements.
  explicit HostBuffer(Index size) : size_(size) {
    if (size < 0 || static_cast<std::size_t>(size) > most) refuse(size);
    if (size == 0) return;
    data_.reset(static_cast<T*>(::operator new (static_cast<std::size_t>(size) * sizeof(T),
                                                std::align_val_t{alignment}, std::nothrow)));
    if (!data_) refuse(size);
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  Index size() const { return size_; }

 private:
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t most = std::numeric_limits<Index>::max() / sizeof(T);

  struct Delete {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{alignment}); }
  };

  static void refuse(Index size) {
    detail::fail("out of memory: no room for " + std::to_string(size) + " elements of " +
                 std::to_string(sizeof(T)) + " bytes");
  }

  std::unique_ptr<T, Delete> data_;
  Index size_ = 0;
};

/// Gives a host backend its memory members.
struct HostMemory {
  /// What the host can read, the backend can: files are used where they are mapped.
  static constexpr bool is_host = true;

  template <class T>
  using Buffer = HostBuffer<T>;

  template <class T>
  HostBuffer<T> allocate(Index size) const {
    return HostBuffer<T>(size);
  }
  /// Copies `size` elements from the host to the backend's memory.
  template <class T>
  void to_device(const T* host, T* device, Index size) const {
    std::copy_n(host, size, device);
  }
  /// Copies `size` elements from the backend's memory to the host.
  template <class T>
  void to_host(const T* device, T* host, Index size) const {
    std::copy_n(device, size, host);
  }
  /// Copies `size` elements within the backend's memory.
  template <class T>
  void copy(const T* from, T* to, Index size) const {
    std::copy_n(from, size, to);
  }
  /// out = w, converted, as [in, out].
  template <class T>
  void widen(Weight<T> w, View<T> out) const {
    w.visit([&](auto stored) {
      for (Index i = 0; i < w.rows; ++i) {
        for (Index j = 0; j < w.cols; ++j) {
          out(i, j) = static_cast<T>(w.transposed ? stored(j, i) : stored(i, j));
        }
      }
    });
  }
  template <class T>
  void fill(T value, T* to, Index size) const {
    std::fill_n(to, size, value);
  }

 protected:
  HostMemory() = default;
  ~HostMemory() = default;
  HostMemory(const HostMemory&) = default;
  HostMemory& operator=(const HostMemory&) = default;
};

}  // namespace ttt::inline TTT_ABI
