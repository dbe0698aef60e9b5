// SPDX-License-Identifier: MIT
/// \file
/// A small pool of threads for loops of independent tasks, and nothing else.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include <ttt/core/error.hpp>
#include <ttt/fwd.hpp>

namespace ttt::inline TTT_ABI {

/// Runs loops of independent tasks on a fixed number of threads, the caller's among them.
///
/// Which thread runs which task is left to chance; so that results do not depend on it, tasks write
/// to places of their own and are cut the same way for any number of threads. Several threads may
/// call `run` at once: one gets the workers, the others do their loop themselves. Idle workers spin
/// for a fraction of a millisecond, then sleep.
class ThreadPool {
 public:
  /// `threads` counts the calling thread; 0 means one for each processor this process may use.
  explicit ThreadPool(int threads = 0) {
    if (threads < 0) detail::fail("ThreadPool: the number of threads must not be negative");
    if (threads == 0) threads = processors();
    if (threads > most_threads) threads = most_threads;
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (...) {
      stop();
      detail::fail("ThreadPool: the system refused to start " + std::to_string(threads) +
                   " threads");
    }
  }

  ~ThreadPool() { stop(); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Threads that take part in a loop, the caller included.
  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls task(i) once for every i in [0, count), in any order and from any thread; returns when
  /// all have returned. Tasks must not throw.
  template <class Task>
  void run(Index count, const Task& task) {
    if (count <= 0) return;
    if (count == 1 || workers_.empty() || taken_.exchange(true, std::memory_order_acquire)) {
      for (Index i = 0; i < count; ++i) task(i);
      return;
    }
    task_ = [](const void* t, Index i) { (*static_cast<const Task*>(t))(i); };
    argument_ = &task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    inside_.store(accepting, std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    take_tasks();
    // Who has not come by now stays out, so that nobody waits for a thread that sleeps or has no
    // processor; who is inside leaves within one task.
    inside_.fetch_sub(accepting, std::memory_order_relaxed);
    for (int spins = 0; inside_.load(std::memory_order_acquire) != 0; ++spins) pause(spins);
    taken_.store(false, std::memory_order_release);
  }

 private:
  static constexpr int most_threads = 1024;
  static constexpr int most_spins = 4000;
  static constexpr int accepting = 1 << 30;

  /// Processors this process may run on, which can be fewer than the machine has.
  static int processors() {
#if defined(__linux__)
    cpu_set_t mine;
    if (::sched_getaffinity(0, sizeof mine, &mine) == 0) return CPU_COUNT(&mine);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
  }

  static void pause(int spins) {
    if (spins > most_spins) {
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void take_tasks() {
    const auto task = task_;
    const void* argument = argument_;
    const Index count = count_;
    for (Index i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) task(argument, i);
  }

  void work() {
    std::uint32_t seen = 0;
    for (;;) {
      std::uint32_t now = 0;
      for (int spins = 0; (now = generation_.load(std::memory_order_acquire)) == seen; ++spins) {
        if (spins < most_spins) {
          pause(spins);
        } else {
          generation_.wait(seen, std::memory_order_acquire);
        }
      }
      seen = now;
      if (stopping_.load(std::memory_order_relaxed)) return;
      int inside = inside_.load(std::memory_order_relaxed);
      while (inside >= accepting) {
        if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire,
                                          std::memory_order_relaxed)) {
          take_tasks();
          inside_.fetch_sub(1, std::memory_order_release);
          break;
        }
      }
    }
  }

  void stop() {
    stopping_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  std::atomic<bool> taken_{false};  // the workers are in somebody's loop
  void (*task_)(const void*, Index) = nullptr;
  const void* argument_ = nullptr;
  Index count_ = 0;
  alignas(64) std::atomic<Index> next_{0};
  alignas(64) std::atomic<int> inside_{
      0};  // workers in the loop, plus accepting while more may come
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace ttt::inline TTT_ABI
