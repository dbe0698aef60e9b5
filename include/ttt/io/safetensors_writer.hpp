// SPDX-License-Identifier: MIT
/// \file
/// Writes safetensors files, each of them whole or not at all.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <map>
#include <span>
#include <stdio.h>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <tuple>
#include <unistd.h>
#include <utility>
#include <vector>

#include <ttt/core/dtype.hpp>
#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/io/utf8.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Writes all of the bytes to the descriptor.
inline void write_all(int descriptor, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const std::size_t wanted = std::min(bytes.size(), most_per_call);
    const ssize_t written = ::write(descriptor, bytes.data(), wanted);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_system(errno, "cannot write " + path);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

/// A file that has a temporary name, in the directory of its own, until commit() renames it; if
/// that never happens, the destructor removes it.
class AtomicFile {
 public:
  AtomicFile(const std::string& path, ::mode_t mode)
      : path_(path),
        name_(path.substr(path.rfind('/') + 1)),
        directory_(::open(path.substr(0, path.size() - name_.size()).append(".").c_str(),
                          O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
        file_(create(mode)) {}
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
  }

  void write(std::span<const std::byte> bytes) { write_all(file_.get(), bytes, path_); }

  /// Makes the bytes safe from a power cut, then the name theirs, then that safe too.
  void commit() {
    sync(file_.get());
    if (::renameat(directory_.get(), temporary_.c_str(), directory_.get(), name_.c_str()) != 0)
      fail_system(errno, "cannot replace " + path_);
    temporary_.clear();
    sync(directory_.get());
  }

 private:
  int create(::mode_t mode) {
    if (directory_.get() < 0) fail_system(errno, "cannot open the directory of " + path_);
    // A rename would put the file in the place of a device, or fail late on a directory.
    struct stat status = {};
    if (name_.empty() ||
        (::fstatat(directory_.get(), name_.c_str(), &status, 0) == 0 && !S_ISREG(status.st_mode)))
      fail("cannot write " + path_ + ": it is not a regular file");
    constexpr int attempts = 1000;
    for (int attempt = 0; attempt < attempts; ++attempt) {
      temporary_ = ".ttt-" + std::to_string(::getpid()) + "-" + std::to_string(attempt) + ".tmp";
      const int file = ::openat(directory_.get(), temporary_.c_str(),
                                O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
      if (file >= 0) return file;
      if (errno != EEXIST) break;
    }
    fail_system(errno, "cannot make a temporary file beside " + path_);
  }

  void sync(int descriptor) const {
    while (::fsync(descriptor) != 0) {
      if (errno == EINVAL) return;  // a file system that cannot sync this kind of file
      if (errno != EINTR) fail_system(errno, "cannot sync " + path_ + " to its disk");
    }
  }

  std::string path_;
  std::string name_;
  std::string temporary_;  // empty once it is renamed
  FileDescriptor directory_;
  FileDescriptor file_;
};

}  // namespace detail

namespace io {

/// A tensor to be written: its bytes stay the caller's, little-endian, without gaps.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::F32;
  std::vector<Index> shape;
  std::span<const std::byte> bytes;
};

/// Writes the tensors and the metadata to a safetensors file.
///
/// Larger element types come first, names in order among equals, and the data starts at a multiple
/// of 8: every tensor is aligned, and the file's bytes do not depend on the order given.
///
/// The file is written beside the path, synced and then renamed, so that the path holds the old
/// file or the new one at every moment; the tensors may be views of the old one. A symbolic link is
/// replaced, not followed. A process that is killed halfway leaves its `.ttt-*.tmp` behind.
///
/// A new file has the permissions `mode` less the umask. Only its owner may read it unless the
/// caller says otherwise, because a state can reveal what was read.
///
/// Throws FormatError for what a reader would refuse (a name twice or not UTF-8, a shape that does
/// not make the bytes, too many tensors) and Error if the system fails; both leave the old file as
/// it was and nothing beside it, but for a failed sync of the directory, which comes last.
inline void write_safetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {},
                              ::mode_t mode = 0600) {
  const auto reject = [&path](const std::string& why) {
    detail::fail<FormatError>("cannot write " + path + ": " + why);
  };
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    return std::tuple(size_of(b->dtype), std::string_view(a->name)) <
           std::tuple(size_of(a->dtype), std::string_view(b->name));
  });

  std::vector<Json::Member> header;
  if (!metadata.empty())
    header.emplace_back("__metadata__",
                        Json::Object(std::vector<Json::Member>(metadata.begin(), metadata.end())));
  std::size_t end = 0;
  for (const TensorToWrite* tensor : order) {
    const std::string what = "tensor " + detail::quoted(tensor->name) + ": ";
    if (tensor->name == "__metadata__") reject(what + "the name is reserved");
    if (tensor->shape.size() > SafeTensors::max_rank) reject(what + "has too many dimensions");
    if (detail::byte_count(tensor->shape, tensor->dtype) != tensor->bytes.size())
      reject(what + "has " + std::to_string(tensor->bytes.size()) +
             " bytes, which its dtype and shape do not make");
    const std::size_t begin = end;
    end += tensor->bytes.size();
    const Json::Array shape(tensor->shape.begin(), tensor->shape.end());
    header.emplace_back(tensor->name, Json::Object({{"dtype", name_of(tensor->dtype)},
                                                    {"shape", shape},
                                                    {"data_offsets", Json::Array{begin, end}}}));
  }
  if (tensors.size() > SafeTensors::max_tensors) reject("too many tensors");
  std::string text = Json(Json::Object(std::move(header), "cannot write " + path)).dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > SafeTensors::max_header_bytes) reject("the header is too long");

  detail::AtomicFile file(path, mode);
  const std::uint64_t length = text.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(text)));
  for (const TensorToWrite* tensor : order) file.write(tensor->bytes);
  file.commit();
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
