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
namespace io {

/// The configuration schema of a model: what read_config() reads.
template <class Model>
Json write_config(const Config& config) {
  using Block = typename Model::PrefixBlock;
  std::vector<Json::Member> members = {
      {"vocab_size", config.vocabulary},
      {"hidden_size", config.width},
      {"intermediate_size", config.hidden},
      {"num_hidden_layers", config.prefix_blocks + config.suffix_blocks},
      {"suffix_len", config.suffix_blocks},
      {"prime", Model::has_dynamic},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.key_heads},
      {"head_dim", config.head_dim},
      {"seq_modeling_block", Model::is_windowed ? "SWA" : "self_attention"},
      {"rope_theta", config.rope_base},
      {"rope_layout",
       Block::Attention::rope_layout == RopeLayout::Interleaved ? "interleaved" : "half_split"},
      {"rms_norm_eps", config.eps},
      {"tie_word_embeddings", Model::has_tied_head},
      {"qk_norm", Block::Attention::has_qk_norm},
      {"pre_norm", true},
      {"post_norm", Block::has_post_norm}};
  if (Model::is_windowed) members.emplace_back("sliding_window_size", config.window);
  if (config.chunk > 0) members.emplace_back("mini_batch_size", config.chunk);
  return Json(Json::Object(std::move(members)));
}

}  // namespace io

/// Writes a model with the authors' tensor names, in the backend's scalar type. Anyone may read the
/// file. Throws as write_safetensors() does; holds one copy of the model while it writes.
template <class Model, class B>
void save(const Weights<Model, B>& weights, const std::string& path) {
  using Scalar = typename B::Scalar;
  std::map<std::string, std::pair<std::vector<Index>, std::vector<Scalar>>> stacked;
  std::vector<Scalar> values;
  const Config& config = weights.config();
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
  for (const auto& [name, tensor] : stacked) {
    tensors.push_back(
        {name, dtype_of<Scalar>, tensor.first, std::as_bytes(std::span(tensor.second))});
  }
  io::write_safetensors(path, tensors, {{"config", io::write_config<Model>(config).dump()}}, 0666);
}

}  // namespace ttt::inline TTT_ABI
