// SPDX-License-Identifier: MIT
/// \file
/// From a Hugging Face model folder to Weights.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ttt/io/host_config.hpp>
#include <ttt/io/load.hpp>
#include <ttt/io/names.hpp>
#include <ttt/io/place_weights.hpp>
#include <ttt/io/shards.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {
namespace io {

/// Takes a model's parameters from open files with Hugging Face's names, as place_weights() does.
template <class Model, Backend B>
Weights<Model, B> load_host_weights(const std::shared_ptr<const Shards>& files,
                                    const Config& config, const B& backend,
                                    const std::string& prefix = {}) {
  const auto find = [&](const ParameterName& name, const Shape& shape) {
    const std::string tensor = hugging_face_name(name);
    if (tensor.empty()) {
      detail::fail<FormatError>(files->path() + ": has no place for " + to_string(name));
    }
    const auto [file, info] = files->at(prefix + tensor);
    const bool is_vector = name.role == Role::Norm;
    const bool transposed = !is_vector && name.role != Role::Embedding;
    if (is_vector) {
      check_stored_shape(*file, *info, {shape.cols});
    } else {
      check_stored_shape(
          *file, *info,
          {transposed ? shape.cols : shape.rows, transposed ? shape.rows : shape.cols});
    }
    return StoredTensor{file, info, 0, transposed};
  };
  return place_weights(Model(config), backend, files, find);
}

/// The config.json of a model folder, with the members of `more` that it lacks. Throws FormatError
/// if it is no JSON object or has one of them too.
inline Json read_host_json(const std::string& folder, const Json::Object& more, Read how) {
  const std::string path = detail::in_folder(folder, "config.json");
  const MappedFile text(path, how);
  const Json json =
      Json::parse({reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size()}, path,
                  {.depth = 16, .values = std::size_t{1} << 16});
  const auto stored = json.object(path).members();
  std::vector<Json::Member> members(stored.begin(), stored.end());
  for (const auto& member : more.members()) members.push_back(member);
  return Json(Json::Object(std::move(members), path));
}

}  // namespace io

/// Loads a Llama or Qwen3 from a folder as Hugging Face has them: config.json, and
/// model.safetensors or the shards that model.safetensors.index.json lists. Parameters in bfloat16
/// or the backend's scalar are used where they lie in the mapped files, on a processor; a GPU gets
/// a copy in the file's type.
///
/// Throws Error when a file cannot be read, FormatError when one is damaged, lacks something, or
/// holds another type of model than `Model`: the differences are named.
template <class Model, Backend B>
Weights<Model, B> load_host(const std::string& folder, const B& backend,
                            const LoadOptions& options = {}) {
  const io::Json json = io::read_host_json(folder, options.config, options.read);
  const Config config = io::read_host_config<Model>(json, detail::in_folder(folder, "config.json"));
  return io::load_host_weights<Model>(io::Shards::open(folder, options.read), config, backend,
                                      options.prefix);
}

}  // namespace ttt::inline TTT_ABI
