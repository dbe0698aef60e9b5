// SPDX-License-Identifier: MIT
/// \file
/// One copy of the CPU backend's primitives, and of the oracle, for all of a test program: without
/// this every file that computes anything compiles them anew, which is most of what it compiles.
/// kernels.cpp has them.
#pragma once

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>

#define TTT_TEST_KERNELS(PREFIX, S)                                                                \
  PREFIX template void matmul<S>(ThreadPool&, View<const S>, const Weight<S>&, View<S>, Write);    \
  PREFIX template void wide_product<S>(ThreadPool&, Left<S>, const Weight<S>&, View<S>, Write);    \
  PREFIX template void embed<S>(ThreadPool&, const Weight<S>&, const Token*, View<S>);             \
  PREFIX template void embed_backward<S>(ThreadPool&, const Token*, View<const S>, View<S>);       \
  PREFIX template void rms_norm<S>(ThreadPool&, View<const S>, const Norm<S>&, View<S>, View<S>);  \
  PREFIX template void rms_norm_backward<S>(ThreadPool&, View<const S>, const Norm<S>&,            \
                                            View<const S>, View<const S>, View<S>, Write,          \
                                            View<S>);                                              \
  PREFIX template void rms_norm_tangent<S>(ThreadPool&, View<const S>, View<const S>,              \
                                           const Norm<S>&, View<const S>, View<const S>, View<S>,  \
                                           View<S>);                                               \
  PREFIX template void rms_norm_backward_tangent<S>(                                               \
      ThreadPool&, View<const S>, View<const S>, const Norm<S>&, View<const S>, View<const S>,     \
      View<const S>, View<const S>, View<S>, Write, View<S>);                                      \
  PREFIX template void add<S>(ThreadPool&, View<const S>, View<const S>, View<S>);                 \
  PREFIX template void add_rms_norm<S>(ThreadPool&, View<const S>, View<const S>, const Norm<S>&,  \
                                       View<S>, View<S>);                                          \
  PREFIX template void rope_angles<S>(ThreadPool&, Index, const double*, View<S>);                 \
  PREFIX template void head_norm_rope<S>(ThreadPool&, View<const S>, const Norm<S>&,               \
                                         View<const S>, RopeLayout, View<S>, View<S>);             \
  PREFIX template void head_norm_rope_backward<S>(ThreadPool&, View<const S>, const Norm<S>&,      \
                                                  View<const S>, View<const S>, RopeLayout,        \
                                                  View<const S>, View<S>, View<S>);                \
  PREFIX template void head_norm_rope_tangent<S>(ThreadPool&, View<const S>, View<const S>,        \
                                                 const Norm<S>&, View<const S>, View<const S>,     \
                                                 RopeLayout, View<S>, View<S>);                    \
  PREFIX template void head_norm_rope_backward_tangent<S>(                                         \
      ThreadPool&, View<const S>, View<const S>, const Norm<S>&, View<const S>, View<const S>,     \
      View<const S>, RopeLayout, View<const S>, View<const S>, View<S>, View<S>);                  \
  PREFIX template void swiglu<S>(ThreadPool&, View<const S>, View<const S>, View<S>);              \
  PREFIX template void swiglu_backward<S>(ThreadPool&, View<const S>, View<const S>,               \
                                          View<const S>, View<S>, View<S>);                        \
  PREFIX template void swiglu_tangent<S>(ThreadPool&, View<const S>, View<const S>, View<const S>, \
                                         View<const S>, View<S>);                                  \
  PREFIX template void swiglu_backward_tangent<S>(ThreadPool&, View<const S>, View<const S>,       \
                                                  View<const S>, View<const S>, View<const S>,     \
                                                  View<const S>, View<S>, View<S>);                \
  PREFIX template void chunk_conv<S>(ThreadPool&, View<const S>, const Weight<S>&, Index,          \
                                     View<S>);                                                     \
  PREFIX template void chunk_conv_backward<S>(ThreadPool&, View<const S>, const Weight<S>&, Index, \
                                              View<const S>, View<S>, Write, View<S>);             \
  PREFIX template void attention<S>(ThreadPool&, View<const S>, Cache<const S>, Cache<const S>,    \
                                    const AttentionShape&, View<S>, View<S>);                      \
  PREFIX template void attention_backward<S>(                                                      \
      ThreadPool&, View<const S>, Cache<const S>, Cache<const S>, const AttentionShape&,           \
      View<const S>, View<const S>, View<const S>, View<S>, View<S>, View<S>, Index);              \
  PREFIX template void attention_tangent<S>(                                                       \
      ThreadPool&, View<const S>, View<const S>, Cache<const S>, Cache<const S>, View<const S>,    \
      View<const S>, const AttentionShape&, View<const S>, View<const S>, View<S>, View<S>);       \
  PREFIX template void attention_backward_tangent<S>(ThreadPool&,                                  \
                                                     const AttentionBackwardTangent<S>&);          \
  PREFIX template void cross_entropy<S>(ThreadPool&, View<const S>, const Weight<S>&,              \
                                        const Token*, const S*, S*, View<S>, S*);                  \
  PREFIX template void cross_entropy_tangent<S>(ThreadPool&, View<const S>, View<const S>,         \
                                                const Weight<S>&, const Token*, const S*, S,       \
                                                View<S>, View<S>, S*);                             \
  PREFIX template void axpby<S>(ThreadPool&, double, const S*, double, S*, Index);                 \
  PREFIX template void adam<S>(ThreadPool&, const AdamStep&, const S*, S*, S*, S*, Index);

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

TTT_TEST_KERNELS(extern, float)
TTT_TEST_KERNELS(extern, double)

}  // namespace eigen::detail
namespace reference {

extern template class Tangents<double>;
extern template class Backend<double>;

}  // namespace reference
}  // namespace ttt::inline TTT_ABI
