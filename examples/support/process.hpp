// SPDX-License-Identifier: MIT
/// \file
/// What an example asks of the system: Ctrl-C, a document in pieces, and how much memory it took.
#pragma once

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace examples {

/// In a handler: whether this is the first signal since first_at was 0. A later one ends the
/// process, but for a second it still counts as the first, because some senders say it twice:
/// timeout(1), to a process and to its group.
inline bool first_signal(std::atomic<std::int64_t>& first_at, int signal) {
  static_assert(std::atomic<std::int64_t>::is_always_lock_free);
  constexpr std::int64_t second = 1'000'000'000;  // in nanoseconds
  const int code = errno;
  struct timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const std::int64_t at = static_cast<std::int64_t>(now.tv_sec) * second + now.tv_nsec;
  std::int64_t first = 0;
  const bool is_first = first_at.compare_exchange_strong(first, at);
  if (!is_first && at - first > second) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);  // arrives when the handler returns
  }
  errno = code;
  return is_first;
}

/// Makes the first SIGINT a request to stop, seen when somebody polls; another one ends the process
/// (first_signal).
class Interrupt {
 public:
  Interrupt() {
    struct sigaction action = {};  // without SA_RESTART: waiting reads return
    action.sa_handler = [](int signal) { first_signal(first_at, signal); };
    ::sigaction(SIGINT, &action, nullptr);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  std::stop_token token() const { return source_.get_token(); }

  /// Whether to stop. (A signal handler may not touch a stop_source itself.)
  bool poll() {
    if (first_at.load() != 0) source_.request_stop();
    return source_.stop_requested();
  }

 private:
  static inline std::atomic<std::int64_t> first_at{0};
  std::stop_source source_;
};

/// While it lives, the first SIGINT or SIGTERM calls request_stop() of its target, which must only
/// set a lock-free flag; another one ends the process (first_signal). One at a time.
template <class Target>
class StopOnSignal {
 public:
  explicit StopOnSignal(Target& target) {
    first_at_.store(0);
    target_.store(&target);
    struct sigaction action = {};
    action.sa_handler = &StopOnSignal::on_signal;
    action.sa_flags = static_cast<int>(SA_RESTART);  // what is being written is finished
    for (std::size_t i = 0; i < signals.size(); ++i) {
      ::sigaction(signals[i], nullptr, &before_[i]);
      // Whoever started us in the background may want us to ignore Ctrl-C.
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(signals[i], &action, nullptr);
    }
  }
  ~StopOnSignal() {
    for (std::size_t i = 0; i < signals.size(); ++i) ::sigaction(signals[i], &before_[i], nullptr);
    target_.store(nullptr);
  }
  StopOnSignal(const StopOnSignal&) = delete;
  StopOnSignal& operator=(const StopOnSignal&) = delete;

 private:
  static constexpr std::array<int, 2> signals = {SIGINT, SIGTERM};
  static_assert(std::atomic<Target*>::is_always_lock_free);

  static void on_signal(int signal) {
    Target* const target = target_.load();
    if (first_signal(first_at_, signal) && target != nullptr) target->request_stop();
  }

  static inline std::atomic<std::int64_t> first_at_{0};
  static inline std::atomic<Target*> target_{nullptr};
  std::array<struct sigaction, 2> before_ = {};
};

/// A file, or standard input when its name is -, in pieces: only one of them is in memory.
class Document {
 public:
  /// Throws std::runtime_error, one sentence, when it cannot be read.
  explicit Document(const std::string& path)
      : path_(path == "-" ? "standard input" : path),
        descriptor_(path == "-" ? 0 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    struct stat status = {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) fail(errno);
    if (S_ISDIR(status.st_mode)) fail(EISDIR);
    if (S_ISREG(status.st_mode)) size_ = static_cast<std::int64_t>(status.st_size);
  }
  ~Document() {
    if (descriptor_ > 0) ::close(descriptor_);
  }
  Document(const Document&) = delete;
  Document& operator=(const Document&) = delete;

  const std::string& name() const { return path_; }
  /// In bytes; 0 when it is not known beforehand.
  std::int64_t size() const { return size_; }

  /// The next `most` bytes; fewer at the end or after an interrupt. Good until the next call.
  std::span<const std::uint8_t> next(std::size_t most, Interrupt& interrupt) {
    piece_.resize(most);
    std::size_t filled = 0;
    while (filled < most && !interrupt.poll()) {
      const ssize_t got = ::read(descriptor_, piece_.data() + filled, most - filled);
      if (got < 0 && errno != EINTR) fail(errno);
      if (got == 0) break;
      if (got > 0) filled += static_cast<std::size_t>(got);
    }
    return std::span(piece_).first(filled);
  }

 private:
  [[noreturn]] void fail(int code) const {
    throw std::runtime_error("cannot read " + path_ + ": " + std::strerror(code));
  }

  std::string path_;
  int descriptor_;
  std::int64_t size_ = 0;
  std::vector<std::uint8_t> piece_;
};

/// Throws std::runtime_error, one sentence, if no file can be made or replaced there: better before
/// an hour of work than behind it.
inline void check_writable(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const std::string parent = folder.empty() ? "." : folder.string();
  int code = ::access(parent.c_str(), W_OK | X_OK) != 0 ? errno : 0;
  if (code == 0 && std::filesystem::is_directory(path)) code = EISDIR;
  if (code != 0) throw std::runtime_error("cannot write " + path + ": " + std::strerror(code));
}

/// A line, or some, to standard output, at once, so that a pipe's reader sees it. Throws
/// std::runtime_error, one sentence, when it cannot be written.
template <class... Values>
void say(const char* format, Values... values) {
  std::printf(format, values...);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("cannot write to standard output");
  }
}
inline void say(const char* text) {
  say("%s", text);
}

/// Replaces a file. Throws std::runtime_error, one sentence.
inline void write_file(const std::string& path, std::string_view text) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"),
                                                             &std::fclose);
  if (!file || std::fwrite(text.data(), 1, text.size(), file.get()) != text.size() ||
      std::fflush(file.get()) != 0) {
    throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
  }
}

/// What the machine has, in bytes; 0 if it does not say.
inline std::int64_t physical_memory_bytes() {
  const auto pages = static_cast<std::int64_t>(::sysconf(_SC_PHYS_PAGES));
  const auto size = static_cast<std::int64_t>(::sysconf(_SC_PAGESIZE));
  return pages > 0 && size > 0 ? pages * size : 0;
}

/// The most memory this process has had so far, in bytes.
inline std::int64_t peak_rss_bytes() {
  // On Linux getrusage also counts the process that started this one.
  if (std::FILE* status = std::fopen("/proc/self/status", "r")) {
    char line[256];
    long long kilobytes = 0;
    while (kilobytes == 0 && std::fgets(line, sizeof line, status) != nullptr) {
      if (std::strncmp(line, "VmHWM:", 6) == 0) kilobytes = std::strtoll(line + 6, nullptr, 10);
    }
    std::fclose(status);
    if (kilobytes > 0) return kilobytes * 1024;
  }
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return static_cast<std::int64_t>(usage.ru_maxrss);
#else
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace examples
