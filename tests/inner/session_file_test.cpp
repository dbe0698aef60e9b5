// SPDX-License-Identifier: MIT
// A session's state as a file: what comes back, and what is turned away.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <io/limits.hpp>
#include <io/parts.hpp>
#include <io/temporary.hpp>
#include <limits>
#include <map>
#include <string>
#include <support/kernels.hpp>
#include <support/models.hpp>
#include <support/random.hpp>
#include <sys/stat.h>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/load.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/io/save.hpp>

namespace {

using namespace ttt;
using test::TinyReader;
using ttt_test::contains;
using ttt_test::content_of;
using ttt_test::FileSizeLimit;
using ttt_test::OrdinaryUser;
using ttt_test::Parts;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

constexpr Index chunk = 8;

template <class S>
using TinyWeights = Weights<TinyReader, eigen::Backend<S>>;
using FloatSession = Session<TinyWeights<float>>;

Config config() {
  Config config = test::tiny_config();
  config.window = 16;
  return config;
}

template <class S = float>
TinyWeights<S> weights(const Config& sizes = config(), std::uint64_t seed = 7) {
  return test::tiny_weights(eigen::Backend<S>(1), sizes, seed);
}

template <class Optimizer = Sgd>
InnerLoop<Optimizer> learner() {
  return {.chunk = chunk, .optimizer = {.rate = 0.5f}};
}

std::vector<Token> text(Index size, std::uint64_t seed = 1) {
  Random random{seed};
  return test::tokens(random, size, config().vocabulary);
}

/// A session that has read 43 tokens: five chunks, three tokens of the next.
FloatSession reader() {
  FloatSession session(weights(), learner());
  session.read(text(43));
  return session;
}

/// Checks that the session refuses the file in one sentence that names it and says `why`, and that
/// its own state has the same bytes as before.
template <class Session>
void check_refused(const TemporaryFolder& folder, Session& session, const std::string& path,
                   std::string_view why) {
  CAPTURE(why);
  session.save(folder.path("before"));
  const std::string what = thrown<FormatError>([&] { session.load(path); });
  CAPTURE(what);
  CHECK(contains(what, path));
  CHECK(contains(what, why));
  CHECK_FALSE(contains(what, "\n"));
  session.save(folder.path("after"));
  CHECK(content_of(folder.path("before")) == content_of(folder.path("after")));
}

/// What holds for the state of every session.
void check_possible(const FloatSession& session) {
  const auto& state = session.state();
  const Counters& counters = session.counters();
  const auto pending = static_cast<Index>(state.pending.size());
  CHECK(counters.tokens >= 0);
  CHECK(pending == (counters.tokens == 0 ? 0 : (counters.tokens - 1) % chunk + 1));
  CHECK(state.marks.size() == state.pending.size());
  CHECK(counters.inner_steps >= 0);
  CHECK(counters.skipped_steps >= 0);
  CHECK(counters.inner_steps + counters.skipped_steps <= state.boundary() / chunk);
  CHECK(counters.clipped_steps >= 0);
  CHECK(counters.clipped_steps <= counters.inner_steps);
  CHECK(counters.gradient_norm >= 0);
  for (const Token token : state.pending) CHECK((token >= 0 && token < config().vocabulary));
  for (const float value : test::learned(session)) CHECK(std::isfinite(value));
}

/// Saves, loads into `fresh`, and checks that both go on as one.
template <class Session>
void check_round_trip(const TemporaryFolder& folder, Session& session, Session fresh) {
  session.save(folder.path("state"));
  fresh.load(folder.path("state"));
  CHECK(test::same_state(session, fresh));
  fresh.save(folder.path("again"));
  CHECK(content_of(folder.path("state")) == content_of(folder.path("again")));
  // Long enough to complete the chunk: pieces of it may have been computed in another order.
  const auto tokens = text(3 * chunk + 2, 99);
  CHECK(test::same_bits(session.read(tokens).nll, fresh.read(tokens).nll));
  CHECK(test::same_state(session, fresh));
  CHECK(session.generate(2 * chunk) == fresh.generate(2 * chunk));
  CHECK(test::same_state(session, fresh));
}

}  // namespace

