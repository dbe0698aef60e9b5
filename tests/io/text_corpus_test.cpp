// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <set>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "limits.hpp"
#include "temporary.hpp"
#include <ttt/core/random.hpp>
#include <ttt/io/text_corpus.hpp>

using ttt::Index;
using ttt::Token;
using ttt::io::CorpusSplit;
using ttt::io::FixedSlices;
using ttt::io::RandomWindows;
using ttt::io::SampleSource;
using ttt::io::TextCorpus;
using ttt_test::contains;
using ttt_test::OrdinaryUser;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

namespace {

std::vector<std::string> texts_of(const TextCorpus& corpus) {
  std::vector<std::string> texts;
  for (Index i = 0; i < corpus.documents(); ++i) texts.emplace_back(corpus.document(i));
  return texts;
}

std::vector<std::string> names_of(const TextCorpus& corpus) {
  std::vector<std::string> names;
  for (Index i = 0; i < corpus.documents(); ++i) names.push_back(corpus.name(i));
  return names;
}

/// A sample as the bytes its tokens stand for.
template <SampleSource Source>
std::string sample(const Source& source, Index index) {
  std::vector<Token> tokens(static_cast<std::size_t>(source.length()) + 1, -1);
  source.sample(index, tokens);
  std::string text;
  for (const Token token : tokens) {
    CHECK(token >= 0);
    CHECK(token < 256);
    text += static_cast<char>(token);
  }
  return text;
}

void make_folder(const std::string& path) {
  REQUIRE(std::filesystem::create_directory(path));
}

/// Bytes of which no two that are less than 256 apart are the same.
std::string counting(std::size_t size, int first = 0) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(static_cast<int>(i) + first);
  return text;
}

/// As many documents as asked for, of 100 to 199 bytes.
TextCorpus many(const TemporaryFolder& folder, int documents) {
  std::vector<std::string> paths;
  for (int i = 0; i < documents; ++i) {
    const std::size_t size = 100 + ttt::Random::at(1, static_cast<std::uint64_t>(i)) % 100;
    paths.push_back(folder.file("d" + std::to_string(1000 + i), counting(size, i)));
  }
  return TextCorpus::open(paths);
}

}  // namespace

TEST_CASE("text corpus: files and folders, in the order of their paths") {
  const TemporaryFolder folder;
  make_folder(folder.path("texts"));
  make_folder(folder.path("texts/b"));
  make_folder(folder.path("texts/b/deep"));
  make_folder(folder.path("texts/.hidden"));
  make_folder(folder.path("texts/empty"));
  const std::string last = folder.file("texts/z", "last");
  const std::string deep = folder.file("texts/b/deep/x", "deep");
  const std::string second = folder.file("texts/b/y.txt", "second");
  const std::string first = folder.file("texts/a", "first");
  const std::string alone = folder.file("alone", std::string("\0\xff", 2));
  folder.file("texts/nothing", "");
  folder.file("texts/.secret", "secret");
  folder.file("texts/.hidden/x", "hidden");
  REQUIRE(::mkfifo(folder.path("texts/pipe").c_str(), 0600) == 0);

  const TextCorpus corpus = TextCorpus::open({folder.path("texts"), alone});
  CHECK(names_of(corpus) == std::vector<std::string>{alone, first, deep, second, last});
  CHECK(texts_of(corpus) ==
        std::vector<std::string>{std::string("\0\xff", 2), "first", "deep", "second", "last"});
  CHECK(corpus.documents() == 5);
  CHECK(corpus.bytes() == 2 + 5 + 4 + 6 + 4);

  // Neither the order given nor slashes nor names twice make a difference.
  const TextCorpus again = TextCorpus::open({alone, deep, folder.path("texts//"), alone});
  CHECK(names_of(again) == names_of(corpus));
  CHECK(texts_of(TextCorpus::open({folder.path("texts")}, ttt::io::Read::Copy)).size() == 4);
  CHECK(texts_of(TextCorpus::open({folder.path("texts/.hidden")})).at(0) == "hidden");
  CHECK(texts_of(TextCorpus::open({folder.path("texts/.secret")})).at(0) == "secret");
  CHECK(contains(thrown<ttt::Error>([&] { corpus.document(5); }), "no document 5 of 5"));
  CHECK(contains(thrown<ttt::Error>([&] { corpus.name(-1); }), "no document -1 of 5"));
}

