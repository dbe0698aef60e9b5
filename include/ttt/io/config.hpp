// SPDX-License-Identifier: MIT
/// \file
/// The configuration schema of model files: a flat JSON object, and how it is held against a type.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/io/json.hpp>
#include <ttt/layers/config.hpp>
#include <ttt/model/language_model.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Reads members of the schema, naming the file in every complaint.
class SchemaReader {
 public:
  SchemaReader(const io::Json& json, std::string_view what) : json_(json), what_(what) {}

  Index size(std::string_view key) const {
    const std::int64_t value = json_.at(key, what_).integer(named(key));
    if (value < 1 || value > (std::int64_t{1} << 30)) {
      fail<FormatError>(named(key) + ": expected from 1 to 2^30, found " + std::to_string(value));
    }
    return static_cast<Index>(value);
  }
  Index size_or(std::string_view key, Index otherwise) const {
    return has(key) ? size(key) : otherwise;
  }
  Index count(std::string_view key) const {
    return json_.at(key, what_).is_integer() && json_.at(key, what_).integer() == 0 ? 0 : size(key);
  }
  double number(std::string_view key) const { return json_.at(key, what_).number(named(key)); }
  const io::Json& at(std::string_view key) const { return json_.at(key, what_); }
  bool flag(std::string_view key) const { return json_.at(key, what_).boolean(named(key)); }
  bool flag_or(std::string_view key, bool otherwise) const {
    return has(key) ? flag(key) : otherwise;
  }
  std::string text(std::string_view key) const { return json_.at(key, what_).string(named(key)); }
  bool has(std::string_view key) const {
    const io::Json* found = json_.find(key, what_);
    return found != nullptr && !found->is_null();
  }
  std::string named(std::string_view key) const {
    return std::string(what_) + ": " + std::string(key);
  }

 private:
  const io::Json& json_;
  std::string_view what_;
};

/// Llama 3.1's scaling of RoPE as Hugging Face's configurations have it, an object whose rope_type
/// (or, in older files, type) is "llama3"; "default" is none. Throws FormatError for another type.
inline RopeScaling read_rope_scaling(const io::Json& json, const std::string& what) {
  const SchemaReader read(json, what);
  const std::string type = read.text(read.has("rope_type") ? "rope_type" : "type");
  if (type == "default") return {};
  if (type != "llama3") {
    fail<FormatError>(what + ": expected the rope_type default or llama3, found " +
                      detail::quoted(type));
  }
  return {.factor = read.number("factor"),
          .low = read.number("low_freq_factor"),
          .high = read.number("high_freq_factor"),
          .positions = read.size("original_max_position_embeddings")};
}

inline io::Json write_rope_scaling(const RopeScaling& scaling) {
  return io::Json(io::Json::Object({{"rope_type", "llama3"},
                                    {"factor", scaling.factor},
                                    {"low_freq_factor", scaling.low},
                                    {"high_freq_factor", scaling.high},
                                    {"original_max_position_embeddings", scaling.positions}}));
}

/// Numbers of blocks, an array.
inline BlockSet read_blocks(const io::Json& json, const std::string& what, Index blocks) {
  BlockSet set;
  for (const io::Json& item : json.array(what)) {
    const std::int64_t block = item.integer(what);
    if (block < 0 || block >= std::min(blocks, BlockSet::most)) {
      fail<FormatError>(what + ": block " + std::to_string(block) + " is not one of the model's " +
                        std::to_string(blocks));
    }
    set.add(static_cast<Index>(block));
  }
  return set;
}

inline io::Json write_blocks(const BlockSet& set) {
  io::Json::Array blocks;
  for (Index i = 0; i < set.end(); ++i) {
    if (set.has(i)) blocks.emplace_back(i);
  }
  return io::Json(std::move(blocks));
}

/// Where a file and a type disagree, in words.
class Differences {
 public:
  template <class T>
  void compare(const char* key, const T& file, const T& type) {
    if (!(file == type)) add(key, text(file), text(type));
  }
  void throw_if_any(std::string_view what) const {
    if (!all_.empty()) {
      fail<FormatError>(std::string(what) + ": the file does not hold this type of model: " + all_);
    }
  }

