// SPDX-License-Identifier: MIT
/// \file
/// Attention of a few queries, as decoding asks: the window's keys and values are read once, 4 ·
/// head_dim bytes a key and head, and nothing else counts. A head's keys are split among blocks;
/// what each made of its part is put together in order by the last of them. Keys of earlier steps
/// are asked for before the query is there (overlap.cuh); a query that is still to be turned is
/// turned by every block that needs it.
#pragma once

#include <limits>

#include <ttt/backend/cuda/kernels/last_block.cuh>
#include <ttt/backend/cuda/kernels/matvec.cuh>
#include <ttt/backend/cuda/kernels/rotate.cuh>

namespace ttt::inline TTT_ABI {
namespace cuda::detail {
namespace {

constexpr int decode_threads = 256, decode_warps = decode_threads / 32, decode_blocks = 2;  // an SM
constexpr Index most_decode_parts = 64;

/// How a warp takes keys: `lanes` lanes share one, each has `pieces` eights of its channels, those
/// `lanes` eights apart, and `ahead` keys under way. Few lanes, so that little is added up across
/// them.
template <int lanes_, int pieces_, int ahead_>
struct DecodeLanes {
  static constexpr int lanes = lanes_, pieces = pieces_, ahead = ahead_;
  static constexpr int keys = 32 / lanes, channels = 8 * pieces;  // of a warp; of a lane
};
template <class F>
void with_decode_lanes(Index d, const F& f) {
  if (d <= 64) return f(DecodeLanes<4, 2, 2>());
  if (d <= 96) return f(DecodeLanes<4, 3, 1>());
  return f(DecodeLanes<4, 4, 1>());
}

/// How many keys a block takes where so many blocks share those that the query at p sees.
__device__ inline unsigned decode_keys(const AttentionShape& shape, Index p, unsigned parts) {
  constexpr unsigned least = 64;
  const auto seen = static_cast<unsigned>(p + 1 - shape.first_key(p));
  const unsigned each = (seen + parts - 1) / parts;
  return each < least ? least : (each + 31) / 32 * 32;
}

/// What a part of the keys makes of one query: the largest score, the sum of powers below it, and
/// the powers' sum of values. Scores and powers are those of two.
struct Partial {
  float most, sum;
};

__device__ inline float shrink_to(float most, float now) {
  return most == -INFINITY ? 0.0f : exp2f(most - now);
}

/// One query of one head, whose parts lie one behind the other. Threads with a channel share its
/// parts, so many of which are under way; how much each part counts every warp finds by itself.
template <class Lanes>
__device__ void attention_parts(const float* from, const AttentionShape& shape, int count,
                                Index head, Index row, const View<float>& o, float* lse) {
  constexpr int channels = Lanes::lanes * Lanes::channels, sharing = decode_threads / channels;
  constexpr int ahead = 8;
  const auto d = static_cast<int>(shape.head_dim), apart = d + 2;
  const int t = static_cast<int>(threadIdx.x), first = t / channels, c = t % channels;
  const auto ask = [&](int part) {
    return c < d && first < sharing && part < count ? from[part * apart + c] : 0.0f;
  };
  float outs[ahead];
#pragma unroll
  for (int i = 0; i < ahead; ++i) outs[i] = ask(first + i * sharing);
  static_assert(most_decode_parts == 64);
  float most_of[2], sum_of[2], share[2];  // of parts that this lane knows
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int part = t % 32 + 32 * i;
    most_of[i] = part < count ? from[part * apart + d + 1] : -INFINITY;
    sum_of[i] = part < count ? from[part * apart + d] : 0.0f;
  }
  float most = fmaxf(most_of[0], most_of[1]);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, shuffle_xor(most, lanes));
#pragma unroll
  for (int i = 0; i < 2; ++i) share[i] = shrink_to(most_of[i], most);
  const float sum = lanes_sum(share[0] * sum_of[0] + share[1] * sum_of[1]);
  float out = 0;
  for (int part = first; part < count + first; part += ahead * sharing) {
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const int now = part + i * sharing;
      const float low = __shfl_sync(0xffffffffu, share[0], now % 32);
      const float high = __shfl_sync(0xffffffffu, share[1], now % 32);
      out += (now < 32 ? low : high) * outs[i];
      outs[i] = ask(now + ahead * sharing);
    }
  }
  __shared__ float sums[sharing][channels];
  if (first < sharing) sums[first][c] = out;
  __syncthreads();
  if (t < d) {
    float total = sums[0][t];
#pragma unroll
    for (int i = 1; i < sharing; ++i) total += sums[i][t];
    o(row, head * d + t) = total / sum;
  }
  if (t == 0 && lse != nullptr) *lse = most / log2_e + logf(sum);
}

