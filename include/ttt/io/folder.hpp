// SPDX-License-Identifier: MIT
/// \file
/// Folders: the names in one, making one, removing one, and making one safe from a power cut.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <stdio.h>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include <ttt/io/mapped_file.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// The path without the slashes at its end, so that "/name" can follow.
inline std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

/// The path of what a folder has under a name.
inline std::string in_folder(const std::string& folder, std::string_view name) {
  return folder + (folder.ends_with('/') ? "" : "/") + std::string(name);
}

/// The names in a folder, sorted by their bytes, whatever order the file system has them in.
inline std::vector<std::string> names_in(const std::string& folder) {
  struct Close {
    void operator()(DIR* open) const { ::closedir(open); }
  };
  const std::unique_ptr<DIR, Close> open(::opendir(folder.c_str()));
  if (!open) fail_system(errno, "cannot read the folder " + folder);
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(open.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) fail_system(errno, "cannot read the folder " + folder);
  std::sort(names.begin(), names.end());
  return names;
}

/// Whether the path is a folder, and not a symbolic link to one.
inline bool is_folder(const std::string& path) {
  struct stat status = {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// Makes a folder and those it is in, unless they are there.
inline void make_folders(const std::string& path) {
  const auto exists = [&path] {
    struct stat status = {};
    return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
  };
  if (exists()) return;
  const std::size_t slash = path.rfind('/');
  if (slash != path.npos && slash > 0) make_folders(without_slashes(path.substr(0, slash)));
  if (::mkdir(path.c_str(), 0777) == 0) return;
  const int code = errno;
  if (!exists()) fail_system(code, "cannot make the folder " + path);  // else another was faster
}

/// Removes a file, a symbolic link (not what it points to), or a folder with everything in it.
inline void remove_tree(const std::string& path) {
  const bool folder = is_folder(path);
  if (folder)
    for (const std::string& name : names_in(path)) remove_tree(in_folder(path, name));
  if ((folder ? ::rmdir(path.c_str()) : ::unlink(path.c_str())) != 0)
    fail_system(errno, "cannot remove " + path);
}

inline void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    fail_system(errno, "cannot rename " + from + " to " + to);
}

/// Returns once the bytes of a file, or the names in a folder, would survive a power cut.
inline void sync_to_disk(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (file.get() < 0) fail_system(errno, "cannot open " + path);
  while (::fsync(file.get()) != 0) {
    if (errno == EINVAL) return;  // a file system that cannot sync this kind of file
    if (errno != EINTR) fail_system(errno, "cannot sync " + path + " to its disk");
  }
}

/// Does so for a folder and for every file and folder in it; symbolic links are not followed.
inline void sync_tree(const std::string& folder) {
  for (const std::string& name : names_in(folder)) {
    const std::string path = in_folder(folder, name);
    struct stat status = {};
    if (::lstat(path.c_str(), &status) != 0) fail_system(errno, "cannot examine " + path);
    if (S_ISDIR(status.st_mode)) sync_tree(path);
    if (S_ISREG(status.st_mode)) sync_to_disk(path);
  }
  sync_to_disk(folder);
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
