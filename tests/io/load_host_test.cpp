// SPDX-License-Identifier: MIT
// Model folders as Hugging Face has them: what they must say, where their tensors are, and what
// is refused.
#include <algorithm>
#include <bit>
#include <cstring>
#include <io/temporary.hpp>
#include <map>
#include <span>
#include <string>
#include <support/host_golden.hpp>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

using Host = Llama<SeparateHead>;
using Sliding = SlidingQwen3<TiedHead>;

/// A model folder in the making: weights and configuration of a golden host, config.json as text.
class Draft {
 public:
  explicit Draft(const std::string& golden = "llama") {
    const test::HostGolden from(golden);
    for (const auto& info : from.file().tensors()) {
      if (!info.name.starts_with("params.")) continue;
      const auto bytes = from.file().bytes(info);
      tensors[info.name.substr(7)] = {info.dtype, info.shape, {bytes.begin(), bytes.end()}};
    }
    for (const auto& [name, value] : from.members()) config[name] = value.dump();
  }

  struct Tensor {
    DType dtype;
    std::vector<Index> shape;
    std::vector<std::byte> bytes;
  };
  using Names = std::vector<std::string>;

  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> config;  // JSON texts

  void write_config(const TemporaryFolder& folder) const {
    std::string text;
    for (const auto& [name, value] : config) {
      text += (text.empty() ? "{\"" : ",\"") + name + "\":" + value;
    }
    folder.file("config.json", text + "}");
  }
  /// The tensors that `wanted` accepts.
  template <class F>
  void write_tensors(const std::string& path, const F& wanted) const {
    std::vector<io::TensorToWrite> list;
    for (const auto& [name, tensor] : tensors) {
      if (wanted(name)) list.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
    }
    io::write_safetensors(path, list, {});
  }
  void write(const TemporaryFolder& folder) const {
    write_config(folder);
    write_tensors(folder.path("model.safetensors"), [](const std::string&) { return true; });
  }
  /// Two shards: the blocks, and what is outside them; with the index as it should be.
  void write_shards(const TemporaryFolder& folder) const {
    write_config(folder);
    const auto is_block = [](const std::string& name) { return contains(name, ".layers."); };
    write_tensors(folder.path("a.safetensors"), is_block);
    write_tensors(folder.path("b.safetensors"), [&](const auto& name) { return !is_block(name); });
    std::map<std::string, std::string> map;
    for (const auto& [name, tensor] : tensors) map[name] = is_block(name) ? "a" : "b";
    for (auto& [name, file] : map) file += ".safetensors";
    write_index(folder, map);
  }
  static void write_index(const TemporaryFolder& folder,
                          const std::map<std::string, std::string>& map) {
    std::string text;
    for (const auto& [name, file] : map) {
      text += (text.empty() ? "\"" : ",\"") + name + "\":";
      io::append_json_string(text, file);
    }
    folder.file("model.safetensors.index.json", R"({"metadata":{},"weight_map":{)" + text + "}}");
  }
};

std::string of(const TemporaryFolder& folder) {
  return folder.path(".");
}

template <class Model = Host>
std::string refused(const TemporaryFolder& folder, const HostOptions& options = {}) {
  return thrown<FormatError>([&] { (void)load_host<Model>(of(folder), Cpu(1), options); });
}
template <class Model = Host>
std::string refused(const Draft& draft, const HostOptions& options = {}) {
  const TemporaryFolder folder;
  draft.write(folder);
  return refused<Model>(folder, options);
}

std::vector<Token> text() {
  return test::HostGolden("llama").values<Token>("tokens");
}

template <class Model = Host, class S = float>
std::vector<S> scores(const TemporaryFolder& folder, const HostOptions& options = {}) {
  const auto tokens = text();
  Session session(load_host<Model>(of(folder), eigen::Backend<S>(1), options),
                  NoLearning{.chunk = 16}, {.max_tokens = 40});
  return session.read(std::span(tokens).first(40)).nll;
}

}  // namespace

TEST_CASE("load_host: one file, shards and a copy are the same model, and nothing is copied") {
  const Draft draft;
  const TemporaryFolder folder, shards;
  draft.write(folder);
  draft.write_shards(shards);
  const auto want = scores(folder);
  CHECK(test::same_bits(scores(shards), want));
  CHECK(test::same_bits(scores(folder, {.read = io::Read::Copy}), want));
  for (const TemporaryFolder* place : {&folder, &shards}) {
    const auto weights = load_host<Host>(of(*place), Cpu(1));
    Host::each(
        [&](const ParameterName& name, const Weight<float>& leaf) {
          CHECK(leaf.transposed == (name.role != Role::Norm && name.role != Role::Embedding));
          CHECK_FALSE(leaf.narrow);
        },
        weights.parameters());
  }
  // A single file is the model, whatever an index beside it says.
  Draft::write_index(folder, {{"x", "../../etc/passwd"}});
  CHECK(test::same_bits(scores(folder), want));
}

