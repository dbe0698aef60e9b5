// SPDX-License-Identifier: MIT
/// \file
/// The tensors of a Hugging Face model folder: one safetensors file, or several with an index.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <utility>
#include <vector>

#include <ttt/core/error.hpp>
#include <ttt/io/folder.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/mapped_file.hpp>
#include <ttt/io/safetensors.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// Open safetensors files whose tensors have one name each. Immutable; what is found in it is good
/// as long as it lives.
class Shards {
 public:
  static constexpr std::size_t max_files = 4096;

  struct Found {
    const SafeTensors* file = nullptr;
    const TensorInfo* info = nullptr;
  };

  /// Opens `model.safetensors` of a folder or, where there is none, the files that
  /// `model.safetensors.index.json` names. The index is not believed: its files are plain names in
  /// this folder, every tensor it lists is in the file it says and in no other. Throws Error if a
  /// file cannot be read, FormatError if one is not sound.
  static std::shared_ptr<const Shards> open(const std::string& folder, Read how = Read::Map) {
    const std::string single = detail::in_folder(folder, "model.safetensors");
    const std::string index = single + ".index.json";
    struct stat status = {};
    auto shards = std::make_shared<Shards>();
    if (::stat(single.c_str(), &status) != 0 && ::stat(index.c_str(), &status) == 0) {
      shards->open_index(folder, index, how);
    } else {
      shards->add(SafeTensors::open(single, how));
    }
    return shards;
  }

  /// One file alone.
  static std::shared_ptr<const Shards> of(std::shared_ptr<const SafeTensors> file) {
    auto shards = std::make_shared<Shards>();
    shards->add(std::move(file));
    return shards;
  }

  /// The tensor of that name; without an info if there is none. O(log n).
  Found find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? Found() : found->second;
  }

  /// The tensor of that name; throws FormatError if there is none.
  Found at(std::string_view name) const {
    if (const Found found = find(name); found.info != nullptr) return found;
    detail::fail<FormatError>(path_ + ": has no tensor " + detail::quoted(name));
  }

  /// Of the file, or of the index.
  const std::string& path() const { return path_; }

 private:
  void add(std::shared_ptr<const SafeTensors> file) {
    for (const TensorInfo& info : file->tensors()) {
      const auto [place, is_new] = by_name_.try_emplace(info.name, Found{file.get(), &info});
      if (!is_new) {
        detail::fail<FormatError>(file->path() + ": tensor " + detail::quoted(info.name) +
                                  " is also in " + place->second.file->path());
      }
    }
    if (path_.empty()) path_ = file->path();
    files_.push_back(std::move(file));
  }

  void open_index(const std::string& folder, const std::string& index, Read how) {
    path_ = index;
    const MappedFile text(index, how);
    const Json json =
        Json::parse({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()},
                    index, {.depth = 16});
    const std::string what = index + ": weight_map";
    const Json::Object& map = json.at("weight_map", index).object(what);
    std::map<std::string, std::size_t> opened;
    for (const auto& [tensor, value] : map.members()) {
      const std::string& name = value.string(what + ": " + detail::quoted(tensor));
      if (opened.contains(name)) continue;
      check_name(name, what);
      if (opened.size() == max_files) {
        detail::fail<FormatError>(what + ": names more than " + std::to_string(max_files) +
                                  " files");
      }
      opened.emplace(name, files_.size());
      add(SafeTensors::open(detail::in_folder(folder, name), how));
    }
    for (const auto& [tensor, value] : map.members()) {
      const SafeTensors& file = *files_[opened.at(value.string())];
      if (file.find(tensor) == nullptr) {
        detail::fail<FormatError>(file.path() + ": has no tensor " + detail::quoted(tensor) +
                                  ", which " + index + " says it has");
      }
    }
  }

  /// A name must not lead out of the folder, nor to anything but a file of this kind.
  static void check_name(const std::string& name, const std::string& what) {
    constexpr std::string_view ending = ".safetensors";
    const bool plain = name.find_first_of(std::string_view("/\\\0", 3)) == name.npos &&
                       !name.starts_with('.') && name.ends_with(ending) && name.size() <= 255;
    if (!plain) {
      detail::fail<FormatError>(what + ": " + detail::quoted(name) +
                                " is not the plain name of a safetensors file");
    }
  }

  std::string path_;
  std::vector<std::shared_ptr<const SafeTensors>> files_;
  std::map<std::string_view, Found> by_name_;
};

}  // namespace io
}  // namespace ttt::inline TTT_ABI
