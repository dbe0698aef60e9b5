// SPDX-License-Identifier: MIT
// Reading with In-Place learning: the session's promises hold for it as for any learner.
#include <algorithm>
#include <cmath>
#include <io/temporary.hpp>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/host_golden.hpp>
#include <support/in_place.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/session.hpp>
#include <ttt/io/load.hpp>
#include <ttt/io/save.hpp>

namespace {

using namespace ttt;
using test::furthest;
using test::some_tokens;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

constexpr InPlaceLoop learner{.chunk = 8, .rate = 0.5f};
constexpr SessionOptions options{.max_tokens = 200};

using S = eigen::Backend<float>;

template <class Session>
auto learned_on_host(const Session& session) {
  return test::on_host(session.weights().backend(), session.state().learned.data(),
                       session.state().learned_size);
}

/// Reads in pieces of random sizes.
template <class Session>
std::vector<typename Session::Scalar> read_in_pieces(Session& session,
                                                     const std::vector<Token>& text,
                                                     std::uint64_t seed) {
  std::vector<typename Session::Scalar> nll;
  Random random{seed};
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t size = std::min(text.size() - at, 1 + random.bits() % 13);
    const auto report = session.read(std::span(text).subspan(at, size));
    nll.insert(nll.end(), report.nll.begin(), report.nll.end());
    if (random.bits() % 3 == 0) (void)session.logits();
    at += size;
  }
  return nll;
}

}  // namespace

TEST_CASE_TEMPLATE("in place: with a convolution of zeros the model is its host, to the bit", B,
                   TTT_TEST_BACKENDS) {
  using Plain = Llama<SeparateHead>;
  using Learning = Llama<SeparateHead, InPlaceMLP<>>;
  const test::HostGolden golden("llama");
  const auto tokens = golden.values<Token>("tokens");
  Config config = golden.config<Learning>();
  config.in_place = BlockSet::first(3);
  config.in_place_projection = true;
  const auto file = io::SafeTensors::open(golden.file().path());
  const B backend;
  const auto host = golden.template weights<Plain>(backend);
  const auto weights =
      io::load_host_weights<Learning>({io::Shards::of(file), nullptr}, config, backend, "params.");
  Session a(host, NoLearning{.chunk = 8}, options);
  Session b(weights, learner, options);
  const auto want = a.read(tokens), got = b.read(tokens);
  CHECK(got.inner_steps == 9);
  CHECK(std::equal(want.nll.begin() + 1, want.nll.end(), got.nll.begin() + 1));
  const auto x = a.logits(), y = b.logits();
  CHECK(std::equal(x.begin(), x.end(), y.begin(), y.end()));
  CHECK(b.counters().gradient_norm == 0);
}

TEST_CASE_TEMPLATE("in place: the same final weights for any pieces, and the same scores", B,
                   TTT_TEST_BACKENDS) {
  const auto check = [&](const auto& weights) {
    const auto text = some_tokens(100);
    Session whole(weights, learner, options);
    const auto report = whole.read(text);
    CHECK(report.inner_steps == 12);
    CHECK(report.skipped_steps == 0);
    REQUIRE(whole.state().learned_size == 2 * 16 * 24);
    for (std::uint64_t seed = 1; seed < 4; ++seed) {
      Session pieces(weights, learner, options);
      const auto nll = read_in_pieces(pieces, text, seed);
      CHECK(learned_on_host(pieces) == learned_on_host(whole));
      CHECK(pieces.counters() == whole.counters());
      CHECK(furthest(std::span(nll).subspan(1), std::span(report.nll).subspan(1)) <= 1e-5);
    }
  };
  const B backend;
  check(test::in_place_weights(backend));
  check(test::in_place_weights(backend, test::in_place_config(false)));
  check(test::in_place_weights<test::InPlaceFromEmbeddings>(backend));
}

