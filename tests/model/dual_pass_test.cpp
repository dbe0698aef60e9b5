// SPDX-License-Identifier: MIT
// The code of the layers, run forwards and backwards on dual numbers, differentiates the gradient.
#include <cmath>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/core/dual.hpp>
#include <ttt/inner/chunk_pass.hpp>
#include <ttt/inner/inner_loop.hpp>
#include <ttt/model/presets.hpp>

namespace {

using namespace ttt;
using Number = Dual<double>;
using Model = TttE2e<1, 2, 5>;
constexpr Config config{
    .vocabulary = 11, .width = 8, .heads = 2, .hidden = 6, .rope_base = 10000, .eps = 1e-6};
constexpr Index chunk = 7;

/// The gradient of one chunk's loss, behind a chunk that filled the window, with respect to all
/// dynamic weights, which are moved by `shift`.
template <class Scalar, class Shift>
std::vector<Scalar> gradient(const Shift& shift) {
  const reference::Backend<double> plain;
  const auto weights = initialise<Model>(config, plain, 5, 0.3);
  const Model model(config);
  const reference::Backend<Scalar> backend;
  std::vector<std::vector<Scalar>> storage;
  auto tree = model.tree<Weight<Scalar>>();
  auto gradients = model.tree<View<Scalar>>();
  std::vector<Scalar> flat(static_cast<std::size_t>(weights.count()));
  Index at = 0, moved = 0;
  Model::each(
      [&](const ParameterName& name, const Weight<double>& from, Weight<Scalar>& to,
          View<Scalar>& d) {
        const auto stored = from.stored<double>();
        auto& values = storage.emplace_back(stored.data, stored.data + from.shape().size());
        if (name.role == Role::DynamicMlp) {
          for (Scalar& value : values) value = shift(value, moved++);
          d = View<Scalar>(flat.data() + at, from.rows, from.cols);
          at += from.shape().size();
        }
        to = View<const Scalar>(values.data(), from.rows, from.cols);
      },
      weights.parameters(), tree, gradients);
  flat.resize(static_cast<std::size_t>(at));

  const CacheShape<Scalar> caches{3, 2, 14, 4};
  std::vector<Scalar> cache(static_cast<std::size_t>(caches.size()));
  ChunkPass<Model, reference::Backend<Scalar>> pass(model, backend, caches, chunk);
  const std::vector<Token> tokens = {1, 4, 2, 9, 10, 3, 3, 7, 0, 5, 2, 8, 6, 1, 4};
  std::vector<Scalar> nll(chunk);
  const std::vector<Scalar> mean(chunk, Scalar(1.0 / chunk));
  const auto part = [&](std::size_t first) {
    return std::span<const Token>(tokens).subspan(first, chunk + 1);
  };
  pass.score(tree, cache.data(), part(0), 0, nll);
  pass.gradient(tree, gradients, cache.data(), part(chunk), chunk, mean, nll);
  return flat;
}

TEST_CASE("on dual numbers the backward pass is the derivative of the gradient") {
  Random random{9};
  std::vector<double> direction(2 * 3 * 8 * 6);
  for (double& u : direction) u = random.normal();
  const auto along = [&](Index i) { return direction[static_cast<std::size_t>(i)]; };

  const auto dual = gradient<Number>([&](Number w, Index i) { return Number(w.value, along(i)); });
  const double step = 1e-4;  // central differences of fourth order
  const auto moved = [&](double by) {
    return gradient<double>([&](double w, Index i) { return w + by * along(i); });
  };
  const auto plain = moved(0), up = moved(step), down = moved(-step), far_up = moved(2 * step),
             far_down = moved(-2 * step);
  REQUIRE(dual.size() == direction.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < dual.size(); ++i) {
    CHECK(dual[i].value == doctest::Approx(plain[i]).epsilon(1e-12));
    const double second = (8 * (up[i] - down[i]) - (far_up[i] - far_down[i])) / (12 * step);
    error += (dual[i].tangent - second) * (dual[i].tangent - second);
    norm += second * second;
  }
  CHECK(norm > 0);
  CHECK(std::sqrt(error / norm) < 1e-7);
}

}  // namespace