/// Rows that are tokens of one document, one behind the other.
struct RowsOfOne {
  __device__ static Index behind(Index row) { return row; }
  __device__ static Index offset(Index) { return 0; }
};

/// A part of the keys of one head, by one block; the last puts all of them together.
template <class Lanes, bool turns, class Rows>
__global__ void __launch_bounds__(decode_threads, decode_blocks)
    attention_decode_kernel(View<const float> q, Cache<const bfloat16> keys,
                            Cache<const bfloat16> values, AttentionShape shape, Place place,
                            float* partial, unsigned* counters, View<float> o, View<float> lse,
                            Rotation<float> rotation, Rows rows) {
  let_next_begin();
  constexpr int lanes = Lanes::lanes, pieces = Lanes::pieces, ahead = Lanes::ahead;
  constexpr int across = decode_warps * Lanes::keys, step = across * ahead;
  __shared__ float warp_out[decode_warps][most_head_dim];
  __shared__ Partial warp_part[decode_warps];
  __shared__ TurnedToken turned[1];
  // Blocks that begin late show how long this takes: numbers of 64 bits are not divided.
  const unsigned group =
      static_cast<unsigned>(shape.heads) / static_cast<unsigned>(shape.key_heads);
  const Index head = blockIdx.y, key_head = blockIdx.y / group;
  const Index row = blockIdx.z, p = place.now() + rows.behind(row), d = shape.head_dim;
  keys.data += rows.offset(row);
  values.data += rows.offset(row);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const auto channel = [&](int i) { return 8 * (lane % lanes + i * lanes); };
  const unsigned keys_each = decode_keys(shape, p, gridDim.x);
  const Index each = keys_each, seen = shape.first_key(p);
  const Index begin = seen + static_cast<Index>(blockIdx.x) * each;
  const bool has_own = begin <= p && begin + each > p;  // the query's own key, which comes last
  const Index end = begin + each <= p ? begin + each : p;
  const auto start = static_cast<int>(
      begin >> 32 == 0
          ? static_cast<unsigned>(begin) % static_cast<unsigned>(keys.slots)
          : static_cast<std::uint64_t>(begin) % static_cast<std::uint64_t>(keys.slots));
  Eight<bfloat16> key[ahead][pieces], value[ahead][pieces];
  // Few registers are left: what is a key's number, or an element's in a head, is an int.
  const int count = end > begin ? static_cast<int>(end - begin) : 0;
  const auto slots = static_cast<int>(keys.slots), size = static_cast<int>(d);
  const bfloat16* const keys_at = keys.data + key_head * keys.slots * d + channel(0);
  const bfloat16* const values_at = values.data + key_head * keys.slots * d + channel(0);
  const auto ask = [&](const bfloat16* from, Eight<bfloat16>(&to)[pieces], int i) {
    const int slot = start + i < slots ? start + i : start + i - slots;
    const bfloat16* const at = from + slot * size;
#pragma unroll
    for (int j = 0; j < pieces; ++j) {
      to[j] = load_eight<true>(at + 8 * lanes * j, i < count && channel(j) < size ? 8 : 0);
    }
  };
  const int own = warp * Lanes::keys + lane / lanes;
  const auto ask_first = [&] {
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      ask(keys_at, key[n], own + n * across);
      ask(values_at, value[n], own + n * across);
    }
  };
  Pack<float, 4> scale_of_norm = {};
  if (turns && warp < 2 && 4 * lane < d) {
    const Norm<float>& norm = warp == 0 ? rotation.q_norm : rotation.k_norm;
    if (norm.eps >= 0) scale_of_norm = load_scales<4>(norm, 4 * lane);
  }
  const bool are_there = turns || end <= place.now();  // else this step stores them first
  if (are_there) ask_first();
  if (turns && thread < 2) {     // keys, and values, behind those: they are nearer then
    constexpr int most = 16384;  // bytes: more would be in the way of what is asked for itself
    const int keys_left = (count < slots - start ? count : slots - start) - step;
    const Index at = (key_head * keys.slots + start + step) * d;
    const int bytes = keys_left * size * int{sizeof(bfloat16)};
    bring_nearer((thread == 0 ? keys : values).data + at, bytes < most ? bytes : most);
  }
  wait_for_previous();
  if (!are_there) ask_first();
  const float* query_at = q.row(row) + head * d;
  if constexpr (turns) {
    const bool stores = blockIdx.y % group == 0;
    const auto place_in = [&](Cache<bfloat16> cache) {
      cache.data += rows.offset(row);
      return stores ? cache.at(key_head, p) : nullptr;
    };
    turn_and_store(rotation, row, head, key_head, blockIdx.x == 0, has_own, place_in(rotation.keys),
                   place_in(rotation.values), scale_of_norm, turned[0]);
    __syncthreads();
    query_at = turned[0].query;
  }
  float query[Lanes::channels] = {}, out[Lanes::channels] = {};
  const float scale = rsqrtf(static_cast<float>(d)) * log2_e;
