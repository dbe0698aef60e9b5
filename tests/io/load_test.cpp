// SPDX-License-Identifier: MIT
// Model files: what they must say, and where their tensors go.
#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <io/temporary.hpp>
#include <map>
#include <set>
#include <span>
#include <string>
#include <support/golden.hpp>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/io/names.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

using Attention = SlidingWindowAttention<16>;
using Reader = LanguageModel<Stack<2, Block<Attention, SwiGLU>>,
                             Stack<2, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;

/// A model file in the making: the weights and the configuration of the golden case e2e.
class Draft {
 public:
  Draft() {
    const test::Golden golden("e2e");
    for (const auto& info : golden.file().tensors()) {
      if (!info.name.starts_with("params.")) continue;
      const auto bytes = golden.file().bytes(info);
      tensors[info.name.substr(7)] = {info.dtype, info.shape, {bytes.begin(), bytes.end()}};
    }
    for (const auto& [name, value] : golden.model().object().members()) config[name] = value;
  }

  struct Tensor {
    DType dtype;
    std::vector<Index> shape;
    std::vector<std::byte> bytes;

    std::vector<float> floats() const {
      std::vector<float> out(bytes.size() / sizeof(float));
      std::memcpy(out.data(), bytes.data(), bytes.size());
      return out;
    }
    template <class T>
    void set(DType type, const std::vector<T>& values) {
      dtype = type;
      const auto raw = std::as_bytes(std::span(values));
      bytes.assign(raw.begin(), raw.end());
    }
  };

  std::map<std::string, Tensor> tensors;
  std::map<std::string, io::Json> config;
  bool with_config = true;

  std::string write(const TemporaryFolder& folder, const std::string& name = "model") const {
    std::vector<io::TensorToWrite> list;
    for (const auto& [key, tensor] : tensors) {
      list.push_back({key, tensor.dtype, tensor.shape, tensor.bytes});
    }
    std::map<std::string, std::string> metadata;
    if (with_config) {
      metadata["config"] =
          io::Json(io::Json::Object(std::vector<io::Json::Member>(config.begin(), config.end())))
              .dump();
    }
    const std::string path = folder.path(name + ".safetensors");
    io::write_safetensors(path, list, metadata);
    return path;
  }
};

template <class Model = Reader>
std::string refused(const Draft& draft, const LoadOptions& options = {}) {
  const TemporaryFolder folder;
  const std::string path = draft.write(folder);
  const std::string what = thrown<FormatError>([&] { (void)load<Model>(path, Cpu(1), options); });
  CHECK(contains(what, path));
  return what;
}

template <class S = float>
std::vector<S> scores(const std::string& path, const LoadOptions& options = {}) {
  Session session(load<Reader>(path, eigen::Backend<S>(1), options), InnerLoop<Sgd>{.chunk = 8});
  return session.read(test::Golden("e2e").tokens()).nll;
}

/// The upper bits of a float, as a half; enough for values that are neither tiny nor huge.
std::uint16_t half_of(float value) {
  const auto raw = std::bit_cast<std::uint32_t>(value);
  const int exponent = static_cast<int>((raw >> 23) & 0xff) - 112;
  const auto sign = static_cast<std::uint16_t>((raw >> 16) & 0x8000);
  if (exponent <= 0) return sign;
  return static_cast<std::uint16_t>(sign | (static_cast<unsigned>(exponent) << 10) |
                                    ((raw >> 13) & 0x3ff));
}

constexpr const char* wq = "language_model.model.h.blocks.seq_modeling_block.wq.weight";

}  // namespace

