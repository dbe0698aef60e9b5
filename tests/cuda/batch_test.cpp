// SPDX-License-Identifier: MIT
// Documents read together on a GPU: each reads as in a session of its own.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <support/random.hpp>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/backend/cuda/backend.hpp>
#include <ttt/inner/batch.hpp>
#include <ttt/inner/session.hpp>
#include <ttt/layers/block.hpp>
#include <ttt/model/language_model.hpp>

namespace {

using namespace ttt;
using namespace ttt::test;
using Exact = cuda::Backend<double>;
using Fast = cuda::Backend<float, cuda::Products::Bfloat16>;

constexpr Index chunk = 16;

using Attention = SlidingWindowAttention<>;
using Reader = LanguageModel<Stack<1, Block<Attention, SwiGLU>>,
                             Stack<2, Block<Attention, DualMLP<SwiGLU, SwiGLU>>>>;
using Texts = std::vector<std::vector<Token>>;

Config config(Index head_dim, Index window) {
  return {.vocabulary = 61,
          .width = 2 * head_dim,
          .heads = 2,
          .hidden = 40,
          .window = window,
          .rope_base = 10000,
          .eps = 1e-6};
}

const InnerLoop<Sgd> learner{.chunk = chunk, .clip = 1.0f, .optimizer = {.rate = 0.1f}};

Texts texts(Random& random, const std::vector<Index>& sizes) {
  Texts all;
  for (const Index size : sizes) all.push_back(tokens(random, size, 61));
  return all;
}

template <class A, class B>
double furthest(const A& a, const B& b) {
  REQUIRE(std::size(a) == std::size(b));
  double most = 0;
  for (std::size_t i = 0; i < std::size(a); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;  // the document's first token
    const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(apart <= most)) most = apart;
  }
  return most;
}

/// Whole chunks together, unequal texts, single tokens; with more documents than few rows are, too.
template <class B>
void check(const B& gpu, const Config& config, Index sequences, double bound) {
  CAPTURE(sequences);
  const auto weights = initialise<Reader>(config, gpu, 3, 0.1);
  Batch batch(weights, learner, sequences);
  std::vector<Session<Weights<Reader, B>>> alone;
  for (Index i = 0; i < sequences; ++i) alone.emplace_back(weights, learner);
  Random random{41};
  std::vector<Index> equal(alone.size(), 3 * chunk + 1), unequal, one(alone.size(), 1);
  for (Index i = 0; i < sequences; ++i) unequal.push_back(i * 7 % (3 * chunk));
  for (const auto& sizes : {equal, one, unequal, one, equal, unequal}) {
    const Texts all = texts(random, sizes);
    const auto got = batch.read(all);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(i);
      const auto want = alone[i].read(all[i]);
      CHECK(furthest(got[i].nll, want.nll) <= bound);
      CHECK(got[i].inner_steps == want.inner_steps);
      CHECK(furthest(batch.logits(static_cast<Index>(i)), alone[i].logits()) <= 4 * bound);
    }
  }
  // A document that leaves and comes back is the same.
  Session moved(weights, learner);
  moved.adopt(batch.state(sequences - 1));
  CHECK(furthest(batch.logits(sequences - 1), moved.logits()) <= 4 * bound);
  batch.adopt(0, moved.state());
  const auto made = batch.generate(2 * chunk, Greedy{});
  CHECK(std::ssize(made[0]) == 2 * chunk);
  if (bound < 1e-6) CHECK(made[0] == moved.generate(2 * chunk, Greedy{}));
}

}  // namespace

TEST_CASE("batch: a GPU reads several documents as it reads each") {
  for (const Index sequences : {1, 3, 8, 11}) check(Exact(), config(8, 40), sequences, 1e-10);
}

TEST_CASE("batch: steps from a graph have the bits of steps one by one") {
  const Fast gpu;
  const auto weights = initialise<Reader>(config(64, 100), gpu, 3, 0.1);
  for (const Index sequences : {2, 3, 11}) {
    CAPTURE(sequences);
    Random random{43};
    std::vector<Index> sizes;
    for (Index i = 0; i < sequences; ++i) sizes.push_back(1 + i * 5 % (3 * chunk));
    Batch graphs(weights, learner, sequences), steps(weights, learner, sequences);
    const Texts all = texts(random, sizes);
    graphs.read(all);
    steps.read(all);
    for (Index n = 0; n < 2 * chunk; ++n) {
      CAPTURE(n);
      // In memory that nothing was computed in before, so that no graph fits.
      Batch anew(weights, learner, sequences);
      for (Index i = 0; i < sequences; ++i) anew.adopt(i, steps.state(i));
      steps = std::move(anew);
      const auto tokens = graphs.likeliest();
      CHECK(steps.likeliest() == tokens);
      for (Index i = 0; i < sequences; ++i) {
        CHECK(std::ranges::equal(steps.logits(i), graphs.logits(i)));
      }
      graphs.step(tokens);
      steps.step(tokens);
    }
  }
}

