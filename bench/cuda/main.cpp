// SPDX-License-Identifier: MIT
// Google Benchmark's options, and --markdown: results as a table.
#include <algorithm>
#include <string_view>

#include <benchmark/benchmark.h>

#include "table.hpp"

int main(int argc, char** argv) {
  char** const end = std::remove_if(argv + 1, argv + argc, [](const char* option) {
    return option == std::string_view("--markdown");
  });
  const bool as_table = end != argv + argc;
  argc = static_cast<int>(end - argv);
  argv[argc] = nullptr;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  ttt::bench::MarkdownTable table;
  benchmark::RunSpecifiedBenchmarks(as_table ? &table : nullptr);
  benchmark::Shutdown();
}
