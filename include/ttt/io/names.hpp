// SPDX-License-Identifier: MIT
/// \file
/// What a parameter is called in the authors' checkpoints, and in Hugging Face's.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <ttt/core/error.hpp>
#include <ttt/layers/parameters.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// A tensor of a file and the slice of it that one parameter is. The authors stack a parameter over
/// all blocks that have it, [blocks, in, out]; index is -1 for tensors that are not stacked.
struct StoredName {
  std::string tensor;
  Index index = -1;
};

/// The place of a parameter in the authors' naming (docs/files.md lists it).
inline StoredName authors_name(const ParameterName& name) {
  const std::string model = "language_model.model.";
  const std::string tensor(name.tensor);
  if (name.role == Role::Embedding) return {model + "wte.weight"};
  if (name.role == Role::Head) return {"language_model.lm_head.weight"};
  if (name.block < 0) return {model + "ln_f.weight"};
  const bool is_outer_norm = tensor == "norm" || tensor == "post_norm";
  if (name.layer == "dynamic_mlp") {
    const std::string storage = model + "h.prime_storage.";
    if (is_outer_norm) return {storage + "ffn_prime_" + tensor + ".weight", name.suffix_block};
    return {storage + "feed_forward_prime." + tensor + ".weight", name.suffix_block};
  }
  const std::string blocks = model + "h.blocks.";
  if (name.role == Role::InPlaceTarget) {  // not in all blocks, so not stacked; ours
    return {blocks + std::to_string(name.block) + ".feed_forward.ttt_" + tensor + ".weight"};
  }
  const bool is_attention = name.layer == "attention";
  if (is_outer_norm)
    return {blocks + (is_attention ? "seq_" : "ffn_") + tensor + ".weight", name.block};
  return {blocks + (is_attention ? "seq_modeling_block." : "feed_forward.") + tensor + ".weight",
          name.block};
}

/// What Hugging Face's Llama and Qwen3 call a parameter, and In-Place TTT's authors what they add;
/// empty for one that these do not have. Matrices are stored [out, in], except that the projection
/// is used as it lies and the convolution is [width, 1, taps].
inline std::string hugging_face_name(const ParameterName& name) {
  if (name.role == Role::Embedding) return "model.embed_tokens.weight";
  if (name.role == Role::Head) return "lm_head.weight";
  if (name.block < 0) return "model.norm.weight";
  constexpr std::pair<std::string_view, std::string_view> names[] = {
      {"attention.norm", "input_layernorm"},
      {"attention.wq", "self_attn.q_proj"},
      {"attention.wk", "self_attn.k_proj"},
      {"attention.wv", "self_attn.v_proj"},
      {"attention.wo", "self_attn.o_proj"},
      {"attention.q_norm", "self_attn.q_norm"},
      {"attention.k_norm", "self_attn.k_norm"},
      {"mlp.norm", "post_attention_layernorm"},
      {"mlp.w1", "mlp.gate_proj"},
      {"mlp.w2", "mlp.down_proj"},
      {"mlp.w3", "mlp.up_proj"},
      {"mlp.conv", "mlp.ttt_conv"},
      {"mlp.projection", "mlp.ttt_proj"}};
  const std::string ours = std::string(name.layer) + "." + std::string(name.tensor);
  for (const auto& [key, theirs] : names) {
    if (key != ours) continue;
    return "model.layers." + std::to_string(name.block) + "." + std::string(theirs) + ".weight";
  }
  return {};
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
