// SPDX-License-Identifier: MIT
// Reads a text with a Llama or Qwen3 as Hugging Face has it, learning in place while it reads (or
// not), says how well each part of the text was predicted, and continues it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/arguments.hpp"
#include "support/process.hpp"
#include "support/progress.hpp"
#include <ttt/io/tokenizer.hpp>
#include <ttt/ttt.hpp>

static constexpr const char* usage = "usage: read_with_host [OPTION]... MODEL TEXT";
static constexpr const char* help = R"(
MODEL is a folder with config.json, tokenizer.json and model.safetensors, or shards of
it, of a Llama or Qwen3; TEXT is a file. Some of the model's MLPs learn while it reads: those that
something was trained for (docs/hosts.md). Prints the perplexity along the text.

  --targets PATH       what was trained for the model, if it is not in its folder
  --every N            without targets: blocks 0, N, 2N, ... learn, from zeros
  --frozen             do not learn
  --chunk N            tokens after which there is something new to use; 1024
  --rate R             how strongly; 3
  --tokens N           stop after N tokens of the text; 32768
  --generate N         then continue it by N tokens; 0
  --temperature T      of that text; 0.8
  --seed N             of that text; 0
  --threads N          how many threads compute; all processors
  --help               print this
)";

struct Options {
  std::string model, text, targets;
  ttt::Index every = 0, chunk = 1024, tokens = 32768, generate = 0;
  float rate = 3.0f, temperature = 0.8f;
  std::uint64_t seed = 0;
  int threads = 0;
  bool frozen = false;
};

/// Nothing if there is only help to print.
static std::optional<Options> parse(int argc, char** argv) {
  const examples::Arguments arguments(argc, argv,
                                      {{"--help", false},
                                       {"-h", false},
                                       {"--frozen", false},
                                       {"--targets"},
                                       {"--every"},
                                       {"--chunk"},
                                       {"--rate"},
                                       {"--tokens"},
                                       {"--generate"},
                                       {"--temperature"},
                                       {"--seed"},
                                       {"--threads"}});
  if (arguments.has("--help") || arguments.has("-h")) return std::nullopt;
  if (arguments.rest().size() != 2) throw examples::UsageError("which model, and which text?");
  constexpr ttt::Index most = 1 << 24;
  Options options;
  options.model = arguments.rest()[0];
  options.text = arguments.rest()[1];
  options.targets = arguments.text("--targets");
  options.every = arguments.number<ttt::Index>("--every", 0, 1, 4096);
  options.chunk = arguments.number<ttt::Index>("--chunk", options.chunk, 1, most);
  options.rate = arguments.number("--rate", options.rate, 0.0f, 1e6f);
  options.tokens = arguments.number<ttt::Index>("--tokens", options.tokens, 2, most);
  options.generate = arguments.number<ttt::Index>("--generate", 0, 0, most);
  options.temperature = arguments.number("--temperature", options.temperature, 0.01f, 100.0f);
  options.seed = arguments.number<std::uint64_t>("--seed", 0, 0, UINT64_MAX);
  options.threads = arguments.number("--threads", 0, 1, 1024);
  options.frozen = arguments.has("--frozen");
  return options;
}

/// The perplexity along the text, in ten parts, and of all.
static void print_scores(std::span<const float> nll) {
  constexpr std::size_t parts = 10;
  const auto line = [&](const char* what, std::size_t begin, std::size_t end) {
    double sum = 0;
    for (const float nats : nll.subspan(begin, end - begin)) sum += static_cast<double>(nats);
    std::printf("%s%8zu - %8zu  %12.3f\n", what, begin + 2, end + 1,
                std::exp(sum / static_cast<double>(end - begin)));
  };
  std::printf("%6s%19s  %12s\n", "", "tokens", "perplexity");
  for (std::size_t i = 0; i < parts; ++i) {
    const std::size_t begin = i * nll.size() / parts, end = (i + 1) * nll.size() / parts;
    if (begin < end) line("      ", begin, end);
  }
  line("all   ", 0, nll.size());
}