#pragma unroll
  for (int c = 0; c < Lanes::channels; ++c) {
    const int at = channel(c / 8) + c % 8;
    if (at < d) query[c] = query_at[at] * scale;
  }
  Partial part = {-INFINITY, 0};
  const auto score = [&](const auto& key_of) {
    float eight[8], sum = 0;
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      float some = 0;
      key_of(i, eight);
#pragma unroll
      for (int c = 0; c < 8; ++c) some += query[8 * i + c] * eight[c];
      sum += some;
    }
    return sum;
  };
  /// Takes keys with such scores in, all lanes' parts of which are added up here; `value_of` gives
  /// eights of a value's channels.
  const auto take = [&]<int keys_at_once>(float(&scores)[keys_at_once], const auto& is_there,
                                          const auto& value_of) {
    float most = part.most;
#pragma unroll
    for (int n = 0; n < keys_at_once; ++n) {
      scores[n] = lanes_sum(scores[n], lanes);
      if (!is_there(n)) scores[n] = -INFINITY;
      if (!(scores[n] <= most)) most = scores[n];
    }
    if (most != part.most) {  // with a NaN, too, which stays one
      const float shrink = shrink_to(part.most, most);
      part = {most, part.sum * shrink};
#pragma unroll
      for (float& x : out) x *= shrink;
    }
#pragma unroll
    for (int n = 0; n < keys_at_once; ++n) {
      const float power = shrink_to(scores[n], most);
      part.sum += power;
#pragma unroll
      for (int i = 0; i < pieces; ++i) {
        float eight[8];
        value_of(n, i, eight);
#pragma unroll
        for (int c = 0; c < 8; ++c) out[8 * i + c] += power * eight[c];
      }
    }
  };
  for (int j = 0; j < count; j += step) {
    float scores[ahead];
#pragma unroll
    for (int n = 0; n < ahead; ++n) {
      scores[n] = score([&](int m, float(&to)[8]) { key[n][m].widen(to); });
      ask(keys_at, key[n], own + j + n * across + step);
    }
    take(
        scores, [&](int n) { return own + j + n * across < count; },
        [&](int n, int m, float(&to)[8]) { value[n][m].widen(to); });
#pragma unroll
    for (int n = 0; n < ahead; ++n) ask(values_at, value[n], own + j + n * across + step);
  }
  if (has_own && warp == 0) {
    const auto from = [&](const Cache<const bfloat16>& cache, const float* x) {
      return [&, x](int m, float(&to)[8]) {
        const int at = channel(m);
        if constexpr (turns) {
#pragma unroll
          for (int c = 0; c < 8; ++c) to[c] = at + c < d ? x[at + c] : 0.0f;
        } else {
          load_eight<true>(cache.at(key_head, p) + at, at < d ? 8 : 0).widen(to);
        }
      };
    };
    const auto own_value = from(values, turned[0].value);
    float scores[] = {score(from(keys, turned[0].key))};
    take(
        scores, [&](int) { return lane < lanes; },
        [&](int, int m, float(&to)[8]) { own_value(m, to); });
  }

  float now = part.most;
#pragma unroll
  for (int apart = lanes; apart < 32; apart *= 2) now = fmaxf(now, shuffle_xor(now, apart));
  const float share = shrink_to(part.most, now);
  float sum = part.sum * share;
#pragma unroll
  for (int apart = lanes; apart < 32; apart *= 2) sum += shuffle_xor(sum, apart);
