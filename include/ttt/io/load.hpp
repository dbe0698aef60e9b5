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
#include <ttt/io/safetensors.hpp>
#include <ttt/model/weights.hpp>

namespace ttt::inline TTT_ABI {

/// Options of load().
struct LoadOptions {
  io::Read read = io::Read::Map;  // Copy for a file that may change under us
  std::string prefix = {};        // of every tensor's name
  io::Json::Object config = {};   // members of the schema that the file lacks
};

namespace detail {

/// Throws unless the tensor has the shape that the parameter's slice of it implies.
template <class Model>
void check_stored_shape(const io::SafeTensors& file, const io::TensorInfo& info,
                        const io::StoredName& stored, const Shape& shape, bool is_vector,
                        const Config& config, bool in_suffix) {
  std::vector<Index> expected;
  if (stored.index >= 0) {
    expected.push_back(in_suffix ? config.suffix_blocks
                                 : config.prefix_blocks + config.suffix_blocks);
  }
  if (!is_vector) expected.push_back(shape.rows);
  expected.push_back(shape.cols);
  if (info.shape != expected) {
    const auto text = [](const std::vector<Index>& sizes) {
      std::string out = "[";
      for (const Index size : sizes) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
      return out + "]";
    };
    fail<FormatError>(file.path() + ": " + info.name + " has the shape " + text(info.shape) +
                      ", expected " + text(expected));
  }
}

}  // namespace detail

namespace io {

/// Takes a model's parameters from an open file, given its configuration. Tensors in the backend's
/// own type or in bfloat16 are used where they lie if they are aligned; others are copied, once.
template <class Model, Backend B>
Weights<Model, B> load_weights(const std::shared_ptr<const SafeTensors>& file, const Config& config,
                               const B& backend, const std::string& prefix = {}) {
  using Scalar = typename B::Scalar;
  struct Slice {
    const TensorInfo* info;
    Index first;
    bool in_place;
  };
  Model model(config);
  auto shapes = model.shapes();
  auto tree = model.template tree<Weight<Scalar>>();
  std::vector<Slice> slices;
  Index to_copy = 0;
  Model::each(
      [&](const ParameterName& name, const Shape& shape) {
        StoredName stored = authors_name(name);
        stored.tensor = prefix + stored.tensor;
        const TensorInfo& info = file->at(stored.tensor);
        const bool is_vector = name.role == Role::Norm;
        detail::check_stored_shape<Model>(*file, info, stored, shape, is_vector, model.config(),
                                          name.layer == "dynamic_mlp");
        const bool usable = info.dtype == dtype_of<Scalar> || info.dtype == DType::BF16;
        const bool in_place = B::is_host && usable && file->aligned(info);
        slices.push_back({&info, std::max<Index>(stored.index, 0) * shape.size(), in_place});
        if (!in_place) to_copy += shape.size();
      },
      shapes);
  typename Weights<Model, B>::Memory memory;
  memory.buffers.push_back(backend.template allocate<Scalar>(to_copy));
  Scalar* free = memory.buffers.back().data();
  std::size_t next = 0;
  std::vector<Scalar> staging;
  Model::each(
      [&](const ParameterName&, const Shape& shape, Weight<Scalar>& leaf) {
        const Slice slice = slices[next++];
        if (slice.in_place && slice.info->dtype == DType::BF16) {
          leaf = View<const bfloat16>(file->template as<bfloat16>(*slice.info).data() + slice.first,
                                      shape.rows, shape.cols);
        } else if (slice.in_place) {
          leaf = View<const Scalar>(file->template as<Scalar>(*slice.info).data() + slice.first,
                                    shape.rows, shape.cols);
        } else {
          TensorInfo part = *slice.info;
          part.begin += static_cast<std::size_t>(slice.first) * size_of(part.dtype);
          part.end = part.begin + static_cast<std::size_t>(shape.size()) * size_of(part.dtype);
          staging.resize(part.size());
          file->template copy_to<Scalar>(part, staging);
          backend.to_device(staging.data(), free, shape.size());
          leaf = View<const Scalar>(free, shape.rows, shape.cols);
          free += shape.size();
        }
      },
      shapes, tree);
  memory.file = file;
  return {std::move(model), backend, std::move(tree), std::move(memory)};
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
