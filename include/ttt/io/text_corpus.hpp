// SPDX-License-Identifier: MIT
/// \file
/// Training data: the bytes of text files, split into two parts and cut into samples.
#pragma once

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/core/random.hpp>
#include <ttt/fwd.hpp>
#include <ttt/io/folder.hpp>
#include <ttt/io/mapped_file.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Appends the file, or the regular files under the folder, to `found`, unless `seen` has them.
inline void find_texts(const std::string& path, bool given,
                       std::set<std::pair<::dev_t, ::ino_t>>& seen,
                       std::vector<std::string>& found) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) fail_system(errno, "cannot read " + path);
  const bool folder = S_ISDIR(status.st_mode);
  if (!folder && !S_ISREG(status.st_mode) && !given) return;
  // Also where a loop of symbolic links ends.
  if (!seen.emplace(status.st_dev, status.st_ino).second) return;
  if (!folder) return found.push_back(path);
  for (const std::string& name : names_in(path))
    if (name.front() != '.') find_texts(in_folder(path, name), false, seen, found);
}

/// Where i of 0, ..., count - 1 goes in the permutation that the key names: a Feistel network (Luby
/// and Rackoff 1988) over the least even number of bits that will do, repeated until it arrives
/// below count (Black and Rogaway 2002), which takes fewer than four turns on average.
constexpr Index permuted(Index i, Index count, std::uint64_t key) {
  constexpr std::uint64_t rounds = 8;
  const auto size = static_cast<std::uint64_t>(count);
  const int half = (static_cast<int>(std::bit_width(size - 1)) + 1) / 2;
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  auto x = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = x >> half;
    std::uint64_t right = x & mask;
    for (std::uint64_t round = 0; round < rounds; ++round) {
      const std::uint64_t mixed = left ^ (Random::at(key, (round << 32) | right) & mask);
      left = std::exchange(right, mixed);
    }
    x = (left << half) | right;
  } while (x >= size);
  return static_cast<Index>(x);
}

/// What a seed is used for. Each use has its own numbers, so that one seed can serve a whole run.
enum class Draw : std::uint64_t { Split = 0x73706c6974, Windows, Slices };

constexpr std::uint64_t seed_for(Draw use, std::uint64_t seed) {
  return Random::at(seed, static_cast<std::uint64_t>(use));
}

}  // namespace detail

namespace io {

struct CorpusSplit;

/// Texts to learn from or to be tested on. Each file is one document.
///
/// The bytes are read-only and shared: copies and splits are cheap, and keep alive what they need.
class TextCorpus {
 public:
  /// No documents.
  TextCorpus() = default;

  /// The files, and the regular files in the folders and their folders, sorted by path. Names found
  /// in a folder that begin with a dot are skipped; so are empty files, and what was already found
  /// under another name. Symbolic links are followed.
  ///
  /// A mapped file must not shrink meanwhile; see Read. Throws Error if a path, or anything found
  /// under one, is not there or cannot be read, and if there is no text at all.
  static TextCorpus open(std::vector<std::string> paths, Read how = Read::Map) {
    if (paths.empty()) detail::fail("no paths were given to find texts in");
    const std::string where = paths[0] + (paths.size() > 1 ? " and the other paths" : "");
    for (std::string& path : paths) path = detail::without_slashes(std::move(path));
    std::sort(paths.begin(), paths.end());
    std::set<std::pair<::dev_t, ::ino_t>> seen;
    std::vector<std::string> found;
    for (const std::string& path : paths) detail::find_texts(path, true, seen, found);
    std::sort(found.begin(), found.end());

    // Linux gives a process about 65,000 mappings. The files beyond these are copied.
    constexpr std::size_t most_mapped = 30'000;
    TextCorpus corpus;
    for (const std::string& path : found) {
      const bool map = how == Read::Map && corpus.documents_.size() < most_mapped;
      auto file = std::make_shared<const MappedFile>(path, map ? Read::Map : Read::Copy);
      const std::span<const std::byte> bytes = file->bytes();
      if (!bytes.empty())
        corpus.add({std::move(file), {reinterpret_cast<const char*>(bytes.data()), bytes.size()}});
    }
    if (found.empty())
      detail::fail("no texts in " + where + ": no regular files with names that are not hidden");
    if (corpus.documents_.empty())
      detail::fail("no texts in " + where + ": every file is empty (" +
                   std::to_string(found.size()) + " found)");
    return corpus;
  }