TEST_CASE("load_host: bfloat16 is used where it lies, other floats are converted") {
  Draft brief, rounded, half;
  for (auto& [name, tensor] : brief.tensors) {
    std::vector<float> values(tensor.bytes.size() / sizeof(float));
    std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    std::vector<bfloat16> narrow;
    std::vector<double> wide;
    for (const float value : values) {
      narrow.emplace_back(value);
      wide.push_back(static_cast<double>(static_cast<float>(narrow.back())));
    }
    const auto bytes = std::as_bytes(std::span(narrow)), all = std::as_bytes(std::span(wide));
    tensor.dtype = DType::BF16;
    tensor.bytes.assign(bytes.begin(), bytes.end());
    rounded.tensors[name].dtype = DType::F64;
    rounded.tensors[name].bytes.assign(all.begin(), all.end());
  }
  const TemporaryFolder narrow, wide;
  brief.write(narrow);
  rounded.write(wide);
  const auto weights = load_host<Host>(of(narrow), Cpu(1));
  Host::each([](const ParameterName&, const Weight<float>& leaf) { CHECK(leaf.narrow); },
             weights.parameters());
  CHECK(weights.bytes() == 2 * weights.count());
  CHECK(test::same_bits(scores(narrow), scores(wide)));
  CHECK(test::same_bits(scores<Host, double>(narrow), scores<Host, double>(wide)));
}

TEST_CASE("load_host: every difference between config.json and type is named, all at once") {
  Draft draft;
  draft.config["model_type"] = "\"qwen3\"";
  draft.config["tie_word_embeddings"] = "true";
  draft.config["layer_types"] = R"(["full_attention", "sliding_attention", "sliding_attention"])";
  draft.config["sliding_window"] = "8";
  const std::string what = refused(draft);
  CHECK(contains(what, "config.json"));
  CHECK(contains(what, "attention is mixed in the file and full in the type"));
  CHECK(contains(what, "tie_word_embeddings is true in the file and false in the type"));
  CHECK(contains(what, "QK-norm (model_type qwen3) is true in the file and false in the type"));

  CHECK(contains(refused<Qwen3<SeparateHead>>(Draft()), "QK-norm"));
  CHECK(contains(refused<Llama<TiedHead>>(Draft()), "tie_word_embeddings"));
  using Fixed =
      LanguageModel<Stack<2, Host::PrefixBlock>, Stack<0, Host::SuffixBlock>, SeparateHead>;
  CHECK(contains(refused<Fixed>(Draft()), "num_hidden_layers is 3 in the file and 2 in the type"));
  using Windowed = HostModel<SlidingWindowAttention<16, NoQkNorm, HalfSplitRope>, SeparateHead>;
  CHECK(contains(refused<Windowed>(Draft()),
                 "attention is full in the file and windowed in the type"));
  Draft windowed;
  windowed.config["layer_types"] =
      R"(["sliding_attention", "sliding_attention", "sliding_attention"])";
  windowed.config["sliding_window"] = "12";
  CHECK(
      contains(refused<Windowed>(windowed), "sliding_window is 12 in the file and 16 in the type"));
  windowed.config["sliding_window"] = "16";
  const TemporaryFolder folder;
  windowed.write(folder);
  CHECK(load_host<Windowed>(of(folder), Cpu(1)).config().window == 16);
  using Turned = HostModel<FullAttention<NoQkNorm, InterleavedRope>, SeparateHead>;
  CHECK(contains(refused<Turned>(Draft()), "half-split RoPE"));
}

TEST_CASE("load_host: layer_types and Qwen's older settings say the same") {
  Draft old("qwen3_sliding"), listed("qwen3_sliding");
  listed.config.erase("use_sliding_window");
  listed.config.erase("max_window_layers");
  listed.config["layer_types"] = R"(["full_attention", "sliding_attention", "sliding_attention"])";
  const TemporaryFolder a, b;
  old.write(a);
  listed.write(b);
  const auto config = load_host<Sliding>(of(a), Cpu(1)).config();
  CHECK(config.full_attention == BlockSet::first(1));
  CHECK(config.window == 12);
  CHECK(test::same_bits(scores<Sliding>(a), scores<Sliding>(b)));
  old.config["use_sliding_window"] = "false";
  const TemporaryFolder c;
  old.write(c);
  const auto full = load_host<Sliding>(of(c), Cpu(1)).config();
  CHECK(full.full_attention == BlockSet::first(3));
  CHECK(full.window == 0);
  CHECK(test::same_bits(scores<Sliding>(c), scores<Qwen3<TiedHead>>(c)));
}