TEST_CASE_TEMPLATE("session file: what was saved goes on with the same bits", S, float, double) {
  const TemporaryFolder folder;
  using Reader = Session<TinyWeights<S>>;
  const auto shared = weights<S>();
  for (const Index size : {0, 1, 2, 7, 8, 9, 16, 17, 31, 33, 100}) {
    CAPTURE(size);
    Reader session(shared, learner(), {.seed = 5});
    session.read(text(size));
    check_round_trip(folder, session, Reader(shared, learner(), {.seed = 6}));
  }
}

TEST_CASE("session file: a state saved between pieces of a chunk") {
  const TemporaryFolder folder;
  FloatSession session(weights(), learner());
  for (const Token token : text(21)) {
    session.read(std::span(&token, 1));
    session.logits();
  }
  check_round_trip(folder, session, FloatSession(weights(), learner()));
}

TEST_CASE("session file: targets read frozen, and targets that do not count, stay so") {
  const TemporaryFolder folder;
  FloatSession session(weights(), learner());
  session.read(text(13));
  session.freeze();
  session.read(text(2));
  session.learn();
  const std::vector<std::uint8_t> mask = {0, 1};
  session.read(text(2), {.loss_mask = mask});
  REQUIRE(session.state().marks.size() == 1);  // the frozen chunk is complete, the next is open
  session.freeze();
  session.read(text(3));
  session.learn();
  const auto steps = session.counters().inner_steps;

  FloatSession fresh(weights(), learner());
  session.save(folder.path("state"));
  fresh.load(folder.path("state"));
  fresh.read(text(7, 3));
  CHECK(fresh.counters().inner_steps == steps);  // never learned from: three of it were frozen
  check_round_trip(folder, session, FloatSession(weights(), learner()));
}

TEST_CASE("session file: after generation the random numbers go on where they were") {
  const TemporaryFolder folder;
  FloatSession session(weights(), learner(), {.seed = 11});
  session.read(text(9));
  session.generate(20);
  REQUIRE(session.state().random.counter > 0);
  check_round_trip(folder, session, FloatSession(weights(), learner()));
  session.generate(1, Temperature{}, {.seed = std::numeric_limits<std::uint64_t>::max()});
  check_round_trip(folder, session, FloatSession(weights(), learner()));
}

TEST_CASE("session file: the optimizer's slots are part of the state") {
  const TemporaryFolder folder;
  using Reader = Session<TinyWeights<float>, InnerLoop<Momentum>>;
  Reader session(weights(), learner<Momentum>());
  session.read(text(43));
  check_round_trip(folder, session, Reader(weights(), learner<Momentum>()));

  FloatSession without(weights(), learner());
  session.save(folder.path("state"));
  check_refused(folder, without, folder.path("state"), "learned has another shape");
}

TEST_CASE("session file: a model that learns nothing") {
  const TemporaryFolder folder;
  using Reader = Session<TinyWeights<float>, NoLearning>;
  Reader session(weights(), NoLearning{.chunk = chunk});
  session.read(text(43));
  check_round_trip(folder, session, Reader(weights(), NoLearning{.chunk = chunk}));
}

TEST_CASE("session file: full attention, and its longest text") {
  const TemporaryFolder folder;
  using Model = LanguageModel<Stack<1, Block<FullAttention<>, SwiGLU>>,
                              Stack<1, Block<FullAttention<>, DualMLP<SwiGLU, SwiGLU>>>>;
  Config sizes = config();
  sizes.window = 0;
  const auto shared = initialise<Model>(sizes, eigen::Backend<float>(1), 3, 0.25);
  using Reader = Session<Weights<Model, eigen::Backend<float>>>;
  Reader session(shared, learner(), {.max_tokens = 100});
  session.read(text(23));
  check_round_trip(folder, session, Reader(shared, learner(), {.max_tokens = 100}));

  // As many slots, but the text is longer than this session takes.
  session.read(text(99 - session.counters().tokens));
  session.save(folder.path("state"));
  Reader shorter(shared, learner(), {.max_tokens = 98});
  check_refused(folder, shorter, folder.path("state"), "max_tokens");
  Reader longer(shared, learner(), {.max_tokens = 120});
  check_refused(folder, longer, folder.path("state"), "cache has another shape");
}