template <class Model>
static void read(const Options& options, ttt::Index blocks, const ttt::Cpu& cpu) {
  ttt::HostOptions from{.in_place_file = options.targets};
  if (options.every > 0) from.in_place = ttt::BlockSet::every(options.every, blocks);
  const auto weights = ttt::load_host<Model>(options.model, cpu, from);
  const bool learns = !options.frozen && !weights.config().in_place.empty();
  std::printf("%.2f billion parameters in %lld blocks, %.2f GB; %s\n",
              static_cast<double>(weights.count()) / 1e9,
              static_cast<long long>(weights.config().prefix_blocks),
              static_cast<double>(weights.bytes()) / 1e9,
              learns           ? "learns in place"
              : options.frozen ? "frozen"
                               : "frozen, for nothing was trained for it to learn with");

  const ttt::io::BpeTokenizer tokenizer = ttt::io::load_tokenizer(options.model);
  if (tokenizer.vocabulary() > weights.config().vocabulary) {  // files leave some rows unused
    throw std::runtime_error("the model has a vocabulary of " +
                             std::to_string(weights.config().vocabulary) +
                             " tokens, the tokenizer " + std::to_string(tokenizer.vocabulary()));
  }
  const ttt::io::MappedFile file(options.text);
  auto tokens =
      tokenizer.encode({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                       {.parse_special = false});
  if (std::ssize(tokens) > options.tokens) {
    tokens.resize(static_cast<std::size_t>(options.tokens));
  }
  if (tokens.size() < 2) throw std::runtime_error(options.text + ": is shorter than two tokens");

  const auto go = [&](const auto& learner) {
    ttt::Session session(weights, learner, {.max_tokens = std::ssize(tokens) + options.generate});
    examples::Progress progress("reading");
    const examples::Stopwatch watch;
    const auto report = session.read(tokens, {.progress = [&](ttt::Index done, ttt::Index total) {
                                       progress.update(done, total);
                                     }});
    const double seconds = watch.seconds();
    print_scores(std::span(report.nll).subspan(1));
    std::printf("\n%zu tokens, %lld chunks learned from, %.1f tokens/s\n", tokens.size(),
                static_cast<long long>(report.inner_steps),
                static_cast<double>(tokens.size()) / std::max(seconds, 1e-9));
    if (report.inner_steps > 0 && session.counters().gradient_norm == 0) {
      std::printf("it learned nothing: what it is to learn is a convolution of zeros\n");
    }
    if (options.generate == 0) return;
    std::printf("\nIt might go on like this:\n\n");
    ttt::io::StreamDecoder decoder(tokenizer);
    const auto on_token = [&](ttt::Token token) {
      // A model may have more rows than there are tokens.
      if (tokenizer.has(token)) std::fputs(decoder.push(token).c_str(), stdout);
      std::fflush(stdout);
    };
    session.generate(options.generate, ttt::TopP{.p = 0.95f, .temperature = options.temperature},
                     {.seed = options.seed, .on_token = on_token});
    std::printf("%s\n", decoder.finish().c_str());
  };
  if (learns) {
    go(ttt::InPlaceLoop{.chunk = options.chunk, .rate = options.rate});
  } else {
    go(ttt::NoLearning{.chunk = options.chunk});
  }
}

/// The types are fixed when a program is built; which of them a folder holds, it says itself.
static void run(const Options& options) {
  const ttt::Cpu cpu(options.threads);
  const std::string what = options.model + "/config.json";
  const auto config = ttt::io::read_host_json(options.model, {}, ttt::io::Read::Map);
  const bool tied = config.at("tie_word_embeddings", what).boolean(what);
  const auto blocks = static_cast<ttt::Index>(config.at("num_hidden_layers", what).integer(what));
  if (blocks < 1 || blocks > ttt::BlockSet::most) {
    throw std::runtime_error(what + ": num_hidden_layers is out of range");
  }
  const bool qwen = config.at("model_type", what).string(what) == "qwen3";
  using Mlp = ttt::InPlaceMLP<>;
  if (qwen && tied) return read<ttt::SlidingQwen3<ttt::TiedHead, Mlp>>(options, blocks, cpu);
  if (qwen) return read<ttt::SlidingQwen3<ttt::SeparateHead, Mlp>>(options, blocks, cpu);
  if (tied) return read<ttt::Llama<ttt::TiedHead, Mlp>>(options, blocks, cpu);
  return read<ttt::Llama<ttt::SeparateHead, Mlp>>(options, blocks, cpu);
}

int main(int argc, char** argv) {
  try {
    const auto options = parse(argc, argv);
    if (options) {
      run(*options);
    } else {
      std::printf("%s\n%s", usage, help);
    }
    return 0;
  } catch (const examples::UsageError& error) {
    std::fprintf(stderr, "read_with_host: %s\n%s (--help says more)\n", error.what(), usage);
    return 2;
  } catch (const std::exception& error) {
    std::string_view what = error.what();
    if (what.starts_with("ttt: ")) what.remove_prefix(5);
    std::fprintf(stderr, "read_with_host: %.*s\n", static_cast<int>(what.size()), what.data());
    return 1;
  }
}
