// SPDX-License-Identifier: MIT
// Meta-gradients are those of the authors' program, which differentiates its backward pass again.
#include <cmath>
#include <string>
#include <support/backends.hpp>
#include <support/golden.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/outer/meta_gradient.hpp>

namespace {

using namespace ttt;
using test::Golden;

template <class Model, class B, class LearnerType>
void check_gradients(const std::string& name, const B& backend, const LearnerType& learner,
                     const MetaOptions& options = {}) {
  using Scalar = typename B::Scalar;
  CAPTURE(name);
  const Golden golden(name);
  const auto weights = golden.template weights<Model>(backend);
  const auto tokens = golden.template values<Token>("tokens");
  const Index length = golden.file().at("tokens").shape.at(1) - 1;
  std::vector<std::uint8_t> counts;
  if (golden.file().find("loss_mask") != nullptr) {
    counts = golden.template values<std::uint8_t>("loss_mask");
  }
  MetaGradient meta(weights.model(), backend, learner, length, options);
  auto memory = backend.template allocate<Scalar>(meta.size());
  const BatchLoss loss = meta(weights.parameters(), tokens, counts, memory.data());
  const std::vector<Scalar> gradient = test::on_host(backend, memory.data(), meta.size());
  CHECK(std::abs(loss.loss - golden.template values<double>("batch_loss").at(0)) <= 2e-5);

  const auto want = io::load_weights<Model>(io::SafeTensors::open(golden.file().path()),
                                            golden.template config<Model>(),
                                            reference::Backend<double>(), "grads.");
  const Scalar* at = gradient.data();
  Model::each(
      [&](const ParameterName& parameter, const Weight<double>& leaf) {
        CAPTURE(to_string(parameter));
        const auto stored = leaf.template stored<double>();
        double error = 0, size = 0;
        for (Index i = 0; i < stored.rows; ++i) {
          for (Index j = 0; j < stored.cols; ++j) {
            const double expected = stored(i, j), got = static_cast<double>(*at++);
            error += (got - expected) * (got - expected);
            size += expected * expected;
          }
        }
        if (size == 0) {
          CHECK(error == 0);
        } else {
          CHECK(std::sqrt(error / size) <= (B::is_host ? 2e-4 : 5e-4));
        }
      },
      want.parameters());
}

}  // namespace

TEST_CASE_TEMPLATE("golden gradients: models with dynamic MLPs", B, TTT_TEST_BACKENDS) {
  for (const char* name :
       {"e2e", "e2e_batch", "e2e_window_lt_chunk", "e2e_all_layers", "e2e_train"}) {
    check_gradients<test::GoldenReader>(name, B(), Golden(name).learner());
  }
}

TEST_CASE_TEMPLATE("golden gradients: no clipping, a head of its own", B, TTT_TEST_BACKENDS) {
  check_gradients<test::GoldenUntied>("e2e_noclip_untied", B(),
                                      Golden("e2e_noclip_untied").learner());
}

TEST_CASE_TEMPLATE("golden gradients: ordinary MLPs learn, no post-norm, no QK-norm", B,
                   TTT_TEST_BACKENDS) {
  check_gradients<test::GoldenPlain>("e2e_plain_mlp", B(), Golden("e2e_plain_mlp").learner());
}

TEST_CASE_TEMPLATE("golden gradients: masked targets, warm-up", B, TTT_TEST_BACKENDS) {
  check_gradients<test::GoldenReader>("e2e_masked_warmup", B(),
                                      Golden("e2e_masked_warmup").learner());
}

TEST_CASE_TEMPLATE("golden gradients: no inner loop", B, TTT_TEST_BACKENDS) {
  check_gradients<test::GoldenWindowed>("swa_pretrain", B(), NoLearning{});
  check_gradients<test::GoldenFull>("full_attention_pretrain", B(), NoLearning{});
}

TEST_CASE_TEMPLATE("golden gradients: sequences that go through the upper half together", B,
                   TTT_TEST_BACKENDS) {
  for (const Index stacked : {2, 3}) {
    CAPTURE(stacked);
    for (const char* name : {"e2e_batch", "e2e_train"}) {
      check_gradients<test::GoldenReader>(name, B(), Golden(name).learner(), {.stacked = stacked});
    }
  }
}