TEST_CASE("batch: rounds of chunks from a graph have the bits of rounds one by one") {
  const Fast gpu;
  for (const Index head_dim : {16, 64}) {
    const auto weights = initialise<Reader>(config(head_dim, 100), gpu, 3, 0.1);
    for (const Index sequences : {2, 5}) {
      CAPTURE(head_dim);
      CAPTURE(sequences);
      Random random{46};
      std::vector<Index> sizes;
      for (Index i = 0; i < sequences; ++i) sizes.push_back(1 + i * 3 % 4 * chunk);
      Batch graphs(weights, learner, sequences), steps(weights, learner, sequences);
      const Texts start = texts(random, sizes);
      graphs.read(start);
      steps.read(start);
      for (int n = 0; n < 10; ++n) {
        CAPTURE(n);
        Batch anew(weights, learner, sequences);
        for (Index i = 0; i < sequences; ++i) anew.adopt(i, steps.state(i));
        steps = std::move(anew);
        const Texts more =
            texts(random, std::vector<Index>(static_cast<std::size_t>(sequences), chunk));
        // From the seventh on, one document is not learned from.
        std::vector<std::vector<std::uint8_t>> masks(more.size(),
                                                     std::vector<std::uint8_t>(chunk, 1));
        if (n >= 6) masks[1].assign(chunk, 0);
        const std::vector<std::span<const std::uint8_t>> spans(masks.begin(), masks.end());
        const auto got = graphs.read(more, {.loss_masks = spans}),
                   want = steps.read(more, {.loss_masks = spans});
        for (Index i = 0; i < sequences; ++i) {
          CHECK(got[static_cast<std::size_t>(i)].nll == want[static_cast<std::size_t>(i)].nll);
          CHECK(graphs.counters(i) == steps.counters(i));
        }
      }
      CHECK(graphs.counters(0).inner_steps == 10);
      CHECK(graphs.counters(1).inner_steps == sizes[1] / chunk + 6);
      for (Index i = 0; i < sequences; ++i) {
        CHECK(std::ranges::equal(steps.logits(i), graphs.logits(i)));
      }
    }
  }
}

TEST_CASE("batch: documents go on when one of them has met a stop token") {
  const auto check = [](const auto& gpu, const Config& config, Index sequences, bool exact) {
    const auto weights = initialise<Reader>(config, gpu, 3, 0.1);
    Batch batch(weights, learner, sequences);
    Random random{44};
    const Texts start = texts(random, std::vector<Index>(static_cast<std::size_t>(sequences), 5));
    batch.read(start);
    const auto all = batch.generate(2 * chunk, Greedy{});
    const Token stop = all[1][4];
    batch.reset();
    batch.read(start);
    const auto got = batch.generate(2 * chunk, Greedy{}, {.stop_tokens = {&stop, 1}});
    // Fewer rows have other kernels, and in bfloat16 other bits.
    std::ptrdiff_t same = 2 * chunk;
    for (const auto& made : all) {
      if (!exact) same = std::min(same, std::ranges::find(made, stop) - made.begin());
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      CAPTURE(i);
      const auto end = std::min(std::ranges::find(all[i], stop), all[i].begin() + same);
      REQUIRE(std::ssize(got[i]) >= end - all[i].begin());
      CHECK(std::equal(all[i].begin(), end, got[i].begin()));
      CHECK(std::ranges::find(got[i], stop) == got[i].end());
      if (exact) CHECK(std::ssize(got[i]) == end - all[i].begin());
    }
    if (exact) CHECK(std::ssize(got[1]) <= 4);
    const auto more = batch.generate(chunk, Greedy{});  // all of them again
    for (const auto& made : more) CHECK(std::ssize(made) == chunk);
  };
  check(Exact(), config(8, 40), 3, true);
  for (const Index sequences : {2, 3, 11}) check(Fast(), config(64, 100), sequences, false);
}

