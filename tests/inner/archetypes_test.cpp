// SPDX-License-Identifier: MIT
// The generic code asks of a user's types what the concepts say, and nothing more.
#include <support/archetypes.hpp>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/batch.hpp>
#include <ttt/inner/in_place_loop.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/hosts.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/model/weights.hpp>

namespace {

using namespace ttt;
namespace archetype = ttt::test::archetype;

using Attention = SlidingWindowAttention<4>;
using Model = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                            Stack<1, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
using Loop = InnerLoop<archetype::Optimizer>;
using InPlace = Llama<TiedHead, InPlaceMLP<FromEmbeddings>>;

}  // namespace

static_assert(Backend<archetype::Backend>);
static_assert(InnerOptimizer<archetype::Optimizer, archetype::Backend>);
static_assert(Learner<archetype::Learner, archetype::Backend>);
static_assert(Learner<Loop, archetype::Backend>);
static_assert(Learner<InPlaceLoop, archetype::Backend>);
static_assert(Sampler<archetype::Sampler>);

// Every member of the classes, with the least of types.
template class ttt::Weights<Model, archetype::Backend>;
template class ttt::Workspace<archetype::Backend>;
template class ttt::ChunkPass<Model, archetype::Backend>;
template class ttt::Session<Weights<Model, archetype::Backend>, archetype::Learner>;
template class ttt::Session<Weights<Model, archetype::Backend>, Loop>;
template class ttt::Session<Weights<Model, archetype::Backend>, NoLearning>;
template class ttt::Session<Weights<InPlace, archetype::Backend>, InPlaceLoop>;
template class ttt::Batch<Weights<Model, archetype::Backend>, archetype::Learner>;
template class ttt::Batch<Weights<Model, archetype::Backend>, NoLearning>;
template class ttt::Batch<Weights<InPlace, archetype::Backend>, InPlaceLoop>;

TEST_CASE("archetypes: sessions are made, and ask their parts for what the concepts promise") {
  const Config config{
      .vocabulary = 5, .width = 8, .heads = 2, .hidden = 4, .rope_base = 100, .eps = 1e-6};
  const archetype::Backend machine(1);
  const Model model(config);
  const Weights<Model, archetype::Backend> weights(model, machine, model.tree<Weight<float>>(), {});
  const archetype::Learner learner(1);
  using S = Session<Weights<Model, archetype::Backend>, archetype::Learner>;
  CHECK(S::required_bytes(weights, learner) > 0);
  using Generate =
      std::vector<Token> (S::*)(Index, const archetype::Sampler&, const GenerateOptions&);
  const Generate generate = &S::template generate<archetype::Sampler>;
  CHECK(generate != nullptr);
  CHECK(learner.chunk == 4);
}
