// SPDX-License-Identifier: MIT
/// \file
/// A model's parameters: immutable, and shared by every session that reads with them.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include <ttt/backend/concepts.hpp>
#include <ttt/core/random.hpp>
#include <ttt/layers/config.hpp>
#include <ttt/layers/parameters.hpp>
#include <ttt/model/flat.hpp>

namespace ttt::inline TTT_ABI {

/// A handle to a model with its parameters on a backend. Copying it shares them; all of it may be
/// used from any number of threads. The parameters lie in memory of their own or in a mapped file,
/// which stays mapped as long as a handle lives.
template <class ModelType, Backend B>
class Weights {
 public:
  using Model = ModelType;
  using BackendType = B;
  using Scalar = typename B::Scalar;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;

  /// What a parameter tree points into; whoever builds Weights fills it.
  struct Memory {
    std::vector<typename B::template Buffer<Scalar>> buffers;
    std::vector<typename B::template Buffer<bfloat16>> narrow;
    std::shared_ptr<const void> file;
  };

  Weights(Model model, B backend, Tree tree, Memory memory)
      : shared_(std::make_shared<Shared>(std::move(model), std::move(backend), std::move(tree),
                                         std::move(memory))) {}

  const Model& model() const { return shared_->model; }
  const auto& config() const { return shared_->model.config(); }
  const B& backend() const { return shared_->backend; }
  const Tree& parameters() const { return shared_->tree; }

  /// Parameters, dynamic ones included.
  Index count() const {
    Index sum = 0;
    Model::each([&](const ParameterName&, const auto& leaf) { sum += leaf.shape().size(); },
                parameters());
    return sum;
  }

  /// Bytes the parameters take where they lie.
  Index bytes() const {
    Index sum = 0;
    Model::each(
        [&](const ParameterName&, const auto& leaf) {
          sum += leaf.shape().size() * static_cast<Index>(leaf.narrow ? 2 : sizeof(Scalar));
        },
        parameters());
    return sum;
  }

  /// The hash that `compute` returns, computed once and remembered.
  template <class F>
  std::uint64_t hash(const F& compute) const {
    std::uint64_t value = shared_->hash.load(std::memory_order_acquire);
    if (value == 0) {
      value = compute();
      shared_->hash.store(value, std::memory_order_release);
    }
    return value;
  }

 private:
  struct Shared {
    Shared(Model m, B b, Tree t, Memory k)
        : model(std::move(m)), backend(std::move(b)), tree(std::move(t)), memory(std::move(k)) {}
    Model model;
    B backend;
    Tree tree;
    Memory memory;
    std::atomic<std::uint64_t> hash{0};
  };
  std::shared_ptr<Shared> shared_;
};

/// The value that element (i, j) of a target of InPlaceMLP starts from, so that a model starts as
/// its host: convolutions are zero, projections the identity.
inline double in_place_start(const ParameterName& name, Index i, Index j) {
  return name.tensor == "projection" && i == j ? 1 : 0;
}

/// Fresh parameters: every matrix normal with standard deviation `deviation`, every norm scale one
/// (the paper's initialisation); targets of InPlaceMLP as in_place_start() has them. Throws when
/// the Config does not fit the type or memory runs out.
template <class Model, Backend B>
Weights<Model, B> initialise(const Config& config, const B& backend, std::uint64_t seed,
                             double deviation = 0.02) {
  using Scalar = typename B::Scalar;
  Model model(config);
  typename Weights<Model, B>::Memory memory;
  memory.buffers.push_back(backend.template allocate<Scalar>(parameter_count(model)));
  auto places = flat_tree<View<Scalar>>(model, memory.buffers.back().data());
  auto tree = flat_tree<Weight<Scalar>>(model, memory.buffers.back().data());
  Random random{seed};
  std::vector<Scalar> values;
  Model::each(
      [&](const ParameterName& name, const View<Scalar>& leaf) {
        values.assign(static_cast<std::size_t>(leaf.shape().size()), Scalar(1));
        if (name.role == Role::InPlaceTarget) {
          for (Index i = 0; i < leaf.shape().size(); ++i) {
            values[static_cast<std::size_t>(i)] =
                static_cast<Scalar>(in_place_start(name, i / leaf.cols, i % leaf.cols));
          }
        } else if (name.role != Role::Norm) {
          for (Scalar& value : values) value = static_cast<Scalar>(deviation * random.normal());
        }
        backend.to_device(values.data(), leaf.data, leaf.shape().size());
      },
      places);
  return {std::move(model), backend, std::move(tree), std::move(memory)};
}

}  // namespace ttt::inline TTT_ABI
