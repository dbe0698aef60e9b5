// SPDX-License-Identifier: MIT
#include <atomic>
#include <chrono>
#include <initializer_list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/core/thread_pool.hpp>

namespace {

using ttt::Index;
using ttt::ThreadPool;

/// Runs `count` tasks and says whether each index came exactly once. The counts are plain numbers:
/// a race on them is the pool's mistake, and one that the thread sanitizer reports.
bool runs_each_once(ThreadPool& pool, Index count) {
  std::vector<int> seen(static_cast<std::size_t>(count));
  pool.run(count, [&](Index i) { ++seen[static_cast<std::size_t>(i)]; });
  for (int n : seen) {
    if (n != 1) return false;
  }
  return true;
}

TEST_CASE("ThreadPool: every index exactly once") {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (Index count : {0, 1, 2, 3, 7, 8, 9, 100, 10'000}) {
      CAPTURE(threads);
      CAPTURE(count);
      CHECK(runs_each_once(pool, count));
    }
    pool.run(-5, [](Index) { FAIL("no task has a negative index"); });
  }
}

TEST_CASE("ThreadPool: many small loops in a row") {
  ThreadPool pool(3);
  bool good = true;
  for (int turn = 0; turn < 5'000; ++turn) good &= runs_each_once(pool, turn % 7);
  CHECK(good);
}

TEST_CASE("ThreadPool: loops with pauses long enough for the workers to sleep") {
  ThreadPool pool(3);
  bool good = true;
  for (int turn = 0; turn < 20; ++turn) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    good &= runs_each_once(pool, 11);
  }
  CHECK(good);
}

TEST_CASE("ThreadPool: one long task among short ones") {
  ThreadPool pool(2);
  std::atomic<int> done{0};
  pool.run(10, [&](Index i) {
    if (i == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ++done;
  });
  CHECK(done == 10);
}

TEST_CASE("ThreadPool: several threads call run at once") {
  ThreadPool pool(3);
  std::atomic<bool> good{true};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int turn = 0; turn < 500; ++turn) {
        if (!runs_each_once(pool, 1 + (turn + caller) % 9)) good = false;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(good);
}

TEST_CASE("ThreadPool: a loop inside a task runs on the task's own thread") {
  ThreadPool pool(3);
  std::vector<int> sums(20);
  std::atomic<int> strayed{0};
  pool.run(20, [&](Index i) {
    const auto self = std::this_thread::get_id();
    pool.run(10, [&](Index j) {
      if (std::this_thread::get_id() != self) ++strayed;
      pool.run(2, [&](Index) { sums[static_cast<std::size_t>(i)] += static_cast<int>(j); });
    });
  });
  for (int sum : sums) CHECK(sum == 90);
  CHECK(strayed == 0);
}

TEST_CASE("ThreadPool: a pool of one stays on the caller's thread, in order") {
  ThreadPool pool(1);
  const auto self = std::this_thread::get_id();
  std::vector<Index> order;
  bool at_home = true;
  pool.run(5, [&](Index i) {
    order.push_back(i);
    at_home &= std::this_thread::get_id() == self;
  });
  CHECK(at_home);
  CHECK(order == std::vector<Index>{0, 1, 2, 3, 4});
}

TEST_CASE("ThreadPool: destruction while workers spin, sleep, or have just begun") {
  for (int turn = 0; turn < 50; ++turn) {
    { ThreadPool unused(4); }
    {
      ThreadPool used(4);
      CHECK(runs_each_once(used, 16));
    }
  }
  ThreadPool pool(4);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

TEST_CASE("ThreadPool: what a task wrote is there when the loop returns") {
  ThreadPool pool(3);
  std::vector<std::unique_ptr<std::string>> made(64);
  pool.run(64, [&](Index i) {
    made[static_cast<std::size_t>(i)] = std::make_unique<std::string>(std::to_string(i));
  });
  for (int i = 0; i < 64; ++i) CHECK(*made[static_cast<std::size_t>(i)] == std::to_string(i));
}

TEST_CASE("ThreadPool: the number of threads") {
  CHECK(ThreadPool(0).threads() >= 1);
  CHECK(ThreadPool().threads() >= 1);
  CHECK_THROWS_WITH_AS(ThreadPool(-1),
                       "ttt: ThreadPool: the number of threads must not be negative", ttt::Error);
}

}  // namespace