TEST_CASE("load: the numbers of the golden case, whatever the file's types and alignment") {
  const TemporaryFolder folder;
  const test::Golden golden("e2e");
  const auto recorded = golden.values<double>("token_nll");
  const Draft draft;
  const std::string path = draft.write(folder);
  const auto want = scores(path);
  CHECK(test::furthest(std::span(want).subspan(1), recorded) <= 1e-4);
  const auto in_double = scores<double>(path);
  CHECK(test::furthest(std::span(in_double).subspan(1), recorded) <= 1e-5);
  CHECK(test::same_bits(scores(path, {.read = io::Read::Copy}), want));

  SUBCASE("float64") {
    Draft wide = draft;
    for (auto& [name, tensor] : wide.tensors) {
      const auto values = tensor.floats();
      tensor.set(DType::F64, std::vector<double>(values.begin(), values.end()));
    }
    const std::string file = wide.write(folder, "wide");
    CHECK(test::same_bits(scores(file), want));
    CHECK(test::same_bits(scores<double>(file), scores<double>(path)));
  }
  SUBCASE("float16 and bfloat16 hold what they can") {
    Draft half = draft, brief = draft, rounded = draft;
    for (auto& [name, tensor] : half.tensors) {
      auto values = tensor.floats();
      std::vector<float16> halves(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        halves[i].bits = half_of(values[i]);
        values[i] = halves[i];
      }
      tensor.set(DType::F16, halves);
      rounded.tensors.at(name).set(DType::F32, values);
    }
    CHECK(test::same_bits(scores(half.write(folder, "half")),
                          scores(rounded.write(folder, "rounded"))));
    for (auto& [name, tensor] : brief.tensors) {
      auto values = tensor.floats();
      std::vector<bfloat16> narrow(values.begin(), values.end());
      tensor.set(DType::BF16, narrow);
      rounded.tensors.at(name).set(DType::F32, std::vector<float>(narrow.begin(), narrow.end()));
    }
    const std::string file = brief.write(folder, "brief");
    CHECK(test::furthest(scores(file), scores(rounded.write(folder, "widened"))) <= 1e-5);
    const auto weights = load<Reader>(file, Cpu(1));
    CHECK(weights.parameters().embedding.narrow);  // used where it lies
    CHECK(weights.bytes() == 2 * weights.count());
  }
  SUBCASE("types may differ from tensor to tensor") {
    Draft mixed = draft;
    const auto values = mixed.tensors.at(wq).floats();
    mixed.tensors.at(wq).set(DType::F64, std::vector<double>(values.begin(), values.end()));
    CHECK(test::same_bits(scores(mixed.write(folder, "mixed")), want));
  }
  SUBCASE("data at an odd address") {
    std::string bytes = ttt_test::content_of(path);
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    bytes.insert(8 + static_cast<std::size_t>(length), " ");
    ++length;
    std::memcpy(bytes.data(), &length, sizeof length);
    const std::string odd = folder.file("odd.safetensors", bytes);
    const auto file = io::SafeTensors::open(odd);
    CHECK_FALSE(file->aligned(file->at(wq)));
    CHECK(test::same_bits(scores(odd), want));
    CHECK(test::same_bits(scores<double>(odd), scores<double>(path)));
  }
}

TEST_CASE("load: parameters lie in the file, which stays as long as a handle to them") {
  const TemporaryFolder folder;
  const std::string path = Draft().write(folder);
  auto first = std::make_unique<Weights<Reader, Cpu>>(load<Reader>(path, Cpu(1)));
  Session session(*first, InnerLoop<Sgd>{.chunk = 8});
  first.reset();
  std::filesystem::remove(path);
  const auto recorded = test::Golden("e2e").values<double>("token_nll");
  const auto report = session.read(test::Golden("e2e").tokens());
  CHECK(test::furthest(std::span(report.nll).subspan(1), recorded) <= 1e-4);

  // One stretch of memory, in the file's order: nothing was copied.
  const auto& tree = session.weights().parameters();
  const auto* w = static_cast<const float*>(tree.prefix[0].attention.sublayer.wq.data);
  CHECK(static_cast<const float*>(tree.prefix[1].attention.sublayer.wq.data) == w + 32 * 32);
  CHECK(static_cast<const float*>(tree.suffix[0].attention.sublayer.wq.data) == w + 2 * 32 * 32);
}

