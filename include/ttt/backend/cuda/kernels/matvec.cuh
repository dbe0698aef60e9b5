// SPDX-License-Identifier: MIT
/// \file
/// Products of a few rows: the weights are read once a row, and nothing else counts. Several
/// products of one x are one kernel, and so are a gate, what it gates and what comes of both.
///
/// A weight of bfloat16s is 2 · in · out bytes: three of 768 x 768 are 3.5 MB, two of 768 x 1664
/// 5.1 MB, which 4.5 TB/s bring in 0.8 and 1.2 us. Less than a start of a kernel takes, so what
/// counts at that size is that every SM has a share of them and asks for all of it at once, and
/// before x is there: overlap.cuh. x, 4 · in bytes, is read or made by every block: matvec_x.cuh.
#pragma once

#include <ttt/backend/cuda/kernels/matvec_sums.cuh>
#include <ttt/backend/cuda/kernels/matvec_x.cuh>
#include <ttt/backend/cuda/kernels/tensor_cores.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

/// What one x is multiplied with: weights that lie alike, results of any width. Each has the
/// blocks, or clusters, from its first to the next one's.
constexpr int most_products = 3;
template <class Element>
struct Products {
  View<const Element> w[most_products];
  View<float> y[most_products];
  unsigned first[most_products];
  View<float> copy;  // of a single one
};

/// Which group of columns this block, or its cluster, makes.
template <class Stored>
__device__ unsigned own_group() {
  return Stored::in_clusters ? cluster_index() : blockIdx.x;
}

template <class Element, class Stored, class X>
__global__ void __launch_bounds__(matvec_threads, matvec_blocks)
    matvec_kernel(X x, Products<Element> all, bool add) {
  let_next_begin();
  const unsigned at = own_group<Stored>();
  const int which = at < all.first[1] ? 0 : at < all.first[2] ? 1 : 2;
  const View<const Element> w[] = {all.w[which]};
  const Index row = blockIdx.y, block = at - all.first[which];
  typename X::InBlock made(x, row);
  Index col;
  float total[1];
  if (Stored::sums(made, w, block * Stored::each, col, total)) {
    put(all.y[which](row, col), total[0], add);
    if (!all.copy.empty()) all.copy(row, col) = total[0];
  }
  made.write_down();
}

/// So many columns stored [out, in] that every warp has four, which share x: a head.
constexpr int together = 4;
template <class Element>
__global__ void __launch_bounds__(matvec_threads, matvec_blocks)
    matvec_many_kernel(GivenX x, View<const Element> w, View<float> y, bool add) {
  let_next_begin();
  const auto every_fourth = [&](int i) {
    return View<const Element>(w.row(i), w.rows / together, w.cols, together * w.stride);
  };
  const View<const Element> four[] = {every_fourth(0), every_fourth(1), every_fourth(2),
                                      every_fourth(3)};
  const Index row = blockIdx.y, first = static_cast<Index>(blockIdx.x) * matvec_warps;
  GivenX::InBlock made(x, row);
  Index col;
  float total[together];
  if (!StoredOutIn<true>::sums(made, four, first, col, total)) return;
#pragma unroll
  for (int i = 0; i < together; ++i) put(y(row, together * col + i), total[i], add);
}

template <class Element>
struct Gate {
  View<const Element> w1, w3;
  View<float> gate, up, out;
};

template <class Element, class Stored, class X>
__global__ void __launch_bounds__(matvec_threads, matvec_blocks)
    gated_kernel(X x, Gate<Element> g) {
  let_next_begin();
  const View<const Element> w[] = {g.w1, g.w3};
  const Index row = blockIdx.y;
  typename X::InBlock made(x, row);
  Index col;
  float total[2];
  const Index first = static_cast<Index>(own_group<Stored>()) * Stored::each;
  if (Stored::sums(made, w, first, col, total)) {
    g.gate(row, col) = total[0];
    g.up(row, col) = total[1];
    g.out(row, col) = total[0] * sigmoid(total[0]) * total[1];
  }
  made.write_down();
}

/// Calls f with the way weights are to be read that lie as these do, and again with another where
/// it returns false.
///
/// What lies [in, out] is best read in long pieces of rows, but then there are few of them, and
/// blocks must share the depth. That takes clusters, which begin late: all of one at once. They are
/// for weights that take longer to read, 8 MB in bfloat16, all of a kernel's together: of an
/// H200's 4.5 TB/s, 2560 x 2560 gets 2.7 and not 1.8, 5632 x 2560 3.1 and not 2.1; but 768 x 768
/// would get 0.5 and not 0.7.
template <class F>
void with_storage(const View<const float>& x, const Weight<float>* w, int count, const F& f) {
  bool aligned = in_sixteens(x);
  Index cols = 0;
  for (int i = 0; i < count; ++i) {
    cols += w[i].cols;
    w[i].visit(
        [&](auto stored) { aligned = aligned && in_sixteens(stored) && stored.cols % 8 == 0; });
  }
  constexpr Index many = 32 * 128, most = 128 * 128;  // columns: blocks of 32, 128 for every SM
  constexpr Index large = Index{4} * 1024 * 1024;     // elements
  const bool share = w->rows * cols >= large && cols <= most && code_overlaps<>();
  if (w->transposed) {
    aligned ? f(StoredOutIn<true>()) : f(StoredOutIn<false>());
  } else if (!aligned) {
    f(StoredInOut<32, false>());
  } else if (!share || !f(StoredInOut<128, true, true>())) {
    cols < many ? f(StoredInOut<16, true>()) : f(StoredInOut<32, true>());
  }
}

