// SPDX-License-Identifier: MIT
/// \file
/// Files of tests/golden that hold existing models: what Hugging Face's Transformers made of them.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ttt/io/host_config.hpp>
#include <ttt/io/load_host.hpp>
#include <ttt/io/shards.hpp>
#include <ttt/model/hosts.hpp>

namespace ttt::test {

/// One file: weights, tokens, configuration, and the numbers they led to.
class HostGolden {
 public:
  /// `name` is the file's, without folder and ending.
  explicit HostGolden(const std::string& name)
      : file_(io::SafeTensors::open(std::string(TTT_TEST_DATA) + "/" + name + ".safetensors")),
        model_type_(name == "llama" ? "llama" : "qwen3") {}

  const io::SafeTensors& file() const { return *file_; }

  /// The members of a config.json as the model's own would have them.
  std::vector<io::Json::Member> members() const {
    const io::Json recorded = io::Json::parse(file_->metadata().at("config"));
    std::vector<io::Json::Member> out = {{"model_type", model_type_}};
    for (const auto& [name, value] : recorded.object().members()) {
      out.emplace_back(name == "rope_theta" ? "rope_parameters" : name, value);
    }
    return out;
  }
  template <class Model>
  Config config() const {
    return io::read_host_config<Model>(io::Json(io::Json::Object(members())), file_->path());
  }
  template <class Model, class B>
  Weights<Model, B> weights(const B& backend, const std::string& prefix = "params.") const {
    return io::load_host_weights<Model>({io::Shards::of(file_), nullptr}, config<Model>(), backend,
                                        prefix);
  }

  template <class T>
  std::vector<T> values(const std::string& name) const {
    const io::TensorInfo& info = file_->at(name);
    std::vector<T> out(info.size());
    file_->copy_to<T>(info, out);
    return out;
  }
  Index sequences() const { return file_->at("tokens").shape.at(0); }
  Index length() const { return file_->at("tokens").shape.at(1); }

 private:
  std::shared_ptr<const io::SafeTensors> file_;
  std::string model_type_;
};

}  // namespace ttt::test
