// SPDX-License-Identifier: MIT
/// \file
/// From a Hugging Face model folder to Weights, with or without what makes it learn in place.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ttt/io/host_config.hpp>
#include <ttt/io/names.hpp>
#include <ttt/io/place_weights.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/io/shards.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// Options of load_host().
struct HostOptions {
  io::Read read = io::Read::Map;  // Copy for files that may change under us
  std::string prefix = {};        // of every tensor's name
  io::Json::Object config = {};   // members that config.json lacks

  // Of models with InPlaceMLP.
  BlockSet in_place = {};  // the blocks that learn; empty: those the files have targets for
  bool in_place_projection = false;  // with a projection even if the files have none
  std::string in_place_file = {};    // the targets, where they are not in the folder's own files
};

namespace io {

/// Open files of one model, and where its In-Place targets are: in a file of their own, or in them.
struct HostFiles {
  std::shared_ptr<const Shards> model;
  std::shared_ptr<const Shards> targets;

  Shards::Found find(const ParameterName& name, const std::string& tensor) const {
    const bool is_target = name.role == Role::InPlaceTarget && targets != nullptr;
    return (is_target ? *targets : *model).find(tensor);
  }
};

/// Chooses the blocks that learn: those asked for or, if none are, those that the files have a
/// convolution for; and whether they project. Throws Error for a type that has no such blocks, and
/// FormatError if a file of targets lacks one that it is to have.
template <class Model>
void choose_in_place(const HostFiles& files, const HostOptions& options, Config& config) {
  if (!Model::has_in_place) {
    if (options.in_place.empty() && files.targets == nullptr) return;
    detail::fail(
        "load_host: the options are about learning in place, but the type of model has no "
        "InPlaceMLP");
  }
  config.in_place = options.in_place;
  config.in_place_projection = options.in_place_projection;
  ParameterName name{.layer = "mlp", .role = Role::InPlaceTarget};
  for (Index i = 0; i < config.prefix_blocks; ++i) {
    name.block = i;
    const auto has = [&](const char* tensor) {
      const std::string stored = options.prefix + hugging_face_name(name.of(tensor));
      return files.find(name, stored).info != nullptr;
    };
    if (options.in_place.empty() && has("conv")) config.in_place.add(i);
    if (!config.in_place.has(i)) continue;
    if (has("projection")) config.in_place_projection = true;
    if (files.targets != nullptr) {
      files.targets->at(options.prefix + hugging_face_name(name.of("conv")));  // throws
    }
  }
  if (files.targets != nullptr && config.in_place.empty()) {
    detail::fail<FormatError>(files.targets->path() +
                              ": has no convolution for any block of the model");
  }
}

/// Takes a model's parameters from open files with Hugging Face's names, as place_weights() does.
/// Targets of InPlaceMLPs that the files lack start as in_place_start() says.
template <class Model, Backend B>
Weights<Model, B> load_host_weights(const HostFiles& files, const Config& config, const B& backend,
                                    const std::string& prefix = {}) {
  const auto find = [&](const ParameterName& name, const Shape& shape) {
    const std::string tensor = hugging_face_name(name);
    if (tensor.empty()) {
      detail::fail<FormatError>(files.model->path() + ": has no place for " + to_string(name));
    }
    const auto [file, info] = files.find(name, prefix + tensor);
    if (info == nullptr && name.role == Role::InPlaceTarget) return StoredTensor{};
    if (info == nullptr) files.model->at(prefix + tensor);  // throws
    const bool is_target = name.role == Role::InPlaceTarget, is_vector = name.role == Role::Norm;
    const bool transposed = !is_vector && !is_target && name.role != Role::Embedding;
    std::vector<Index> expected{shape.rows, shape.cols};
    if (transposed) std::swap(expected[0], expected[1]);
    if (is_vector) expected.erase(expected.begin());
    if (is_target && name.tensor == "conv") expected.insert(expected.begin() + 1, 1);
    check_stored_shape(*file, *info, expected);
    return StoredTensor{file, info, 0, transposed};
  };
  return place_weights(Model(config), backend, std::make_shared<const HostFiles>(files), find);
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
/// With a type that has InPlaceMLPs, the options choose the blocks that learn. What the files do
/// not have of them starts so that the model is its host.
///
/// Throws Error when a file cannot be read, FormatError when one is damaged, lacks something, or
/// holds another type of model than `Model`: the differences are named.
template <class Model, Backend B>
Weights<Model, B> load_host(const std::string& folder, const B& backend,
                            const HostOptions& options = {}) {
  const io::Json json = io::read_host_json(folder, options.config, options.read);
  Config config = io::read_host_config<Model>(json, detail::in_folder(folder, "config.json"));
  io::HostFiles files{io::Shards::open(folder, options.read), nullptr};
  if (!options.in_place_file.empty()) {
    files.targets = io::Shards::of(io::SafeTensors::open(options.in_place_file, options.read));
  }
  io::choose_in_place<Model>(files, options, config);
  return io::load_host_weights<Model>(files, config, backend, options.prefix);
}

/// Writes the targets of a model's InPlaceMLPs and nothing else, under the names that load_host()
/// finds, in the backend's scalar: what was trained for a host, to go beside it. Throws as
/// io::write_safetensors() does.
template <class Model, class B>
void save_in_place(const Weights<Model, B>& weights, const std::string& path) {
  using Scalar = typename B::Scalar;
  std::map<std::string, std::pair<std::vector<Index>, std::vector<Scalar>>> all;
  Model::each(
      [&](const ParameterName& name, const Weight<Scalar>& leaf) {
        if (name.role != Role::InPlaceTarget) return;
        auto& [shape, values] = all[io::hugging_face_name(name)];
        shape = {leaf.rows, leaf.cols};
        if (name.tensor == "conv") shape.insert(shape.begin() + 1, 1);
        auto wide = weights.backend().template allocate<Scalar>(leaf.shape().size());
        weights.backend().widen(leaf, View<Scalar>(wide.data(), leaf.rows, leaf.cols));
        values.resize(static_cast<std::size_t>(leaf.shape().size()));
        weights.backend().to_host(wide.data(), values.data(), leaf.shape().size());
      },
      weights.parameters());
  std::vector<io::TensorToWrite> tensors;
  for (const auto& [name, tensor] : all) {
    tensors.push_back(
        {name, dtype_of<Scalar>, tensor.first, std::as_bytes(std::span(tensor.second))});
  }
  io::write_safetensors(path, tensors, {}, 0666);
}

}  // namespace ttt::inline TTT_ABI