TEST_CASE("session file: a state fits every copy of its model, and no other model") {
  const TemporaryFolder folder;
  const eigen::Backend<float> backend(1);
  save(weights(), folder.path("model"));
  const auto mapped = load<TinyReader>(folder.path("model"), backend);
  const auto copied = load<TinyReader>(folder.path("model"), backend, {.read = io::Read::Copy});
  CHECK(model_hash(mapped) == model_hash(weights()));
  CHECK(model_hash(mapped) == model_hash(copied));
  CHECK(model_hash(mapped) == model_hash(mapped));

  FloatSession session(mapped, learner());
  session.read(text(43));
  check_round_trip(folder, session, FloatSession(copied, learner()));
  session.save(folder.path("state"));

  const auto refuse = [&](const TinyWeights<float>& other) {
    CHECK(model_hash(other) != model_hash(mapped));
    FloatSession stranger(other, learner());
    stranger.read(text(20));
    check_refused(folder, stranger, folder.path("state"), "a different model");
  };
  refuse(weights(config(), 8));
  // One bit of one parameter.
  for (const char* tensor : {"embedding", "w2", "k_norm", "norm"}) {
    auto other = weights();
    bool done = false;
    test::change(other, [&](const ParameterName& name, std::span<float> values) {
      if (done || name.tensor != tensor) return;
      values.back() = std::nextafter(values.back(), 9.0f);
      done = true;
    });
    REQUIRE(done);
    refuse(other);
  }
  // The same parameters, used in another way.
  Config sizes = config();
  sizes.rope_base = 20000;
  refuse(weights(sizes));
  sizes = config();
  sizes.eps = 1e-5;
  refuse(weights(sizes));
  sizes = config();
  sizes.window = 15;  // as many slots
  refuse(weights(sizes));
  // A hint changes nothing.
  sizes = config();
  sizes.chunk = 99;
  CHECK(model_hash(weights(sizes)) == model_hash(mapped));
}

TEST_CASE("session file: models whose parameters agree and whose heads do not") {
  using Plainly = SlidingWindowAttention<dynamic, NoQkNorm>;
  using HalfSplit = SlidingWindowAttention<dynamic, NoQkNorm, HalfSplitRope>;
  const eigen::Backend<float> backend(1);
  Config sizes = config();
  using Plain = LanguageModel<Stack<1, Block<Plainly, SwiGLU>>>;
  const auto hash = model_hash(initialise<Plain>(sizes, backend, 1));
  CHECK(model_hash(initialise<LanguageModel<Stack<1, Block<HalfSplit, SwiGLU>>>>(sizes, backend,
                                                                                 1)) != hash);
  sizes.heads = 4;
  CHECK(model_hash(initialise<Plain>(sizes, backend, 1)) != hash);
}

TEST_CASE("session file: a file cut short anywhere is refused") {
  const TemporaryFolder folder;
  FloatSession session = reader();
  session.save(folder.path("state"));
  const std::string whole = content_of(folder.path("state"));
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), sizeof header);
  const std::size_t data = sizeof header + header;
  std::vector<std::size_t> sizes;
  for (std::size_t size = 0; size <= data; ++size) sizes.push_back(size);
  for (std::size_t part = 1; part < 16; ++part) {
    sizes.push_back(data + part * (whole.size() - data) / 16);
  }
  sizes.push_back(whole.size() - 1);
  session.read(text(5, 8));
  session.save(folder.path("before"));
  for (const std::size_t size : sizes) {
    CAPTURE(size);
    const std::string path = folder.file("cut", whole.substr(0, size));
    CHECK(contains(thrown<FormatError>([&] { session.load(path); }), path));
  }
  const std::string path = folder.file("longer", whole + '\0');
  CHECK(contains(thrown<FormatError>([&] { session.load(path); }), path));
  session.save(folder.path("after"));
  CHECK(content_of(folder.path("before")) == content_of(folder.path("after")));
}

