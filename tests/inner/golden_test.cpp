// SPDX-License-Identifier: MIT
// Reading and learning give the numbers that the authors' program gave.
#include <cmath>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/golden.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/session.hpp>

namespace {

using namespace ttt;
using test::Golden;

/// What rounding may do to a score.
template <class S>
constexpr double nll_tolerance = std::is_same_v<S, float> ? 1e-4 : 1e-5;

double furthest(const auto& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double most = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double distance = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(distance <= most)) most = distance;
  }
  return most;
}

/// Mean losses of the chunks, over the targets that count.
std::vector<double> chunk_losses(const auto& nll, Index chunk,
                                 const std::vector<std::uint8_t>& mask) {
  std::vector<double> losses;
  for (std::size_t first = 0; first < nll.size(); first += static_cast<std::size_t>(chunk)) {
    double sum = 0, count = 0;
    for (std::size_t i = first; i < first + static_cast<std::size_t>(chunk); ++i) {
      if (!mask.empty() && mask[i] == 0) continue;
      sum += static_cast<double>(nll[i]);
      ++count;
    }
    losses.push_back(sum / std::max(count, 1e-10));
  }
  return losses;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

/// The scores of all targets, and with them everything a report counts.
template <class Session>
void check_scores(const Golden& golden, Index sequence, Session& session,
                  const ReadOptions<typename Session::Scalar>& options,
                  const std::vector<std::uint8_t>& mask = {}) {
  const std::vector<Token> tokens = golden.tokens(sequence);
  const auto report = session.read(tokens, options);
  REQUIRE(report.nll.size() == tokens.size());
  CHECK(std::isnan(report.nll[0]));
  const std::span nll = std::span(report.nll).subspan(1);
  CHECK(furthest(nll, golden.values<double>("token_nll", sequence)) <=
        nll_tolerance<typename Session::Scalar>);
  const auto losses = chunk_losses(nll, golden.chunk(), mask);
  CHECK(furthest(losses, golden.values<double>("chunk_loss", sequence)) <= 2e-5);
  CHECK(std::abs(mean(losses) -
                 golden.values<double>("loss")[static_cast<std::size_t>(sequence)]) <= 2e-5);
  double total = 0;
  Index counted = 0;
  for (std::size_t i = 0; i < nll.size(); ++i) {
    if (!mask.empty() && mask[i] == 0) continue;
    total += static_cast<double>(nll[i]);
    ++counted;
  }
  CHECK(report.scored == counted);
  CHECK(report.total_nll == doctest::Approx(total).epsilon(1e-12));
}

template <class Session>
auto learned_weights(const Session& session) {
  return test::on_host(session.weights().backend(), session.state().learned.data(),
                       session.learned_size());
}

/// The weights that learn, against those that the authors' program ended with.
template <class Session>
void check_learned(const Golden& golden, Index sequence, const Session& session) {
  using Model = typename std::decay_t<decltype(session.weights())>::Model;
  const auto& learner = session.learner();
  REQUIRE(session.state().learned_size > 0);
  const auto all = learned_weights(session);
  const auto* learned = all.data();
  auto shapes = session.weights().model().shapes();
  const bool dynamic_mlps = learner.what == Learns::DynamicMlps;
  double worst = 0, worst_step = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        if (!learner.learns(name)) return;
        const std::string tensor = (dynamic_mlps ? "feed_forward_prime." : "feed_forward.") +
                                   std::string(name.tensor) + ".weight";
        const auto want = golden.values<double>(
            "final_inner.language_model.model.h.suffix_blocks." + tensor, sequence);
        const std::string place = dynamic_mlps ? "prime_storage." : "blocks.";
        const auto first = golden.values<double>("params.language_model.model.h." + place + tensor);
        const Index at = name.suffix_block * shape.size();
        const Index from = (dynamic_mlps ? name.suffix_block : name.block) * shape.size();
        double error = 0, size = 0, step = 0;
        for (Index i = 0; i < shape.size(); ++i) {
          const double w = want[static_cast<std::size_t>(at + i)];
          error += std::pow(static_cast<double>(learned[i]) - w, 2);
          size += w * w;
          step += std::pow(w - first[static_cast<std::size_t>(from + i)], 2);
        }
        learned += shape.size();
        worst = std::max(worst, std::sqrt(error / size));
        worst_step = std::max(worst_step, std::sqrt(error / step));
      },
      shapes);
  CHECK(worst <= 1e-4);       // of the weights
  CHECK(worst_step <= 1e-3);  // of what was learned
  CHECK(learned == all.data() + session.learned_size());
}

