// SPDX-License-Identifier: MIT
// The pieces of code that docs/ shows, run: a page quotes the regions between `//! [name]` marks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <span>
#include <stop_token>
#include <string>
#include <support/kernels.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/ttt.hpp>

namespace {

using Attention = ttt::SlidingWindowAttention<256>;
using Reader = ttt::LanguageModel<
    ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
using Learner = ttt::InnerLoop<ttt::Sgd>;
using Session = ttt::Session<ttt::Weights<Reader, ttt::Cpu>, Learner>;

const std::string model = TTT_EXAMPLE_MODELS "/books-byte.safetensors";
const Learner learner{.chunk = 64};

/// Prose of at least `size` bytes, somewhat different each time round.
std::string prose(std::size_t size) {
  std::string text;
  for (int i = 1; text.size() < size; ++i) {
    text += "On day " + std::to_string(i) + " the keeper lit the lamp and wrote it in the book. ";
  }
  return text;
}

Session new_session() {
  return Session(ttt::load<Reader>(model, ttt::Cpu(1)), learner);
}

/// A folder that is gone afterwards.
struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "ttt-docs-XXXXXX";
    path = ::mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const char* name) const { return path / name; }
};

//! [sampler]
/// Draws from the tokens that are at least `share` times as likely as the likeliest.
struct MinP {
  float share = 0.1f;

  ttt::Token operator()(std::span<float> logits, ttt::Random& random) const {
    const float least = *std::max_element(logits.begin(), logits.end()) + std::log(share);
    for (float& logit : logits) {
      if (logit < least) logit = -INFINITY;  // the logits are ours to change
    }
    return ttt::Temperature{}(logits, random);
  }
};
//! [/sampler]

//! [learner]
/// The paper's step at a rate that falls with the number of steps taken.
struct Fading {
  ttt::Index chunk = 64;
  static constexpr std::size_t slots = 0;

  bool learns(const ttt::ParameterName& name) const { return name.role == ttt::Role::DynamicMlp; }
  bool masks(ttt::Token) const { return false; }

  template <class B>
  ttt::Step update(const B& backend, const ttt::Update<typename B::Scalar>& u) const {
    const float rate = 1.0f / std::sqrt(1.0f + static_cast<float>(u.step));
    return ttt::InnerLoop<ttt::Sgd>{.clip = 1.0f, .optimizer = {.rate = rate}}.update(backend, u);
  }
};
//! [/learner]

//! [types]
// Sandwich norms, QK-norm, interleaved RoPE and a tied head are the defaults.
using Small = ttt::Block<ttt::SlidingWindowAttention<256>, ttt::SwiGLU>;
using Learning =
    ttt::Block<ttt::SlidingWindowAttention<256>, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>;
using Demo = ttt::LanguageModel<ttt::Stack<4, Small>, ttt::Stack<2, Learning>>;

// A plain transformer of another kind. Depth and window come from the file.
using Plain =
    ttt::Block<ttt::SlidingWindowAttention<ttt::dynamic, ttt::NoQkNorm, ttt::HalfSplitRope>,
               ttt::SwiGLU, ttt::PreNorm>;
using Other = ttt::LanguageModel<ttt::Stack<ttt::dynamic, Plain>, ttt::Stack<ttt::dynamic, Plain>,
                                 ttt::SeparateHead>;
//! [/types]

}  // namespace

TEST_CASE("docs: a sampler of one's own") {
  Session session = new_session();
  session.read(prose(100));
  CHECK(session.generate(5, MinP{}).size() == 5);
  CHECK(session.generate(5, MinP{.share = 1.0f}).size() == 5);
}

TEST_CASE("docs: a learner of one's own") {
  ttt::Session session(ttt::load<Reader>(model, ttt::Cpu(1)), Fading{});
  const std::string text = prose(300);
  CHECK(session.read(text).inner_steps == static_cast<ttt::Index>(text.size() - 1) / 64);
}

