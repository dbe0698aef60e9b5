// SPDX-License-Identifier: MIT
/// \file
/// From a model file to Weights.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ttt/io/config.hpp>
#include <ttt/io/names.hpp>
#include <ttt/io/place_weights.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// Options of load().
struct LoadOptions {
  io::Read read = io::Read::Map;  // Copy for a file that may change under us
  std::string prefix = {};        // of every tensor's name
  io::Json::Object config = {};   // members of the schema that the file lacks
};

namespace io {

/// Takes a model's parameters from an open file, given its configuration, as place_weights() does.
template <class Model, Backend B>
Weights<Model, B> load_weights(const std::shared_ptr<const SafeTensors>& file, const Config& config,
                               const B& backend, const std::string& prefix = {}) {
  Model model(config);
  const auto find = [&](const ParameterName& name, const Shape& shape) {
    const StoredName stored = authors_name(name);
    const TensorInfo& info = file->at(prefix + stored.tensor);
    std::vector<Index> expected;
    if (stored.index >= 0) {
      const Config& c = model.config();
      expected.push_back(name.layer == "dynamic_mlp" ? c.suffix_blocks
                                                     : c.prefix_blocks + c.suffix_blocks);
    }
    if (name.role != Role::Norm) expected.push_back(shape.rows);
    expected.push_back(shape.cols);
    check_stored_shape(*file, info, expected);
    return StoredTensor{file.get(), &info, std::max<Index>(stored.index, 0) * shape.size()};
  };
  return place_weights(model, backend, file, find);
}

}  // namespace io

/// Loads a model from a safetensors file with the authors' tensor names and the configuration
/// schema of io::read_config in its metadata, under the name `config`.
///
/// Throws Error when the file cannot be read, FormatError when it is damaged, lacks something, or
/// holds another type of model than `Model`: the differences are named.
template <class Model, Backend B>
Weights<Model, B> load(const std::string& path, const B& backend, const LoadOptions& options = {}) {
  const auto file = io::SafeTensors::open(path, options.read);
  const auto found = file->metadata().find("config");
  const bool has_config = found != file->metadata().end();
  if (!has_config && options.config.members().empty()) {
    detail::fail<FormatError>(path + ": the metadata has no \"config\", the model's configuration");
  }
  const std::string what = path + ": config";
  const io::Json stored = has_config ? io::Json::parse(found->second, what) : io::Json::Object();
  std::vector<io::Json::Member> members(stored.object(what).members().begin(),
                                        stored.object(what).members().end());
  for (const auto& member : options.config.members()) members.push_back(member);
  const io::Json json{io::Json::Object(std::move(members), what)};
  const Config config = io::read_config<Model>(json, what);
  return io::load_weights<Model>(file, config, backend, options.prefix);
}

}  // namespace ttt::inline TTT_ABI
