// SPDX-License-Identifier: MIT
/// \file
/// Runs a primitive on the backend under test and on the reference, and compares.
#pragma once

#include <string>
#include <support/backends.hpp>
#include <support/matrix.hpp>
#include <support/tolerance.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace ttt::test {

/// A list of results.
template <class... Results>
auto results(Results&&... all) {
  std::vector<std::common_type_t<std::decay_t<Results>...>> list;
  (list.push_back(std::forward<Results>(all)), ...);
  return list;
}

/// Whether two lists of results are the same, guards included.
template <class S>
bool same_bits(const std::vector<Matrix<S>>& a, const std::vector<Matrix<S>>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!a[i].same_bits(b[i])) return false;
  }
  return true;
}

/// Checks that `run`, which takes a backend and returns a list of Matrix<Scalar>, gives what the
/// reference gives in double; the same bits on every machine; and touches nothing outside its
/// results. `slack` widens the tolerance.
template <class S, class Run>
void check_equivalent(const Run& run, double slack = 1) {
  const std::vector<Matrix<double>> want = run(reference::Backend<double>());
  const std::vector<Matrix<S>> got = run(machines<S>()[0]);
  for (std::size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(got[i].view(), want[i].view()) <= slack * Tolerance<S>::relative);
    CHECK(got[i].guarded());
    CHECK(want[i].guarded());
  }
  for (std::size_t machine = 1; machine < machines<S>().size(); ++machine) {
    const std::vector<Matrix<S>> other = run(machines<S>()[machine]);
    for (std::size_t i = 0; i < want.size(); ++i) {
      CAPTURE(i);
      CAPTURE(machines<S>()[machine].threads());
      CHECK(other[i].same_bits(got[i]));
    }
  }
}

/// Checks that what is not a finite number in the reference's result is none in the backend's.
template <class S, class Run>
void check_not_hidden(const Run& run) {
  const std::vector<Matrix<double>> want = run(reference::Backend<double>());
  const std::vector<Matrix<S>> got = run(machines<S>()[0]);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const View<const double> a = want[i].view();
    const View<const S> b = got[i].view();
    Index expected = 0, hidden = 0;
    for (Index r = 0; r < a.rows; ++r) {
      for (Index c = 0; c < a.cols; ++c) {
        if (std::isfinite(a(r, c))) continue;
        ++expected;
        hidden += std::isfinite(b(r, c));
      }
    }
    CAPTURE(i);
    CHECK(expected > 0);
    CHECK(hidden == 0);
  }
}

}  // namespace ttt::test