TEST_CASE("in place: what a chunk teaches is used by later chunks, and by no earlier token") {
  const auto weights = test::in_place_weights(S(1));
  const auto text = some_tokens(60);
  Session learns(weights, learner, options);
  Session plain(weights, NoLearning{.chunk = 8}, options);
  const auto a = learns.read(text).nll, b = plain.read(text).nll;
  CHECK(std::equal(a.begin() + 1, a.begin() + 9, b.begin() + 1));
  for (std::size_t i = 9; i < 17; ++i) CHECK(a[i] != b[i]);

  auto other = text;
  other[40] = other[40] == 0 ? 1 : 0;
  Session changed(weights, learner, options);
  const auto c = changed.read(other).nll;
  CHECK(std::equal(a.begin() + 1, a.begin() + 40, c.begin() + 1));

  Session still(weights, InPlaceLoop{.chunk = 8, .rate = 0}, options);
  const auto d = still.read(text).nll;
  CHECK(std::equal(b.begin() + 1, b.end(), d.begin() + 1));
}

TEST_CASE("in place: a chunk that fills while generating is learned from") {
  const auto weights = test::in_place_weights(S(1));
  const auto text = some_tokens(21);
  Session writer(weights, learner, options);
  writer.read(text);
  CHECK(writer.counters().inner_steps == 2);
  const auto made = writer.generate(20, TopK{.k = 10});
  CHECK(writer.counters().inner_steps == 5);
  auto all = text;
  all.insert(all.end(), made.begin(), made.end());
  Session reader(weights, learner, options);
  reader.read(all);
  CHECK(learned_on_host(reader) == learned_on_host(writer));
  const Token next = 7;
  const double told = test::nll_of(writer.logits(), next);
  CHECK(static_cast<double>(writer.read(std::vector<Token>{next}).nll[0]) ==
        doctest::Approx(told).epsilon(1e-5));
}

TEST_CASE("in place: snapshots, forks, files and resets are of one document each") {
  const auto weights = test::in_place_weights(S(1));
  const auto text = some_tokens(70), more = some_tokens(40, 9);
  Session session(weights, learner, options);
  session.read(text);
  const auto before = session.snapshot();
  const TemporaryFolder folder;
  session.save(folder.path("state"));
  auto fork = session.fork();
  const auto want = session.read(more).nll;
  CHECK(test::same_bits(fork.read(more).nll, want));
  CHECK(test::same_state(fork, session));
  session.restore(before);
  CHECK(test::same_bits(session.read(more).nll, want));
  Session loaded(weights, learner, options);
  loaded.load(folder.path("state"));
  CHECK(test::same_bits(loaded.read(more).nll, want));
  session.reset();
  Session fresh(weights, learner, options);
  CHECK(test::same_bits(std::span<const float>(session.read(more).nll).subspan(1),
                        std::span<const float>(fresh.read(more).nll).subspan(1)));

  Session other(weights, InPlaceLoop{.chunk = 16}, options);
  CHECK(contains(thrown<FormatError>([&] { other.load(folder.path("state")); }),
                 "a different chunk"));
  const auto others = test::in_place_weights(S(1), test::in_place_config(), 8);
  Session stranger(others, learner, options);
  CHECK(contains(thrown<FormatError>([&] { stranger.load(folder.path("state")); }),
                 "a different model"));
}

TEST_CASE("in place: no loss is needed, so masks change nothing; freezing does") {
  const auto weights = test::in_place_weights(S(1));
  const auto text = some_tokens(33);
  Session plain(weights, learner, options), masked(weights, learner, options);
  plain.read(text);
  const std::vector<std::uint8_t> nothing(text.size());
  masked.read(text, {.loss_mask = nothing});
  CHECK(learned_on_host(masked) == learned_on_host(plain));
  Session frozen(weights, learner, options);
  frozen.freeze();
  frozen.read(text);
  CHECK(frozen.counters().inner_steps == 0);
  CHECK(frozen.state().learned_size == 0);
}

TEST_CASE("in place: an update that is not finite changes nothing and is counted") {
  const auto weights = test::in_place_weights(S(1));
  test::change(weights, [](const ParameterName& name, std::span<float> values) {
    if (name.tensor == "conv" && name.block == 2) values[2] = std::nanf("");
  });
  const auto text = some_tokens(33);
  Session session(weights, learner, options);
  Session plain(weights, NoLearning{.chunk = 8}, options);
  const auto report = session.read(text);
  CHECK(report.skipped_steps == 4);
  CHECK(report.inner_steps == 0);
  CHECK(std::isnan(session.counters().gradient_norm));
  CHECK(furthest(report.nll, plain.read(text).nll) == 0);
}