TEST_CASE("text corpus: symbolic links are followed, each file is taken once, loops end") {
  const TemporaryFolder folder;
  make_folder(folder.path("texts"));
  make_folder(folder.path("elsewhere"));
  const std::string own = folder.file("texts/a", "own");
  folder.file("elsewhere/x", "linked folder");
  folder.file("y", "linked file");
  std::filesystem::create_directory_symlink(folder.path("texts"), folder.path("texts/loop"));
  std::filesystem::create_directory_symlink(folder.path("elsewhere"), folder.path("texts/other"));
  std::filesystem::create_directory_symlink(folder.path("texts"), folder.path("elsewhere/back"));
  std::filesystem::create_symlink(folder.path("y"), folder.path("texts/y"));
  std::filesystem::create_symlink(own, folder.path("texts/z"));
  std::filesystem::create_hard_link(own, folder.path("texts/zz"));
  CHECK(names_of(TextCorpus::open({folder.path("texts")})) ==
        std::vector<std::string>{own, folder.path("texts/other/x"), folder.path("texts/y")});
}

TEST_CASE("text corpus: what cannot be had is an error that names it") {
  const TemporaryFolder folder;
  const auto refused = [](const std::vector<std::string>& paths) {
    return thrown<ttt::Error>([&] { TextCorpus::open(paths); });
  };
  const std::string good = folder.file("good", "text");
  CHECK(contains(refused({}), "no paths"));
  CHECK(contains(refused({""}), "No such file"));
  CHECK(contains(refused({good, folder.path("missing")}),
                 "cannot read " + folder.path("missing") + ": No such file"));
  CHECK(contains(refused({"/dev/null"}), "/dev/null: is not a regular file"));

  make_folder(folder.path("texts"));
  CHECK(contains(refused({folder.path("texts")}), "no texts in " + folder.path("texts")));
  folder.file("texts/.hidden", "text");
  CHECK(contains(refused({folder.path("texts")}), "no regular files"));
  const std::string empty = folder.file("texts/empty", "");
  CHECK(contains(refused({folder.path("texts")}), "every file is empty (1 found)"));
  CHECK(contains(refused({folder.path("texts"), empty}), "and the other paths"));

  // Half of what was asked for would be worse than nothing.
  std::filesystem::create_symlink("nowhere", folder.path("texts/dangling"));
  CHECK(contains(refused({good, folder.path("texts")}), "texts/dangling: No such file"));
  std::filesystem::remove(folder.path("texts/dangling"));
  std::filesystem::create_symlink("itself", folder.path("texts/itself"));
  CHECK(contains(refused({good, folder.path("texts")}), "cannot read " + folder.path("texts/its")));
  std::filesystem::remove(folder.path("texts/itself"));

  std::filesystem::permissions(folder.path(""), std::filesystem::perms(0755));
  make_folder(folder.path("texts/locked"));
  std::filesystem::permissions(folder.path("texts/locked"), std::filesystem::perms(0));
  {
    const OrdinaryUser user;
    CHECK(contains(refused({good, folder.path("texts")}),
                   "cannot read the folder " + folder.path("texts/locked")));
  }
  std::filesystem::remove(folder.path("texts/locked"));
  folder.file("texts/secret", "text");
  std::filesystem::permissions(folder.path("texts/secret"), std::filesystem::perms(0));
  {
    const OrdinaryUser user;
    CHECK(contains(refused({good, folder.path("texts")}),
                   "cannot open " + folder.path("texts/secret") + ": Permission denied"));
  }
}

TEST_CASE("text corpus: more files than one process may map" * doctest::test_suite("slow")) {
  const TemporaryFolder folder;
  constexpr int files = 66'000;
  for (int i = 0; i < files; ++i) folder.file(std::to_string(i), std::to_string(i));
  const TextCorpus corpus = TextCorpus::open({folder.path("")});
  REQUIRE(corpus.documents() == files);
  for (Index i = 0; i < files; ++i)
    CHECK(corpus.name(i) == folder.path(std::string(corpus.document(i))));
}