TEST_CASE("load_host: RoPE's base and scaling, in each of their places") {
  const auto config = [](const std::map<std::string, std::string>& members) {
    Draft draft;
    draft.config.erase("rope_parameters");
    for (const auto& [name, value] : members) draft.config[name] = value;
    const TemporaryFolder folder;
    draft.write(folder);
    return load_host<Host>(of(folder), Cpu(1)).config();
  };
  const std::string scaling = R"("factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,)"
                              R"("original_max_position_embeddings": 8192)";
  CHECK(config({{"rope_theta", "500000.0"}}).rope_base == 500000);
  CHECK(config({{"rope_theta", "500000"}, {"rope_scaling", "null"}}).rope_scaling.factor == 0);
  const RopeScaling want{.factor = 8, .low = 1, .high = 4, .positions = 8192};
  CHECK(config({{"rope_theta", "5e5"}, {"rope_scaling", "{" + scaling + R"(,"type":"llama3"})"}})
            .rope_scaling == want);
  const Config new_form = config(
      {{"rope_parameters", "{" + scaling + R"(,"rope_theta": 5e5, "rope_type": "llama3"})"}});
  CHECK(new_form.rope_scaling == want);
  CHECK(new_form.rope_base == 500000);

  Draft other;
  other.config["rope_parameters"] = R"({"rope_theta": 1e4, "rope_type": "yarn", "factor": 4})";
  CHECK(contains(refused(other), "expected the rope_type default or llama3, found \"yarn\""));
  other.config["rope_parameters"] = R"({"rope_theta": 1e4, "rope_type": "llama3", "factor": 4})";
  CHECK(contains(refused(other), "low_freq_factor"));
  other.config["rope_parameters"] =
      R"({"rope_theta": 1e4, "rope_type": "llama3", "factor": 4, "low_freq_factor": 4,)"
      R"("high_freq_factor": 1, "original_max_position_embeddings": 64})";
  CHECK(contains(refused(other), "rope_scaling.high - low must be set and positive"));
}

TEST_CASE("load_host: what config.json must say, and what it must not") {
  for (const char* key :
       {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "rms_norm_eps", "tie_word_embeddings"}) {
    CAPTURE(key);
    Draft draft;
    draft.config.erase(key);
    CHECK(contains(refused(draft), "\"" + std::string(key) + "\" is missing"));
  }
  Draft without;
  without.config.erase("rope_parameters");
  CHECK(contains(refused(without), "\"rope_theta\" is missing"));
  const std::pair<const char*, const char*> cases[] = {
      {"model_type", "\"mistral\""},
      {"vocab_size", "0"},
      {"hidden_size", "-32"},
      {"num_hidden_layers", "5000"},
      {"num_hidden_layers", "1e3"},
      {"num_attention_heads", "\"4\""},
      {"num_key_value_heads", "3"},
      {"head_dim", "7"},
      {"rms_norm_eps", "0"},
      {"attention_bias", "true"},
      {"mlp_bias", "true"},
      {"hidden_act", "\"gelu\""},
      {"quantization_config", "{}"},
      {"layer_types", "[]"},
      {"layer_types", R"(["full_attention", "full_attention", "chunked_attention"])"},
      {"layer_types", R"(["full_attention", "full_attention", 3])"},
      {"layer_types", R"(["full_attention", "full_attention", "sliding_attention"])"}};
  for (const auto& one : cases) {
    CAPTURE(one.first);
    CAPTURE(one.second);
    Draft draft;
    draft.config[one.first] = one.second;
    CHECK(contains(refused(draft), "config.json"));
  }
  const TemporaryFolder folder;
  Draft().write(folder);
  folder.file("config.json", "{\"a\": ");
  CHECK(contains(refused(folder), "config.json"));
  folder.file("config.json", "[]");
  CHECK(contains(refused(folder), "expected an object"));
  const TemporaryFolder empty;
  CHECK(contains(thrown<Error>([&] { (void)load_host<Host>(of(empty), Cpu(1)); }), "config.json"));
}

