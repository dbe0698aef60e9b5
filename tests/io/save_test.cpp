// SPDX-License-Identifier: MIT
// Models as files: every structure comes back the same, and no broken configuration gets in.
#include <bit>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <support/random.hpp>
#include <sys/stat.h>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "limits.hpp"
#include "parts.hpp"
#include "temporary.hpp"
#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/io/load.hpp>
#include <ttt/io/save.hpp>
#include <ttt/model/language_model.hpp>

namespace {

using namespace ttt;
using ttt_test::contains;
using ttt_test::content_of;
using ttt_test::FileSizeLimit;
using ttt_test::Parts;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

using B = eigen::Backend<float>;

template <class Attention, class Mlp = SwiGLU, class Placement = SandwichNorm>
using Stacked = Stack<2, Block<Attention, Mlp, Placement>>;
using Window = SlidingWindowAttention<12>;
using TwoMlps = DualMLP<SwiGLU, SwiGLU>;

using Plain = LanguageModel<Stacked<Window>>;
using Separate = LanguageModel<Stacked<Window>, Stacked<Window, TwoMlps>, SeparateHead>;
using Learning = LanguageModel<Stacked<Window>, Stacked<Window, TwoMlps>>;
using PlainSuffix = LanguageModel<Stacked<Window>, Stacked<Window>>;
using PreNormed =
    LanguageModel<Stacked<Window, SwiGLU, PreNorm>, Stacked<Window, TwoMlps, PreNorm>>;
using Normless = LanguageModel<Stacked<SlidingWindowAttention<12, NoQkNorm>>>;
using HalfSplit = LanguageModel<Stacked<SlidingWindowAttention<12, QkNorm, HalfSplitRope>>>;
using Full = LanguageModel<Stacked<FullAttention<>>, Stacked<FullAttention<>, TwoMlps>>;
using AnyWindow = LanguageModel<Stacked<SlidingWindowAttention<>>>;
using AnyDepth = LanguageModel<Stack<dynamic, Block<SlidingWindowAttention<>, SwiGLU>>,
                               Stack<dynamic, Block<SlidingWindowAttention<>, TwoMlps>>>;
using AllOther =
    LanguageModel<Stack<dynamic, Block<FullAttention<NoQkNorm, HalfSplitRope>, SwiGLU, PreNorm>>,
                  Stack<dynamic, Block<FullAttention<NoQkNorm, HalfSplitRope>, TwoMlps, PreNorm>>,
                  SeparateHead>;

#define TTT_TEST_EVERY_MODEL                                                               \
  Plain, Separate, Learning, PlainSuffix, PreNormed, Normless, HalfSplit, Full, AnyWindow, \
      AnyDepth, AllOther

/// Grouped queries, and heads that together are wider than the model.
Config config() {
  return {.vocabulary = 61,
          .width = 16,
          .heads = 4,
          .key_heads = 2,
          .head_dim = 6,
          .hidden = 24,
          .window = 12,
          .rope_base = 12345.678901234567,
          .eps = 1e-6,
          .chunk = 8};
}

template <class Model>
Weights<Model, B> weights() {
  Config sizes = config();
  if (!Model::is_windowed) sizes.window = 0;
  if (Model::prefix_depth == dynamic) sizes.prefix_blocks = 2;
  if (Model::suffix_depth == dynamic) sizes.suffix_blocks = 1;
  auto fresh = test::tiny_weights<Model>(B(1), sizes);
  Random random{3};  // norms that are not all ones
  test::change(fresh, [&](const ParameterName& name, std::span<float> values) {
    if (name.role != Role::Norm) return;
    for (float& value : values) value = 1 + 0.1f * static_cast<float>(random.normal());
  });
  return fresh;
}

template <class Model>
std::vector<std::vector<float>> values(const Weights<Model, B>& weights) {
  std::vector<std::vector<float>> all;
  Model::each(
      [&](const ParameterName&, const Weight<float>& leaf) {
        auto& out = all.emplace_back(static_cast<std::size_t>(leaf.shape().size()));
        weights.backend().widen(leaf, View<float>(out.data(), leaf.rows, leaf.cols));
      },
      weights.parameters());
  return all;
}

template <class Model>
std::vector<float> scores(const Weights<Model, B>& weights) {
  Random random{4};
  Session session(weights, NoLearning{.chunk = 8}, {.max_tokens = 50});
  return session.read(test::tokens(random, 50, 61)).nll;
}

/// Makes every tensor one of another type of float.
template <class To>
void convert(Parts& parts) {
  for (auto& [name, tensor] : parts.tensors) {
    std::vector<std::byte> bytes(tensor.bytes.size() / sizeof(float) * sizeof(To));
    for (std::size_t i = 0; i < bytes.size() / sizeof(To); ++i) {
      float value = 0;
      std::memcpy(&value, tensor.bytes.data() + i * sizeof value, sizeof value);
      const To other = test::cast<To>(value);
      std::memcpy(bytes.data() + i * sizeof other, &other, sizeof other);
    }
    tensor.bytes = std::move(bytes);
    tensor.dtype = dtype_of<To>;
  }
}

const std::string norm_name = "language_model.model.ln_f.weight";
const std::string w1_name = "language_model.model.h.blocks.feed_forward.w1.weight";

}  // namespace