TEST_SUITE("slow") {
  TEST_CASE("session file: no change of one byte of the header makes an impossible state") {
    const TemporaryFolder folder;
    FloatSession saved = reader();
    saved.save(folder.path("state"));
    const std::string whole = content_of(folder.path("state"));
    std::uint64_t header = 0;
    std::memcpy(&header, whole.data(), sizeof header);
    FloatSession session(weights(), learner());
    session.read(text(21, 5));
    const auto before = session.snapshot();
    session.save(folder.path("before"));
    const std::string bytes_before = content_of(folder.path("before"));
    int accepted = 0, refused = 0;
    const auto attempt = [&](std::size_t at, char value) {
      std::string changed = whole;
      if (changed[at] == value) return;
      changed[at] = value;
      CAPTURE(at);
      CAPTURE(value);
      const std::string path = folder.file("changed", changed);
      try {
        session.load(path);
      } catch (const FormatError& error) {
        CHECK(contains(error.what(), path));
        ++refused;
        return;
      }
      ++accepted;
      check_possible(session);
      CHECK(session.state().pending == saved.state().pending);
      session.read(text(10, 4));
      check_possible(session);
      session.restore(before);
    };
    for (std::size_t at = 0; at < sizeof header + header; ++at) {
      for (int bit = 0; bit < 8; ++bit) attempt(at, static_cast<char>(whole[at] ^ (1 << bit)));
      for (const char value : {'0', '1', '9', '-', '.', 'e', '"', '{', '}', '[', ',', ' ', '\0'}) {
        attempt(at, value);
      }
    }
    session.save(folder.path("after"));
    CHECK(content_of(folder.path("after")) == bytes_before);
    MESSAGE(accepted << " changes accepted, " << refused << " refused");
    CHECK(accepted > 0);  // the seed of the random numbers can be anything, say
    CHECK(refused > 20 * accepted / 10);
  }

  TEST_CASE("session file: no change of one byte of the data makes a state that is not finite") {
    const TemporaryFolder folder;
    FloatSession saved = reader();
    saved.save(folder.path("state"));
    const std::string whole = content_of(folder.path("state"));
    std::uint64_t header = 0;
    std::memcpy(&header, whole.data(), sizeof header);
    FloatSession session(weights(), learner());
    for (std::size_t at = sizeof header + header; at < whole.size(); at += 37) {
      CAPTURE(at);
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ 0xff);
      const std::string path = folder.file("changed", changed);
      try {
        session.load(path);
        check_possible(session);
      } catch (const FormatError& error) {
        CHECK(contains(error.what(), path));
      }
    }
  }
}

