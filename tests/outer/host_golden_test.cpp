// SPDX-License-Identifier: MIT
// Training an existing model has the gradients that Hugging Face's Transformers has.
#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/host_golden.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/outer/meta_gradient.hpp>

namespace {

using namespace ttt;
using test::HostGolden;

template <class Model, class B>
void check_gradients(const std::string& name, const B& backend, const MetaOptions& options = {}) {
  using Scalar = typename B::Scalar;
  CAPTURE(name);
  const HostGolden golden(name);
  const auto weights = golden.template weights<Model>(backend);
  const auto tokens = golden.template values<Token>("tokens");
  MetaGradient meta(weights.model(), backend, NoLearning{}, golden.length() - 1, options);
  auto memory = backend.template allocate<Scalar>(meta.size());
  const BatchLoss loss = meta(weights.parameters(), tokens, {}, memory.data());
  const std::vector<Scalar> gradient = test::on_host(backend, memory.data(), meta.size());
  CHECK(std::abs(loss.loss - golden.template values<double>("loss").at(0)) <= 2e-5);

  const auto want = golden.template weights<Model>(reference::Backend<double>(), "grads.");
  const Scalar* at = gradient.data();
  Model::each(
      [&](const ParameterName& parameter, const Weight<double>& leaf) {
        CAPTURE(to_string(parameter));
        std::vector<double> wide(static_cast<std::size_t>(leaf.shape().size()));
        reference::Backend<double>().widen(leaf, View<double>(wide.data(), leaf.rows, leaf.cols));
        double error = 0, size = 0;
        for (const double expected : wide) {
          const double got = static_cast<double>(*at++);
          error += (got - expected) * (got - expected);
          size += expected * expected;
        }
        REQUIRE(size > 0);
        CHECK(std::sqrt(error / size) <= 2e-4);
      },
      want.parameters());
}

}  // namespace

TEST_CASE_TEMPLATE("golden gradients of hosts: Llama", B, TTT_TEST_BACKENDS) {
  check_gradients<Llama<SeparateHead>>("llama", B());
}

TEST_CASE_TEMPLATE("golden gradients of hosts: Qwen3", B, TTT_TEST_BACKENDS) {
  check_gradients<Qwen3<SeparateHead>>("qwen3", B());
  check_gradients<SlidingQwen3<TiedHead>>("qwen3_sliding", B());
  check_gradients<SlidingQwen3<TiedHead>>("qwen3_sliding", B(), {.recompute = true});
}
