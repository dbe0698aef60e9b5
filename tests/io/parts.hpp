// SPDX-License-Identifier: MIT
/// \file
/// A safetensors file taken apart, to be put together wrongly: for tests of what is refused.
#pragma once

#include <cstddef>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/io/json.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/io/safetensors_writer.hpp>

namespace ttt_test {

/// Tensors, metadata, and the members of the JSON object that one entry of the metadata is.
struct Parts {
  struct Tensor {
    ttt::DType dtype = ttt::DType::F32;
    std::vector<ttt::Index> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::string> members;  // each as JSON, or as what is not JSON
  std::string entry;

  Parts(const std::string& path, const std::string& entry_) : entry(entry_) {
    const auto file = ttt::io::SafeTensors::open(path);
    metadata = file->metadata();
    for (const ttt::io::TensorInfo& info : file->tensors()) {
      const auto bytes = file->bytes(info);
      tensors[info.name] = {info.dtype, info.shape, {bytes.begin(), bytes.end()}};
    }
    const auto json = ttt::io::Json::parse(metadata.at(entry));
    for (const auto& [name, value] : json.object().members()) members[name] = value.dump();
  }

  /// Writes the file and returns its path. The members go into their entry, unless that is gone or
  /// is no object any more.
  std::string write(const std::string& path) const {
    std::vector<ttt::io::TensorToWrite> list;
    list.reserve(tensors.size());
    for (const auto& [name, tensor] : tensors) {
      list.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
    }
    auto all = metadata;
    if (all.contains(entry) && all[entry].starts_with('{')) {
      std::string text;
      for (const auto& [name, value] : members) {
        text.append(text.empty() ? "{\"" : ",\"").append(name).append("\":").append(value);
      }
      all[entry] = text.empty() ? "{}" : text + "}";
    }
    ttt::io::write_safetensors(path, list, all);
    return path;
  }

  /// Overwrites one element of a tensor.
  template <class T>
  void set(const std::string& name, std::size_t index, T value) {
    std::vector<std::byte>& bytes = tensors.at(name).bytes;
    REQUIRE((index + 1) * sizeof(T) <= bytes.size());
    std::memcpy(bytes.data() + index * sizeof(T), &value, sizeof(T));
  }
};

}  // namespace ttt_test
