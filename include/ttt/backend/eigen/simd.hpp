// SPDX-License-Identifier: MIT
/// \file
/// Eigen's SIMD packets under short names: one source for SSE, AVX, AVX-512, NEON and scalars.
#pragma once

#if defined(__CUDACC__) && !defined(TTT_ALLOW_EIGEN_IN_NVCC)
#error "ttt: Eigen loses its vector instructions under nvcc; include <ttt/ttt.hpp> from .cpp files"
#endif

// GCC 12 takes the "undefined" operand of its own AVX-512 intrinsics for a mistake (GCC bug
// 105593), and warns when a packet type, which has an alignment attribute, becomes a template
// argument.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include <Eigen/Core>

#include <ttt/core/dtype.hpp>
#include <ttt/fwd.hpp>

#define TTT_INLINE inline __attribute__((always_inline))

namespace ttt::inline TTT_ABI {
namespace eigen::detail {

namespace packet = Eigen::internal;

/// The widest packet of a scalar, and how many scalars it holds.
template <class S>
using Packet = typename packet::packet_traits<S>::type;
template <class S>
inline constexpr Index lanes = packet::unpacket_traits<Packet<S>>::size;

/// Whether the machine has registers for 8 x 2 accumulators, or for 6 x 2 only.
inline constexpr bool many_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32;

/// P is a packet or, in the tail of a row, a scalar; every function below takes both.
template <class P, class S>
TTT_INLINE P load(const S* from) {
  return packet::ploadu<P>(from);
}

/// The compiler's own vectors, for conversions that Eigen has no packets for.
template <class T, std::size_t Size>
struct Vector {
  typedef T type __attribute__((vector_size(Size * sizeof(T))));
};

/// Widens while loading: a bfloat16 is the upper half of a float.
template <class P>
TTT_INLINE P load(const bfloat16* from) {
  using S = typename packet::unpacket_traits<P>::type;
  constexpr std::size_t n = packet::unpacket_traits<P>::size;
  if constexpr (n == 1) {
    return static_cast<S>(static_cast<float>(*from));
  } else {
    using Half = typename Vector<std::uint16_t, n>::type;
    using Word = typename Vector<std::uint32_t, n>::type;
    using Float = typename Vector<float, n>::type;
    using Wide = typename Vector<S, n>::type;
    Half half;
    std::memcpy(&half, from, sizeof half);
    const Word word = __builtin_convertvector(half, Word) << 16;
    const Wide wide = __builtin_convertvector(std::bit_cast<Float>(word), Wide);
    return packet::ploadu<P>(reinterpret_cast<const S*>(&wide));
  }
}

template <class P, class S>
TTT_INLINE void store(S* to, const P& value) {
  packet::pstoreu(to, value);
}

template <class P, class S>
TTT_INLINE P broadcast(S value) {
  return packet::pset1<P>(value);
}

template <class P, std::size_t... I>
TTT_INLINE P swap_pairs(const P& x, std::index_sequence<I...>) {
  using Wide = typename Vector<typename packet::unpacket_traits<P>::type, sizeof...(I)>::type;
  const Wide wide = std::bit_cast<Wide>(x);
  return std::bit_cast<P>(__builtin_shufflevector(wide, wide, static_cast<int>(I ^ 1)...));
}
/// The packet with the neighbours of each pair exchanged: (1, 0, 3, 2, ...).
template <class P>
TTT_INLINE P swap_pairs(const P& x) {
  return swap_pairs(x, std::make_index_sequence<packet::unpacket_traits<P>::size>());
}

/// exp that keeps a NaN a NaN: the packet form clamps its argument, which would hide one.
template <class P>
TTT_INLINE P exp(const P& x) {
  using S = typename packet::unpacket_traits<P>::type;
  return packet::pmadd(x, broadcast<P>(S(0)), packet::pexp(x));
}

/// Calls f.template operator()<P>(j) over [0, size): packets first, then scalars.
template <class S, class F>
TTT_INLINE void for_lanes(Index size, const F& f) {
  Index j = 0;
  for (; j + lanes<S> <= size; j += lanes<S>) f.template operator()<Packet<S>>(j);
  for (; j < size; ++j) f.template operator()<S>(j);
}

/// Sums term.template operator()<P>(j) over [0, size), lane by lane, then across.
template <class S, class F>
TTT_INLINE S sum_lanes(Index size, const F& term) {
  auto wide = broadcast<Packet<S>>(S(0));
  Index j = 0;
  for (; j + lanes<S> <= size; j += lanes<S>) {
    wide = packet::padd(wide, term.template operator()<Packet<S>>(j));
  }
  S sum = packet::predux(wide);
  for (; j < size; ++j) sum += term.template operator()<S>(j);
  return sum;
}

/// Two packets, or two scalars.
template <class P>
struct Two {
  P first, second;
};

/// The sums of both members of term.template operator()<P>(j), a Two<P>, over [0, size).
template <class S, class F>
TTT_INLINE Two<S> sum_two(Index size, const F& term) {
  Packet<S> a = broadcast<Packet<S>>(S(0)), b = a;
  Index j = 0;
  for (; j + lanes<S> <= size; j += lanes<S>) {
    const auto both = term.template operator()<Packet<S>>(j);
    a = packet::padd(a, both.first);
    b = packet::padd(b, both.second);
  }
  Two<S> sums{packet::predux(a), packet::predux(b)};
  for (; j < size; ++j) {
    const auto both = term.template operator()<S>(j);
    sums.first += both.first;
    sums.second += both.second;
  }
  return sums;
}

/// The largest of [0, size) and `least`; which one a NaN makes it is left open.
template <class S>
TTT_INLINE S max_lanes(Index size, const S* x, S least) {
  auto wide = broadcast<Packet<S>>(least);
  Index j = 0;
  for (; j + lanes<S> <= size; j += lanes<S>) wide = packet::pmax(wide, load<Packet<S>>(x + j));
  S most = packet::predux_max(wide);
  for (; j < size; ++j) most = x[j] > most ? x[j] : most;
  return most;
}

/// to(j, i) = from(i, j) for a rows x cols matrix; blocks of lanes x lanes go through registers.
template <class S, class From>
TTT_INLINE void transpose(const From* from, Index from_stride, Index rows, Index cols, S* to,
                          Index to_stride) {
  constexpr Index n = lanes<S>;
  Index i = 0;
  for (; i + n <= rows; i += n) {
    Index j = 0;
    for (; j + n <= cols; j += n) {
      packet::PacketBlock<Packet<S>, static_cast<int>(n)> block;
      for (Index r = 0; r < n; ++r) {
        block.packet[r] = load<Packet<S>>(from + (i + r) * from_stride + j);
      }
      if constexpr (n > 1) packet::ptranspose(block);
      for (Index r = 0; r < n; ++r) store(to + (j + r) * to_stride + i, block.packet[r]);
    }
    for (; j < cols; ++j) {
      for (Index r = 0; r < n; ++r) {
        to[j * to_stride + i + r] = static_cast<S>(from[(i + r) * from_stride + j]);
      }
    }
  }
  for (; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      to[j * to_stride + i] = static_cast<S>(from[i * from_stride + j]);
    }
  }
}

}  // namespace eigen::detail
}  // namespace ttt::inline TTT_ABI

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