 private:
  static std::string text(bool value) { return value ? "true" : "false"; }
  static std::string text(Index value) { return std::to_string(value); }
  static std::string text(std::string_view value) { return std::string(value); }
  void add(const char* key, const std::string& file, const std::string& type) {
    const std::string one =
        std::string(key) + " is " + file + " in the file and " + type + " in the type";
    if (all_.find(one) != all_.npos) return;  // prefix and suffix may both say it
    all_ += (all_.empty() ? "" : "; ") + one;
  }
  std::string all_;
};

}  // namespace detail

namespace io {

/// Reads the schema and compares it with the type of `Model`.
///
/// Required: vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
/// rope_theta, rms_norm_eps, seq_modeling_block ("SWA", "self_attention" or "mixed"),
/// tie_word_embeddings, and for "SWA" sliding_window_size. Optional: suffix_len (0), prime (false),
/// mini_batch_size (no hint), num_key_value_heads (as many as heads), head_dim (hidden_size /
/// heads), rope_layout
/// ("interleaved": the format knew no other), rope_scaling (none), and qk_norm, pre_norm,
/// post_norm, which the type decides and which are compared where they are given. Where attention
/// differs from block to block, seq_modeling_block is "mixed" and full_attention_layers lists the
/// blocks with full attention. Where InPlaceMLPs learn, in_place_layers
/// lists their blocks, in_place_projection (false) says whether they project, and in_place_target
/// from what they learn ("hidden_states" or "input_embed"). Other members are ignored.
///
/// Throws FormatError, opening with `what`, when a member is missing or of the wrong kind or sizes
/// do not fit together, and one that lists every difference between file and type.
template <class Model>
Config read_config(const Json& json, std::string_view what) {
  using Prefix = typename Model::PrefixBlock;
  using Suffix = typename Model::SuffixBlock;
  const detail::SchemaReader read(json, what);
  Config config;
  config.vocabulary = read.size("vocab_size");
  config.width = read.size("hidden_size");
  config.hidden = read.size("intermediate_size");
  config.heads = read.size("num_attention_heads");
  config.key_heads = read.size_or("num_key_value_heads", config.heads);
  config.head_dim = read.size_or("head_dim", 0);
  config.rope_base = read.number("rope_theta");
  config.eps = read.number("rms_norm_eps");
  config.chunk = read.size_or("mini_batch_size", 0);
  const Index blocks = read.size("num_hidden_layers");
  config.suffix_blocks = read.has("suffix_len") ? read.count("suffix_len") : 0;
  if (config.suffix_blocks > blocks) {
    detail::fail<FormatError>(read.named("suffix_len") + ": is more than num_hidden_layers");
  }
  config.prefix_blocks = blocks - config.suffix_blocks;

  detail::Differences differences;
  const std::string mixer = read.text("seq_modeling_block");
  const bool windowed = mixer == "SWA" || mixer == "SWAFull", mixed = mixer == "mixed";
  if (!windowed && !mixed && mixer != "self_attention") {
    detail::fail<FormatError>(read.named("seq_modeling_block") +
                              ": expected SWA, self_attention or mixed, found \"" + mixer + "\"");
  }
  differences.compare("sliding-window attention", windowed, Model::is_windowed);
  differences.compare("mixed attention", mixed, Model::is_mixed);
  if (windowed) config.window = read.size("sliding_window_size");
  if (mixed) {
    config.window = read.size_or("sliding_window_size", 0);
    config.full_attention = detail::read_blocks(read.at("full_attention_layers"),
                                                read.named("full_attention_layers"), blocks);
  }
  if (read.has("in_place_layers")) {
    config.in_place = detail::read_blocks(read.at("in_place_layers"), read.named("in_place_layers"),
                                          config.prefix_blocks);
    config.in_place_projection = read.flag_or("in_place_projection", false);
    differences.compare("learning in place", true, Model::has_in_place);
    if (Model::has_in_place) {
      const auto target = [](bool embeddings) {
        return std::string_view(embeddings ? "input_embed" : "hidden_states");
      };
      const std::string stored = read.text("in_place_target");
      differences.compare("in_place_target", std::string_view(stored),
                          target(Model::learns_embeddings));
    }
  }
  if (read.has("rope_scaling")) {
    config.rope_scaling =
        detail::read_rope_scaling(read.at("rope_scaling"), read.named("rope_scaling"));
  }
  if constexpr (Model::is_windowed) {
    if constexpr (Prefix::Attention::fixed_window != dynamic) {
      differences.compare("sliding_window_size", config.window,
                          static_cast<Index>(Prefix::Attention::fixed_window));
    }
  }
  if constexpr (Model::prefix_depth != dynamic) {
    differences.compare("num_hidden_layers - suffix_len", config.prefix_blocks,
                        static_cast<Index>(Model::prefix_depth));
  }
  if constexpr (Model::suffix_depth != dynamic) {
    differences.compare("suffix_len", config.suffix_blocks,
                        static_cast<Index>(Model::suffix_depth));
  }
  if (config.suffix_blocks > 0) {
    differences.compare("prime (dynamic MLPs)", read.flag_or("prime", false), Model::has_dynamic);
  }
  differences.compare("tie_word_embeddings", read.flag("tie_word_embeddings"),
                      Model::has_tied_head);
  differences.compare("pre_norm", read.flag_or("pre_norm", true), true);
  const auto layout = [](RopeLayout l) {
    return std::string_view(l == RopeLayout::Interleaved ? "interleaved" : "half_split");
  };
  const std::string stored = read.has("rope_layout") ? read.text("rope_layout") : "interleaved";
  const auto compare_block = [&]<class Block>() {
    using Mixer = typename Block::Attention;
    differences.compare("qk_norm", read.flag_or("qk_norm", Mixer::has_qk_norm), Mixer::has_qk_norm);
    differences.compare("post_norm", read.flag_or("post_norm", Block::has_post_norm),
                        Block::has_post_norm);
    differences.compare("rope_layout", std::string_view(stored), layout(Mixer::rope_layout));
  };
  if (config.prefix_blocks > 0) compare_block.template operator()<Prefix>();
  if (config.suffix_blocks > 0) compare_block.template operator()<Suffix>();
  differences.throw_if_any(what);
  try {
    const Model model(config);
  } catch (const Error& error) {
    detail::fail<FormatError>(std::string(what) + ": makes no model: " + error.what());
  }
  return config;
}

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
      {"seq_modeling_block", Model::is_windowed ? "SWA"
                             : Model::is_mixed  ? "mixed"
                                                : "self_attention"},
      {"rope_theta", config.rope_base},
      {"rope_layout",
       Block::Attention::rope_layout == RopeLayout::Interleaved ? "interleaved" : "half_split"},
      {"rms_norm_eps", config.eps},
      {"tie_word_embeddings", Model::has_tied_head},
      {"qk_norm", Block::Attention::has_qk_norm},
      {"pre_norm", true},
      {"post_norm", Block::has_post_norm}};
  if (config.window > 0) members.emplace_back("sliding_window_size", config.window);
  if (Model::is_mixed) {
    members.emplace_back("full_attention_layers", detail::write_blocks(config.full_attention));
  }
  if (!config.in_place.empty()) {
    members.emplace_back("in_place_layers", detail::write_blocks(config.in_place));
    members.emplace_back("in_place_projection", config.in_place_projection);
    members.emplace_back("in_place_target",
                         Model::learns_embeddings ? "input_embed" : "hidden_states");
  }
  if (config.rope_scaling.factor != 0) {
    members.emplace_back("rope_scaling", detail::write_rope_scaling(config.rope_scaling));
  }
  if (config.chunk > 0) members.emplace_back("mini_batch_size", config.chunk);
  return Json(Json::Object(std::move(members)));
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