  /// How many there are.
  Index documents() const { return static_cast<Index>(documents_.size()); }

  /// The text of a document, at least one byte.
  std::string_view document(Index i) const { return at(i).text; }

  /// The path of its file; two corpora have the same one when a split has cut it.
  const std::string& name(Index i) const { return at(i).file->path(); }

  /// Of all documents.
  Index bytes() const { return bytes_; }

  /// Sets texts aside for validation, which nothing is trained on: a pure function of the
  /// documents' lengths, their order and the seed.
  ///
  /// Whole documents are taken in an order drawn from the seed, each if the bytes taken stay within
  /// the fraction; if no document is that short, the shortest alone. The end of the text is taken
  /// if there is just one. A fraction of 0 takes nothing.
  ///
  /// Throws Error unless 0 <= validation_fraction < 1, and if the only text has a single byte.
  CorpusSplit split(double validation_fraction, std::uint64_t seed) const;

 private:
  struct Document {
    std::shared_ptr<const MappedFile> file;
    std::string_view text;
  };

  const Document& at(Index i) const {
    if (i < 0 || i >= documents())
      detail::fail("text corpus: no document " + std::to_string(i) + " of " +
                   std::to_string(documents()));
    return documents_[static_cast<std::size_t>(i)];
  }

  void add(Document document) {
    bytes_ += static_cast<Index>(document.text.size());
    documents_.push_back(std::move(document));
  }

  std::vector<Document> documents_;
  Index bytes_ = 0;
};

/// What TextCorpus::split() gives: no byte is in both.
struct CorpusSplit {
  TextCorpus train;
  TextCorpus validation;
};

inline CorpusSplit TextCorpus::split(double validation_fraction, std::uint64_t seed) const {
  if (!(validation_fraction >= 0.0 && validation_fraction < 1.0))
    detail::fail("split: the fraction for validation is " + std::to_string(validation_fraction) +
                 ", expected one in [0, 1)");
  if (validation_fraction == 0.0 || documents_.empty()) return {.train = *this, .validation = {}};
  const auto wanted = static_cast<Index>(validation_fraction * static_cast<double>(bytes_));
  const Index most = std::min(wanted, bytes_ - 1);
  CorpusSplit result;
  if (documents_.size() == 1) {
    const auto& [file, text] = documents_[0];
    if (text.size() < 2) detail::fail("split: " + name(0) + " has one byte, expected at least two");
    const std::size_t cut = text.size() - static_cast<std::size_t>(std::max<Index>(most, 1));
    result.train.add({file, text.substr(0, cut)});
    result.validation.add({file, text.substr(cut)});
    return result;
  }

  std::vector<bool> taken(documents_.size());
  Index bytes_taken = 0;
  for (Index i = 0; i < documents(); ++i) {
    const Index drawn =
        detail::permuted(i, documents(), detail::seed_for(detail::Draw::Split, seed));
    const auto length = static_cast<Index>(document(drawn).size());
    if (bytes_taken + length > most) continue;
    bytes_taken += length;
    taken[static_cast<std::size_t>(drawn)] = true;
  }
  if (bytes_taken == 0) {
    const auto shorter = [](const Document& a, const Document& b) {
      return a.text.size() < b.text.size();
    };
    const auto shortest = std::min_element(documents_.begin(), documents_.end(), shorter);
    taken[static_cast<std::size_t>(shortest - documents_.begin())] = true;
  }
  for (std::size_t i = 0; i < documents_.size(); ++i)
    (taken[i] ? result.validation : result.train).add(documents_[i]);
  return result;
}

/// Where a trainer's samples come from. A sample is `length() + 1` tokens that follow each other in
/// a text: all but the last are inputs, all but the first are targets.
///
/// Sample `index`, from 0 up and without end, is a pure function of the source and the index, so a
/// run resumes with an index alone, and several threads may call sample() at once. `size()` is how
/// many samples make an epoch, after which each has been seen once, or 0 if there are no epochs.
template <class S>
concept SampleSource = requires(const S& source, Index index, std::span<Token> out) {
  { source.size() } -> std::same_as<Index>;
  { source.length() } -> std::same_as<Index>;
  source.sample(index, out);  // out: (length + 1)
};

}  // namespace io