TEST_CASE_TEMPLATE("save: every structure comes back with the same bits", Model,
                   TTT_TEST_EVERY_MODEL) {
  const TemporaryFolder folder;
  const auto before = weights<Model>();
  save(before, folder.path("model"));
  const auto after = load<Model>(folder.path("model"), before.backend());
  CHECK(model_hash(before) == model_hash(after));
  CHECK(values(before) == values(after));
  CHECK(before.count() == after.count());

  const io::Json written = io::write_config<Model>(before.config());
  CHECK(io::write_config<Model>(after.config()).dump() == written.dump());
  const Config read = Model(io::read_config<Model>(io::Json::parse(written.dump()), "x")).config();
  const Config& wanted = before.config();
  for (auto member : {&Config::vocabulary, &Config::width, &Config::heads, &Config::key_heads,
                      &Config::head_dim, &Config::hidden, &Config::prefix_blocks,
                      &Config::suffix_blocks, &Config::window, &Config::chunk}) {
    CHECK(read.*member == wanted.*member);
    CHECK(after.config().*member == wanted.*member);
  }
  CHECK(std::bit_cast<std::uint64_t>(read.rope_base) ==
        std::bit_cast<std::uint64_t>(wanted.rope_base));
  CHECK(read.eps == wanted.eps);

  save(after, folder.path("model"));  // over the file that it is mapped from
  save(before, folder.path("again"));
  CHECK(content_of(folder.path("model")) == content_of(folder.path("again")));
  CHECK(values(before) == values(after));
}

TEST_CASE_TEMPLATE("save: a file read as another structure is refused, and says why", Model,
                   TTT_TEST_EVERY_MODEL) {
  const io::Json stored = io::write_config<Model>(weights<Model>().config());
  const auto refused = [&]<class Other>() {
    if constexpr (!std::is_same_v<Other, Model>) {
      const std::string what = thrown<FormatError>([&] { io::read_config<Other>(stored, "it"); });
      CAPTURE(what);
      CHECK(contains(what, "it: the file does not hold this type of model: "));
    }
  };
  refused.template operator()<Separate>();
  refused.template operator()<PlainSuffix>();
  refused.template operator()<PreNormed>();
  refused.template operator()<Normless>();
  refused.template operator()<HalfSplit>();
  refused.template operator()<Full>();
  refused.template operator()<AllOther>();
}

