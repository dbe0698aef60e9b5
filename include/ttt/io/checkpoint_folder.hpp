// SPDX-License-Identifier: MIT
/// \file
/// The last few checkpoints of a run, each of them whole or not there.
#pragma once

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <exception>
#include <fcntl.h>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/core/function_ref.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/folder.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/safetensors_writer.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

inline constexpr std::string_view checkpoint_marker = "complete";  // the file that is written last
inline constexpr std::string_view checkpoint_replaced = ".replaced";
inline constexpr std::string_view checkpoint_unfinished = ".unfinished-";
inline constexpr std::string_view checkpoint_discarded = ".discarded-";

inline std::string checkpoint_name(Index step) {
  constexpr std::size_t width = 10;
  const std::string digits = std::to_string(step);
  return "step-" + std::string(width - std::min(width, digits.size()), '0') + digits;
}

/// The step of which this is the name, spelled as checkpoint_name() does.
inline std::optional<Index> checkpoint_step(std::string_view name) {
  constexpr std::string_view before = "step-";
  if (!name.starts_with(before)) return {};
  Index step = 0;
  const auto [end, code] =
      std::from_chars(name.data() + before.size(), name.data() + name.size(), step);
  if (code != std::errc{} || step < 0 || name != checkpoint_name(step)) return {};
  return step;
}

/// The same of a folder that is being replaced, whose name has something after it.
inline std::optional<Index> replaced_checkpoint_step(std::string_view name) {
  if (!name.ends_with(checkpoint_replaced)) return {};
  return checkpoint_step(name.substr(0, name.size() - checkpoint_replaced.size()));
}

inline bool is_complete_checkpoint(const std::string& path) {
  struct stat status = {};
  return ::stat(in_folder(path, checkpoint_marker).c_str(), &status) == 0 &&
         S_ISREG(status.st_mode);
}

}  // namespace detail

namespace io {

/// A folder with all the files of a run at one of its steps.
struct Checkpoint {
  Index step = 0;
  std::string path;

  friend bool operator==(const Checkpoint&, const Checkpoint&) = default;
};

/// The complete checkpoints in a folder, the earliest first; none if there is no such folder.
///
/// Needs no lock. While a run writes there, a checkpoint may go after it was listed, because a
/// later one took its place. Throws Error if the folder cannot be read.
inline std::vector<Checkpoint> list_checkpoints(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0 && errno == ENOENT) return {};
  std::set<Index> steps;
  for (const std::string& name : detail::names_in(path)) {
    if (const auto step = detail::checkpoint_step(name)) steps.insert(*step);
    if (const auto step = detail::replaced_checkpoint_step(name)) steps.insert(*step);
  }
  std::vector<Checkpoint> found;
  for (const Index step : steps) {
    const std::string current = detail::in_folder(path, detail::checkpoint_name(step));
    const std::string replaced = current + std::string(detail::checkpoint_replaced);
    // The first is looked at again because a new one may complete it, and end the second,
    // meanwhile.
    for (const std::string& candidate : {current, replaced, current})
      if (detail::is_complete_checkpoint(candidate)) {
        found.push_back({step, candidate});
        break;
      }
  }
  return found;
}

/// The last of them.
inline std::optional<Checkpoint> latest_checkpoint(const std::string& path) {
  std::vector<Checkpoint> all = list_checkpoints(path);
  if (all.empty()) return {};
  return std::move(all.back());
}

/// Writes the checkpoints of one run to a folder and keeps the last few.
///
/// A checkpoint is a folder `step-0000000100`, and is complete once it has a file `complete`. That
/// one is written last, after all the others are safe from a power cut: whoever is killed leaves
/// the complete checkpoints that were there, or those and a new one. What else is left goes with
/// the next write; whatever has other names is left alone.
///
/// The object holds a lock (flock on the file `lock`), which the kernel releases if the process
/// dies. One thread at a time may use it.
class CheckpointFolder {
 public:
  /// Makes the folder if need be. Throws Error if it cannot be written to, if another object has
  /// it, here or in another process, and if keep < 1.
  CheckpointFolder(const std::string& path, Index keep)
      : path_(prepare(path, keep)), keep_(keep), lock_(open_lock(path_)) {
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return;
    if (errno == EWOULDBLOCK)
      detail::fail("another run is writing its checkpoints to " + path_ +
                   ": expected its file lock to be free");
    detail::fail_system(errno, "cannot lock " + detail::in_folder(path_, "lock"));
  }

  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;

  const std::string& path() const { return path_; }

  std::vector<Checkpoint> list() const { return list_checkpoints(path_); }
  std::optional<Checkpoint> latest() const { return latest_checkpoint(path_); }