namespace detail {

/// The windows of length + 1 bytes that begin at multiples of a stride in each document, numbered
/// in the order of the corpus. Documents that are too short have none.
class TextWindows {
 public:
  TextWindows(io::TextCorpus corpus, Index length, Index stride)
      : corpus_(std::move(corpus)), length_(length), stride_(stride) {
    if (length < 1) fail("samples of " + std::to_string(length) + " tokens, expected at least 1");
    Index count = 0;
    Index longest = 0;
    for (Index i = 0; i < corpus_.documents(); ++i) {
      const auto size = static_cast<Index>(corpus_.document(i).size());
      if (size > length) count += (size - length - 1) / stride + 1;
      longest = std::max(longest, size);
      ends_.push_back(count);
    }
    if (count == 0)
      fail("no text is long enough for samples of " + std::to_string(length) +
           " tokens and one more to predict: the longest of " +
           std::to_string(corpus_.documents()) + " has " + std::to_string(longest) + " bytes");
  }

  Index count() const { return ends_.back(); }
  Index length() const { return length_; }
  const io::TextCorpus& corpus() const { return corpus_; }

  void check(Index index, std::span<const Token> out) const {
    if (index < 0) fail("sample: the index " + std::to_string(index) + " is negative");
    if (static_cast<Index>(out.size()) - 1 != length_)
      fail<ShapeError>("sample: room for " + std::to_string(out.size()) + " tokens, expected " +
                       std::to_string(length_) + " + 1");
  }

  /// Copies a window.
  void copy(Index number, std::span<Token> out) const {
    const auto end = std::upper_bound(ends_.begin(), ends_.end(), number);
    const Index before = end == ends_.begin() ? 0 : *(end - 1);
    const std::string_view text = corpus_.document(end - ends_.begin());
    const auto start = static_cast<std::size_t>((number - before) * stride_);
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<unsigned char>(text[start + i]);
  }

 private:
  io::TextCorpus corpus_;
  Index length_;
  Index stride_;
  std::vector<Index> ends_;  // per document: the windows up to its end
};

}  // namespace detail

namespace io {

/// Samples that begin anywhere in any document long enough, each place as likely as any other (to
/// less than one part in 2^64 / places), for training without epochs.
class RandomWindows {
 public:
  /// Throws Error if no document has length + 1 bytes.
  RandomWindows(TextCorpus corpus, Index length, std::uint64_t seed)
      : windows_(std::move(corpus), length, 1),
        seed_(detail::seed_for(detail::Draw::Windows, seed)) {}

  Index size() const { return 0; }
  Index length() const { return windows_.length(); }
  const TextCorpus& corpus() const { return windows_.corpus(); }

  /// Throws if the index is negative or there is no room for exactly length + 1 tokens.
  void sample(Index index, std::span<Token> out) const {
    windows_.check(index, out);
    const auto places = static_cast<std::uint64_t>(windows_.count());
    const std::uint64_t drawn = Random::at(seed_, static_cast<std::uint64_t>(index));
    windows_.copy(static_cast<Index>(drawn % places), out);
  }

 private:
  detail::TextWindows windows_;
  std::uint64_t seed_;
};

/// Samples that follow each other in every document, each once per epoch, in an order drawn anew
/// for each.
///
/// The last token of a sample, which is only a target, is the first input of the next, so that no
/// token is an input twice in an epoch, or a target twice. What is left at the end of a document,
/// fewer than `length` tokens, is in no sample.
class FixedSlices {
 public:
  /// Throws Error if no document has length + 1 bytes.
  FixedSlices(TextCorpus corpus, Index length, std::uint64_t seed)
      : windows_(std::move(corpus), length, length),
        seed_(detail::seed_for(detail::Draw::Slices, seed)) {}

  Index size() const { return windows_.count(); }
  Index length() const { return windows_.length(); }
  const TextCorpus& corpus() const { return windows_.corpus(); }

  /// Throws if the index is negative or there is no room for exactly length + 1 tokens.
  void sample(Index index, std::span<Token> out) const {
    windows_.check(index, out);
    const std::uint64_t order = Random::at(seed_, static_cast<std::uint64_t>(index / size()));
    windows_.copy(detail::permuted(index % size(), size(), order), out);
  }

 private:
  detail::TextWindows windows_;
  std::uint64_t seed_;
};

static_assert(SampleSource<RandomWindows> && SampleSource<FixedSlices>);

}  // namespace io
}  // namespace ttt::inline TTT_ABI