#pragma unroll
  for (float& x : out) x *= share;
  sum_lanes<lanes>(out, 0, true, [&](int i, float x) {
    const int at = channel(i / 8) + i % 8;
    if (at < d) warp_out[warp][at] = x;
  });
  if (lane == 0) warp_part[warp] = {now, sum};
  __syncthreads();
  float most = -INFINITY;
  for (const Partial& w : warp_part) most = fmaxf(most, w.most);
  const Index which = row * shape.heads + head;
  float* const all = partial + which * gridDim.x * (d + 2);
  float* const to = all + blockIdx.x * (d + 2);
  for (Index c = thread; c < d + 2; c += decode_threads) {
    float total = 0;
    for (int w = 0; w < decode_warps; ++w) {
      const float share = shrink_to(warp_part[w].most, most);
      total += share * (c < d ? warp_out[w][c] : warp_part[w].sum);
    }
    to[c] = c == d + 1 ? most : total;
  }
  if (!is_last_block(counters + which, gridDim.x)) return;
  const unsigned used = static_cast<unsigned>(p - seen) / keys_each + 1;
  constexpr bool by_row = std::is_same_v<Rows, DocumentRows>;
  float* const lse_to = lse.empty() ? nullptr : by_row ? &lse(row, head) : &lse(head, row);
  attention_parts<Lanes>(all, shape, static_cast<int>(used), head, row, o, lse_to);
}

/// Among how many blocks the keys of a query and head are split: as many as the 132 SMs of an H200
/// hold or, where those of `documents` are more than that, several times as many, if less of the
/// last time is empty then. Where the query stands does not matter, which only the GPU may know;
/// some blocks may have no keys.
inline Index decode_parts(const AttentionShape& shape, Index slots, Index rows, bool documents) {
  constexpr Index blocks = Index{132} * decode_blocks;
  const Index queries = shape.heads * rows;
  Index parts = blocks / queries;
  if (documents) {
    // Times that blocks are held, each a share of the keys and some 3 % of all for itself.
    const auto cost = [&](Index n) {
      return blocks_for(n * queries, blocks) * (100 + 3 * n) * 16 / n;
    };
    parts = 1;
    for (Index n = 2; n <= most_decode_parts; ++n) parts = cost(n) < cost(parts) ? n : parts;
  }
  const Index most = blocks_for(slots < shape.window ? slots : shape.window, 64);
  if (parts > most) parts = most;
  if (parts > most_decode_parts) parts = most_decode_parts;
  return parts < 1 ? 1 : parts;
}

}  // namespace

template <class S>
Index Launch<S>::attention_decode_scratch(AttentionShape shape, Index slots, Index rows,
                                          bool documents) {
  return rows * shape.heads * decode_parts(shape, slots, rows, documents) * (shape.head_dim + 2) *
         static_cast<Index>(sizeof(float));
}

template <class S>
bool Launch<S>::attention_decode(Stream stream, View<const S> q, Cache<const bfloat16> keys,
                                 Cache<const bfloat16> values, AttentionShape shape, Place place,
                                 View<S> o, View<S> lse, void* scratch, unsigned* counters,
                                 const Rotation<S>* rotation, const DocumentRows* documents) {
  if constexpr (std::is_same_v<S, float>) {
    constexpr Index most = std::numeric_limits<int>::max() / 2;  // elements of a head's keys
    if (q.rows == 0 || shape.head_dim % 8 != 0 || keys.slots > most / shape.head_dim ||
        reinterpret_cast<std::uintptr_t>(keys.data) % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(values.data) % 16 != 0) {
      return false;
    }
    const Index parts = decode_parts(shape, keys.slots, q.rows, documents != nullptr);
    const dim3 blocks(grid(parts), grid(shape.heads), grid(q.rows));
    float* const partial = static_cast<float*>(scratch);
    with_decode_lanes(shape.head_dim, [&]<class Lanes>(Lanes) {
      const auto run = [&](auto kernel, const auto& rows) {
        start(stream, kernel, blocks, decode_threads, q, keys, values, shape, place, partial,
              counters, o, lse, rotation != nullptr ? *rotation : Rotation<float>{}, rows);
      };
      if (documents != nullptr) {
        run(attention_decode_kernel<Lanes, true, DocumentRows>, *documents);
      } else if (rotation != nullptr) {
        run(attention_decode_kernel<Lanes, true, RowsOfOne>, RowsOfOne{});
      } else {
        run(attention_decode_kernel<Lanes, false, RowsOfOne>, RowsOfOne{});
      }
    });
    return true;
  }
  return false;
}

}  // namespace cuda::detail
}  // namespace ttt::inline TTT_ABI
