// SPDX-License-Identifier: MIT
// Training asks of a user's types what the concepts say, and nothing more.
#include <span>
#include <support/archetypes.hpp>

#include <doctest/doctest.h>

#include <ttt/layers/block.hpp>
#include <ttt/model/language_model.hpp>
#include <ttt/outer/evaluation.hpp>
#include <ttt/outer/trainer.hpp>

namespace {

using namespace ttt;
namespace archetype = ttt::test::archetype;

using Attention = SlidingWindowAttention<4>;
using Model = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                            Stack<1, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
using Machine = archetype::Backend;
using Outer = OuterLoop<archetype::Optimizer, archetype::Schedule>;

}  // namespace

static_assert(Schedule<archetype::Schedule>);
static_assert(io::SampleSource<archetype::Source>);
static_assert(LearnsBackwards<archetype::BackwardLearner, Machine>);
static_assert(!LearnsBackwards<archetype::Learner, Machine>);
static_assert(HasBackward<Sgd, Machine>);
static_assert(HasBackward<Momentum, Machine>);
static_assert(!HasBackward<archetype::Optimizer, Machine>);
static_assert(InnerOptimizer<AdamW, Machine>);

// Every member of the classes, with the least of types. First order needs no way back.
template class ttt::MetaGradient<Model, Machine, archetype::BackwardLearner>;
template class ttt::MetaGradient<Model, Machine, archetype::Learner, FirstOrder>;
template class ttt::MetaGradient<Model, Machine, InnerLoop<archetype::Optimizer>, FirstOrder>;
template class ttt::MetaGradient<Model, Machine, NoLearning>;
template class ttt::Trainer<Model, Machine, archetype::BackwardLearner, Outer, archetype::Source>;

TEST_CASE("archetypes: what a meta-gradient will take is known without taking it") {
  const Config config{
      .vocabulary = 5, .width = 8, .heads = 2, .hidden = 4, .rope_base = 100, .eps = 1e-6};
  const archetype::Backend machine(1);
  using Meta = MetaGradient<Model, Machine, archetype::BackwardLearner>;
  CHECK(Meta::required_bytes(Model(config), machine, archetype::BackwardLearner(1), 16) > 0);
}