TEST_CASE("session file: what does not fit, or contradicts itself, is refused in one sentence") {
  const TemporaryFolder folder;
  FloatSession session = reader();
  session.save(folder.path("state"));
  const Parts good(folder.path("state"), "state");
  session.read(text(30, 8));
  const auto refused = [&](std::string_view why, const auto& spoil) {
    Parts parts = good;
    spoil(parts);
    check_refused(folder, session, parts.write(folder.path("spoilt")), why);
  };

  SUBCASE("what it says it is") {
    refused("not a saved session", [](Parts& p) { p.metadata.erase("format"); });
    refused("not a saved session", [](Parts& p) { p.metadata["format"] = "ttt-stat"; });
    refused("its version is 2", [](Parts& p) { p.metadata["version"] = "2"; });
    refused("its version is ,", [](Parts& p) { p.metadata.erase("version"); });
    refused("state: at byte 0", [](Parts& p) { p.metadata.erase("state"); });
    refused("expected an object", [](Parts& p) { p.metadata["state"] = "[1]"; });
    refused("expected an object", [](Parts& p) { p.metadata["state"] = "null"; });
    refused("at byte", [](Parts& p) { p.metadata["state"] = "}"; });
    refused("occurs twice", [](Parts& p) { p.members["tokens"] = "43,\"tokens\":43"; });
    refused("a different model", [](Parts& p) { p.members["model"] = "\"0\""; });
    refused("what learns", [](Parts& p) { p.members["learns"] = "\"0\""; });
    refused("a different chunk", [](Parts& p) { p.members["chunk"] = "16"; });
    refused("a different chunk", [](Parts& p) { p.members["chunk"] = "0"; });
  }
  SUBCASE("members that are missing, or of another kind") {
    for (const auto& member : good.members) {
      const std::string& name = member.first;
      CAPTURE(name);
      refused('"' + name + "\" is missing", [&](Parts& p) { p.members.erase(name); });
      refused(name + ": expected", [&](Parts& p) { p.members[name] = "[]"; });
      refused(name + ": expected", [&](Parts& p) { p.members[name] = "true"; });
    }
    for (const char* name : {"model", "learns", "random_seed", "random_counter"}) {
      refused("expected a hexadecimal number", [&](Parts& p) { p.members[name] = "\"\""; });
      refused("expected a hexadecimal number", [&](Parts& p) { p.members[name] = "\"-1\""; });
      refused("expected a hexadecimal number", [&](Parts& p) { p.members[name] = "\" 1\""; });
      refused("expected a hexadecimal number", [&](Parts& p) { p.members[name] = "\"0x1\""; });
      refused("expected a hexadecimal number",
              [&](Parts& p) { p.members[name] = "\"10000000000000000\""; });
      refused("expected a string", [&](Parts& p) { p.members[name] = "1"; });
    }
    for (const char* name : {"chunk", "tokens", "inner_steps", "skipped_steps", "clipped_steps"}) {
      for (const char* value : {"1.5", "8.0", "1e2", "\"8\"", "null", "1e300",
                                "9223372036854775808", "-9223372036854775809"}) {
        refused("expected an integer", [&](Parts& p) { p.members[name] = value; });
      }
      for (const char* value : {"-1", "-9223372036854775808", "9223372036854775807"}) {
        refused("out of range", [&](Parts& p) { p.members[name] = value; });
      }
    }
  }
  SUBCASE("counters") {
    const auto counters = [&](std::string_view why, std::map<std::string, std::string> values) {
      refused(why, [&](Parts& p) {
        for (const auto& [name, value] : values) p.members[name] = value;
      });
    };
    counters("contradict", {{"inner_steps", "6"}});
    counters("contradict", {{"skipped_steps", "1"}});
    counters("contradict", {{"inner_steps", "1152921504606846976"}});
    counters("contradict", {{"skipped_steps", "1152921504606846976"}});
    counters("contradict", {{"inner_steps", "3"}, {"clipped_steps", "4"}});
    counters("contradict", {{"tokens", "3"}});
    counters("contradict", {{"gradient_norm", "-1"}});
    counters("contradict", {{"gradient_norm", "-1e300"}});
    counters("contradict", {{"inner_steps", "0"}, {"clipped_steps", "0"}});  // and it has a norm
    counters("contradict",
             {{"inner_steps", "0"}, {"clipped_steps", "0"}, {"gradient_norm", "null"}});
    counters("pending has another shape", {{"tokens", "44"}});
    counters("pending has another shape", {{"tokens", "1152921504606846976"}});
    counters(
        "pending has another shape",
        {{"tokens", "0"}, {"inner_steps", "0"}, {"clipped_steps", "0"}, {"gradient_norm", "0"}});
  }
  SUBCASE("tensors") {
    for (const char* name : {"cache", "pending", "marks"}) {
      refused("has no tensor \"" + std::string(name), [&](Parts& p) { p.tensors.erase(name); });
    }
    refused("what it has learned is missing", [](Parts& p) { p.tensors.erase("learned"); });
    for (const auto& member : good.tensors) {
      const std::string& name = member.first;
      CAPTURE(name);
      refused(name + " has another shape", [&](Parts& p) {
        Parts::Tensor& t = p.tensors[name];
        t.shape.push_back(1);
      });
      refused(name + " has another shape", [&](Parts& p) {
        Parts::Tensor& t = p.tensors[name];
        t.shape.assign(1, static_cast<Index>(t.bytes.size() / size_of(t.dtype)) + 1);
        t.bytes.resize(t.bytes.size() + size_of(t.dtype));
      });
      refused(name + " has another shape", [&](Parts& p) {
        p.tensors[name].shape.assign(1, 0);
        p.tensors[name].bytes.clear();
      });
    }
    for (const char* name : {"cache", "learned"}) {
      refused("another element type", [&](Parts& p) { p.tensors[name].dtype = DType::I32; });
      refused("another element type", [&](Parts& p) {
        Parts::Tensor& t = p.tensors[name];
        t.dtype = DType::F64;
        t.bytes.resize(2 * t.bytes.size());
      });
    }
    refused("expected I32", [](Parts& p) { p.tensors["pending"].dtype = DType::U32; });
    refused("expected U8", [](Parts& p) { p.tensors["marks"].dtype = DType::I8; });
    refused("expected U8", [](Parts& p) { p.tensors["marks"].dtype = DType::Bool; });
  }
  SUBCASE("values") {
    for (const Token token :
         {-1, 61, std::numeric_limits<Token>::max(), std::numeric_limits<Token>::min()}) {
      for (const std::size_t at : {0u, 2u}) {
        refused("a pending token", [&](Parts& p) { p.set("pending", at, token); });
      }
    }
    for (const int mark : {4, 7, 128, 255}) {
      refused("a mark is unknown",
              [&](Parts& p) { p.set("marks", 1, static_cast<std::uint8_t>(mark)); });
    }
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const float value : {std::nanf(""), infinity, -infinity}) {
      for (const char* name : {"cache", "learned"}) {
        const std::size_t size = good.tensors.at(name).bytes.size() / sizeof value;
        for (const std::size_t at : {std::size_t{0}, size / 2, size - 1}) {
          refused(std::string(name) + " holds a number that is not finite",
                  [&](Parts& p) { p.set(name, at, value); });
        }
      }
    }
  }
  SUBCASE("what is merely unknown is let through") {
    Parts parts = good;
    parts.members["later"] = "[1,2]";
    parts.metadata["later"] = "";
    session.load(parts.write(folder.path("later")));
    CHECK(test::same_state(session, reader()));
  }
}

