// SPDX-License-Identifier: MIT
/// \file
/// Finds and loads the tokenizer of a model's folder.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <sys/stat.h>

#include <ttt/core/error.hpp>
#include <ttt/io/bpe_tokenizer.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/rank_file.hpp>
#include <ttt/io/tokenizer_json.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// The largest file that is taken for a tokenizer.
inline constexpr std::size_t max_tokenizer_bytes = std::size_t{1} << 28;

/// Loads a tokenizer from a file, or from the folder of a model: its tokenizer.json, or else its
/// tokenizer.model.
///
/// A file whose name ends in .json is in Hugging Face's format, any other a rank file, which needs
/// the options. Throws Error if there is no such file, FormatError if it cannot be used.
inline BpeTokenizer load_tokenizer(std::string path, const RankFileOptions& options = {}) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
    const std::string folder = path;
    path = folder + "/tokenizer.json";
    if (::stat(path.c_str(), &status) != 0) path = folder + "/tokenizer.model";
    if (::stat(path.c_str(), &status) != 0)
      detail::fail(folder + ": has neither tokenizer.json nor tokenizer.model");
  }
  const MappedFile file(path);
  if (file.bytes().size() > max_tokenizer_bytes)
    detail::fail<FormatError>(path + ": has " + std::to_string(file.bytes().size()) +
                              " bytes, expected at most " + std::to_string(max_tokenizer_bytes));
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  return path.ends_with(".json") ? parse_tokenizer_json(text, path)
                                 : parse_rank_file(text, options, path);
}

}  // namespace io
}  // namespace ttt::inline TTT_ABI