TEST_CASE("docs: models are types") {
  const ttt::Config sizes{.vocabulary = 61,
                          .width = 16,
                          .heads = 2,
                          .hidden = 24,
                          .prefix_blocks = 1,
                          .suffix_blocks = 1,
                          .window = 8,
                          .rope_base = 10000,
                          .eps = 1e-5};
  const auto weights = ttt::initialise<Other>(sizes, ttt::Cpu(1), 1);
  ttt::Session session(weights, Learner{.chunk = 4, .what = ttt::Learns::SuffixMlps});
  CHECK(session.read(std::vector<ttt::Token>(9, 7)).inner_steps == 2);
  CHECK(ttt::load<Demo>(model, ttt::Cpu(1)).model().blocks() == 6);
}

TEST_CASE("docs: freezing") {
  const std::string manual = prose(400), question = prose(200);
  Session session = new_session();
  //! [freeze]
  session.read(manual);  // scored and learned from
  session.freeze();
  auto answer = session.read(question);  // scored with what the manual taught; nothing is learned
  session.learn();                       // from the next chunk without a frozen token on
  //! [/freeze]
  CHECK(answer.inner_steps == 0);
  CHECK(session.counters().inner_steps > 0);
}

TEST_CASE("docs: several documents together") {
  const auto weights = ttt::load<Reader>(model, ttt::Cpu(1));
  const ttt::io::ByteTokenizer bytes;
  const std::string manual = prose(400), letter = prose(90);
  const std::vector<ttt::Token> line_end{'\n'};
  ttt::Session session(weights, learner);
  session.read(prose(200));
  //! [batch]
  ttt::Batch batch(weights, learner, 3);  // three documents, not begun
  const auto reports = batch.read({bytes.encode(manual), bytes.encode(letter), {}});
  batch.adopt(2, session.state());  // the third goes on from where a session stands
  const auto replies = batch.generate(80, ttt::Greedy{}, {.stop_tokens = line_end});
  session.adopt(batch.state(0));  // and the first goes on in that session, which may save it
  //! [/batch]
  CHECK(reports[0].inner_steps == static_cast<ttt::Index>(manual.size() - 1) / 64);
  CHECK(reports[2].tokens == 0);
  for (const auto& reply : replies) CHECK(reply.size() <= 80);
  CHECK(session.counters() == batch.counters(0));
}

TEST_CASE("docs: snapshots and forks") {
  const std::string prompt = prose(300);
  Session session = new_session();
  //! [snapshot]
  session.read(prompt);
  const auto here = session.snapshot();  // a copy of state_bytes() bytes
  auto first = session.generate(50, ttt::Temperature{}, {.seed = 1});
  session.restore(here);
  auto second = session.generate(50, ttt::Temperature{}, {.seed = 2});
  auto other = session.fork();  // goes on by itself, weights shared
  session.reset();              // as new; `other` does not notice
  //! [/snapshot]
  CHECK(first != second);
  CHECK(session.counters().tokens == 0);
  CHECK(other.counters().tokens == static_cast<ttt::Index>(prompt.size()) + 50);
}

TEST_CASE("docs: options of a read") {
  const std::string text = prose(500);
  Session session = new_session();
  std::vector<std::uint8_t> mask(text.size(), 1);
  //! [read_options]
  std::vector<float> scores(text.size());
  std::stop_source stop;
  const auto show = [&](ttt::Index done, ttt::Index total) {
    std::printf("%td of %td\n", done, total);
    if (done > 400) stop.request_stop();
  };
  const auto report = session.read(text, {.loss_mask = mask,  // one a token; 0: not learned from
                                          .nll = scores,      // instead of report.nll
                                          .progress = show,   // after every chunk
                                          .stop = stop.get_token()});
  // report.tokens were consumed; text.substr(report.tokens) is still to be read.
  //! [/read_options]
  CHECK(report.tokens == 449);
  CHECK(report.nll.empty());
  CHECK(std::isnan(scores[0]));
  CHECK(std::isfinite(scores[448]));
}

TEST_CASE("docs: options of a generation") {
  Session session = new_session();
  session.read(prose(300));
  //! [generate]
  const std::vector<ttt::Token> line_end{'\n'};
  std::string line;
  const auto show = [&](ttt::Token token) { line += static_cast<char>(token); };
  session.generate(500, ttt::TopK{.k = 20, .temperature = 0.7f},
                   {.stop_tokens = line_end,  // consumed, not returned
                    .repetition_penalty = 1.1f,
                    .seed = 7,  // else it goes on from the session's own
                    .on_token = show});
  //! [/generate]
  CHECK(line.find('\n') == std::string::npos);
}

