// SPDX-License-Identifier: MIT
/// \file
/// Optimizers for training. Those of inner/optimizers.hpp serve as well: the concept is the same,
/// and the rate of the schedule arrives as the update's multiplier.
#pragma once

#include <cmath>

#include <ttt/inner/optimizers.hpp>

namespace ttt::inline TTT_ABI {

/// Adam (Kingma and Ba 2015, arXiv 1412.6980) with the weight decay taken out of the gradient
/// (Loshchilov and Hutter 2019, arXiv 1711.05101). Its two slots are the running means of the
/// gradient and of its square. The defaults are the paper's (arXiv 2512.23675).
///
/// `decay` is applied by the OuterLoop, to the parameters that it decays.
struct AdamW {
  float rate = 1.0f;  // times the schedule's
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double decay = 0.1;

  static constexpr std::size_t slots = 2;

  template <Backend B>
  void step(const B& backend, const Update<typename B::Scalar>& u) const {
    const double steps = static_cast<double>(u.step + 1);
    backend.adam(AdamStep{.scale = u.scale,
                          .beta1 = beta1,
                          .beta2 = beta2,
                          .eps = eps,
                          .rate = static_cast<double>(rate) * u.multiplier,
                          .unbias1 = 1 / (1 - std::pow(beta1, steps)),
                          .unbias2 = 1 / (1 - std::pow(beta2, steps))},
                 u.gradient, u.slots[0], u.slots[1], u.weights, u.size);
  }
};

}  // namespace ttt::inline TTT_ABI
