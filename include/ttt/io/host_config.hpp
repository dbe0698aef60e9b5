// SPDX-License-Identifier: MIT
/// \file
/// config.json of a Llama or Qwen3 as Hugging Face keeps it, and how it is held against a type.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include <ttt/core/error.hpp>
#include <ttt/io/config.hpp>
#include <ttt/io/json.hpp>
#include <ttt/layers/config.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// The base of RoPE and its scaling, whichever of the three forms the file has: rope_theta beside
/// rope_scaling, both in rope_parameters, or no scaling at all.
inline void read_host_rope(const SchemaReader& read, Config& config) {
  if (read.has("rope_parameters")) {
    const std::string what = read.named("rope_parameters");
    const io::Json& json = read.at("rope_parameters");
    config.rope_base = SchemaReader(json, what).number("rope_theta");
    config.rope_scaling = read_rope_scaling(json, what);
    return;
  }
  config.rope_base = read.number("rope_theta");
  if (read.has("rope_scaling")) {
    config.rope_scaling = read_rope_scaling(read.at("rope_scaling"), read.named("rope_scaling"));
  }
}

/// The blocks with full attention: what layer_types lists or, without it, Qwen's rule, by which
/// blocks from max_window_layers on have a window if use_sliding_window says so.
inline BlockSet read_host_attention(const SchemaReader& read, Index blocks) {
  if (blocks > BlockSet::most) {
    fail<FormatError>(read.named("num_hidden_layers") + ": is beyond " +
                      std::to_string(BlockSet::most));
  }
  BlockSet full;
  if (read.has("layer_types")) {
    const std::string what = read.named("layer_types");
    const io::Json::Array& types = read.at("layer_types").array(what);
    if (static_cast<Index>(types.size()) != blocks) {
      fail<FormatError>(what + ": has " + std::to_string(types.size()) + " entries for " +
                        std::to_string(blocks) + " layers");
    }
    for (Index i = 0; i < blocks; ++i) {
      const std::string& type = types[static_cast<std::size_t>(i)].string(what);
      if (type == "full_attention") {
        full.add(i);
      } else if (type != "sliding_attention") {
        fail<FormatError>(what + ": expected full_attention or sliding_attention, found " +
                          detail::quoted(type));
      }
    }
    return full;
  }
  const bool slides = read.flag_or("use_sliding_window", false) && read.has("sliding_window");
  return BlockSet::first(slides ? std::min(blocks, read.count("max_window_layers")) : blocks);
}

/// Refuses what would change a model's results and has no place in its type.
inline void check_host_extras(const SchemaReader& read) {
  const auto refuse = [&](const char* key, const std::string& why) {
    fail<FormatError>(read.named(key) + ": " + why);
  };
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (read.flag_or(key, false)) refuse(key, "models with biases are not supported");
  }
  if (read.has("hidden_act") && read.text("hidden_act") != "silu") {
    refuse("hidden_act", "expected silu, found " + detail::quoted(read.text("hidden_act")));
  }
  if (read.has("quantization_config")) {
    refuse("quantization_config", "quantized weights are not supported");
  }
}

}  // namespace detail

namespace io {

/// Reads a config.json and compares it with the type of `Model`: Llama (model_type "llama") or
/// Qwen3 ("qwen3").
///
/// Required: model_type, vocab_size, hidden_size, intermediate_size, num_hidden_layers,
/// num_attention_heads, rms_norm_eps, tie_word_embeddings, and rope_theta, alone or in
/// rope_parameters. Optional: num_key_value_heads (as many as heads), head_dim (hidden_size /
/// heads), rope_scaling of the type llama3, and layer_types or use_sliding_window, sliding_window
/// and max_window_layers (all attention is full). Members that only say how the model was made are
/// ignored; biases, other activations and quantized weights are refused.
///
/// Throws FormatError, opening with `what`, when a member is missing or of the wrong kind or sizes
/// do not fit together, and one that lists every difference between file and type.
template <class Model>
Config read_host_config(const Json& json, std::string_view what) {
  using Block = typename Model::PrefixBlock;
  using Mixer = typename Block::Attention;
  const detail::SchemaReader read(json, what);
  const std::string type = read.text("model_type");
  if (type != "llama" && type != "qwen3") {
    detail::fail<FormatError>(read.named("model_type") + ": expected llama or qwen3, found " +
                              detail::quoted(type));
  }
  detail::check_host_extras(read);
  Config config;
  config.vocabulary = read.size("vocab_size");
  config.width = read.size("hidden_size");
  config.hidden = read.size("intermediate_size");
  config.prefix_blocks = read.size("num_hidden_layers");
  config.heads = read.size("num_attention_heads");
  config.key_heads = read.size_or("num_key_value_heads", config.heads);
  config.head_dim = read.size_or("head_dim", 0);
  config.eps = read.number("rms_norm_eps");
  detail::read_host_rope(read, config);
  const Index blocks = config.prefix_blocks;
  const BlockSet full = detail::read_host_attention(read, blocks);
  const bool all_full = full == BlockSet::first(blocks);
  if (!all_full) config.window = read.size("sliding_window");
  if (Model::is_mixed) config.full_attention = full;

  detail::Differences differences;
  const auto reach = [](bool windowed, bool mixed) {
    return std::string_view(windowed ? "windowed" : mixed ? "mixed" : "full");
  };
  if (!Model::is_mixed) {
    differences.compare("attention", reach(full.empty(), !all_full),
                        reach(Model::is_windowed, false));
  }
  if constexpr (Model::is_windowed) {
    if constexpr (Mixer::fixed_window != dynamic) {
      differences.compare("sliding_window", config.window, static_cast<Index>(Mixer::fixed_window));
    }
  }
  if constexpr (Model::prefix_depth != dynamic) {
    differences.compare("num_hidden_layers", blocks, static_cast<Index>(Model::prefix_depth));
  }
  differences.compare("tie_word_embeddings", read.flag("tie_word_embeddings"),
                      Model::has_tied_head);
  differences.compare("QK-norm (model_type qwen3)", type == "qwen3", Mixer::has_qk_norm);
  differences.compare("post-norm", false, Block::has_post_norm);
  differences.compare("half-split RoPE", true, Mixer::rope_layout == RopeLayout::HalfSplit);
  differences.compare("suffix blocks", Index{0},
                      Model::suffix_depth == dynamic ? 0 : static_cast<Index>(Model::suffix_depth));
  differences.throw_if_any(what);
  try {
    const Model model(config);
  } catch (const Error& error) {
    detail::fail<FormatError>(std::string(what) + ": makes no model: " + error.what());
  }
  return config;
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
