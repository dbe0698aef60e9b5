// SPDX-License-Identifier: MIT
/// \file
/// The command line of train_bytes.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.hpp"
#include <ttt/layers/config.hpp>
#include <ttt/outer/options.hpp>

namespace examples {

inline constexpr const char* train_usage = "usage: train_bytes [OPTION]... TEXT...";
inline constexpr const char* train_help = R"(
Trains a byte-level language model that learns while it reads (TTT-E2E) on the files
and folders TEXT, on this machine's processor, and says how well it predicts the part
of the text that was set aside: learning on the way, and frozen.

The model (with --from: the file's, and an option that says otherwise is an error)
  --width N             of the residual stream; 128
  --heads N             of attention; 4
  --hidden N            of the MLPs; 256
  --blocks N            all of them; 4
  --learning-blocks N   the last of them, whose dynamic MLPs learn while reading; 1
  --window N            bytes that attention sees; 64
  --chunk N             bytes between two steps of the inner loop; 32

Training
  --length N            bytes of a sequence, a multiple of the chunk; 1024
  --batch N             sequences an update averages over; 4
  --steps N             updates; 400
  --rate X              learning rate, at its highest; 0.003, or 0.001 with --from
  --warmup N            steps until then; a tenth of them. Then down along a cosine
  --decay X             weight decay; 0.1
  --clip X              of the gradient's norm, 0 for none; 1
  --inner-rate X        learning rate of the inner loop; 1
  --inner-warmup N      steps until it is reached, from a tenth of it; a tenth of the
                        steps, or 0 with --from
  --inner-clip X        of the inner gradient's norm, 0 for none; 1
  --plain               train without the inner loop
  --first-order         take inner steps for constants: cheaper, not exact
  --slices              sequences side by side, each once an epoch; else from anywhere
  --seed N              of the weights, the order and what is set aside; 0
  --from PATH           begin with the weights of this model: a second stage, say, with
                        a longer --length

Resources; none of these changes the results
  --threads N           that compute; all processors
  --sequences N         at a time, each in memory of its own; one a thread
  --keep-chunks WHAT    of a sequence, for the way back: all, sqrt (least memory) or N;
                        all
  --recompute           compute the blocks that do not learn again on the way back
  --force               begin even if memory seems too small

Validation
  --validation X        the fraction of the text that is set aside; 0.1
  --evaluate-every N    steps, with a line of output; a tenth of all
  --evaluate-length N   bytes of the pieces that are read; four times --length
  --evaluate-bytes N    read at an evaluation, and four times as many at the end; those
                        of 8 steps

Files
  --out PATH            the trained model, a safetensors file
  --checkpoints DIR     save here what it takes to go on, also on Ctrl-C
  --checkpoint-every N  steps; 100
  --keep N              checkpoints; 2
  --resume              go on from the newest one, to the same bits as if undisturbed;
                        from the beginning if there is none
  --log PATH            a CSV row for each step. The columns validation_learning and
                        validation_frozen, bits per byte after the step, are empty
                        between evaluations. --resume drops the rows it takes again
  --chart PATH          an SVG of the curves, drawn anew at every evaluation
  --help                print this

Ctrl-C and SIGTERM finish the step, save a checkpoint and exit with 0; another one, a
second later, kills. The exit status is 1 when something failed, 2 for a wrong command
line.
)";

/// A value for each option. Sizes are empty where nothing was said.
struct TrainOptions {
  std::vector<std::string> texts;
  std::optional<ttt::Index> width, heads, hidden, blocks, learning_blocks, window, chunk;
  ttt::Index length = 1024, batch = 4, steps = 400;
  double rate = 3e-3;
  ttt::Index warmup = 0;
  double decay = 0.1, clip = 1;
  float inner_rate = 1, inner_clip = 1;
  ttt::Index inner_warmup = 0;
  bool plain = false, first_order = false, slices = false;
  std::uint64_t seed = 0;
  std::string from;
  int threads = 0;
  ttt::MetaOptions meta;
  bool force = false;
  double validation = 0.1;
  ttt::Index evaluate_every = 0, evaluate_length = 0, evaluate_bytes = 0;
  std::string out, checkpoints, log, chart;
  ttt::Index checkpoint_every = 100, keep = 2;
  bool resume = false;
};

namespace train_options_detail {

constexpr ttt::Index most = ttt::Index{1} << 30;

inline ttt::Keep keep_chunks(const Arguments& arguments) {
  const std::string word = arguments.text("--keep-chunks", "all");
  if (word == "all") return ttt::Keep::all();
  if (word == "sqrt") return ttt::Keep::sqrt();
  ttt::Keep keep;
  const char* const end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, keep.chunks);
  if (error != std::errc() || stop != end || keep.chunks < 1) {
    throw UsageError("--keep-chunks must be all, sqrt or a positive number, not \"" + word + "\"");
  }
  return keep;
}

/// The number in as few digits as give it back.
template <class Number>
std::string shortest(Number number) {
  char digits[64];
  return std::string(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

inline void check(const TrainOptions& options) {
  if (options.texts.empty()) throw UsageError("which text?");
  if (options.resume && options.checkpoints.empty()) {
    throw UsageError("--resume takes --checkpoints, to say from where");
  }
  if (options.plain && options.first_order) {
    throw UsageError("--first-order is about the inner loop, of which --plain has none");
  }
}

}  // namespace train_options_detail

/// Nothing if there is only help to print. Throws UsageError.
inline std::optional<TrainOptions> parse_train_options(int argc, const char* const* argv) {
  using ttt::Index;
  constexpr Index most = train_options_detail::most;
  const Arguments arguments(argc, argv,
                            {{"--width"},
                             {"--heads"},
                             {"--hidden"},
                             {"--blocks"},
                             {"--learning-blocks"},
                             {"--window"},
                             {"--chunk"},
                             {"--length"},
                             {"--batch"},
                             {"--steps"},
                             {"--rate"},
                             {"--warmup"},
                             {"--decay"},
                             {"--clip"},
                             {"--inner-rate"},
                             {"--inner-warmup"},
                             {"--inner-clip"},
                             {"--plain", false},
                             {"--first-order", false},
                             {"--slices", false},
                             {"--seed"},
                             {"--from"},
                             {"--threads"},
                             {"--sequences"},
                             {"--keep-chunks"},
                             {"--recompute", false},
                             {"--force", false},
                             {"--validation"},
                             {"--evaluate-every"},
                             {"--evaluate-length"},
                             {"--evaluate-bytes"},
                             {"--out"},
                             {"--checkpoints"},
                             {"--checkpoint-every"},
                             {"--keep"},
                             {"--resume", false},
                             {"--log"},
                             {"--chart"},
                             {"--help", false},
                             {"-h", false}});
  if (arguments.has("--help") || arguments.has("-h")) return std::nullopt;
  const auto size = [&](std::string_view name) -> std::optional<Index> {
    if (!arguments.has(name)) return std::nullopt;
    return arguments.number<Index>(name, 1, 1, most);
  };
  const auto count = [&](std::string_view name, Index otherwise, Index least = 1) {
    return arguments.number<Index>(name, otherwise, least, most);
  };
  TrainOptions o;
  o.texts = arguments.rest();
  o.width = size("--width");
  o.heads = size("--heads");
  o.hidden = size("--hidden");
  o.blocks = size("--blocks");
  o.learning_blocks = size("--learning-blocks");
  o.window = size("--window");
  o.chunk = size("--chunk");
  o.length = count("--length", o.length);
  o.batch = arguments.number<Index>("--batch", o.batch, 1, 1 << 20);
  o.steps = count("--steps", o.steps);
  o.warmup = count("--warmup", o.steps / 10, 0);
  o.decay = arguments.number("--decay", o.decay, 0.0, 1000.0);
  o.clip = arguments.number("--clip", o.clip, 0.0, 1e9);
  o.from = arguments.text("--from");
  o.rate = arguments.number("--rate", o.from.empty() ? o.rate : 1e-3, 0.0, 1000.0);
  o.inner_rate = arguments.number("--inner-rate", o.inner_rate, 0.0f, 1000.0f);
  o.inner_warmup = count("--inner-warmup", o.from.empty() ? o.steps / 10 : 0, 0);
  o.inner_clip = arguments.number("--inner-clip", o.inner_clip, 0.0f, 1e9f);
  o.plain = arguments.has("--plain");
  o.first_order = arguments.has("--first-order");
  o.slices = arguments.has("--slices");
  o.seed = arguments.number<std::uint64_t>("--seed", 0, 0, UINT64_MAX);
  o.threads = arguments.number("--threads", 0, 1, 1024);
  o.meta = {.keep = train_options_detail::keep_chunks(arguments),
            .recompute = arguments.has("--recompute"),
            .sequences = arguments.number<Index>("--sequences", 0, 1, 1024)};
  o.force = arguments.has("--force");
  o.validation = arguments.number("--validation", o.validation, 0.0, 0.99);
  o.evaluate_every = count("--evaluate-every", std::max<Index>(1, o.steps / 10));
  o.evaluate_length = arguments.number<Index>("--evaluate-length", 4 * o.length, 2, 4 * most);
  o.evaluate_bytes =
      arguments.number<Index>("--evaluate-bytes", 8 * o.batch * o.length, 2, Index{1} << 60);
  o.out = arguments.text("--out");
  o.checkpoints = arguments.text("--checkpoints");
  o.checkpoint_every = count("--checkpoint-every", o.checkpoint_every);
  o.keep = count("--keep", o.keep);
  o.resume = arguments.has("--resume");
  o.log = arguments.text("--log");
  o.chart = arguments.text("--chart");
  train_options_detail::check(o);
  return o;
}

/// The model to make. Throws UsageError when sizes do not fit together.
inline ttt::Config new_config(const TrainOptions& options) {
  const ttt::Index blocks = options.blocks.value_or(4);
  const ttt::Index learning = options.learning_blocks.value_or(1);
  if (learning > blocks) {
    throw UsageError("--learning-blocks are some of the " + std::to_string(blocks) +
                     " --blocks, not " + std::to_string(learning));
  }
  ttt::Config config{.vocabulary = 256,
                     .width = options.width.value_or(128),
                     .heads = options.heads.value_or(4),
                     .hidden = options.hidden.value_or(256),
                     .prefix_blocks = blocks - learning,
                     .suffix_blocks = learning,
                     .window = options.window.value_or(64),
                     .rope_base = 10000,
                     .eps = 1e-6,
                     .chunk = options.chunk.value_or(32)};
  if (config.width % (2 * config.heads) != 0) {
    throw UsageError("--width " + std::to_string(config.width) +
                     " is not an even number for each of " + std::to_string(config.heads) +
                     " --heads");
  }
  return config;
}

/// Throws UsageError unless a loaded model has the sizes that were asked for.
inline void check_sizes(const TrainOptions& options, const ttt::Config& config) {
  const auto compare = [&](const char* name, const std::optional<ttt::Index>& asked,
                           ttt::Index has) {
    if (!asked || *asked == has) return;
    throw UsageError(std::string(name) + " is " + std::to_string(*asked) + ", but " + options.from +
                     " has " + std::to_string(has));
  };
  compare("--width", options.width, config.width);
  compare("--heads", options.heads, config.heads);
  compare("--hidden", options.hidden, config.hidden);
  compare("--blocks", options.blocks, config.prefix_blocks + config.suffix_blocks);
  compare("--learning-blocks", options.learning_blocks, config.suffix_blocks);
  compare("--window", options.window, config.window);
  if (config.chunk > 0) compare("--chunk", options.chunk, config.chunk);
}

/// Every option that changes the result, beside the model's own sizes: what a run that is resumed
/// must have in common with the one that wrote the checkpoint. `texts` and `start` are hashes of
/// the text and of the model that it began with.
inline std::string training_settings(const TrainOptions& o, std::uint64_t texts,
                                     std::uint64_t start) {
  std::string out;
  const auto add = [&](const char* name, auto value) {
    out +=
        (out.empty() ? "" : " ") + std::string(name) + " " + train_options_detail::shortest(value);
  };
  add("--steps", o.steps);
  add("--rate", o.rate);
  add("--warmup", o.warmup);
  add("--decay", o.decay);
  add("--clip", o.clip);
  add("--inner-rate", o.inner_rate);
  add("--inner-warmup", o.inner_warmup);
  add("--inner-clip", o.inner_clip);
  add("--seed", o.seed);
  add("--validation", o.validation);
  add("--evaluate-every", o.evaluate_every);
  add("--evaluate-length", o.evaluate_length);
  add("--evaluate-bytes", o.evaluate_bytes);
  if (o.plain) out += " --plain";
  if (o.first_order) out += " --first-order";
  if (o.slices) out += " --slices";
  add("text", texts);
  if (!o.from.empty()) add("from", start);
  return out;
}

}  // namespace examples