TEST_CASE("save: windows and depths of the type or of the file") {
  const TemporaryFolder folder;
  save(weights<Learning>(), folder.path("model"));
  const auto any = load<AnyDepth>(folder.path("model"), B(1));
  CHECK(any.config().prefix_blocks == 2);
  CHECK(any.config().suffix_blocks == 2);
  CHECK(any.config().window == 12);
  CHECK(model_hash(any) == model_hash(weights<Learning>()));
  CHECK(test::same_bits(scores(any), scores(weights<Learning>())));

  using Narrow = SlidingWindowAttention<8>;
  using Deeper = LanguageModel<Stack<3, Block<Window, SwiGLU>>, Stacked<Window, TwoMlps>>;
  const std::string narrow = thrown<FormatError>([&] {
    load<LanguageModel<Stacked<Narrow>, Stacked<Narrow, TwoMlps>>>(folder.path("model"), B(1));
  });
  CHECK(contains(narrow, "sliding_window_size is 12 in the file and 8 in the type"));
  const std::string deeper = thrown<FormatError>([&] { load<Deeper>(folder.path("model"), B(1)); });
  CHECK(contains(deeper, "num_hidden_layers - suffix_len is 2 in the file and 3 in the type"));
}

TEST_CASE("save: a model that the schema has no words for is not written") {
  const TemporaryFolder folder;
  const auto refused = [&]<class Model>(std::string_view why) {
    const std::string path = folder.file("model", "old");
    const std::string what = thrown<FormatError>([&] {
      Config sizes = config();
      sizes.window = 0;
      save(initialise<Model>(sizes, B(1), 1), path);
    });
    CAPTURE(what);
    CHECK(contains(what, "cannot write " + path));
    CHECK(contains(what, why));
    CHECK(content_of(path) == "old");
  };
  using Narrow = SlidingWindowAttention<8>;
  refused.template operator()<LanguageModel<Stacked<Window>, Stacked<Narrow>>>("window");
  refused.template operator()<LanguageModel<Stacked<Narrow>, Stacked<Window>>>("window");
  refused.template
  operator()<LanguageModel<Stacked<Window>, Stacked<SlidingWindowAttention<12, NoQkNorm>>>>(
      "qk_norm");
  refused.template operator()<LanguageModel<Stacked<Window>, Stacked<Window, SwiGLU, PreNorm>>>(
      "post_norm");
}

TEST_CASE_TEMPLATE("load: tensors of every float type, stacked over blocks", T, double, bfloat16) {
  const TemporaryFolder folder;
  save(weights<Learning>(), folder.path("model"));
  Parts parts(folder.path("model"), "config");
  convert<T>(parts);
  const auto loaded = load<Learning>(parts.write(folder.path("other")), B(1));
  auto want = values(weights<Learning>());
  for (auto& tensor : want) {
    for (float& value : tensor) value = static_cast<float>(test::cast<T>(value));
  }
  CHECK(values(loaded) == want);
  // Saved in the arithmetic's own type, the numbers stay.
  save(loaded, folder.path("wide"));
  CHECK(values(load<Learning>(folder.path("wide"), B(1))) == want);
}

TEST_CASE("load: tensors that are not aligned are copied") {
  const TemporaryFolder folder;
  save(weights<Learning>(), folder.path("model"));
  std::string content = content_of(folder.path("model"));
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), sizeof length);
  content.insert(sizeof length + length, " ");  // of the header
  ++length;
  std::memcpy(content.data(), &length, sizeof length);
  const auto loaded = load<Learning>(folder.file("shifted", content), B(1));
  CHECK(values(loaded) == values(weights<Learning>()));
  CHECK(model_hash(loaded) == model_hash(weights<Learning>()));
}

