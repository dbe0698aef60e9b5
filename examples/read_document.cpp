// SPDX-License-Identifier: MIT
// Reads a document twice at once, learning from it and not, and says how many bits per byte each
// reading needed along the way. The smaller the number, the better the text was predicted.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unistd.h>
#include <utility>
#include <vector>

#include "support/arguments.hpp"
#include "support/chart.hpp"
#include "support/process.hpp"
#include "support/progress.hpp"
#include "support/windows.hpp"
#include <ttt/io/json.hpp>
#include <ttt/io/utf8.hpp>
#include <ttt/ttt.hpp>

// 6 blocks, the last 2 of which learn while they read.
using Attention = ttt::SlidingWindowAttention<256>;
using Reader = ttt::LanguageModel<
    ttt::Stack<4, ttt::Block<Attention, ttt::SwiGLU>>,
    ttt::Stack<2, ttt::Block<Attention, ttt::DualMLP<ttt::SwiGLU, ttt::SwiGLU>>>>;
using Weights = ttt::Weights<Reader, ttt::Cpu>;
using Learner = ttt::InnerLoop<ttt::Sgd>;
using LearningSession = ttt::Session<Weights, Learner>;
using FrozenSession = ttt::Session<Weights, ttt::NoLearning>;

static constexpr const char* usage = "usage: read_document [OPTION]... FILE";
static constexpr const char* help = R"(
A small language model reads FILE (- is standard input) twice in one go: learning
from it, and frozen as it was trained. Prints how many bits each of the two needed
for a byte, along the document. Any file will do; English prose suits the model best.

  --model PATH         the model; the bundled books-byte.safetensors
  --threads N          how many threads compute; all processors
  --generate N         then continue the document by N bytes, as learned
  --temperature T      of that text: below 1 bolder, above 1 wilder; 0.8
  --seed N             of that text: another number, another text; 0
  --save-state PATH    write what was learned, the state behind the document
  --load-state PATH    go on from such a state; the frozen reading stays a fresh one
  --chart PATH.svg     draw both readings
  --json               print one JSON object and nothing else
  --help               print this

Ctrl-C ends the reading early; the results are of what was read. The exit status is
then 130; otherwise 0, or 1 when something failed, or 2 for a wrong command line.
)";

struct Options {
  std::string document, model, chart, save_state, load_state;
  int threads = 0;
  ttt::Index generate = 0;
  float temperature = 0.8f;
  std::uint64_t seed = 0;
  bool json = false;
};

/// What there is to say about a reading.
struct Result {
  examples::Windows windows;
  ttt::Index inner_steps = 0;
  ttt::Index skipped_steps = 0;
  ttt::Index state_bytes = 0;
  double seconds = 0;  // of the learning reading
  bool complete = false;

  double tokens_per_second() const {
    return static_cast<double>(windows.total().end) / std::max(seconds, 1e-9);
  }
};