TEST_CASE("load: every tensor of a file has a place, and every parameter a tensor") {
  const auto check = [](const auto& model, const io::SafeTensors& file, const std::string& prefix) {
    using Model = std::decay_t<decltype(model)>;
    std::map<std::string, std::set<Index>> used;
    auto shapes = model.shapes();
    Model::each(
        [&](const ParameterName& name, const Shape&) {
          const io::StoredName stored = io::authors_name(name);
          CAPTURE(stored.tensor);
          CHECK(used[stored.tensor].insert(stored.index).second);
        },
        shapes);
    Index there = 0;
    for (const auto& info : file.tensors()) {
      if (!info.name.starts_with(prefix)) continue;
      ++there;
      CAPTURE(info.name);
      const auto found = used.find(info.name.substr(prefix.size()));
      REQUIRE(found != used.end());
      const auto& indices = found->second;
      if (*indices.begin() < 0) {
        CHECK(indices.size() == 1);
      } else {
        CHECK(*indices.begin() == 0);
        CHECK(*indices.rbegin() == info.shape[0] - 1);
        CHECK(std::ssize(indices) == info.shape[0]);
      }
    }
    CHECK(there == std::ssize(used));
  };
  const test::Golden e2e("e2e"), untied("e2e_noclip_untied"), all("e2e_all_layers");
  check(Reader(e2e.config<Reader>()), e2e.file(), "params.");
  check(test::GoldenUntied(untied.config<test::GoldenUntied>()), untied.file(), "params.");
  check(test::GoldenReader(all.config<test::GoldenReader>()), all.file(), "params.");
  const auto demo = test::load_demo(Cpu(1));
  check(demo.model(),
        *io::SafeTensors::open(std::string(TTT_EXAMPLE_MODELS) + "/books-byte.safetensors"), "");
}

TEST_CASE("load: every difference between file and type is named, all at once") {
  Draft draft;
  draft.config["sliding_window_size"] = 17;
  draft.config["num_hidden_layers"] = 7;
  draft.config["suffix_len"] = 3;
  draft.config["prime"] = false;
  draft.config["tie_word_embeddings"] = false;
  draft.config["qk_norm"] = false;
  draft.config["post_norm"] = false;
  draft.config["pre_norm"] = false;
  draft.config["rope_layout"] = "half_split";
  const std::string what = refused(draft);
  CHECK(contains(what, "the file does not hold this type of model: "));
  for (const std::string difference :
       {"sliding_window_size is 17 in the file and 16 in the type",
        "num_hidden_layers - suffix_len is 4 in the file and 2 in the type",
        "suffix_len is 3 in the file and 2 in the type",
        "prime (dynamic MLPs) is false in the file and true in the type",
        "tie_word_embeddings is false in the file and true in the type",
        "qk_norm is false in the file and true in the type",
        "post_norm is false in the file and true in the type",
        "pre_norm is false in the file and true in the type",
        "rope_layout is half_split in the file and interleaved in the type"}) {
    CAPTURE(difference);
    CHECK(contains(what, difference));
  }

  // Each alone is enough.
  const auto alone = [](const std::string& key, const io::Json& value, const char* name) {
    CAPTURE(key);
    Draft one;
    one.config[key] = value;
    const std::string said = refused(one);
    CHECK(contains(said, name));
    CHECK_FALSE(contains(said, "; "));
  };
  alone("sliding_window_size", 8, "sliding_window_size is 8");
  alone("num_hidden_layers", 5, "num_hidden_layers - suffix_len is 3");
  alone("prime", false, "prime");
  alone("tie_word_embeddings", false, "tie_word_embeddings");
  alone("qk_norm", false, "qk_norm");
  alone("post_norm", false, "post_norm");
  alone("rope_layout", "half_split", "rope_layout");

  using Full = LanguageModel<Stack<2, Block<FullAttention<>, SwiGLU>>,
                             Stack<2, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;
  CHECK(contains(refused<Full>(Draft()),
                 "sliding-window attention is true in the file and false in the type"));
  Draft full;
  full.config["seq_modeling_block"] = "self_attention";
  CHECK(contains(refused(full),
                 "sliding-window attention is false in the file and true in the type"));
  using HalfSplit = SlidingWindowAttention<16, NoQkNorm, HalfSplitRope>;
  using Other = LanguageModel<Stack<2, Block<HalfSplit, SwiGLU, PreNorm>>,
                              Stack<2, Block<HalfSplit, DualMLP<SwiGLU, SwiGLU>, PreNorm>>>;
  const std::string said = refused<Other>(Draft());
  CHECK(contains(said, "qk_norm is true in the file and false in the type"));
  CHECK(contains(said, "post_norm is true in the file and false in the type"));
  CHECK(contains(said, "rope_layout is interleaved in the file and half_split in the type"));
}