TEST_CASE("load_host: what the file lacks can be supplied, but not overruled") {
  Draft draft;
  draft.config.erase("tie_word_embeddings");
  const TemporaryFolder folder;
  draft.write(folder);
  const HostOptions options{.config = io::Json::Object({{"tie_word_embeddings", false}})};
  CHECK(load_host<Host>(of(folder), Cpu(1), options).config().width == 32);
  CHECK(contains(refused(Draft(), options), "\"tie_word_embeddings\" occurs twice"));
}

TEST_CASE("load_host: tensors that are missing or of another shape") {
  const std::string down = "model.layers.1.mlp.down_proj.weight";
  Draft missing;
  missing.tensors.erase(down);
  CHECK(contains(refused(missing), "has no tensor \"" + down + "\""));
  Draft turned;
  std::swap(turned.tensors[down].shape[0], turned.tensors[down].shape[1]);
  CHECK(contains(refused(turned), down + " has the shape [48, 32], expected [32, 48]"));
  Draft wide;
  wide.config["intermediate_size"] = "64";
  CHECK(contains(refused(wide), "has the shape [48, 32], expected [64, 32]"));
  Draft integers;
  integers.tensors[down].dtype = DType::I32;
  CHECK(contains(refused(integers), down));
}

TEST_CASE("load_host: an index nobody vouches for") {
  const Draft draft;
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const auto with = [&](const auto& change) {
    const TemporaryFolder folder;
    draft.write_shards(folder);
    change(folder);
    return refused(folder);
  };
  for (const std::string bad :
       {"../a.safetensors", "/etc/passwd", "/tmp/a.safetensors", "sub/a.safetensors", "..", "",
        ".safetensors", ".hidden.safetensors", "a.safetensors/", "a.bin", "..\\a.safetensors",
        "a\\..\\b.safetensors"}) {
    CAPTURE(bad);
    const std::string what = with([&](const TemporaryFolder& folder) {
      Draft::write_index(folder, {{q, bad}});
    });
    CHECK(contains(what, "is not the plain name of a safetensors file"));
    CHECK(contains(what, "model.safetensors.index.json"));
  }
  CHECK(
      contains(with([&](const TemporaryFolder& folder) {
                 Draft::write_index(folder, {{q, std::string("a.safetensors\0.safetensors", 26)}});
               }),
               "is not the plain name"));
  CHECK(contains(with([&](const TemporaryFolder& folder) {
                   Draft::write_index(folder, {{q, "a.safetensors"}});
                 }),
                 "has no tensor \"model.embed_tokens.weight\""));
  CHECK(contains(with([&](const TemporaryFolder& folder) {
                   Draft::write_index(folder, {{"ghost", "a.safetensors"}});
                 }),
                 "a.safetensors: has no tensor \"ghost\", which"));
  CHECK(contains(with([&](const TemporaryFolder& folder) {
                   draft.write_tensors(folder.path("b.safetensors"),
                                       [](const std::string&) { return true; });
                 }),
                 "is also in"));
  for (const char* text : {"", "{", "[]", "{}", R"({"weight_map": []})",
                           R"({"weight_map": {"a": 3}})", R"({"weight_map": {"a": {}}})",
                           R"({"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}})"}) {
    CAPTURE(text);
    CHECK(contains(with([&](const TemporaryFolder& folder) {
                     folder.file("model.safetensors.index.json", text);
                   }),
                   "model.safetensors.index.json"));
  }
  const TemporaryFolder folder;
  draft.write_shards(folder);
  std::filesystem::remove(folder.path("b.safetensors"));
  CHECK(
      contains(thrown<Error>([&] { (void)load_host<Host>(of(folder), Cpu(1)); }), "b.safetensors"));
  folder.file("b.safetensors", "not a safetensors file");
  CHECK(contains(refused(folder), "b.safetensors"));
}

TEST_CASE("load_host: a host saved in this library's own format is the same model") {
  const TemporaryFolder folder;
  Draft("qwen3_sliding").write(folder);
  const auto weights = load_host<Sliding>(of(folder), Cpu(1));
  const std::string path = folder.path("ours.safetensors");
  save(weights, path);
  const auto again = load<Sliding>(path, Cpu(1));
  CHECK(again.config().full_attention == weights.config().full_attention);
  CHECK(again.config().window == 12);
  const auto tokens = text();
  const auto read = [&](const auto& from) {
    Session session(from, NoLearning{.chunk = 16}, {.max_tokens = 40});
    return session.read(std::span(tokens).first(40)).nll;
  };
  CHECK(test::furthest(read(again), read(weights)) <= 1e-5);
  CHECK(contains(thrown<FormatError>([&] { (void)load<Qwen3<TiedHead>>(path, Cpu(1)); }),
                 "mixed attention is true in the file and false in the type"));
}
