// SPDX-License-Identifier: MIT
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include <doctest/doctest.h>

#include <ttt/layers/block.hpp>
#include <ttt/layers/config.hpp>

namespace {

using namespace ttt;

Config good() {
  return {.vocabulary = 10, .width = 8, .heads = 2, .hidden = 3, .rope_base = 1e4, .eps = 1e-6};
}

void refuse(const std::function<void(Config&)>& change, const std::string& why) {
  Config config = good();
  change(config);
  CAPTURE(why);
  CHECK_THROWS_WITH_AS((void)detail::complete(config), ("ttt: Config: " + why).c_str(), Error);
}

}  // namespace

TEST_CASE("Config: what follows from the rest is filled in") {
  const Config config = detail::complete(good());
  CHECK(config.key_heads == 2);
  CHECK(config.head_dim == 4);
  Config own = good();
  own.heads = 6;
  own.key_heads = 3;
  own.head_dim = 10;  // not width / heads, as some models have it
  CHECK(detail::complete(own).key_heads == 3);
  CHECK(detail::complete(own).head_dim == 10);
}

TEST_CASE("Config: nothing that would change results silently has a default") {
  refuse([](Config& c) { c = {}; }, "vocabulary must be set and positive");
  refuse([](Config& c) { c.vocabulary = 0; }, "vocabulary must be set and positive");
  refuse([](Config& c) { c.width = 0; }, "width must be set and positive");
  refuse([](Config& c) { c.heads = 0; }, "heads must be set and positive");
  refuse([](Config& c) { c.heads = -2; }, "heads must be set and positive");
  refuse([](Config& c) { c.hidden = 0; }, "hidden must be set and positive");
  refuse([](Config& c) { c.rope_base = 0; }, "rope_base must be set and positive");
  refuse([](Config& c) { c.rope_base = std::nan(""); }, "rope_base must be set and positive");
  refuse([](Config& c) { c.rope_base = INFINITY; }, "rope_base must be set and positive");
  refuse([](Config& c) { c.eps = 0; }, "eps must be set and positive");
  refuse([](Config& c) { c.eps = -1e-6; }, "eps must be set and positive");
}

TEST_CASE("Config: sizes that do not go together") {
  refuse([](Config& c) { c.heads = 3; }, "width is not a multiple of heads");
  refuse([](Config& c) { c.heads = 8; }, "head_dim is odd, but RoPE turns pairs");
  refuse([](Config& c) { c.head_dim = 3; }, "head_dim is odd, but RoPE turns pairs");
  refuse(
      [](Config& c) {
        c.heads = 4;
        c.key_heads = 3;
      },
      "heads is not a multiple of key_heads");
  refuse([](Config& c) { c.key_heads = 4; }, "heads is not a multiple of key_heads");
  const std::string range = "a size is negative or beyond 2^30";
  refuse([](Config& c) { c.key_heads = -1; }, range);
  refuse([](Config& c) { c.head_dim = -4; }, range);
  refuse([](Config& c) { c.window = -1; }, range);
  refuse([](Config& c) { c.chunk = -1; }, range);
  refuse([](Config& c) { c.vocabulary = (Index{1} << 30) + 1; }, range);
  refuse([](Config& c) { c.hidden = std::numeric_limits<Index>::max(); }, range);
}

TEST_CASE("Config: where the type speaks too, they must agree") {
  CHECK(detail::resolve_extent<dynamic>("depth", 7) == 7);
  CHECK(detail::resolve_extent<4>("depth", 0) == 4);
  CHECK(detail::resolve_extent<4>("depth", 4) == 4);
  CHECK_THROWS_WITH_AS((void)detail::resolve_extent<4>("depth", 5),
                       "ttt: Config: depth is 5, but the model's type says 4", Error);
}

TEST_CASE("parameter names read like paths") {
  const ParameterName outer{.tensor = "embedding", .role = Role::Embedding};
  CHECK(to_string(outer) == "embedding");
  const ParameterName block{.block = 11, .suffix_block = 2};
  const ParameterName inner = block.in("dynamic_mlp", Role::DynamicMlp);
  CHECK(to_string(inner.of("w1")) == "blocks.11.dynamic_mlp.w1");
  CHECK(inner.of("w1").role == Role::DynamicMlp);
  CHECK(inner.norm("norm").role == Role::Norm);  // the norms of a dynamic MLP do not learn
  CHECK(inner.of("w1").suffix_block == 2);
}