TEST_CASE("load: what would change results silently must be in the file") {
  for (const std::string key :
       {"num_attention_heads", "rope_theta", "rms_norm_eps", "vocab_size", "hidden_size",
        "intermediate_size", "num_hidden_layers", "seq_modeling_block", "sliding_window_size"}) {
    CAPTURE(key);
    Draft draft;
    draft.config.erase(key);
    const std::string what = refused(draft);
    CHECK(contains(what, "\"" + key + "\" is missing"));

    // The caller may know it, and then the file loads.
    LoadOptions options;
    options.config = io::Json::Object({{key, Draft().config.at(key)}});
    const TemporaryFolder folder;
    CHECK(load<Reader>(draft.write(folder), Cpu(1), options).config().heads == 4);
  }
  // What the file says is not overruled.
  LoadOptions options;
  options.config = io::Json::Object({{"rope_theta", 10000.0}});
  CHECK(contains(refused(Draft(), options), "\"rope_theta\" occurs twice"));
}

TEST_CASE("load: a file without any configuration, and a caller who has one") {
  Draft draft;
  draft.with_config = false;
  CHECK(contains(refused(draft), "the metadata has no \"config\""));
  LoadOptions options;
  const auto& config = Draft().config;
  options.config = io::Json::Object({config.begin(), config.end()});
  const TemporaryFolder folder;
  const std::string path = draft.write(folder);
  CHECK(test::same_bits(scores(path, options), scores(Draft().write(folder, "with"))));
}

TEST_CASE("load: settings of the wrong kind or size") {
  const auto refuse = [](const std::string& key, const io::Json& value, const char* why) {
    CAPTURE(key);
    Draft draft;
    draft.config[key] = value;
    const std::string what = refused(draft);
    CHECK(contains(what, key));
    CHECK(contains(what, why));
  };
  refuse("num_attention_heads", 0, "expected from 1 to 2^30, found 0");
  refuse("num_attention_heads", -4, "found -4");
  refuse("num_attention_heads", 4.5, "expected an integer");
  refuse("num_attention_heads", "4", "expected an integer, found a string");
  refuse("hidden_size", std::int64_t{1} << 40, "expected from 1 to 2^30");
  refuse("rope_theta", "10000", "expected a real number");
  refuse("rms_norm_eps", nullptr, "expected a real number, found null");
  refuse("qk_norm", 1, "expected a boolean");
  refuse("seq_modeling_block", "mamba", "expected SWA, self_attention or mixed, found \"mamba\"");
  refuse("suffix_len", -1, "expected from 1 to 2^30");

  const auto impossible = [](const std::string& key, const io::Json& value, const char* why) {
    CAPTURE(key);
    Draft draft;
    draft.config[key] = value;
    const TemporaryFolder folder;
    const std::string path = draft.write(folder);
    CHECK(contains(thrown<Error>([&] { (void)load<test::GoldenReader>(path, Cpu(1)); }), why));
  };
  impossible("num_attention_heads", 3, "width is not a multiple of heads");
  impossible("num_key_value_heads", 3, "heads is not a multiple of key_heads");
  impossible("head_dim", 5, "head_dim is odd");
  impossible("rope_theta", -1, "rope_base must be set and positive");
  impossible("rms_norm_eps", 0, "eps must be set and positive");
  impossible("suffix_len", 5, "suffix_len: is more than num_hidden_layers");
  impossible("num_hidden_layers", 1 << 30, "from 1 to 4096 blocks");

  // Members nobody knows do no harm.
  Draft draft;
  draft.config["colour"] = "blue";
  const TemporaryFolder folder;
  CHECK(load<Reader>(draft.write(folder), Cpu(1)).config().chunk == 8);

  const std::string path = folder.path("text.safetensors");
  io::write_safetensors(path, {}, {{"config", "not json"}});
  CHECK(
      contains(thrown<FormatError>([&] { (void)load<Reader>(path, Cpu(1)); }), path + ": config"));
  io::write_safetensors(path, {}, {{"config", "[1]"}});
  CHECK(contains(thrown<FormatError>([&] { (void)load<Reader>(path, Cpu(1)); }),
                 "expected an object, found an array"));
}