TEST_CASE("session file: files of other kinds") {
  const TemporaryFolder folder;
  FloatSession session = reader();
  save(weights(), folder.path("model"));
  check_refused(folder, session, folder.path("model"), "not a saved session");
  check_refused(folder, session, folder.file("text", "Call me Ishmael."), "header");
  check_refused(folder, session, folder.file("empty", ""), "too short");
  for (const std::string& path : {folder.path("missing"), folder.path("")}) {
    CHECK(contains(thrown<Error>([&] { session.load(path); }), path));
  }
  session.save(folder.path("state"));
  const std::string what = thrown<FormatError>(
      [&] { load<TinyReader>(folder.path("state"), eigen::Backend<float>(1)); });
  CHECK(contains(what, folder.path("state")));
  CHECK(contains(what, "has no \"config\""));
  CHECK(test::same_state(session, reader()));
}

TEST_CASE("session file: another learner's state") {
  const TemporaryFolder folder;
  FloatSession session = reader();
  session.save(folder.path("state"));
  FloatSession longer(weights(), {.chunk = 2 * chunk});
  check_refused(folder, longer, folder.path("state"), "a different chunk");
  FloatSession other(weights(), {.chunk = chunk, .what = Learns::SuffixMlps});  // as many weights
  check_refused(folder, other, folder.path("state"), "a different choice of what learns");
  Session<TinyWeights<float>, NoLearning> none(weights(), {.chunk = chunk});
  check_refused(folder, none, folder.path("state"), "a different choice of what learns");
  Session<TinyWeights<double>> wider(weights<double>(), learner());
  check_refused(folder, wider, folder.path("state"), "a different model");
}

TEST_CASE("session file: only its owner may read it") {
  const TemporaryFolder folder;
  const mode_t before = ::umask(0);
  reader().save(folder.file("state", "open to all"));
  ::umask(before);
  struct stat status = {};
  REQUIRE(::stat(folder.path("state").c_str(), &status) == 0);
  CHECK((status.st_mode & 07777u) == 0600);
  CHECK(folder.count() == 1);
}

TEST_CASE("session file: when saving fails, the old file is still there") {
  const TemporaryFolder folder;
  FloatSession session = reader();
  session.save(folder.path("state"));
  const std::string old = content_of(folder.path("state"));
  session.read(text(5, 8));
  const auto fails = [&](std::string_view why) {
    const std::string what = thrown<Error>([&] { session.save(folder.path("state")); });
    CHECK(contains(what, folder.path("state")));
    CHECK(contains(what, why));
  };
  for (const rlim_t limit : {0u, 100u, 4096u}) {
    const FileSizeLimit full(limit);
    fails("File too large");
  }
  std::filesystem::permissions(folder.path(""), std::filesystem::perms(0555));
  {
    const OrdinaryUser user;
    fails("Permission denied");
  }
  std::filesystem::permissions(folder.path(""), std::filesystem::perms(0755));
  CHECK(folder.count() == 1);
  CHECK(content_of(folder.path("state")) == old);
  FloatSession again(weights(), learner());
  again.load(folder.path("state"));
  CHECK(test::same_state(again, reader()));
  CHECK(contains(thrown<Error>([&] { session.save(folder.path("none/state")); }),
                 "No such file or directory"));
}
