// SPDX-License-Identifier: MIT
/// \file
/// How parameters are named and walked: one enumeration, from which everything else follows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <ttt/core/view.hpp>

namespace ttt::inline TTT_ABI {

/// What a parameter is for. Learners and optimizers choose by it.
enum class Role : std::uint8_t {
  Embedding,
  Head,
  Norm,
  Attention,
  Mlp,
  DynamicMlp,
  InPlaceMlp,    // a down projection that learns in closed form
  InPlaceTarget  // what says what those learn: a convolution, a projection
};

/// Where a parameter stands in the model.
///
/// Every layer L has a template `L::Parameters<T>`, a struct with one T a tensor, and
/// `L::each(name, f, trees...)`, which calls f(name, leaf of the first tree, leaf of the second,
/// ...) for each. T is whatever is needed: a Shape, a Weight, a View of a gradient.
struct ParameterName {
  std::string_view layer = {};   // "attention", "mlp", "dynamic_mlp", or "" outside the blocks
  std::string_view tensor = {};  // "w1", "norm", ...
  Index block = -1;              // counted from the first block of the model
  Index suffix_block = -1;       // counted from the first block of the suffix
  Role role = Role::Norm;

  ParameterName of(std::string_view tensor_) const {
    ParameterName copy = *this;
    copy.tensor = tensor_;
    return copy;
  }
  ParameterName norm(std::string_view tensor_) const {
    ParameterName copy = of(tensor_);
    copy.role = Role::Norm;
    return copy;
  }
  ParameterName in(std::string_view layer_, Role role_) const {
    ParameterName copy = *this;
    copy.layer = layer_;
    copy.role = role_;
    return copy;
  }
};

/// "blocks.3.attention.wq".
inline std::string to_string(const ParameterName& name) {
  std::string text;
  if (name.block >= 0) text += "blocks." + std::to_string(name.block) + ".";
  if (!name.layer.empty()) text += std::string(name.layer) + ".";
  return text + std::string(name.tensor);
}

}  // namespace ttt::inline TTT_ABI
