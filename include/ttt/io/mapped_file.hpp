// SPDX-License-Identifier: MIT
/// \file
/// The bytes of a file, mapped or copied into memory.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include <ttt/core/error.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Throws Error: what was tried, and what the system said to it.
[[noreturn, gnu::cold]] inline void fail_system(int code, const std::string& what) {
  fail(what + ": " + std::strerror(code));
}

/// Closes a file descriptor.
class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (value_ >= 0) ::close(value_);
  }

  int get() const { return value_; }

 private:
  int value_;
};

/// The most bytes to ask of one read or write: some systems refuse two gigabytes and more.
inline constexpr std::size_t most_per_call = std::size_t{1} << 30;

/// Fills the buffer from the descriptor.
inline void read_all(int descriptor, std::span<std::byte> buffer, const std::string& path) {
  for (std::size_t done = 0; done < buffer.size();) {
    const std::size_t wanted = std::min(buffer.size() - done, most_per_call);
    const ssize_t got = ::read(descriptor, buffer.data() + done, wanted);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_system(errno, "cannot read " + path);
    if (got == 0)
      fail(path + ": ended after " + std::to_string(done) + " of " + std::to_string(buffer.size()) +
           " bytes; it changed while it was read");
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace detail

namespace io {

/// How a file comes into memory. Mapped pages are read when they are touched and shared between
/// processes, but the file must not shrink meanwhile: touching what is gone ends the process with
/// SIGBUS. Copy what others may write to in place.
enum class Read { Map, Copy };

/// The read-only bytes of a regular file, for as long as this object lives.
///
/// They start at an address that suits every element type. Moving keeps them where they are.
class MappedFile {
 public:
  /// Throws Error if the file cannot be read or is a directory, a pipe or a device.
  explicit MappedFile(std::string path, Read how = Read::Map) : path_(std::move(path)) {
    // Without O_NONBLOCK a pipe that nobody writes to would hang here.
    const detail::FileDescriptor file(
        ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (file.get() < 0) detail::fail_system(errno, "cannot open " + path_);
    struct stat status = {};
    if (::fstat(file.get(), &status) != 0) detail::fail_system(errno, "cannot examine " + path_);
    if (!S_ISREG(status.st_mode)) detail::fail(path_ + ": is not a regular file");
    if (!std::in_range<std::size_t>(status.st_size)) detail::fail(path_ + ": is too large");
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return;
    if (how == Read::Map) {
      void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
      if (address == MAP_FAILED) detail::fail_system(errno, "cannot map " + path_);
      bytes_ = {static_cast<const std::byte*>(address), size};
    } else {
      copy_.reset(new (std::nothrow) std::byte[size]);
      if (!copy_) detail::fail(path_ + ": no memory for its " + std::to_string(size) + " bytes");
      detail::read_all(file.get(), {copy_.get(), size}, path_);
      bytes_ = {copy_.get(), size};
    }
  }

  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        copy_(std::move(other.copy_)),
        bytes_(std::exchange(other.bytes_, {})) {}

  MappedFile& operator=(MappedFile other) noexcept {
    path_.swap(other.path_);
    copy_.swap(other.copy_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  ~MappedFile() {
    if (!copy_ && !bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  std::span<const std::byte> bytes() const { return bytes_; }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::unique_ptr<std::byte[]> copy_;  // empty when mapped
  std::span<const std::byte> bytes_;
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
