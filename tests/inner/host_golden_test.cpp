// SPDX-License-Identifier: MIT
// Existing models give the logits that Hugging Face's Transformers gave.
#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/host_golden.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/session.hpp>

namespace {

using namespace ttt;
using test::HostGolden;

template <class Model, class B>
void check_logits(const std::string& name, const B& backend) {
  CAPTURE(name);
  const HostGolden golden(name);
  const auto weights = golden.template weights<Model>(backend);
  const auto tokens = golden.template values<Token>("tokens");
  const auto logits = golden.template values<double>("logits");
  const auto length = static_cast<std::size_t>(golden.length());
  const auto words = static_cast<std::size_t>(weights.config().vocabulary);
  REQUIRE(logits.size() == tokens.size() * words);
  for (const Index chunk : {7, 40}) {
    CAPTURE(chunk);
    double worst = 0;
    for (std::size_t s = 0; s < static_cast<std::size_t>(golden.sequences()); ++s) {
      Session session(weights, NoLearning{.chunk = chunk}, {.max_tokens = golden.length()});
      for (std::size_t t = 0; t < length; ++t) {
        session.read(std::span(tokens).subspan(s * length + t, 1));
        const auto got = session.logits();
        REQUIRE(got.size() == words);
        for (std::size_t v = 0; v < words; ++v) {
          const double error =
              std::abs(static_cast<double>(got[v]) - logits[(s * length + t) * words + v]);
          worst = std::max(worst, std::isnan(error) ? INFINITY : error);
        }
      }
    }
    CHECK(worst <= 2e-4);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("golden hosts: Llama, with grouped queries and a head of its own", B,
                   TTT_TEST_BACKENDS) {
  check_logits<Llama<SeparateHead>>("llama", B());
}

TEST_CASE_TEMPLATE("golden hosts: Qwen3, with QK-norm and heads wider than the model's share", B,
                   TTT_TEST_BACKENDS) {
  check_logits<Qwen3<SeparateHead>>("qwen3", B());
  check_logits<SlidingQwen3<SeparateHead>>("qwen3", B());
}

TEST_CASE_TEMPLATE("golden hosts: Qwen3, full attention in the first block and a window behind", B,
                   TTT_TEST_BACKENDS) {
  check_logits<SlidingQwen3<TiedHead>>("qwen3_sliding", B());
}