TEST_CASE("in place: clipping is of each layer's own update") {
  const auto weights = test::in_place_weights(S(1));
  const auto text = some_tokens(9);
  const auto moved = [&](float clip) {
    Session session(weights, InPlaceLoop{.chunk = 8, .rate = 0.5f, .clip = clip}, options);
    session.read(text);
    CHECK(session.counters().clipped_steps == (clip > 0 && clip < 100 ? 1 : 0));
    std::vector<double> norms(2);
    const auto now = learned_on_host(session);
    Session still(weights, InPlaceLoop{.chunk = 8, .rate = 0}, options);
    still.read(text);
    const auto then = learned_on_host(still);
    for (std::size_t i = 0; i < now.size(); ++i) {
      norms[i / (16 * 24)] += std::pow(static_cast<double>(now[i] - then[i]), 2);
    }
    for (double& norm : norms) norm = std::sqrt(norm);
    return norms;
  };
  const auto free = moved(0), far = moved(1000);
  CHECK(free == far);
  const double low = std::min(free[0], free[1]), high = std::max(free[0], free[1]);
  REQUIRE(low < 0.9 * high);
  const auto clipped = moved(static_cast<float>((low + high) / 2));
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(clipped[i] == doctest::Approx(std::min(free[i], (low + high) / 2)).epsilon(1e-4));
  }
}

TEST_CASE("in place: models and learners that do not suit one another") {
  const S cpu(1);
  const auto weights = test::in_place_weights(cpu);
  const auto refused = [](const auto& call) { return thrown<Error>(call); };
  Config none = test::in_place_config();
  none.in_place = {};
  const auto host = initialise<test::InPlaceHost>(none, cpu, 1);
  CHECK(contains(refused([&] { Session(host, learner, options); }), "finds nothing"));
  CHECK(contains(refused([&] { Session(weights, InnerLoop<Sgd>{}, options); }), "finds nothing"));
  CHECK(contains(refused([&] { Session(test::tiny_weights(cpu), learner, options); }),
                 "finds nothing"));
  struct Everything : InPlaceLoop {
    bool learns(const ParameterName&) const { return true; }
  };
  CHECK(contains(refused([&] { Session(weights, Everything{}, options); }),
                 "the learner asks for embedding, but only InPlaceMLPs learn in closed form"));
  Config beyond = test::in_place_config();
  beyond.in_place.add(3);
  CHECK(refused([&] { test::InPlaceHost{beyond}; }) ==
        "ttt: Config: in_place has block 3, but the prefix has 3");
  CHECK(refused([&] { Llama<TiedHead>{test::in_place_config()}; }) ==
        "ttt: Config: in_place is for models with InPlaceMLP");
}

TEST_CASE("in place: memory is known beforehand") {
  const S cpu(1);
  const auto weights = test::in_place_weights(cpu);
  using Loop = Session<Weights<test::InPlaceHost, S>, InPlaceLoop>;
  const Index bytes = Loop::required_bytes(weights, learner, options);
  const Index learned = 2 * 16 * 24 * static_cast<Index>(sizeof(float));
  CHECK(bytes > 2 * learned);
  Session session(weights, learner, options);
  session.read(some_tokens(20));
  const Index state = session.state_bytes();
  session.read(some_tokens(104));
  CHECK(session.state_bytes() <= state + 8 * 5);
}