TEST_CASE("batch: attention of a row of each document is that of each by itself") {
  Random random{47};
  const Fast gpu;
  for (const Index d : {8, 64, 80, 96, 128}) {
    for (const Index count : {2, 7, 40}) {  // more than one kernel takes
      for (const RopeLayout layout : {RopeLayout::Interleaved, RopeLayout::HalfSplit}) {
        CAPTURE(d);
        CAPTURE(count);
        constexpr Index heads = 4, key_heads = 2, slots = 96, window = 90;
        const Index size = key_heads * slots * d, apart = 2 * size + 16;
        const AttentionShape shape{heads, key_heads, d, window, 0};
        const Norm<float> norm{{}, 1e-6};
        std::vector<SequencePart> parts;
        for (Index i = 0; i < count; ++i) {  // places in another order, from the first token on
          parts.push_back({(i * 3 + 1) % count, i, 1, i * i % 5 == 0 ? i : 3 * slots + 11 * i});
        }
        const auto made = [&](Index n) {
          std::vector<float> values(static_cast<std::size_t>(n));
          for (float& x : values) x = static_cast<float>(random.normal());
          auto memory = gpu.allocate<float>(n);
          gpu.to_device(values.data(), memory.data(), n);
          return memory;
        };
        const Index q_width = heads * d, k_width = key_heads * d;
        const auto q = made(count * q_width), k = made(count * k_width), v = made(count * k_width);
        const auto angles = made(count * d), old = made(count * apart);
        const auto in = [&](const auto& memory, Index width) {
          return View<const float>(memory.data(), count, width);
        };
        struct Results {
          cuda::Buffer<float> y, q_inverse, k_inverse, o, lse;
          cuda::Buffer<bfloat16> cache;
        };
        const auto results = [&] {
          Results r{gpu.allocate<float>(count * q_width),   gpu.allocate<float>(count * heads),
                    gpu.allocate<float>(count * key_heads), gpu.allocate<float>(count * q_width),
                    gpu.allocate<float>(count * heads),     gpu.allocate<bfloat16>(count * apart)};
          gpu.narrow(old.data(), r.cache.data(), count * apart);
          return r;
        };
        const auto out = [&](cuda::Buffer<float>& memory, Index width) {
          return View<float>(memory.data(), count, width);
        };
        const auto caches = [&](Results& r, Index place) {
          bfloat16* const at = r.cache.data() + place * apart;
          return std::pair(Cache<bfloat16>{at, key_heads, slots, d},
                           Cache<bfloat16>{at + size, key_heads, slots, d});
        };
        Results all = results(), each = results();
        const auto [keys, values] = caches(all, 0);
        REQUIRE(gpu.attend_each(
            in(q, q_width), in(k, k_width), in(v, k_width), norm, norm, in(angles, d), layout,
            out(all.y, q_width), out(all.q_inverse, heads), out(all.k_inverse, key_heads), keys,
            values, apart, parts, shape, out(all.o, q_width), out(all.lse, heads)));
        for (const SequencePart& part : parts) {
          const auto own = [&](auto view) { return view.rows_at(part.first, 1); };
          const auto [own_keys, own_values] = caches(each, part.place);
          AttentionShape at = shape;
          at.position = part.position;
          REQUIRE(gpu.rotate_and_store(own(in(q, q_width)), own(in(k, k_width)),
                                       own(in(v, k_width)), norm, norm, own(in(angles, d)), layout,
                                       own(out(each.y, q_width)), own(out(each.q_inverse, heads)),
                                       own(out(each.k_inverse, key_heads)), own_keys, own_values,
                                       part.position));
          gpu.attention(own(out(each.y, q_width)), own_keys, own_values, at,
                        own(out(each.o, q_width)),
                        View<float>(each.lse.data() + part.first * heads, heads, 1));
        }
        const auto bits = [&](auto& memory) {
          std::vector<std::decay_t<decltype(*memory.data())>> host(
              static_cast<std::size_t>(memory.size()));
          gpu.to_host(memory.data(), host.data(), memory.size());
          return host;
        };
        CHECK(bits(all.y) == bits(each.y));
        CHECK(bits(all.q_inverse) == bits(each.q_inverse));
        CHECK(bits(all.k_inverse) == bits(each.k_inverse));
        const auto got = bits(all.cache), want = bits(each.cache);
        CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(bfloat16)) == 0);
        CHECK(furthest(bits(all.o), bits(each.o)) <= 1e-5);  // keys in other parts
        CHECK(furthest(bits(all.lse), bits(each.lse)) <= 1e-5);
      }
    }
  }
}

TEST_CASE("batch: so it does in bfloat16, and the same bits every time") {
  const Fast gpu;
  for (const Index sequences : {1, 3, 8, 11}) check(gpu, config(64, 100), sequences, 0.1);
  const auto weights = initialise<Reader>(config(64, 100), gpu, 3, 0.1);
  std::vector<Texts> made;
  for (int i = 0; i < 2; ++i) {
    Random random{42};
    Batch batch(weights, learner, 4);
    batch.read(texts(random, {5 * chunk, 3, 2 * chunk + 5, 1}));
    made.push_back(batch.generate(3 * chunk, Greedy{}));
  }
  CHECK(made[0] == made[1]);
}
