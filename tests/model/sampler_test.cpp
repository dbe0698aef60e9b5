// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/model/sampler.hpp>

namespace {

using namespace ttt;

static_assert(Sampler<Greedy> && Sampler<Temperature> && Sampler<TopK> && Sampler<TopP>);
static_assert(!Sampler<int>);

/// How often each token is drawn.
template <class S>
std::vector<double> shares(const S& sampler, const std::vector<float>& logits, int draws = 40000) {
  std::vector<double> share(logits.size(), 0.0);
  Random random{1};
  for (int i = 0; i < draws; ++i) {
    std::vector<float> scratch = logits;
    const Token t = sampler(scratch, random);
    share.at(static_cast<std::size_t>(t)) += 1.0 / draws;
  }
  return share;
}

void check_shares(const std::vector<double>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    if (want[i] == 0) CHECK(got[i] == 0);
    CHECK(std::abs(got[i] - want[i]) < 0.012);  // five deviations of 40000 draws
  }
}

float log_of(double p) {
  return static_cast<float>(std::log(p));
}

const std::vector<float> logits{log_of(0.1), log_of(0.4), log_of(0.05), log_of(0.3), log_of(0.15)};

Token once(const auto& sampler, std::vector<float> of) {
  Random random{3};
  return sampler(of, random);
}

}  // namespace

TEST_CASE("Greedy: the likeliest, the first of several") {
  CHECK(once(Greedy{}, {1, 3, 2}) == 1);
  CHECK(once(Greedy{}, {2, 5, 5, 5}) == 1);
  CHECK(once(Greedy{}, {7}) == 0);
  CHECK(once(Greedy{}, {-5, -2, -9}) == 1);
}

TEST_CASE("Temperature: softmax of the logits over it") {
  check_shares(shares(Temperature{}, logits), {0.1, 0.4, 0.05, 0.3, 0.15});
  std::vector<double> sharp(5);
  double sum = 0;
  for (std::size_t i = 0; i < 5; ++i) sum += sharp[i] = std::exp(2 * double(logits[i]));
  for (double& p : sharp) p /= sum;
  check_shares(shares(Temperature{.temperature = 0.5f}, logits), sharp);
  check_shares(shares(Temperature{.temperature = 1e6f}, logits), {0.2, 0.2, 0.2, 0.2, 0.2});
  // Adding to all logits changes nothing, however large.
  auto shifted = logits;
  for (float& l : shifted) l += 4096;
  check_shares(shares(Temperature{}, shifted), {0.1, 0.4, 0.05, 0.3, 0.15});
}

TEST_CASE("Temperature: tiny ones are greedy, and nothing overflows") {
  CHECK(once(Temperature{.temperature = 1e-30f}, {1, 3, 2}) == 1);
  CHECK(once(Temperature{.temperature = std::numeric_limits<float>::min()},
             {1e30f, 3e30f, -1e30f}) == 1);
  const float least = std::numeric_limits<float>::lowest();
  check_shares(shares(Temperature{}, {least, 0, least, 0}, 10000), {0, 0.5, 0, 0.5});
  // A logit of minus infinity is a token that is never drawn.
  const float never = -std::numeric_limits<float>::infinity();
  check_shares(shares(Temperature{}, {never, 0, never}, 1000), {0, 1, 0});
}

TEST_CASE("TopK: the k likeliest") {
  check_shares(shares(TopK{.k = 2}, logits), {0, 0.4 / 0.7, 0, 0.3 / 0.7, 0});
  check_shares(shares(TopK{.k = 100}, logits), {0.1, 0.4, 0.05, 0.3, 0.15});
  CHECK(once(TopK{.k = 1}, {1, 4, 4}) == 1);
  check_shares(shares(TopK{.k = 2}, {3, 3, 3}), {0.5, 0.5, 0});  // the first of equals
}

TEST_CASE("TopP: the fewest that hold p") {
  check_shares(shares(TopP{.p = 0.3f}, logits), {0, 1, 0, 0, 0});
  check_shares(shares(TopP{.p = 0.41f}, logits), {0, 0.4 / 0.7, 0, 0.3 / 0.7, 0});
  check_shares(shares(TopP{.p = 0.75f}, logits), {0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85});
  check_shares(shares(TopP{.p = 1.0f}, logits), {0.1, 0.4, 0.05, 0.3, 0.15});
  check_shares(shares(TopP{.p = 1e-9f}, logits), {0, 1, 0, 0, 0});  // always one at least
  // The mass is of the distribution at that temperature.
  check_shares(shares(TopP{.p = 0.5f, .temperature = 0.1f}, logits), {0, 1, 0, 0, 0});
}

TEST_CASE("samplers: large vocabularies, of which few are put in order") {
  Random random{4};
  std::vector<float> many(5000);
  for (float& logit : many) logit = static_cast<float>(random.uniform() - 8);
  many[4321] = log_of(0.5 * 5000);
  // What the whole order says, token by token.
  const auto slow = [&](const std::vector<float>& of, double temperature, double mass, double u) {
    const auto order = detail::likeliest(of, std::ssize(of));
    std::vector<double> weights;
    double total = 0, kept = 0;
    for (const Token t : order) {
      weights.push_back(
          std::exp(static_cast<double>(of[static_cast<std::size_t>(t)]) / temperature));
      total += weights.back();
    }
    std::size_t count = 0;
    while (count < order.size() && (count == 0 || kept < mass * total)) kept += weights[count++];
    double point = u * kept;
    for (std::size_t i = 0; i + 1 < count; ++i) {
      if ((point -= weights[i]) < 0) return order[i];
    }
    return order[count - 1];
  };
  for (const float temperature : {0.3f, 1.0f, 2.0f}) {
    for (const float p : {0.1f, 0.7f, 0.99f, 1.0f}) {
      for (int i = 0; i < 20; ++i) {
        Random now = random, then = random;
        const Token want = slow(many, temperature, p, then.uniform());
        CHECK(TopP{.p = p, .temperature = temperature}(many, now) == want);
        CHECK(now == then);
        if (p == 1.0f) CHECK(Temperature{.temperature = temperature}(many, random) == want);
        random = now;
      }
    }
  }
}

TEST_CASE("samplers: the same numbers, the same tokens") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Random a{seed}, b{seed};
    std::vector<float> x = logits, y = logits;
    CHECK(Temperature{}(x, a) == Temperature{}(y, b));
    CHECK(a == b);
    CHECK(a.counter == 1);
  }
}

TEST_CASE("samplers: settings that make no sense") {
  const auto refuse = [](const auto& sampler, const char* why) {
    CHECK_THROWS_WITH_AS(once(sampler, {1, 2}), why, Error);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  const char* temperature =
      "ttt: sampler: the temperature must be positive (Greedy takes the likeliest token)";
  for (const float t : {0.0f, -1.0f, nan, infinite}) {
    refuse(Temperature{.temperature = t}, temperature);
    refuse(TopK{.temperature = t}, temperature);
    refuse(TopP{.temperature = t}, temperature);
  }
  for (const Index k : {0, -3}) refuse(TopK{.k = k}, "ttt: TopK: k must be at least 1");
  for (const float p : {0.0f, -0.5f, 1.5f, nan}) {
    refuse(TopP{.p = p}, "ttt: TopP: p must be above 0 and at most 1");
  }
}