TEST_CASE("load: tensors that are missing or of another shape") {
  Draft draft;
  draft.tensors.erase(wq);
  CHECK(contains(refused(draft), "has no tensor \"" + std::string(wq) + "\""));

  const auto reshape = [](const std::string& name, std::vector<Index> shape, const char* expected) {
    CAPTURE(name);
    Draft bad;
    bad.tensors.at(name).shape = std::move(shape);
    const std::string what = refused(bad);
    CHECK(contains(what, name));
    CHECK(contains(what, expected));
  };
  reshape(wq, {2, 64, 32}, "has the shape [2, 64, 32], expected [4, 32, 32]");
  reshape(wq, {4 * 32, 32}, "has the shape [128, 32], expected [4, 32, 32]");
  reshape("language_model.model.wte.weight", {32, 61}, "[32, 61], expected [61, 32]");
  reshape("language_model.model.ln_f.weight", {1, 32}, "[1, 32], expected [32]");
  reshape("language_model.model.h.prime_storage.feed_forward_prime.w2.weight", {2, 32, 48},
          "[2, 32, 48], expected [2, 48, 32]");
  reshape("language_model.model.h.prime_storage.ffn_prime_norm.weight", {64}, "expected [2, 32]");

  Draft integers;
  integers.tensors.at(wq).dtype = DType::I32;
  CHECK(contains(refused(integers), wq));

  Draft wider;  // the configuration and the tensors disagree
  wider.config["intermediate_size"] = 64;
  CHECK(contains(refused(wider), "expected [4, 32, 64]"));
}

TEST_CASE("load: a prefix to every name") {
  const TemporaryFolder folder;
  Draft draft;
  std::map<std::string, Draft::Tensor> renamed;
  for (const auto& [name, tensor] : draft.tensors) renamed["best." + name] = tensor;
  draft.tensors = renamed;
  const std::string path = draft.write(folder);
  CHECK(scores(path, {.prefix = "best."}).size() == 65);
  CHECK(contains(thrown<FormatError>([&] { (void)load<Reader>(path, Cpu(1)); }), "has no tensor"));
}

TEST_CASE("load: a checkpoint of the authors' trainer, converted") {
  const std::string path = std::string(TTT_TEST_DATA) + "/orbax_converted.safetensors";
  const auto weights = load<Reader>(path, Cpu(1));
  CHECK(weights.config().rope_base == 500000);
  CHECK(weights.config().eps == 1e-6);
  CHECK(weights.config().chunk == 8);
  const test::Golden golden("e2e");
  const auto e2e = golden.weights<Reader>(Cpu(1));
  Reader::each(
      [](const ParameterName& name, const Weight<float>& a, const Weight<float>& b) {
        CAPTURE(to_string(name));
        const auto x = a.stored<float>(), y = b.stored<float>();
        bool same = true;
        for (Index i = 0; i < a.shape().size(); ++i) {
          same = same && x.data[i] == (name.role == Role::Norm ? 1.0f : y.data[i]);
        }
        CHECK(same);
      },
      weights.parameters(), e2e.parameters());
  Session session(weights, InnerLoop<Sgd>{.chunk = 8});
  const auto report = session.read(golden.tokens());
  CHECK(report.inner_steps == 8);
  CHECK(report.mean_nll() > 3);
  CHECK(report.mean_nll() < 8);
}

TEST_CASE("load: not a file") {
  CHECK(contains(thrown<Error>([] { (void)load<Reader>("/nowhere/model.safetensors", Cpu(1)); }),
                 "/nowhere/model.safetensors"));
}