/// Nothing if there is only help to print.
static std::optional<Options> parse(int argc, char** argv) {
  const examples::Arguments arguments(argc, argv,
                                      {{"--help", false},
                                       {"-h", false},
                                       {"--json", false},
                                       {"--model"},
                                       {"--threads"},
                                       {"--generate"},
                                       {"--temperature"},
                                       {"--seed"},
                                       {"--save-state"},
                                       {"--load-state"},
                                       {"--chart"}});
  if (arguments.has("--help") || arguments.has("-h")) return std::nullopt;
  if (arguments.rest().empty()) throw examples::UsageError("which document?");
  if (arguments.rest().size() > 1) throw examples::UsageError("one document at a time, please");
  Options options;
  options.document = arguments.rest().front();
  options.model = arguments.text("--model", TTT_EXAMPLE_MODELS "/books-byte.safetensors");
  options.threads = arguments.number("--threads", 0, 1, 1024);
  options.generate = arguments.number<ttt::Index>("--generate", 0, 0, 1'000'000'000);
  options.temperature = arguments.number("--temperature", 0.8f, 0.01f, 100.0f);
  options.seed = arguments.number<std::uint64_t>("--seed", 0, 0, UINT64_MAX);
  options.save_state = arguments.text("--save-state");
  options.load_state = arguments.text("--load-state");
  options.chart = arguments.text("--chart");
  options.json = arguments.has("--json");
  return options;
}

/// Says once when the program is several times slower than the processor could be.
static void warn_if_slow() {
#if defined(__x86_64__)
  const std::string_view sets = ttt::Cpu::instruction_sets();
  if (sets.find("SSE3") == sets.npos && sets.find("AVX") == sets.npos) {
    std::fputs(
        "read_document: built for baseline SSE2, several times slower than need be; "
        "configure with -DTTT_NATIVE=ON\n",
        stderr);
  }
#endif
}

/// Both sessions go through the document together, a piece at a time.
static Result read(examples::Document& document, LearningSession& learning, FrozenSession& frozen,
                   examples::Interrupt& interrupt) {
  // Pieces that end where chunks do: byte 0 is context, then whole chunks of both.
  constexpr std::size_t piece_size = 2048;
  auto piece = document.next(1 + piece_size, interrupt);
  if (piece.size() < 2 && !interrupt.poll()) {
    throw std::runtime_error(document.name() + (piece.empty() ? " is empty" : " is one byte long") +
                             "; it takes two bytes to predict one from the other");
  }
  Result result;
  examples::Progress progress("reading");
  std::vector<float> learning_nll(1 + piece_size), frozen_nll(1 + piece_size);
  const auto poll = [&](ttt::Index, ttt::Index) { interrupt.poll(); };
  while (!piece.empty()) {
    const examples::Stopwatch watch;
    const auto report =
        learning.read(piece, {.nll = learning_nll, .progress = poll, .stop = interrupt.token()});
    result.seconds += watch.seconds();
    const auto count = static_cast<std::size_t>(report.tokens);
    frozen.read(piece.first(count), {.nll = frozen_nll});
    for (std::size_t i = 0; i < count; ++i) {
      if (result.windows.bytes() == 0) {
        result.windows.skip();
      } else {
        result.windows.add(learning_nll[i], frozen_nll[i]);
      }
    }
    result.inner_steps += report.inner_steps;
    result.skipped_steps += report.skipped_steps;
    progress.update(result.windows.bytes(), document.size());
    if (interrupt.poll()) break;
    piece = document.next(piece_size, interrupt);
  }
  result.state_bytes = learning.state_bytes();
  result.complete = !interrupt.poll();
  return result;
}

static void print_table(const Result& result) {
  const auto windows = result.windows.windows();
  const auto total = result.windows.total();
  const bool small = windows.front().end < 1024;
  const double unit = small ? 1 : 1024;
  std::printf("%19s  %s\n%19s  %10s %10s %10s\n", small ? "byte" : "KB", "    bits per byte", "",
              "learning", "frozen", "saved");
  for (const auto& window : windows) {
    std::printf("%8.0f - %8.*f  %10.3f %10.3f %8.1f %%\n", static_cast<double>(window.begin) / unit,
                window.end == total.end && !small ? 1 : 0, static_cast<double>(window.end) / unit,
                window.learning(), window.frozen(), window.saved());
  }
  std::printf("%19s  %10.3f %10.3f %8.1f %%\n", "all", total.learning(), total.frozen(),
              total.saved());
  std::printf("\n%lld bytes, %lld inner steps, %.0f tokens/s while learning\n",
              static_cast<long long>(total.end), static_cast<long long>(result.inner_steps),
              result.tokens_per_second());
  std::printf("state %.1f MB, peak memory %.1f MB\n", static_cast<double>(result.state_bytes) / 1e6,
              static_cast<double>(examples::peak_rss_bytes()) / 1e6);
}

/// The bytes as UTF-8, with U+FFFD for those that are none.
static std::string as_utf8(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const std::size_t valid = ttt::io::find_invalid_utf8(bytes);
    text += bytes.substr(0, valid);
    if (valid == bytes.size()) break;
    ttt::io::append_utf8(text, 0xfffd);
    bytes.remove_prefix(valid + 1);
  }
  return text;
}

static std::string json(const Result& result, const std::string& generated) {
  using ttt::io::Json;
  using Members = std::vector<Json::Member>;
  const auto object = [](Members members) { return Json(Json::Object(std::move(members))); };
  Json::Array windows;
  for (const auto& window : result.windows.windows()) {
    windows.push_back(object({{"begin", window.begin},
                              {"end", window.end},
                              {"learning", window.learning()},
                              {"frozen", window.frozen()}}));
  }
  const auto total = result.windows.total();
  Members members = {
      {"bytes", total.end},
      {"complete", result.complete},
      {"bits_per_byte", object({{"learning", total.learning()}, {"frozen", total.frozen()}})},
      {"windows", std::move(windows)},
      {"seconds", result.seconds},
      {"tokens_per_second", result.tokens_per_second()},
      {"inner_steps", result.inner_steps},
      {"skipped_steps", result.skipped_steps},
      {"state_bytes", result.state_bytes},
      {"peak_rss_bytes", examples::peak_rss_bytes()}};
  if (!generated.empty()) members.emplace_back("generated", as_utf8(generated));
  return object(std::move(members)).dump();
}

