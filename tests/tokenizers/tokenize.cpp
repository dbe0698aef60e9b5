// SPDX-License-Identifier: MIT
// What compare.py runs beside the other tokenizers:
//
//   tokenize TOKENIZER TEXTS RESULTS [llama3|qwen|gpt2 [nfc] [NAME=ID ...]]
//
// TEXTS has texts, each after its length in 4 bytes. RESULTS gets for each the tokens with what the
// file puts round it, the same without and with special tokens as text, and the first decoded with
// everything; each after its length. Prints seconds of processor time: of loading, of encoding, of
// decoding. What follows RESULTS is for rank files.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/io/tokenizer.hpp>

namespace {

using ttt::Token;
using ttt::io::BpeTokenizer;

/// Seconds of this thread's processor, as other programs may run beside.
double now() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

template <class Values>
void put(std::ofstream& out, const Values& values) {
  const auto size = static_cast<std::uint32_t>(values.size());
  out.write(reinterpret_cast<const char*>(&size), sizeof size);
  out.write(reinterpret_cast<const char*>(values.data()),
            static_cast<std::streamsize>(size * sizeof values[0]));
}

ttt::io::RankFileOptions options_of(const std::vector<std::string>& words) {
  ttt::io::RankFileOptions options;
  for (const std::string& word : words) {
    if (word == "llama3") options.pattern = ttt::io::WordPattern::Llama3;
    if (word == "qwen") options.pattern = ttt::io::WordPattern::Qwen;
    if (word == "gpt2") options.pattern = ttt::io::WordPattern::Gpt2;
    if (word == "nfc") options.nfc = true;
    if (const std::size_t equals = word.rfind('='); equals != word.npos)
      options.special.emplace_back(word.substr(0, equals), std::stoi(word.substr(equals + 1)));
  }
  return options;
}

void run(const std::vector<std::string>& words) {
  const double start = now();
  const BpeTokenizer tokenizer =
      ttt::io::load_tokenizer(words.at(0), options_of({words.begin() + 3, words.end()}));
  const double loaded = now();
  std::ofstream out(words.at(2), std::ios::binary);
  const ttt::io::MappedFile file(words.at(1));
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  double encoding = 0, decoding = 0;
  while (!rest.empty()) {
    std::uint32_t size = 0;
    std::memcpy(&size, rest.data(), sizeof size);
    const std::string_view text = rest.substr(sizeof size, size);
    rest.remove_prefix(sizeof size + size);

    const double begin = now();
    const std::vector<Token> tokens = tokenizer.encode(text);
    const double middle = now();
    const std::string decoded = tokenizer.decode(tokens, {.skip_special = false});
    decoding += now() - middle;
    encoding += middle - begin;

    ttt::io::StreamDecoder stream(tokenizer, {.skip_special = false});
    std::string streamed;
    for (const Token token : tokens) streamed += stream.push(token);
    streamed += stream.finish();
    if (streamed != ttt::io::replace_invalid_utf8(decoded)) std::puts("STREAMED DIFFERS");

    put(out, tokens);
    put(out, tokenizer.encode(text, {.add_special = false, .parse_special = false}));
    put(out, decoded);
  }
  std::printf("%.4f %.4f %.4f\n", loaded - start, encoding, decoding);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
