// SPDX-License-Identifier: MIT
/// \file
/// From Weights to a model file that load() reads.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ttt/io/config.hpp>
#include <ttt/io/names.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// Writes a model with the authors' tensor names, in the backend's scalar type. Anyone may read the
/// file. Throws as write_safetensors() does, and FormatError for a model that the schema has no
/// words for, such as one whose blocks differ in their norms; holds one copy of the model while it
/// writes.
template <class Model, class B>
void save(const Weights<Model, B>& weights, const std::string& path) {
  using Scalar = typename B::Scalar;
  std::map<std::string, std::pair<std::vector<Index>, std::vector<Scalar>>> stacked;
  std::vector<Scalar> values;
  const io::Json config = io::write_config<Model>(weights.config());
  io::read_config<Model>(config, "cannot write " + path);
  Model::each(
      [&](const ParameterName& name, const Weight<Scalar>& leaf) {
        const io::StoredName stored = io::authors_name(name);
        auto& [shape, all] = stacked[stored.tensor];
        if (stored.index >= 0) {
          if (shape.empty()) shape.push_back(0);
          ++shape[0];
        }
        if (all.empty()) {
          if (name.role != Role::Norm) shape.push_back(leaf.rows);
          shape.push_back(leaf.cols);
        }
        auto wide = weights.backend().template allocate<Scalar>(leaf.shape().size());
        weights.backend().widen(leaf, View<Scalar>(wide.data(), leaf.rows, leaf.cols));
        values.resize(static_cast<std::size_t>(leaf.shape().size()));
        weights.backend().to_host(wide.data(), values.data(), leaf.shape().size());
        all.insert(all.end(), values.begin(), values.end());
      },
      weights.parameters());
  std::vector<io::TensorToWrite> tensors;
  tensors.reserve(stacked.size());
  for (const auto& [name, tensor] : stacked) {
    tensors.push_back(
        {name, dtype_of<Scalar>, tensor.first, std::as_bytes(std::span(tensor.second))});
  }
  io::write_safetensors(path, tensors, {{"config", config.dump()}}, 0666);
}

}  // namespace ttt::inline TTT_ABI