TEST_CASE("in place: targets in a file of their own, in the model's, and in our own format") {
  using Learning = Llama<SeparateHead, InPlaceMLP<>>;
  const S cpu(1);
  const TemporaryFolder folder;
  const test::HostGolden golden("llama");
  std::string json;
  for (const auto& [name, value] : golden.members()) {
    json += (json.empty() ? "{\"" : ",\"") + name + "\":" + value.dump();
  }
  folder.file("config.json", json + "}");
  std::vector<io::TensorToWrite> tensors;
  std::vector<std::string> names;
  for (const auto& info : golden.file().tensors()) {
    if (!info.name.starts_with("params.")) continue;
    tensors.push_back({info.name.substr(7), info.dtype, info.shape, golden.file().bytes(info)});
  }
  io::write_safetensors(folder.path("model.safetensors"), tensors, {});
  const std::string place = folder.path(".");

  const auto bare = load_host<Learning>(place, cpu);
  CHECK(bare.config().in_place.empty());
  const auto chosen = load_host<Learning>(
      place, cpu, {.in_place = BlockSet::every(2, 3), .in_place_projection = true});
  CHECK(chosen.config().in_place_projection);
  Learning::each(
      [](const ParameterName& name, const Weight<float>& leaf) {
        if (name.role != Role::InPlaceTarget) return;
        const auto values = leaf.stored<float>();
        for (Index i = 0; i < values.rows; ++i) {
          for (Index j = 0; j < values.cols; ++j) CHECK(values(i, j) == in_place_start(name, i, j));
        }
      },
      chosen.parameters());
  test::change(bare, [](const auto&, auto) {});  // nothing of it is ours to change
  Random random{5};
  Learning::each(
      [&](const ParameterName& name, const Weight<float>& leaf) {
        if (name.role != Role::InPlaceTarget) return;
        auto* const at = const_cast<float*>(static_cast<const float*>(leaf.data));
        for (Index i = 0; i < leaf.shape().size(); ++i) {
          at[i] = static_cast<float>(0.3 * random.normal());
        }
      },
      chosen.parameters());
  const std::string targets = folder.path("targets.safetensors");
  save_in_place(chosen, targets);
  const auto file = io::SafeTensors::open(targets);
  CHECK(file->tensors().size() == 4);
  CHECK(file->at("model.layers.2.mlp.ttt_conv.weight").shape == std::vector<Index>{32, 1, 5});
  CHECK(file->at("model.layers.0.mlp.ttt_proj.weight").shape == std::vector<Index>{32, 32});

  const auto tokens = golden.values<Token>("tokens");
  const auto read = [&](const auto& weights) {
    Session session(weights, learner, options);
    return session.read(tokens).nll;
  };
  const auto want = read(chosen);
  const auto with_file = load_host<Learning>(place, cpu, {.in_place_file = targets});
  CHECK(with_file.config().in_place == BlockSet::every(2, 3));
  CHECK(test::same_bits(read(with_file), want));

  const auto refused = [&](const HostOptions& asked) {
    return thrown<FormatError>([&] { (void)load_host<Learning>(place, cpu, asked); });
  };
  CHECK(contains(refused({.in_place = BlockSet::first(2), .in_place_file = targets}),
                 "has no tensor \"model.layers.1.mlp.ttt_conv.weight\""));
  CHECK(contains(refused({.in_place_file = folder.path("model.safetensors")}),
                 "has no convolution for any block"));
  CHECK(contains(thrown<Error>([&] {
                   (void)load_host<Llama<SeparateHead>>(place, cpu, {.in_place_file = targets});
                 }),
                 "the type of model has no InPlaceMLP"));

  for (const auto& info : file->tensors()) {
    tensors.push_back({info.name, info.dtype, info.shape, file->bytes(info)});
  }
  io::write_safetensors(folder.path("model.safetensors"), tensors, {});
  CHECK(test::same_bits(read(load_host<Learning>(place, cpu)), want));

  const std::string ours = folder.path("ours.safetensors");
  save(chosen, ours);
  const auto again = load<Learning>(ours, cpu);
  CHECK(again.config().in_place == BlockSet::every(2, 3));
  CHECK(furthest(read(again), want) <= 1e-4);
  CHECK(contains(thrown<FormatError>([&] { (void)load<Llama<SeparateHead>>(ours, cpu); }),
                 "learning in place is true in the file and false in the type"));
  using OfEmbeddings = Llama<SeparateHead, InPlaceMLP<FromEmbeddings>>;
  CHECK(contains(thrown<FormatError>([&] { (void)load<OfEmbeddings>(ours, cpu); }),
                 "in_place_target is hidden_states in the file and input_embed in the type"));

  tensors.back().shape = {4, 256};
  io::write_safetensors(folder.path("model.safetensors"), tensors, {});
  CHECK(contains(thrown<FormatError>([&] { (void)load_host<Learning>(place, cpu); }),
                 "has the shape [4, 256], expected [32, 32]"));
}