template <class Model, class B>
void check_learning(const std::string& name, const B& backend) {
  CAPTURE(name);
  const Golden golden(name);
  const auto weights = golden.template weights<Model>(backend);
  CHECK(weights.config().chunk == golden.chunk());
  for (Index sequence = 0; sequence < golden.sequences(); ++sequence) {
    CAPTURE(sequence);
    Session session(weights, golden.learner());
    check_scores(golden, sequence, session, {});
    check_learned(golden, sequence, session);
    const Index chunks = (std::ssize(golden.tokens(sequence)) - 1) / golden.chunk();
    CHECK(session.counters().inner_steps == chunks);
    CHECK(session.counters().skipped_steps == 0);
  }
}

template <class Model, class B>
void check_plain(const std::string& name, const B& backend) {
  CAPTURE(name);
  const Golden golden(name);
  const auto weights = golden.template weights<Model>(backend);
  for (Index chunk : {64, 16, 1}) {  // without learning the chunk is only a way of working
    CAPTURE(chunk);
    Session session(weights, NoLearning{.chunk = chunk}, {.max_tokens = 65});
    check_scores(golden, 0, session, {});
    CHECK(session.counters().inner_steps == 0);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("golden: models with dynamic MLPs", B, TTT_TEST_BACKENDS) {
  for (const char* name :
       {"e2e", "e2e_batch", "e2e_window_lt_chunk", "e2e_all_layers", "e2e_train"}) {
    check_learning<test::GoldenReader>(name, B());
  }
}

TEST_CASE_TEMPLATE("golden: no clipping, a head of its own", B, TTT_TEST_BACKENDS) {
  check_learning<test::GoldenUntied>("e2e_noclip_untied", B());
}

TEST_CASE_TEMPLATE("golden: ordinary MLPs learn, no post-norm, no QK-norm", B, TTT_TEST_BACKENDS) {
  check_learning<test::GoldenPlain>("e2e_plain_mlp", B());
}

TEST_CASE_TEMPLATE("golden: masked targets, warm-up; a mask and a masked token are the same", B,
                   TTT_TEST_BACKENDS) {
  const Golden golden("e2e_masked_warmup");
  const auto weights = golden.template weights<test::GoldenReader>(B());
  const auto counts = golden.values<std::uint8_t>("loss_mask", 0);  // one a target
  std::vector<std::uint8_t> mask{1};                                // one a token
  mask.insert(mask.end(), counts.begin(), counts.end());
  REQUIRE(std::count(counts.begin(), counts.end(), 0) > 0);

  auto learner = golden.learner();
  CHECK(learner.rate_multiplier == doctest::Approx(0.46));
  Session masked(weights, learner);
  check_scores(golden, 0, masked, {.loss_mask = mask}, counts);
  check_learned(golden, 0, masked);

  learner.masked_target = static_cast<Token>(golden.settings().at("bos").integer());
  Session by_token(weights, learner);
  check_scores(golden, 0, by_token, {}, counts);
  check_learned(golden, 0, by_token);
  CHECK(learned_weights(masked) == learned_weights(by_token));
}

TEST_CASE_TEMPLATE("golden: no inner loop, sliding window", B, TTT_TEST_BACKENDS) {
  check_plain<test::GoldenWindowed>("swa_pretrain", B());
}

TEST_CASE_TEMPLATE("golden: no inner loop, full attention", B, TTT_TEST_BACKENDS) {
  check_plain<test::GoldenFull>("full_attention_pretrain", B());
}

TEST_CASE("golden: sizes in the type and sizes from the file are the same model") {
  using Attention = SlidingWindowAttention<16>;
  using Fixed = LanguageModel<Stack<2, Block<Attention, SwiGLU>>,
                              Stack<2, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
  const Golden golden("e2e");
  const eigen::Backend<float> cpu(1);
  Session fixed(golden.weights<Fixed>(cpu), golden.learner());
  Session open(golden.weights<test::GoldenReader>(cpu), golden.learner());
  const auto a = fixed.read(golden.tokens()), b = open.read(golden.tokens());
  CHECK(std::equal(a.nll.begin() + 1, a.nll.end(), b.nll.begin() + 1));
}