  /// Writes a checkpoint: `fill` is given the path of an empty folder, without a slash at its end,
  /// and writes its files there. They need not be synced. A complete checkpoint of the same step
  /// stays until the new one is complete.
  ///
  /// Then all but the last `keep` are removed, except the one just written, which need not be among
  /// them where a run went back to an earlier step.
  ///
  /// What goes wrong, in `fill` or here, is thrown as Error with one sentence that names the
  /// checkpoint, and with the exception of `fill` nested in it; what is not a std::exception comes
  /// out as it is. All complete checkpoints are still there. If only removing an old one failed,
  /// the new one is there too.
  Checkpoint write(Index step, FunctionRef<void(const std::string& folder)> fill) {
    if (step < 0) detail::fail("checkpoint: the step " + std::to_string(step) + " is negative");
    const std::string name = detail::checkpoint_name(step);
    Checkpoint made{step, detail::in_folder(path_, name)};
    try {
      remove_leftovers();
      put_in_place(
          made, detail::in_folder(path_, std::string(detail::checkpoint_unfinished) + name), fill);
    } catch (const std::exception& failure) {
      give_up();
      const std::string_view why = failure.what();
      constexpr std::string_view ours = "ttt: ";
      std::throw_with_nested(
          Error("ttt: cannot write the checkpoint " + made.path + ": " +
                std::string(why.starts_with(ours) ? why.substr(ours.size()) : why)));
    } catch (...) {
      give_up();
      throw;
    }
    remove_old(step);
    return made;
  }

 private:
  static std::string prepare(const std::string& path, Index keep) {
    if (keep < 1)
      detail::fail("checkpoints: keeping " + std::to_string(keep) + ", expected at least 1");
    std::string clean = detail::without_slashes(path);
    detail::make_folders(clean);
    return clean;
  }

  static int open_lock(const std::string& path) {
    const std::string lock = detail::in_folder(path, "lock");
    const int file = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
    if (file < 0) detail::fail_system(errno, "cannot open " + lock);
    return file;
  }

  void put_in_place(const Checkpoint& made, const std::string& unfinished,
                    FunctionRef<void(const std::string& folder)> fill) const {
    detail::make_folders(unfinished);
    fill(unfinished);
    struct stat status = {};
    if (::lstat(detail::in_folder(unfinished, detail::checkpoint_marker).c_str(), &status) == 0)
      detail::fail("the name " + std::string(detail::checkpoint_marker) +
                   " is reserved for the file that is written last");
    detail::sync_tree(unfinished);
    if (detail::is_complete_checkpoint(made.path)) {
      const std::string replaced = made.path + std::string(detail::checkpoint_replaced);
      discard(replaced);
      detail::rename_path(made.path, replaced);
    }
    detail::rename_path(unfinished, made.path);
    detail::sync_to_disk(path_);
    const std::string line = detail::checkpoint_name(made.step) + "\n";
    detail::AtomicFile marker(detail::in_folder(made.path, detail::checkpoint_marker), 0666);
    marker.write(std::as_bytes(std::span(line)));
    marker.commit();
  }

  /// Removes what a write that did not end left behind, and puts back what it was replacing.
  void remove_leftovers() const {
    for (const std::string& name : detail::names_in(path_)) {
      const std::string path = detail::in_folder(path_, name);
      const bool named = detail::checkpoint_step(name) || detail::replaced_checkpoint_step(name);
      if (name.starts_with(detail::checkpoint_unfinished) ||
          name.starts_with(detail::checkpoint_discarded) ||
          (named && detail::is_folder(path) && !detail::is_complete_checkpoint(path)))
        detail::remove_tree(path);
    }
    for (const Checkpoint& checkpoint : list()) {
      const std::string own = detail::in_folder(path_, detail::checkpoint_name(checkpoint.step));
      if (checkpoint.path != own) detail::rename_path(checkpoint.path, own);
    }
  }

  void give_up() const noexcept {
    try {
      remove_leftovers();
    } catch (...) {  // the next write will try again, and say why if it cannot
      return;
    }
  }

  void remove_old(Index written) const {
    const std::vector<Checkpoint> all = list();
    for (std::size_t i = 0; i < all.size(); ++i) {
      discard(all[i].path + std::string(detail::checkpoint_replaced));
      if (std::cmp_less(i, static_cast<Index>(all.size()) - keep_) && all[i].step != written)
        discard(all[i].path);
    }
  }

  /// Removes a complete checkpoint, if it is there. Half of it must never look like a whole one, so
  /// it loses its name first.
  void discard(const std::string& path) const {
    if (!detail::is_complete_checkpoint(path)) return;
    const std::string discarded = detail::in_folder(
        path_, std::string(detail::checkpoint_discarded) + path.substr(path.rfind('/') + 1));
    detail::rename_path(path, discarded);
    detail::sync_to_disk(path_);
    detail::remove_tree(discarded);
  }

  std::string path_;
  Index keep_;
  detail::FileDescriptor lock_;
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
