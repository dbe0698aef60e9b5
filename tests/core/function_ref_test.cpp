// SPDX-License-Identifier: MIT
#include <memory>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include <ttt/core/function_ref.hpp>

namespace {

using ttt::FunctionRef;

int doubled(int x) {
  return 2 * x;
}
int call(FunctionRef<int(int)> f, int x) {
  return f(x);
}

struct Counter {
  int calls = 0;
  int operator()(int x) {
    ++calls;
    return x + calls;
  }
};

TEST_CASE("FunctionRef: whatever can be called") {
  const int offset = 5;
  CHECK(call([&](int x) { return x + offset; }, 1) == 6);
  CHECK(call(doubled, 4) == 8);
  CHECK(call(&doubled, 4) == 8);
  CHECK(call([](int x) -> char { return static_cast<char>(x); }, 3) == 3);

  Counter counter;  // refers to it, keeps no copy
  CHECK(call(counter, 10) == 11);
  CHECK(call(counter, 10) == 12);
  CHECK(counter.calls == 2);
}

TEST_CASE("FunctionRef: empty or not") {
  CHECK_FALSE(FunctionRef<void()>());
  CHECK_FALSE(FunctionRef<int(int)>(nullptr));
  CHECK(FunctionRef<int(int)>(doubled));
  Counter counter;
  CHECK(FunctionRef<int(int)>(counter));
}

TEST_CASE("FunctionRef: a copy refers to the same callable, not to the first reference") {
  Counter counter;
  FunctionRef<int(int)> copy;
  {
    FunctionRef<int(int)> first(counter);
    copy = FunctionRef<int(int)>(first);
  }
  CHECK(copy(0) == 1);
  CHECK(counter.calls == 1);
}

TEST_CASE("FunctionRef: arguments that only move, results that are dropped") {
  int seen = 0;
  const auto take = [&](std::unique_ptr<int> p) { return seen = *p; };
  const FunctionRef<void(std::unique_ptr<int>)> f(take);
  f(std::make_unique<int>(7));
  CHECK(seen == 7);
  static_assert(!std::is_constructible_v<FunctionRef<int(int)>, int>);
  static_assert(!std::is_constructible_v<FunctionRef<int()>, Counter&>);
}

}  // namespace