TEST_CASE("text corpus: a split takes whole documents, the same ones every time") {
  const TemporaryFolder folder;
  const TextCorpus corpus = many(folder, 60);
  std::set<std::vector<std::string>> choices;
  std::set<std::string> ever_chosen;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const CorpusSplit split = corpus.split(0.2, seed);
    CHECK(split.train.documents() + split.validation.documents() == corpus.documents());
    CHECK(split.train.bytes() + split.validation.bytes() == corpus.bytes());
    // As close as the shortest document that was left out allows.
    CHECK(static_cast<double>(split.validation.bytes()) <=
          0.2 * static_cast<double>(corpus.bytes()));
    CHECK(split.validation.bytes() + 200 > corpus.bytes() / 5);
    std::vector<std::string> all = names_of(split.train);
    const std::vector<std::string> chosen = names_of(split.validation);
    CHECK(std::is_sorted(all.begin(), all.end()));
    CHECK(std::is_sorted(chosen.begin(), chosen.end()));
    all.insert(all.end(), chosen.begin(), chosen.end());
    std::sort(all.begin(), all.end());
    CHECK(all == names_of(corpus));
    choices.insert(chosen);
    ever_chosen.insert(chosen.begin(), chosen.end());
    CHECK(names_of(TextCorpus::open({folder.path("")}).split(0.2, seed).validation).size() ==
          chosen.size());
  }
  CHECK(choices.size() == 40);
  CHECK(ever_chosen.size() == 60);
  // Written down, so that a run which is resumed years later still tests on what it never read.
  std::string numbers;
  for (const std::string& name : names_of(corpus.split(0.1, 7).validation))
    numbers += name.substr(name.size() - 2) + " ";
  CHECK(numbers == "05 20 26 38 47 52 ");
}

