// SPDX-License-Identifier: MIT
// Existing models have the sizes of their releases; sets of blocks and RoPE's scaling.
#include <cmath>
#include <numbers>
#include <string>
#include <support/kernels.hpp>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/core/error.hpp>
#include <ttt/model/flat.hpp>
#include <ttt/model/hosts.hpp>

namespace {

using namespace ttt;

template <class Model>
Index parameters(const Preset<Model>& preset) {
  return parameter_count(Model(preset.config));
}

template <class Call>
std::string complaint(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

using Mixed = HostModel<MixedAttention<QkNorm, HalfSplitRope>, TiedHead>;
constexpr Config tiny{.vocabulary = 5,
                      .width = 8,
                      .heads = 2,
                      .hidden = 4,
                      .prefix_blocks = 3,
                      .rope_base = 100,
                      .eps = 1e-6};

}  // namespace

TEST_CASE("hosts: as many parameters as the releases say they have") {
  // What the releases' safetensors indices add up to, a tied head counted once.
  CHECK(parameters(presets::llama_3_2_1b) == 1'235'814'400);
  CHECK(parameters(presets::llama_3_1_8b) == 8'030'261'248);
  CHECK(parameters(presets::qwen3_0_6b) == 596'049'920);
  CHECK(parameters(presets::qwen3_1_7b) == 1'720'574'976);
  CHECK(parameters(presets::qwen3_4b) == 4'022'468'096);
  CHECK(parameters(presets::qwen3_8b) == 8'190'735'360);
}

TEST_CASE("hosts: attention by block, as the Config says") {
  Config config = tiny;
  config.window = 4;
  config.full_attention.add(1);
  const Mixed model(config);
  CHECK(model.config().window == 4);
  CHECK(model.window() > 1'000'000);  // of block 1
  config.full_attention = {};
  CHECK(Mixed(config).window() == 4);
  config.full_attention = BlockSet::first(3);
  CHECK(Mixed(config).config().window == 0);
  config.window = 0;
  CHECK(Mixed(config).blocks() == 3);

  config.full_attention = BlockSet::first(2);
  CHECK(complaint([&] { Mixed{config}; }) == "ttt: Config: window must be set and positive");
  config.full_attention = BlockSet::first(4);
  CHECK(complaint([&] { Mixed{config}; }) ==
        "ttt: Config: full_attention has block 3, but the model has 3");
  CHECK(complaint([&] { Qwen3<TiedHead>{config}; }) ==
        "ttt: Config: full_attention is for models with MixedAttention");
}

TEST_CASE("block set: what is in it") {
  constexpr BlockSet none, all = BlockSet::first(4), third = BlockSet::every(3, 8);
  static_assert(none.empty() && !all.empty());
  CHECK(all.end() == 4);
  CHECK(third.end() == 7);
  for (Index i = -1; i < 70; ++i) {
    CHECK(all.has(i) == (i >= 0 && i < 4));
    CHECK(third.has(i) == (i == 0 || i == 3 || i == 6));
  }
  BlockSet far;
  far.add(4095);
  CHECK(far.end() == 4096);
  CHECK_FALSE(far == all);
  CHECK(complaint([&] { far.add(4096); }).starts_with("ttt: BlockSet: a block"));
  CHECK(complaint([&] { far.add(-1); }).starts_with("ttt: BlockSet: a block"));
  CHECK(complaint([] { BlockSet::every(0, 3); }) == "ttt: BlockSet: the step must be positive");
}

TEST_CASE("RoPE's scaling: long waves are stretched, short ones stay, the rest lies between") {
  constexpr RopeScaling scaling{.factor = 8, .low = 1, .high = 4, .positions = 8192};
  const auto of_wave = [](double length) { return 2 * std::numbers::pi / length; };
  CHECK(RopeScaling{}(0.3) == 0.3);
  CHECK(scaling(of_wave(100)) == of_wave(100));
  CHECK(scaling(of_wave(2048)) == doctest::Approx(of_wave(2048)));
  CHECK(scaling(of_wave(8192)) == doctest::Approx(of_wave(8192) / 8));
  CHECK(scaling(of_wave(20000)) == of_wave(20000) / 8);
  // 8192 / 4096 = 2 waves: a third of the way from 1 to 4.
  CHECK(scaling(of_wave(4096)) == doctest::Approx(of_wave(4096) * (1.0 / 3 + 2.0 / 3 / 8)));
}