TEST_CASE("load: a prefix of the names, and members that the file lacks") {
  const TemporaryFolder folder;
  save(weights<Learning>(), folder.path("model"));
  Parts parts(folder.path("model"), "config");
  Parts renamed = parts;
  renamed.tensors.clear();
  for (const auto& [name, tensor] : parts.tensors) renamed.tensors["params." + name] = tensor;
  const std::string path = renamed.write(folder.path("renamed"));
  CHECK(contains(thrown<FormatError>([&] { load<Learning>(path, B(1)); }), "has no tensor"));
  CHECK(model_hash(load<Learning>(path, B(1), {.prefix = "params."})) ==
        model_hash(weights<Learning>()));

  parts.members.erase("rope_theta");
  const std::string lacking = parts.write(folder.path("lacking"));
  const io::Json::Object extra({{"rope_theta", 12345.678901234567}});
  CHECK(model_hash(load<Learning>(lacking, B(1), {.config = extra})) ==
        model_hash(weights<Learning>()));
  CHECK(contains(
      thrown<FormatError>([&] { load<Learning>(folder.path("model"), B(1), {.config = extra}); }),
      "\"rope_theta\" occurs twice"));
}

TEST_CASE("load: what is wrong with a configuration is said in one sentence that names the file") {
  const TemporaryFolder folder;
  save(weights<AnyDepth>(), folder.path("model"));
  const Parts good(folder.path("model"), "config");
  const std::string path = folder.path("spoilt");
  const auto refused = [&](std::string_view why, const auto& spoil) {
    Parts parts = good;
    spoil(parts);
    parts.write(path);
    const std::string what = thrown<FormatError>([&] { load<AnyDepth>(path, B(1)); });
    CAPTURE(what);
    CHECK(contains(what, path + ": "));
    CHECK(contains(what, why));
    CHECK_FALSE(contains(what, "out of memory"));
    CHECK_FALSE(contains(what, "\n"));
  };
  const auto refused_with = [&](std::string_view why,
                                const std::map<std::string, std::string>& values) {
    refused(why, [&](Parts& p) {
      for (const auto& [name, value] : values) p.members[name] = value;
    });
  };

  SUBCASE("no configuration, or another kind of thing") {
    refused("has no \"config\"", [](Parts& p) { p.metadata.erase("config"); });
    refused("has no \"config\"", [](Parts& p) { p.metadata.clear(); });
    for (const char* text : {"[]", "null", "1", "\"SWA\"", "[{}]"}) {
      refused("config: expected an object", [&](Parts& p) { p.metadata["config"] = text; });
    }
    for (const char* text : {"", " ", "nul", "SWA"}) {
      refused("config: at byte", [&](Parts& p) { p.metadata["config"] = text; });
    }
    refused("is missing", [](Parts& p) { p.members.clear(); });
  }
  SUBCASE("text that is not JSON") {
    for (const char* value : {"", "NaN", "nan", "Infinity", "-Infinity", "+1", "01", ".5", "0x10",
                              "1e", "1_000", "1e999", "'16'", "16,", "16}", "{", "//"}) {
      CAPTURE(value);
      refused_with("config: at byte", {{"rope_theta", value}});
      refused_with("config: at byte", {{"hidden_size", value}});
    }
    refused_with("occurs twice", {{"hidden_size", "16,\"hidden_size\":16"}});
    refused_with("occurs twice", {{"hidden_size", "16,\"hidden\\u005fsize\":32"}});
  }
  SUBCASE("members that are missing") {
    const std::string required[] = {
        "vocab_size",          "hidden_size",        "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "rope_theta",         "rms_norm_eps",      "seq_modeling_block",
        "tie_word_embeddings", "sliding_window_size"};
    for (const std::string& name : required) {
      CAPTURE(name);
      REQUIRE(good.members.contains(name));
      refused("\"" + name + "\" is missing", [&](Parts& p) { p.members.erase(name); });
      refused_with(name + ": expected", {{name, "null"}});
    }
  }
  SUBCASE("members of the wrong kind") {
    for (const auto& member : good.members) {
      const std::string &name = member.first, &value = member.second;
      CAPTURE(name);
      for (const char* other : {"[]", "{}", "[1]"}) {
        refused_with(name + ": expected", {{name, other}});
      }
      const bool is_text = value.starts_with('"'), is_flag = value == "true" || value == "false";
      if (!is_text) refused_with(name + ": expected", {{name, '"' + value + '"'}});
      if (!is_flag) refused_with(name + ": expected", {{name, "true"}});
      if (is_text || is_flag) {
        refused_with(name + ": expected", {{name, "1"}});
        refused_with(name + ": expected", {{name, "0.5"}});
      }
    }
    refused_with("expected SWA, self_attention or mixed", {{"seq_modeling_block", "\"swa\""}});
    refused_with("expected SWA, self_attention or mixed", {{"seq_modeling_block", "\"\""}});
    refused_with("rope_layout is other in the file", {{"rope_layout", "\"other\""}});
    refused_with("pre_norm is false in the file", {{"pre_norm", "false"}});
  }
  SUBCASE("sizes that are no sizes") {
    for (const char* name : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                             "num_attention_heads", "num_key_value_heads", "head_dim",
                             "sliding_window_size", "mini_batch_size", "suffix_len"}) {
      CAPTURE(name);
      for (const char* value :
           {"-1", "1073741825", "1099511627776", "9223372036854775807", "-9223372036854775808"}) {
        refused_with(std::string(name) + ": expected from 1 to 2^30", {{name, value}});
      }
      for (const char* value : {"1.5", "16.0", "1e1", "1e308", "9223372036854775808", "-0"}) {
        refused_with(std::string(name) + ": expected an integer", {{name, value}});
      }
      if (std::string_view(name) != "suffix_len") {
        refused_with(std::string(name) + ": expected from 1 to 2^30, found 0", {{name, "0"}});
      }
    }
    for (const char* name : {"rope_theta", "rms_norm_eps"}) {
      for (const char* value : {"0", "0.0", "-0.0", "-1", "-1e308", "1e-999"}) {
        CAPTURE(value);
        refused("config: ", [&](Parts& p) { p.members[name] = value; });
      }
    }
  }
  SUBCASE("sizes that do not go together") {
    refused_with("suffix_len: is more than num_hidden_layers", {{"suffix_len", "4"}});
    refused_with("suffix_len: is more than num_hidden_layers", {{"suffix_len", "1073741824"}});
    refused_with("from 1 to 4096 blocks", {{"num_hidden_layers", "4097"}});
    refused_with("from 1 to 4096 blocks", {{"num_hidden_layers", "1073741824"}});
    refused_with("head_dim is odd", {{"head_dim", "5"}});
    refused_with("heads is not a multiple of key_heads", {{"num_key_value_heads", "3"}});
    refused_with("heads is not a multiple of key_heads", {{"num_key_value_heads", "8"}});
    refused_with(
        "width is not a multiple of heads",
        {{"head_dim", "null"}, {"num_attention_heads", "3"}, {"num_key_value_heads", "3"}});
    refused_with("head_dim is odd", {{"head_dim", "null"}, {"hidden_size", "12"}});
    // Products that no integer holds.
    const char* const most = "1073741824";
    refused_with("head_dim is beyond", {{"head_dim", most}});
    refused_with("heads * head_dim is beyond", {{"num_attention_heads", most}});
    refused_with("more parameters than fit any memory",
                 {{"vocab_size", most}, {"hidden_size", most}, {"intermediate_size", most}});
    refused_with(
        "more parameters than fit any memory",
        {{"hidden_size", most}, {"intermediate_size", most}, {"num_hidden_layers", "4096"}});
  }
  SUBCASE("sizes that the tensors do not have") {
    refused_with("wte.weight has the shape [61, 16], expected [62, 16]", {{"vocab_size", "62"}});
    refused_with("expected [1073741824, 16]", {{"vocab_size", "1073741824"}});
    refused_with("expected [61, 32]", {{"hidden_size", "32"}});
    refused_with("expected [3, 16, 25]", {{"intermediate_size", "25"}});
    refused_with("expected [3, 16, 1073741824]", {{"intermediate_size", "1073741824"}});
    refused_with("expected [4096, 16]", {{"num_hidden_layers", "4096"}});
    refused_with("expected [3, 16, 32]", {{"head_dim", "8"}});
    refused_with("expected [3, 16, 48]", {{"num_attention_heads", "8"}});
    refused_with("expected [3, 16, 24]", {{"num_key_value_heads", "4"}});
    refused_with("expected [2, 16]", {{"suffix_len", "2"}});
  }
  SUBCASE("values that are odd and allowed") {
    Parts parts = good;
    parts.members["sliding_window_size"] = parts.members["mini_batch_size"] = "1073741824";
    parts.members["rope_theta"] = parts.members["rms_norm_eps"] = "1e308";
    parts.members["later"] = "[{}]";
    const auto loaded = load<AnyDepth>(parts.write(path), B(1));
    CHECK(loaded.config().window == Index{1} << 30);
    CHECK(loaded.config().rope_base == 1e308);
    CHECK_THROWS_AS(Session(loaded, InnerLoop<Sgd>{.chunk = loaded.config().chunk}), Error);
    for (const char* name : {"head_dim", "num_key_value_heads", "mini_batch_size", "rope_layout",
                             "qk_norm", "pre_norm", "post_norm"}) {
      Parts other = good;
      if (std::string_view(name) != "num_key_value_heads" && std::string_view(name) != "head_dim") {
        other.members[name] = "null";
        CHECK_NOTHROW(load<AnyDepth>(other.write(path), B(1)));
        other.members.erase(name);
        CHECK_NOTHROW(load<AnyDepth>(other.write(path), B(1)));
      }
    }
  }
  SUBCASE("tensors") {
    for (const auto& member : good.tensors) {
      const std::string& name = member.first;
      CAPTURE(name);
      refused("has no tensor \"" + name, [&](Parts& p) { p.tensors.erase(name); });
      refused("expected F32", [&](Parts& p) { p.tensors[name].dtype = DType::I32; });
      refused(name + " has the shape", [&](Parts& p) { p.tensors[name].shape.push_back(1); });
      refused(name + " has the shape", [&](Parts& p) {
        p.tensors[name].shape = {0};
        p.tensors[name].bytes.clear();
      });
    }
    refused("expected [16]", [](Parts& p) { p.tensors[norm_name].shape = {1, 16}; });
    refused("expected [3, 16, 24]", [](Parts& p) { p.tensors[w1_name].shape = {3, 24, 16}; });
    refused("expected [3, 16, 24]", [](Parts& p) { p.tensors[w1_name].shape = {48, 24}; });
    Parts more = good;
    more.tensors["another"] = good.tensors.at(norm_name);
    CHECK_NOTHROW(load<AnyDepth>(more.write(path), B(1)));
  }
}

TEST_CASE("save: anyone may read a model, and one that cannot be written leaves the old one") {
  const TemporaryFolder folder;
  const std::string path = folder.path("model");
  const mode_t before = ::umask(022);
  save(weights<Plain>(), path);
  ::umask(before);
  struct stat status = {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 07777u) == 0644);
  const std::string old = content_of(path);
  {
    const FileSizeLimit full(4096);
    CHECK(contains(thrown<Error>([&] { save(weights<Learning>(), path); }), path));
  }
  CHECK(content_of(path) == old);
  CHECK(folder.count() == 1);
  for (const std::string& nowhere : {folder.path("missing"), folder.path("")}) {
    CHECK(contains(thrown<Error>([&] { load<Plain>(nowhere, B(1)); }), nowhere));
    if (nowhere.ends_with('/')) CHECK_THROWS_AS(save(weights<Plain>(), nowhere), Error);
  }
}