static std::string chart(const Result& result, const std::string& document) {
  const auto total = result.windows.total();
  const auto windows = result.windows.windows();
  const bool small = windows.front().end < 1024;
  const double unit = small ? 1 : 1024;
  const auto print = [](const char* format, auto... values) {
    char text[128];
    std::snprintf(text, sizeof text, format, values...);
    return std::string(text);
  };
  examples::LineChart chart{
      .title = "Reading " + std::filesystem::path(document).filename().string(),
      .subtitle = print("Learning on the way %s %.1f %% of the bits. Points are means over %g %s.",
                        total.saved() < 0 ? "costs" : "saves", std::abs(total.saved()),
                        static_cast<double>(windows.front().end) / unit, small ? "bytes" : "KB"),
      .x_title = small ? "position in the document (bytes)" : "position in the document (KB)",
      .y_title = "bits per byte",
      .x_end = static_cast<double>(total.end) / unit,
      .curves = {{"frozen", print("%.3f overall", total.frozen()), "#6e7781", {}},
                 {"learning", print("%.3f overall", total.learning()), "#0969da", {}}}};
  for (const auto& window : windows) {
    const double middle = static_cast<double>(window.begin + window.end) / 2 / unit;
    chart.curves[0].points.push_back({middle, window.frozen()});
    chart.curves[1].points.push_back({middle, window.learning()});
  }
  return chart.svg();
}

/// Continues the document, as it comes when it is to be seen.
static std::string generate(LearningSession& session, const Options& options,
                            examples::Interrupt& interrupt) {
  examples::Progress progress("writing");
  const bool streams = !options.json;
  if (streams) std::printf("\nIt might go on like this:\n\n");
  const bool is_terminal = ::isatty(STDOUT_FILENO) != 0;
  std::string text;
  const auto on_token = [&](ttt::Token token) {
    text += static_cast<char>(token);
    if (streams) {
      const bool controls = (token < 32 && token != '\n' && token != '\t') || token == 127;
      std::putchar(controls && is_terminal ? '?' : token);
      std::fflush(stdout);
    } else {
      progress.update(static_cast<std::int64_t>(text.size()), options.generate);
    }
    interrupt.poll();
  };
  session.generate(options.generate, ttt::TopP{.p = 0.95f, .temperature = options.temperature},
                   {.seed = options.seed, .on_token = on_token, .stop = interrupt.token()});
  if (streams) std::printf("\n");
  return text;
}

static int run(const Options& options) {
  examples::Interrupt interrupt;
  examples::Document document(options.document);
  for (const std::string& path : {options.chart, options.save_state}) {
    if (!path.empty()) examples::check_writable(path);
  }
  warn_if_slow();

  const ttt::Cpu cpu(options.threads);
  const auto weights = ttt::load<Reader>(options.model, cpu);
  const ttt::Index chunk = weights.config().chunk > 0 ? weights.config().chunk : 64;
  LearningSession learning(weights,
                           Learner{.chunk = chunk, .clip = 1.0f, .optimizer = {.rate = 1.0f}});
  FrozenSession frozen(weights, ttt::NoLearning{.chunk = 256});
  if (!options.load_state.empty()) learning.load(options.load_state);

  const Result result = read(document, learning, frozen, interrupt);
  if (result.windows.total().scored == 0) {
    std::fputs("read_document: stopped before there was anything to tell\n", stderr);
    return 130;
  }
  if (!options.json) print_table(result);
  if (!options.chart.empty()) examples::write_file(options.chart, chart(result, document.name()));
  if (!options.save_state.empty()) learning.save(options.save_state);
  std::string generated;
  if (options.generate > 0 && result.complete) generated = generate(learning, options, interrupt);
  if (options.json) std::printf("%s\n", json(result, generated).c_str());
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("cannot write to standard output");
  }
  if (interrupt.poll()) std::fputs("read_document: interrupted\n", stderr);
  return interrupt.poll() ? 130 : 0;
}

int main(int argc, char** argv) {
  try {
    const auto options = parse(argc, argv);
    if (options) return run(*options);
    std::printf("%s\n%s", usage, help);
    return 0;
  } catch (const examples::UsageError& error) {
    std::fprintf(stderr, "read_document: %s\n%s (--help says more)\n", error.what(), usage);
    return 2;
  } catch (const std::exception& error) {
    std::string_view what = error.what();
    if (what.starts_with("ttt: ")) what.remove_prefix(5);
    std::fprintf(stderr, "read_document: %.*s\n", static_cast<int>(what.size()), what.data());
    return 1;
  }
}