/// The blocks that make so many groups of columns for each of some rows: where clusters do, each
/// has as many blocks as an H200 can run of all at once, two an SM (cudaOccupancyMaxActiveClusters:
/// 30 clusters of eight, 62 of four, 132 of two). One alone is none: it could reach nobody.
template <class Stored>
Blocks blocks_of(Index groups, Index rows) {
  const unsigned sharing = !Stored::in_clusters ? 1 : groups <= 30 ? 8 : groups <= 62 ? 4 : 2;
  return {dim3(grid(groups) * sharing, grid(rows)), sharing};
}

/// matvec_many_kernel, where it keeps every SM busy.
inline bool start_matvec_many(const Stream& stream, const View<const float>& x,
                              const Weight<float>& w, const View<float>& y, bool add) {
  constexpr Index each = together * matvec_warps, many = 512;  // columns of a block, blocks
  if (!w.transposed || w.cols % together != 0 || w.cols < each * many) return false;
  return w.visit([&]<class Element>(View<const Element> stored) {
    if (!in_sixteens(x) || !in_sixteens(stored) || stored.cols % 8 != 0) return false;
    const dim3 blocks(grid(blocks_for(w.cols, each)), grid(x.rows));
    start(stream, matvec_many_kernel<Element>, blocks, matvec_threads, GivenX{x}, stored, y, add);
    return true;
  });
}

inline bool lie_alike(const Weight<float>& a, const Weight<float>& b) {
  return a.transposed == b.transposed && a.narrow == b.narrow && a.rows == b.rows;
}

/// Calls f with where the rows of x come from.
template <class F>
bool with_x(const View<const float>& x, const SumAndNorm<float>* made_of, const F& f) {
  return made_of != nullptr ? f(MadeX{*made_of}) : f(GivenX{x});
}

inline void start_matvec(const Stream& stream, const View<const float>& x, const Weight<float>* w,
                         const View<float>* y, int count, bool add, const View<float>& copy,
                         const SumAndNorm<float>* made_of) {
  with_storage(x, w, count, [&]<class Stored>(Stored) {
    return w->visit([&]<class Element>(View<const Element>) {
      Products<Element> all = {};
      Index groups = 0;
      for (int i = 0; i < most_products; ++i) {
        all.first[i] = grid(groups);
        if (i >= count) continue;
        all.w[i] = w[i].template stored<Element>();
        all.y[i] = y[i];
        groups += blocks_for(y[i].cols, Stored::each);
      }
      all.copy = copy;
      return with_x(x, made_of, [&]<class X>(const X& from) {
        return start(stream, matvec_kernel<Element, Stored, X>, blocks_of<Stored>(groups, x.rows),
                     matvec_threads, from, all, add);
      });
    });
  });
}

}  // namespace

template <class S>
void Launch<S>::matvec(Stream stream, View<const S> x, Weight<S> w, View<S> y, Write write,
                       View<S> copy) {
  if constexpr (std::is_same_v<S, float>) {
    if (y.rows == 0 || y.cols == 0) return;
    const bool add = write == Write::Add;
    if (copy.empty() && start_matvec_many(stream, x, w, y, add)) return;
    start_matvec(stream, x, &w, &y, 1, add, copy, nullptr);
  }
}

template <class S>
bool Launch<S>::matvec_each(Stream stream, View<const S> x, const Weight<S>* w, const View<S>* y,
                            Index count, const SumAndNorm<S>* made_of) {
  if constexpr (std::is_same_v<S, float>) {
    if (x.rows == 0 || count < 1 || count > most_products) return false;
    for (Index i = 0; i < count; ++i) {
      if (w[i].cols == 0 || !lie_alike(w[i], *w)) return false;
    }
    start_matvec(stream, x, w, y, static_cast<int>(count), false, {}, made_of);
    return true;
  }
  return false;
}

template <class S>
bool Launch<S>::gated(Stream stream, View<const S> x, Weight<S> w1, Weight<S> w3, View<S> gate,
                      View<S> up, View<S> out, const SumAndNorm<S>* made_of) {
  if constexpr (std::is_same_v<S, float>) {
    if (x.rows == 0 || w1.cols == 0 || w1.cols != w3.cols || !lie_alike(w1, w3)) return false;
    const Weight<float> both[] = {w1, w3};
    with_storage(x, both, 2, [&]<class Stored>(Stored) {
      return w1.visit([&]<class Element>(View<const Element> stored) {
        const Blocks blocks = blocks_of<Stored>(blocks_for(w1.cols, Stored::each), x.rows);
        const Gate<Element> all{stored, w3.template stored<Element>(), gate, up, out};
        return with_x(x, made_of, [&]<class X>(const X& from) {
          return start(stream, gated_kernel<Element, Stored, X>, blocks, matvec_threads, from, all);
        });
      });
    });
    return true;
  }
  return false;
}

template <class S>
bool Launch<S>::makes(const SumAndNorm<S>& all) {
  if constexpr (std::is_same_v<S, float>) {
    return fits_sum_and_norm(all) && all.sum.x.cols <= most_made && scales_in_fours(all.norm) &&
           (!all.sum.has_norm || scales_in_fours(all.sum.norm));
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