TEST_CASE("docs: states in files") {
  const Folder folder;
  const std::string path = folder / "state.safetensors", manual = prose(300);
  {
    //! [save_state]
    Session session = new_session();
    session.read(manual);
    session.save(path);
    //! [/save_state]
  }
  //! [load_state]
  Session session = new_session();
  session.load(path);  // FormatError, and nothing changed, if it belongs to another model
  //! [/load_state]
  CHECK(session.counters().tokens == static_cast<ttt::Index>(manual.size()));
  Session whole = new_session();
  whole.read(manual);
  const std::string rest = prose(200);
  CHECK(session.read(rest).mean_nll() == doctest::Approx(whole.read(rest).mean_nll()));
}

TEST_CASE("docs: models in files") {
  const Folder folder;
  const std::string path = folder / "fresh.safetensors";
  //! [save_model]
  const ttt::Cpu cpu;
  const auto fresh = ttt::initialise(ttt::presets::books_byte, cpu, 1);  // seed 1
  ttt::save(fresh, path);
  //! [/save_model]
  const auto again = ttt::load<decltype(ttt::presets::books_byte)::Model>(path, cpu);
  CHECK(ttt::model_hash(again) == ttt::model_hash(fresh));

  //! [load_options]
  using ttt::io::Json;
  const auto weights = ttt::load<Reader>(
      model, cpu,
      {.read = ttt::io::Read::Copy,                             // the file may change under us
       .config = Json::Object({{"num_key_value_heads", 4}})});  // what the file does not say
  //! [/load_options]
  CHECK(weights.config().key_heads == 4);
}

TEST_CASE("docs: memory") {
  const ttt::Cpu cpu(1);
  //! [memory]
  const auto weights = ttt::load<Reader>(model, cpu);
  std::printf("weights, once a process: %td bytes\n", weights.bytes());
  std::printf("a session at work:       %td bytes\n", Session::required_bytes(weights, learner));
  Session session(weights, learner);
  session.read("Whatever is to be read.");
  std::printf("its state so far:        %td bytes\n", session.state_bytes());
  //! [/memory]
  CHECK(weights.bytes() == 2 * 4'792'320);
  CHECK(Session::required_bytes(weights, learner) > session.state_bytes());
  session.read(prose(100));
  const ttt::Index cache = ttt::Index{2} * 6 * 4 * 320 * 64,
                   learned = ttt::Index{2} * 3 * 256 * 512;
  CHECK(session.state_bytes() / 4 >= cache + learned);
  CHECK(session.state_bytes() / 4 < cache + learned + 100);
}

TEST_CASE("docs: errors") {
  Session session = new_session();
  const std::string text = prose(300);
  std::string said;
  ttt::Index consumed = 0;
  const auto log = [&](const char* what) { said = what; };
  const auto give_up = [](ttt::Index done, ttt::Index) {
    if (done > 128) throw ttt::Error("enough");
  };
  //! [errors]
  try {
    session.read(text, {.progress = give_up});
  } catch (const ttt::ReadError& error) {  // some tokens had been consumed; the cause is nested
    consumed = error.consumed;
    log(error.what());
  } catch (const ttt::Error& error) {  // refused before anything changed
    log(error.what());
  }
  //! [/errors]
  CHECK(consumed == 129);
  CHECK(said.find("enough") != std::string::npos);
  CHECK_THROWS_AS(session.read(std::vector<ttt::Token>{256}), ttt::Error);
  CHECK(session.counters().tokens == 129);
}

TEST_CASE("docs: two backends in one program") {
  const std::string text = prose(200);
  //! [two_backends]
  const ttt::Cpu cpu;                          // float, all processors
  const ttt::eigen::Backend<double> exact(1);  // double, this thread only
  ttt::Session fast(ttt::load<Reader>(model, cpu), learner);
  ttt::Session slow(ttt::load<Reader>(model, exact), learner);
  const double difference = fast.read(text).mean_nll() - slow.read(text).mean_nll();
  //! [/two_backends]
  CHECK(std::abs(difference) < 1e-4);
}
