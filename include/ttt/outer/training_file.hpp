// SPDX-License-Identifier: MIT
/// \file
/// The files of a checkpoint: a model that load() reads, and what the optimizer keeps.
#pragma once

#include <cmath>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/io/load.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/io/save.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

inline constexpr std::string_view training_format = "ttt-training";
inline constexpr std::string_view training_version = "1";

inline std::string checkpoint_model(const std::string& folder) {
  return folder + "/model.safetensors";
}
inline std::string checkpoint_optimizer(const std::string& folder) {
  return folder + "/optimizer.safetensors";
}

/// Writes both files into a folder. `slots` lie in the backend's memory.
template <class WeightsType>
void write_checkpoint(const std::string& folder, const WeightsType& weights,
                      const typename WeightsType::Scalar* slots, Index slot_size,
                      const std::string& identity) {
  using Scalar = typename WeightsType::Scalar;
  save(weights, checkpoint_model(folder));
  std::vector<Scalar> host(static_cast<std::size_t>(slot_size));
  weights.backend().to_host(slots, host.data(), slot_size);
  const std::vector<io::TensorToWrite> tensors = {
      {"slots", dtype_of<Scalar>, {slot_size}, std::as_bytes(std::span<const Scalar>(host))}};
  io::write_safetensors(checkpoint_optimizer(folder), tensors,
                        {{"format", std::string(training_format)},
                         {"version", std::string(training_version)},
                         {"run", identity}},
                        0666);
}

template <class Model, class B>
Weights<Model, B> read_checkpoint_model(const std::string& folder, const B& backend) {
  return load<Model>(checkpoint_model(folder), backend, {.read = io::Read::Copy});
}

/// The slots, in the backend's memory. Throws FormatError unless the file is of a run with this
/// identity and size.
template <class B>
typename B::template Buffer<typename B::Scalar> read_checkpoint_slots(const std::string& folder,
                                                                      const B& backend,
                                                                      const std::string& identity,
                                                                      Index slot_size) {
  using Scalar = typename B::Scalar;
  const std::string path = checkpoint_optimizer(folder);
  const auto file = io::SafeTensors::open(path, io::Read::Copy);
  const auto text = [&](const char* key) {
    const auto found = file->metadata().find(key);
    return found == file->metadata().end() ? std::string() : found->second;
  };
  const auto reject = [&](const std::string& why) {
    fail<FormatError>(path + ": cannot resume: " + why);
  };
  if (text("format") != training_format) reject("it is no checkpoint of a training");
  if (text("version") != training_version) {
    reject("its version is " + text("version") + ", this library reads version " +
           std::string(training_version));
  }
  if (text("run") != identity) {
    reject("it is of a run with " + text("run") + ", this one has " + identity);
  }
  const io::TensorInfo& info = file->at("slots");
  if (info.shape != std::vector<Index>{slot_size} || info.dtype != dtype_of<Scalar>) {
    reject("what its optimizer keeps has another size or type than this run's");
  }
  std::vector<Scalar> host(static_cast<std::size_t>(slot_size));
  file->template copy_to<Scalar>(info, host);
  for (const Scalar value : host) {
    if (!std::isfinite(value)) reject("it holds a number that is not finite");
  }
  auto slots = backend.template allocate<Scalar>(slot_size);
  backend.to_device(host.data(), slots.data(), slot_size);
  return slots;
}

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
