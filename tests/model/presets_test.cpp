// SPDX-License-Identifier: MIT
// The paper's models have the sizes of its table; no parameter is allocated to see it.
#include <string>
#include <support/kernels.hpp>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/model/presets.hpp>

namespace {

using namespace ttt;

struct Row {
  const char* name;
  double millions;  // what models of these sizes have been called since GPT-3
  Index blocks, width, heads, hidden, suffix;
};

template <class Model>
Index count(const Preset<Model>& preset, auto&& counts) {
  const Model model(preset.config);
  auto shapes = model.shapes();
  Index sum = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        if (counts(name)) sum += shape.size();
      },
      shapes);
  return sum;
}

template <class Model>
Index count(const Preset<Model>& preset) {
  return count(preset, [](const ParameterName&) { return true; });
}

template <class Model>
void check(const Preset<Model>& preset, const Row& row) {
  CAPTURE(row.name);
  const Model model(preset.config);
  const Config& config = model.config();
  CHECK(model.blocks() == row.blocks);
  CHECK(config.suffix_blocks == row.suffix);
  CHECK(config.width == row.width);
  CHECK(config.heads == row.heads);
  CHECK(config.key_heads == row.heads);
  CHECK(config.head_dim * row.heads == row.width);
  CHECK(config.head_dim <= Cpu::most_head_dim);
  CHECK(config.hidden == row.hidden);
  CHECK(config.vocabulary == 128256);
  CHECK(config.rope_base == 500000);
  CHECK(config.chunk == 1024);
  CHECK(config.window == (Model::is_windowed ? 8192 : 0));
  CHECK(Model::has_tied_head);
  CHECK(Model::has_dynamic == (row.suffix > 0));

  const Index mlp = 3 * row.width * row.hidden;
  const Index attention = 4 * row.width * row.width + 2 * config.head_dim;
  const Index norms = 2 * row.width;  // before and behind a sub-layer
  const Index embedding = config.vocabulary * row.width;
  const Index all = count(preset);
  CHECK(all == embedding + row.blocks * (attention + mlp + 2 * norms) + row.suffix * (mlp + norms) +
                   row.width);
  CHECK(static_cast<double>(all - embedding) < 1e6 * row.millions);
  CHECK(1e6 * row.millions < static_cast<double>(all));
  CHECK(count(preset, [](const ParameterName& name) { return name.role == Role::DynamicMlp; }) ==
        row.suffix * mlp);
}

/// What the first blocks have to themselves is what the MLPs of all are made narrower for.
template <class A, class B>
void check_fair(const Preset<A>& e2e, const Preset<B>& full) {
  const double ratio = static_cast<double>(count(e2e)) / static_cast<double>(count(full));
  CHECK(ratio == doctest::Approx(1).epsilon(0.02));
}

}  // namespace

TEST_CASE("presets: models that learn have the sizes of the paper's table") {
  check(presets::e2e_125m, {"125m", 125, 12, 768, 12, 1664, 3});
  check(presets::e2e_350m, {"350m", 350, 24, 1024, 16, 2304, 6});
  check(presets::e2e_760m, {"760m", 760, 24, 1536, 16, 3328, 6});
  check(presets::e2e_1b, {"1b", 1300, 24, 2048, 32, 4352, 6});
  check(presets::e2e_3b, {"3b", 2700, 32, 2560, 32, 5632, 8});
}

TEST_CASE("presets: the baselines have wider MLPs, and as many parameters") {
  check(presets::full_125m, {"125m", 125, 12, 768, 12, 2048, 0});
  check(presets::full_350m, {"350m", 350, 24, 1024, 16, 2816, 0});
  check(presets::full_760m, {"760m", 760, 24, 1536, 16, 4096, 0});
  check(presets::full_1b, {"1b", 1300, 24, 2048, 32, 5376, 0});
  check(presets::full_3b, {"3b", 2700, 32, 2560, 32, 6912, 0});
  check_fair(presets::e2e_125m, presets::full_125m);
  check_fair(presets::e2e_350m, presets::full_350m);
  check_fair(presets::e2e_760m, presets::full_760m);
  check_fair(presets::e2e_1b, presets::full_1b);
  check_fair(presets::e2e_3b, presets::full_3b);
}

TEST_CASE("presets: the bundled model") {
  const TttE2e<4, 2, 256> model(presets::books_byte.config);
  CHECK(model.config().vocabulary == 256);
  CHECK(model.window() == 256);
  CHECK(model.blocks() == 6);
}

TEST_CASE("presets: what a session of the largest takes can be known without any of it") {
  // Weights without memory: only sizes are asked for.
  using Model = TttE2e<24, 8, 8192>;
  Model model(presets::e2e_3b.config);
  auto tree = model.tree<Weight<float>>();
  const Weights<Model, Cpu> weights(model, Cpu(1), tree, {});
  const Index state = Index{4} * 8 * 3 * 2560 * 5632;
  const Index cache = Index{4} * 2 * 32 * 2560 * (8192 + 1024);
  const Index bytes = Session<Weights<Model, Cpu>>::required_bytes(weights, {.chunk = 1024});
  CHECK(bytes > 2 * state + cache);
  CHECK(bytes < 2 * state + cache + (Index{16} << 30));
}
