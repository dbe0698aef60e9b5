// SPDX-License-Identifier: MIT
/// \file
/// A meta-gradient of a model small enough for differences, as tests ask for it.
#pragma once

#include <cmath>
#include <string>
#include <support/kernels.hpp>
#include <support/random.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/weights.hpp>
#include <ttt/outer/meta_gradient.hpp>

namespace ttt::test::meta {

using Double = eigen::Backend<double>;

template <class AttentionType, class Placement = SandwichNorm>
using Plain = Block<AttentionType, SwiGLU, Placement>;
template <class AttentionType, class Placement = SandwichNorm>
using Learning = Block<AttentionType, DualMLP<SwiGLU, SwiGLU>, Placement>;
using Windowed = SlidingWindowAttention<>;
using Tiny = LanguageModel<Stack<1, Plain<Windowed>>, Stack<2, Learning<Windowed>>>;

inline Config tiny() {
  return {.vocabulary = 11,
          .width = 8,
          .heads = 2,
          .hidden = 6,
          .window = 6,
          .rope_base = 10000,
          .eps = 1e-6};
}

/// Norm scales away from one, or their gradients would be those of a special place.
template <class Model, class B>
std::vector<typename B::Scalar> random_parameters(const Config& config, const B& backend) {
  using Scalar = typename B::Scalar;
  const auto weights = initialise<Model>(config, backend, 5, 0.4);
  std::vector<Scalar> flat;
  Random random{17};
  Model::each(
      [&](const ParameterName& name, const Weight<Scalar>& leaf) {
        const auto stored = leaf.template stored<Scalar>();
        for (Index i = 0; i < leaf.shape().size(); ++i) {
          const double moved = name.role == Role::Norm ? 0.2 * random.normal() : 0;
          flat.push_back(stored.data[i] + static_cast<Scalar>(moved));
        }
      },
      weights.parameters());
  return flat;
}

inline std::vector<Token> random_tokens(Index count, Index vocabulary = 11) {
  Random random{23};
  return tokens(random, count, vocabulary);
}

/// One model with one learner on one batch.
template <class Model, class B, class LearnerType, class Order = SecondOrder>
struct Problem {
  using Scalar = typename B::Scalar;

  Model model;
  MetaGradient<Model, B, LearnerType, Order> meta;
  std::vector<Scalar> parameters;
  std::vector<Token> tokens;
  std::vector<std::uint8_t> counts = {};

  Problem(const Config& config, const LearnerType& learner, Index length, Index batch,
          MetaOptions options = {}, const B& backend = B())
      : model(config),
        meta(model, backend, learner, length, options),
        parameters(random_parameters<Model>(config, backend)),
        tokens(random_tokens(batch * (length + 1), config.vocabulary)) {}

  BatchLoss loss(std::vector<Scalar>& gradient) {
    gradient.resize(parameters.size());
    return meta(flat_tree<Weight<Scalar>>(model, parameters.data()), tokens, counts,
                gradient.data());
  }
  std::vector<Scalar> gradient() {
    std::vector<Scalar> out;
    loss(out);
    return out;
  }
  double value() {
    std::vector<Scalar> unused;
    return static_cast<double>(loss(unused).loss);
  }
  /// Central difference of fourth order along `move`, which is given a step.
  template <class Move>
  double difference(const Move& move, double step = 1e-4) {
    const auto at = [&](double by) {
      const auto before = parameters;
      move(by);
      const double result = value();
      parameters = before;
      return result;
    };
    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
  }
};

/// Every tensor's gradient, in a random direction of that tensor.
template <class Model, class LearnerType>
void check_directions(Problem<Model, Double, LearnerType>& problem) {
  const std::vector<double> gradient = problem.gradient();
  Random random{31};
  std::size_t first = 0;
  auto shapes = problem.model.shapes();
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        CAPTURE(to_string(name));
        const auto direction = uniforms(random, shape.size());
        double along = 0, size = 0;
        for (std::size_t i = 0; i < direction.size(); ++i) {
          along += direction[i] * gradient[first + i];
          size += gradient[first + i] * gradient[first + i];
        }
        const double difference = problem.difference(
            [&](double by) {
              for (std::size_t i = 0; i < direction.size(); ++i) {
                problem.parameters[first + i] += by * direction[i];
              }
            },
            2e-5);
        const double scale = std::sqrt(size / static_cast<double>(direction.size()));
        CHECK(std::abs(along - difference) <= 2e-7 * (scale + std::abs(difference)) + 1e-10);
        first += direction.size();
      },
      shapes);
  CHECK(first == gradient.size());
}

}  // namespace ttt::test::meta
