// SPDX-License-Identifier: MIT
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/core/view.hpp>

namespace {

using namespace ttt;

TEST_CASE("Shape") {
  static_assert(Shape{3, 4}.size() == 12);
  static_assert(Shape{3, 4} == Shape{3, 4} && Shape{3, 4} != Shape{4, 3});
  CHECK(to_string(Shape{3, 4}) == "(3, 4)");
}

TEST_CASE("View: rows lie a stride apart") {
  std::vector<float> memory(20);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  const View<float> v(memory.data(), 4, 3, 5);
  CHECK(v.shape() == Shape{4, 3});
  CHECK(v(0, 0) == 0);
  CHECK(v(2, 1) == 11);
  CHECK(*v.row(3) == 15);
  v(2, 1) = -1;
  CHECK(memory[11] == -1);

  const View<float> some = v.rows_at(1, 2);
  CHECK(some.shape() == Shape{2, 3});
  CHECK(some(1, 1) == -1);
  const View<float> columns = v.cols_at(1, 2);
  CHECK(columns.shape() == Shape{4, 2});
  CHECK(columns.stride == 5);
  CHECK(columns(2, 0) == -1);
  CHECK(v.rows_at(2, 1).cols_at(1, 1)(0, 0) == -1);

  const View<float> dense(memory.data(), 4, 5);
  CHECK(dense.stride == 5);
}

TEST_CASE("View: reading is part of writing, not the other way round") {
  static_assert(std::is_convertible_v<View<float>, View<const float>>);
  static_assert(!std::is_convertible_v<View<const float>, View<float>>);
  static_assert(!std::is_convertible_v<View<float>, View<double>>);
  static_assert(View<float>().empty());
  float x = 0;
  CHECK_FALSE(View<const float>(View<float>(&x, 1, 1)).empty());
}

TEST_CASE("Weight: shapes and transposes") {
  const std::vector<float> memory(15);
  const Weight<float> w(View<const float>(memory.data(), 3, 4, 5));
  CHECK(w.shape() == Shape{3, 4});
  CHECK_FALSE(w.transposed);
  CHECK_FALSE(w.narrow);
  const Weight<float> t = w.transpose();
  CHECK(t.shape() == Shape{4, 3});
  CHECK(t.transposed);
  CHECK(t.stored<float>().shape() == Shape{3, 4});
  CHECK(t.stored<float>().stride == 5);
  CHECK(t.transpose().shape() == w.shape());
  CHECK_FALSE(t.transpose().transposed);
  CHECK(Weight<float>().empty());
  CHECK_FALSE(w.empty());
}

TEST_CASE("Weight: visit gives the element type that is stored") {
  const std::vector<float> wide(6, 2.0f);
  const std::vector<bfloat16> narrow(6, bfloat16(3.0f));
  const auto last = [](const Weight<float>& w) {
    return w.visit(
        [](auto stored) { return static_cast<float>(stored(stored.rows - 1, stored.cols - 1)); });
  };
  const Weight<float> a(View<const float>(wide.data(), 2, 3));
  const Weight<float> b(View<const bfloat16>(narrow.data(), 2, 3));
  CHECK(b.narrow);
  CHECK(last(a) == 2);
  CHECK(last(b) == 3);
  CHECK(last(b.transpose()) == 3);
}

TEST_CASE("check_shape names the operand and both shapes") {
  detail::check_shape("matmul: x", {2, 3}, {2, 3});
  CHECK_THROWS_WITH_AS(detail::check_shape("matmul: x", {2, 3}, {3, 2}),
                       "ttt: matmul: x: the shape is (2, 3), expected (3, 2)", ShapeError);
}

}  // namespace
