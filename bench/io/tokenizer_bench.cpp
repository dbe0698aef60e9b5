// SPDX-License-Identifier: MIT
// Encoding and decoding, on one thread. By default with the small tokenizers of tests/golden on the
// docs; TTT_BENCH_TOKENIZER and TTT_BENCH_TEXT name a tokenizer.json and a text of one's own.
// tests/tokenizers/compare.py has the figures of the other libraries beside ours.
//
//   words     cutting into words alone: as fast as encoding could be
//   normal    the look at each character that normal form costs where nothing changes
//   encode    one call for the whole text
//   lines     a call for each line, as a chat would
//   decode    back to text

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <benchmark/benchmark.h>

#include <ttt/io/mapped_file.hpp>
#include <ttt/io/tokenizer.hpp>

namespace {

using namespace ttt;

std::string content_of(const std::string& path) {
  const io::MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

const std::string& text() {
  static const std::string all = [] {
    if (const char* const path = std::getenv("TTT_BENCH_TEXT")) return content_of(path);
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::directory_iterator(TTT_SOURCE_DIR "/docs"))
      if (entry.path().extension() == ".md") paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    std::string joined;
    for (const std::string& path : paths) joined += content_of(path);
    return joined;
  }();
  return all;
}

io::BpeTokenizer tokenizer(const std::string& name) {
  if (const char* const path = std::getenv("TTT_BENCH_TOKENIZER")) return io::load_tokenizer(path);
  return io::load_tokenizer(TTT_SOURCE_DIR "/tests/golden/tokenizer_" + name + ".json");
}

void measure(benchmark::State& state, const auto& call) {
  for (auto _ : state) benchmark::DoNotOptimize(call());
  state.SetBytesProcessed(static_cast<std::int64_t>(text().size()) * state.iterations());
}

void words(benchmark::State& state, io::WordPattern pattern) {
  measure(state, [&] {
    io::WordScanner scanner(pattern, text());
    std::size_t count = 0;
    while (!scanner.next().empty()) ++count;
    return count;
  });
}

void normal(benchmark::State& state) {
  std::string buffer;
  measure(state, [&] { return io::to_nfc(text(), buffer).size(); });
}

void encode(benchmark::State& state, const std::string& name) {
  const io::BpeTokenizer bpe = tokenizer(name);
  measure(state, [&] { return bpe.encode(text()).size(); });
}

void lines(benchmark::State& state, const std::string& name) {
  const io::BpeTokenizer bpe = tokenizer(name);
  measure(state, [&] {
    std::size_t count = 0;
    for (std::string_view rest = text(); !rest.empty();) {
      const std::size_t size = std::min(rest.find('\n'), rest.size() - 1) + 1;
      count += bpe.encode(rest.substr(0, size), {.add_special = false}).size();
      rest.remove_prefix(size);
    }
    return count;
  });
}

void decode(benchmark::State& state, const std::string& name) {
  const io::BpeTokenizer bpe = tokenizer(name);
  const std::vector<Token> tokens = bpe.encode(text());
  measure(state, [&] { return bpe.decode(tokens).size(); });
}

void load(benchmark::State& state, const std::string& name) {
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer(name).vocabulary());
}

BENCHMARK_CAPTURE(words, llama3, io::WordPattern::Llama3);
BENCHMARK_CAPTURE(words, gpt2, io::WordPattern::Gpt2);
BENCHMARK(normal);
BENCHMARK_CAPTURE(encode, llama3, "llama3");
BENCHMARK_CAPTURE(encode, qwen, "qwen");
BENCHMARK_CAPTURE(lines, llama3, "llama3");
BENCHMARK_CAPTURE(decode, llama3, "llama3");
BENCHMARK_CAPTURE(load, llama3, "llama3");

}  // namespace
