// SPDX-License-Identifier: MIT
/// \file
/// Whole layers as functions of flat inputs, so that their gradients can be checked.
#pragma once

#include <string>
#include <support/gradcheck.hpp>
#include <support/kernels.hpp>
#include <support/random.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>
#include <ttt/backend/workspace.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/ops/context.hpp>

namespace ttt::test {

inline View<double> view(std::vector<double>& flat, Index rows) {
  return {flat.data(), rows, static_cast<Index>(flat.size()) / rows};
}

/// Random values for every parameter of a layer, scales of norms around one. The first input of
/// the function is the layer's own and comes before them.
template <class Layer>
Flats random_parameters(const Layer& layer, Random& random) {
  Flats flats;
  auto shapes = layer.shapes();
  Layer::each(
      {},
      [&](const ParameterName& name, const Shape& shape) {
        flats.push_back(uniforms(random, shape.size(), 0.5));
        if (name.role == Role::Norm && name.tensor.find("norm") != std::string_view::npos) {
          for (double& scale : flats.back()) scale += 1;
        }
      },
      shapes);
  return flats;
}

/// A parameter tree that points into flats, from `first` on.
template <class Layer, class Leaf>
auto tree_of(const Layer& layer, Flats& flats, std::size_t first) {
  typename Layer::template Parameters<Leaf> tree;
  auto shapes = layer.shapes();
  Layer::each(
      {},
      [&](const ParameterName&, const Shape& shape, Leaf& leaf) {
        leaf = View<double>(flats.at(first++).data(), shape.rows, shape.cols);
      },
      shapes, tree);
  return tree;
}

/// Zeros shaped like the inputs.
inline Flats zeros_like(const Flats& inputs) {
  Flats out;
  for (const auto& flat : inputs) out.emplace_back(flat.size(), 0.0);
  return out;
}

/// A backend and memory for one evaluation.
template <class B>
struct Bench {
  B backend = B();
  Workspace<B> workspace{backend, 1 << 18};
  Context<B> context() {
    workspace.release(0);
    return {backend, workspace};
  }
};

/// The machines that layers are checked on.
#define TTT_GRADIENT_BACKENDS ::ttt::reference::Backend<double>, ::ttt::eigen::Backend<double>

}  // namespace ttt::test
