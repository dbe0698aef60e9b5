// SPDX-License-Identifier: MIT
/// \file
/// All parameters of a model in one stretch of memory, in the order of its enumeration.
#pragma once

#include <ttt/core/view.hpp>
#include <ttt/layers/parameters.hpp>

namespace ttt::inline TTT_ABI {

/// Scalars of all parameters.
template <class Model>
Index parameter_count(const Model& model) {
  Index count = 0;
  auto shapes = model.shapes();
  Model::each([&](const ParameterName&, const Shape& shape) { count += shape.size(); }, shapes);
  return count;
}

/// A tree of `Leaf`s (a View or a Weight) that points into `flat`, parameter_count() scalars.
template <class Leaf, class Model, class Scalar>
typename Model::template Parameters<Leaf> flat_tree(const Model& model, Scalar* flat) {
  auto tree = model.template tree<Leaf>();
  auto shapes = model.shapes();
  Model::each(
      [&](const ParameterName&, const Shape& shape, Leaf& leaf) {
        leaf = View<Scalar>(flat, shape.rows, shape.cols);
        flat += shape.size();
      },
      shapes, tree);
  return tree;
}

}  // namespace ttt::inline TTT_ABI