TEST_CASE("text corpus: a split of few, of one, and of none") {
  const TemporaryFolder folder;
  const std::string tiny = folder.file("tiny", "abc");
  const std::string large = folder.file("large", counting(10'000));
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    // The large one is never taken for one percent.
    const CorpusSplit two = TextCorpus::open({tiny, large}).split(0.01, seed);
    CHECK(names_of(two.validation) == std::vector<std::string>{tiny});
    CHECK(names_of(two.train) == std::vector<std::string>{large});
    // Nor are both, however much is asked for; and none is too long when all are.
    CHECK(TextCorpus::open({tiny, large}).split(0.99999999999999994, seed).train.documents() == 1);
    CHECK(names_of(TextCorpus::open({tiny, large}).split(1e-9, seed).validation) ==
          std::vector<std::string>{tiny});
  }
  const TextCorpus one = TextCorpus::open({large});
  CorpusSplit split = one.split(0.1, 3);
  CHECK(texts_of(split.train) == std::vector<std::string>{counting(9'000)});
  CHECK(texts_of(split.validation) == std::vector<std::string>{counting(10'000).substr(9'000)});
  CHECK(names_of(split.validation) == std::vector<std::string>{large});
  CHECK(one.split(1e-9, 3).validation.bytes() == 1);
  CHECK(one.split(0.99999999999999994, 3).train.bytes() == 1);
  CHECK(one.split(0.0, 3).validation.documents() == 0);
  CHECK(one.split(0.0, 3).train.bytes() == 10'000);
  CHECK(TextCorpus().split(0.5, 3).train.documents() == 0);

  // The parts keep the bytes alive.
  split = TextCorpus::open({folder.file("short-lived", "abcdefghij")}).split(0.3, 0);
  std::filesystem::remove(folder.path("short-lived"));
  CHECK(texts_of(split.train) == std::vector<std::string>{"abcdefg"});
  CHECK(texts_of(split.validation) == std::vector<std::string>{"hij"});

  const auto refused = [](const TextCorpus& corpus, double fraction) {
    return thrown<ttt::Error>([&] { corpus.split(fraction, 0); });
  };
  CHECK(contains(refused(one, 1.0), "expected one in [0, 1)"));
  CHECK(contains(refused(one, -0.1), "expected one in [0, 1)"));
  CHECK(contains(refused(one, std::nan("")), "expected one in [0, 1)"));
  CHECK(contains(refused(TextCorpus::open({folder.file("byte", "x")}), 0.1), "byte has one byte"));
}

TEST_CASE("random windows: every place of every document is as likely as any other") {
  const TemporaryFolder folder;
  // 7 + 1 + 12 places, and a document without one.
  const TextCorpus corpus =
      TextCorpus::open({folder.file("a", counting(10, 0)), folder.file("b", counting(4, 50)),
                        folder.file("c", "xyz"), folder.file("d", counting(15, 100))});
  const RandomWindows windows(corpus, 3, 42);
  CHECK(windows.size() == 0);
  CHECK(windows.length() == 3);
  CHECK(windows.corpus().documents() == 4);
  std::vector<int> counts(256);
  constexpr int draws = 20'000;
  for (int i = 0; i < draws; ++i) {
    const std::string text = sample(windows, i);
    const auto first = static_cast<unsigned char>(text[0]);
    CHECK(text == counting(4, first));
    ++counts[first];
  }
  double chi_squared = 0.0;
  for (int first = 0; first < 256; ++first) {
    const bool place = first < 7 || first == 50 || (first >= 100 && first < 112);
    const double expected = place ? draws / 20.0 : 0.0;
    const double difference = counts[static_cast<std::size_t>(first)] - expected;
    if (!place) CHECK(difference == 0.0);
    if (place) chi_squared += difference * difference / expected;
  }
  CHECK(chi_squared < 43.8);  // 19 degrees of freedom, one in a thousand

  // The seed and the index are all there is to it.
  const RandomWindows same(corpus, 3, 42);
  const RandomWindows other(corpus, 3, 43);
  int equal = 0;
  for (int i = 99; i >= 0; --i) {
    CHECK(sample(same, i) == sample(windows, i));
    equal += sample(other, i) == sample(windows, i) ? 1 : 0;
  }
  CHECK(equal < 20);
  CHECK(sample(windows, std::numeric_limits<Index>::max()).size() == 4);
}

TEST_CASE("fixed slices: each once an epoch, in another order the next") {
  const TemporaryFolder folder;
  const std::string a = counting(100, 0);
  const std::string c = counting(41, 120);
  const TextCorpus corpus = TextCorpus::open(
      {folder.file("a", a), folder.file("b", counting(10, 200)), folder.file("c", c)});
  const FixedSlices slices(corpus, 10, 5);
  std::vector<std::string> expected;
  for (std::size_t i = 0; i < 9; ++i) expected.push_back(a.substr(i * 10, 11));  // 9 bytes are left
  for (std::size_t i = 0; i < 4; ++i) expected.push_back(c.substr(i * 10, 11));  // and here none
  std::sort(expected.begin(), expected.end());
  CHECK(slices.size() == 13);
  CHECK(slices.length() == 10);
  CHECK(slices.corpus().bytes() == corpus.bytes());

  std::set<std::vector<std::string>> orders;
  for (Index epoch = 0; epoch < 50; ++epoch) {
    std::vector<std::string> seen;
    for (Index i = 0; i < 13; ++i) seen.push_back(sample(slices, epoch * 13 + i));
    orders.insert(seen);
    std::sort(seen.begin(), seen.end());
    CHECK(seen == expected);
  }
  CHECK(orders.size() == 50);

  const FixedSlices same(corpus, 10, 5);
  const FixedSlices other(corpus, 10, 6);
  int equal = 0;
  for (Index i = 129; i >= 0; --i) {
    CHECK(sample(same, i) == sample(slices, i));
    equal += sample(other, i) == sample(slices, i) ? 1 : 0;
  }
  CHECK(equal < 30);
  CHECK(sample(slices, std::numeric_limits<Index>::max()).size() == 11);
}

TEST_CASE("samples: the draws are recorded, so that a run can be resumed by a later version") {
  const TemporaryFolder folder;
  const TextCorpus corpus = TextCorpus::open({folder.file("a", counting(101))});
  const RandomWindows windows(corpus, 1, 3);
  const FixedSlices slices(corpus, 1, 3);
  std::vector<int> window_starts;
  std::vector<int> slice_starts;
  for (const Index i : {0, 1, 2, 99, 100, 101, 1'000'000}) {
    window_starts.push_back(static_cast<unsigned char>(sample(windows, i)[0]));
    slice_starts.push_back(static_cast<unsigned char>(sample(slices, i)[0]));
  }
  CHECK(window_starts == std::vector<int>{0, 6, 32, 55, 49, 16, 65});
  CHECK(slice_starts == std::vector<int>{80, 89, 29, 96, 32, 91, 26});
}

TEST_CASE("fixed slices: a corpus of one slice, and the shortest samples") {
  const TemporaryFolder folder;
  const TextCorpus corpus = TextCorpus::open({folder.file("a", "ab")});
  const FixedSlices slices(corpus, 1, 0);
  CHECK(slices.size() == 1);
  for (Index i = 0; i < 5; ++i) CHECK(sample(slices, i) == "ab");
  CHECK(sample(RandomWindows(corpus, 1, 0), 3) == "ab");
}

TEST_CASE("samples: bytes above 127 are tokens above 127") {
  const TemporaryFolder folder;
  const FixedSlices slices(TextCorpus::open({folder.file("a", "\x80\xff\n")}), 2, 0);
  std::vector<Token> tokens(3);
  slices.sample(0, tokens);
  CHECK(tokens == std::vector<Token>{128, 255, 10});
}

TEST_CASE_TEMPLATE("samples: what does not fit is refused", Source, RandomWindows, FixedSlices) {
  const TemporaryFolder folder;
  const TextCorpus corpus =
      TextCorpus::open({folder.file("a", "12345678"), folder.file("b", "123")});
  const auto refused = [&](const TextCorpus& texts, Index length) {
    return thrown<ttt::Error>([&] { Source(texts, length, 0); });
  };
  CHECK(contains(refused(corpus, 8), "samples of 8 tokens"));
  CHECK(contains(refused(corpus, 8), "the longest of 2 has 8 bytes"));
  CHECK(contains(refused(corpus, std::numeric_limits<Index>::max()), "no text is long enough"));
  CHECK(contains(refused(TextCorpus(), 8), "the longest of 0 has 0 bytes"));
  CHECK(contains(refused(corpus, 0), "expected at least 1"));
  CHECK(contains(refused(corpus, -1), "expected at least 1"));

  const Source source(corpus, 7, 0);
  CHECK(sample(source, 0) == "12345678");
  std::vector<Token> tokens(9, -1);
  CHECK(contains(thrown<ttt::ShapeError>([&] { source.sample(0, tokens); }),
                 "room for 9 tokens, expected 7 + 1"));
  CHECK(contains(thrown<ttt::ShapeError>([&] { source.sample(0, {}); }), "room for 0 tokens"));
  tokens.pop_back();
  CHECK(contains(thrown<ttt::Error>([&] { source.sample(-1, tokens); }), "-1 is negative"));
  CHECK(tokens == std::vector<Token>(8, -1));
}

TEST_CASE("permuted: every number once, and each anywhere") {
  using ttt::detail::permuted;
  for (Index count = 1; count <= 130; ++count) {
    std::vector<int> seen(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) {
      const Index to = permuted(i, count, 9);
      REQUIRE(to >= 0);
      REQUIRE(to < count);
      ++seen[static_cast<std::size_t>(to)];
    }
    CHECK(std::count(seen.begin(), seen.end(), 1) == count);
  }
  // Where the first goes, and by how much the second lies behind it, over many keys.
  for (const Index count : {2, 3, 5, 16, 17}) {
    std::vector<int> first(static_cast<std::size_t>(count));
    std::vector<int> distance(static_cast<std::size_t>(count));
    const int keys = 2000 * static_cast<int>(count);
    for (int key = 0; key < keys; ++key) {
      const Index a = permuted(0, count, static_cast<std::uint64_t>(key));
      const Index b = permuted(1, count, static_cast<std::uint64_t>(key));
      ++first[static_cast<std::size_t>(a)];
      ++distance[static_cast<std::size_t>((b - a + count) % count)];
    }
    CAPTURE(count);
    for (const int n : first) CHECK(std::abs(n - 2000) < 250);
    CHECK(distance[0] == 0);
    for (std::size_t i = 1; i < distance.size(); ++i)
      CHECK(std::abs(distance[i] - keys / (count - 1)) < 350);
  }
  constexpr Index huge = std::numeric_limits<Index>::max();
  std::set<Index> seen;
  for (Index i = 0; i < 100; ++i) seen.insert(permuted(huge - 1 - i, huge, 1));
  CHECK(seen.size() == 100);
}
