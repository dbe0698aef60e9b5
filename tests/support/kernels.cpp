// SPDX-License-Identifier: MIT
#include <support/kernels.hpp>

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

TTT_TEST_KERNELS(, float)
TTT_TEST_KERNELS(, double)

}  // namespace eigen::detail
namespace reference {

template class Tangents<double>;
template class Backend<double>;

}  // namespace reference
}  // namespace ttt::inline TTT_ABI
