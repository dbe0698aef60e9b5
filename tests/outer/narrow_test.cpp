// SPDX-License-Identifier: MIT
// A backend that narrows reads rounded copies of what learns, made once a step: what comes of it is
// what comes of a backend that rounds them in every product.
#include <string>
#include <support/finding.hpp>
#include <support/meta_gradient.hpp>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/batch.hpp>
#include <ttt/inner/session.hpp>

namespace {

using namespace ttt;
using namespace ttt::test::meta;
using ttt::test::Finding;

using Float = eigen::Backend<float>;

/// Rounds the weights of every product.
struct Rounds : Float {
  void matmul(View<const float> x, Weight<float> w, View<float> y, Write write) const {
    if (w.narrow) return Float::matmul(x, w, y, write);
    const auto stored = w.stored<float>();
    std::vector<bfloat16> copy;
    for (Index i = 0; i < stored.rows; ++i) {
      for (Index j = 0; j < stored.cols; ++j) copy.emplace_back(stored(i, j));
    }
    const Weight<float> rounded(View<const bfloat16>(copy.data(), stored.rows, stored.cols));
    Float::matmul(x, w.transposed ? rounded.transpose() : rounded, y, write);
  }
};

/// Is asked to round what learns, and says how much of it after a step, and how much by one; and
/// how many bytes it was asked for, and how many of them for copies.
struct Narrows : Rounds {
  static inline Index rounded = 0, rounded_by_steps = 0, bytes = 0, copies = 0;

  template <class T>
  auto allocate(Index n) const {
    const Index size = n * static_cast<Index>(sizeof(T));
    bytes += size;
    if (std::is_same_v<T, bfloat16>) copies += size;
    return Float::allocate<T>(n);
  }

  using Float::axpby;
  void axpby(double a, const float* x, double b, float* y, Index size, bfloat16* copy) const {
    axpby(a, x, b, y, size);
    narrow(y, copy, size);
    rounded -= size;
    rounded_by_steps += size;
  }

  void narrow(const float* from, bfloat16* to, Index size) const {
    rounded += size;
    for (Index i = 0; i < size; ++i) to[i] = bfloat16(from[i]);
  }
};

/// Rounds what products only multiply: where it is made, into half the memory, or as it lies.
template <bool in_place>
struct RoundsFactors : Narrows {
  using In = View<const float>;
  using Out = View<float>;
  using To = Factor<float>;
  using N = Norm<float>;

  static constexpr bool rounds(Index rows, Index cols) { return rows > 2 && cols % 2 == 0; }
  static constexpr bool rounds_factors(Index rows, Index cols) requires(!in_place) {
    return rounds(rows, cols);
  }

  /// Calls f with a place for the values of a result, then rounds them.
  template <class F>
  static void make(const To& y, const F& f) {
    std::vector<float> memory(y.narrow ? static_cast<std::size_t>(y.shape().size()) : 0);
    const Out values = y.narrow ? Out(memory.data(), y.rows, y.cols) : y.values();
    f(values);
    if (y.empty() || !rounds(y.rows, y.cols)) return;
    for (Index i = 0; i < y.rows; ++i) {
      for (Index j = 0; j < y.cols; ++j) {
        const bfloat16 rounded(values(i, j));
        if (y.narrow) {
          y.rounded()(i, j) = rounded;
        } else {
          values(i, j) = float(rounded);
        }
      }
    }
  }
  /// Calls f with the values of a factor.
  template <class F>
  static void with(const Factor<const float>& x, const F& f) {
    if (!x.narrow) return f(x.values());
    std::vector<float> values;
    for (Index i = 0; i < x.rows; ++i) {
      for (Index j = 0; j < x.cols; ++j) values.push_back(float(x.rounded()(i, j)));
    }
    f(In(values.data(), x.rows, x.cols));
  }

  using Narrows::head_norm_rope_backward, Narrows::head_norm_rope_backward_tangent;
  using Narrows::matmul, Narrows::matmul_gradient, Narrows::rms_norm, Narrows::rms_norm_backward;
  using Narrows::rms_norm_backward_tangent, Narrows::rms_norm_tangent, Narrows::swiglu;
  using Narrows::swiglu_backward, Narrows::swiglu_backward_tangent, Narrows::swiglu_tangent;
  void matmul(Factor<const float> x, Weight<float> w, Out y, Write write) const {
    with(x, [&](In values) { matmul(values, w, y, write); });
  }
  void matmul_gradient(Factor<const float> x, Factor<const float> dy, Out dw, Write write) const {
    with(x, [&](In left) { with(dy, [&](In right) { matmul_gradient(left, right, dw, write); }); });
  }
  void rms_norm(In x, N norm, To y, Out inverse) const {
    make(y, [&](Out to) { rms_norm(x, norm, to, inverse); });
  }
  void rms_norm_tangent(In x, In tx, N norm, In inverse, In th, To ty, Out tinverse) const {
    make(ty, [&](Out to) { rms_norm_tangent(x, tx, norm, inverse, th, to, tinverse); });
  }
  void rms_norm_backward(In x, N norm, In inverse, In dy, To dx, Write write, Out dscale) const {
    make(dx, [&](Out to) { rms_norm_backward(x, norm, inverse, dy, to, write, dscale); });
  }
  void rms_norm_backward_tangent(In x, In tx, N norm, In inverse, In tinverse, In dy, In tdy,
                                 To tdx, Write write, Out dscale) const {
    make(tdx, [&](Out to) {
      rms_norm_backward_tangent(x, tx, norm, inverse, tinverse, dy, tdy, to, write, dscale);
    });
  }
  void head_norm_rope_backward(In x, N norm, In inverse, In angles, RopeLayout layout, In dy, To dx,
                               Out dscale) const {
    make(dx, [&](Out to) {
      head_norm_rope_backward(x, norm, inverse, angles, layout, dy, to, dscale);
    });
  }
  void head_norm_rope_backward_tangent(In x, In tx, N norm, In inverse, In tinverse, In angles,
                                       RopeLayout layout, In dy, In tdy, To tdx, Out dscale) const {
    make(tdx, [&](Out to) {
      head_norm_rope_backward_tangent(x, tx, norm, inverse, tinverse, angles, layout, dy, tdy, to,
                                      dscale);
    });
  }
  void swiglu(In gate, In up, To out) const {
    make(out, [&](Out to) { swiglu(gate, up, to); });
  }
  void swiglu_tangent(In gate, In tgate, In up, In tup, To tout) const {
    make(tout, [&](Out to) { swiglu_tangent(gate, tgate, up, tup, to); });
  }
  void swiglu_backward(In gate, In up, In dout, To dgate, To dup) const {
    make(dgate, [&](Out a) { make(dup, [&](Out b) { swiglu_backward(gate, up, dout, a, b); }); });
  }
  void swiglu_backward_tangent(In gate, In tgate, In up, In tup, In dout, In tdout, To tdgate,
                               To tdup) const {
    make(tdgate, [&](Out a) {
      make(tdup, [&](Out b) { swiglu_backward_tangent(gate, tgate, up, tup, dout, tdout, a, b); });
    });
  }
};

/// A step that is made of another and does not round.
struct Decaying : Sgd {
  template <Backend B>
  void step(const B& backend, const Update<typename B::Scalar>& u) const {
    Sgd::step(backend, u);
    backend.axpby(-0.1, u.weights, 1.0, u.weights, u.size);
  }
  template <Backend B>
  void backward(const B& backend, const UpdateGradient<typename B::Scalar>& g) const {
    backend.axpby(0.0, g.dweights, 0.9, g.dweights, g.update.size);
    Sgd::backward(backend, g);
  }
};

/// The same bits from both.
template <class Model, class LearnerType, class Order = SecondOrder>
void check_narrow(const Config& config, const LearnerType& learner, Index length,
                  const MetaOptions& options) {
  constexpr Index batch = 3;
  Problem<Model, Rounds, LearnerType, Order> each(config, learner, length, batch, options);
  std::vector<float> want, got;
  const BatchLoss want_loss = each.loss(want);
  const auto check = [&](auto machine) {
    Problem<Model, decltype(machine), LearnerType, Order> once(config, learner, length, batch,
                                                               options);
    CHECK(once.loss(got).loss == want_loss.loss);
    CHECK(got == want);
  };
  check(Narrows());
  check(Finding<Narrows>());
}

constexpr Index learned = 2 * 3 * 8 * 6;  // scalars of tiny()'s dynamic MLPs

}  // namespace

TEST_CASE("narrow: a meta-gradient has the bits of one that rounds in every product") {
  const InnerLoop<Sgd> sgd{.chunk = 4, .clip = 0.3f};
  const InnerLoop<Momentum> momentum{.chunk = 2, .clip = 0.3f, .optimizer = {.rate = 0.5f}};
  const InnerLoop<Decaying> decaying{.chunk = 4, .clip = 0.3f};
  for (const Index stacked : {1, 2, 3}) {
    CAPTURE(stacked);
    for (const Keep keep : {Keep::all(), Keep{1}, Keep{2}}) {
      CAPTURE(keep.chunks);
      check_narrow<Tiny>(tiny(), sgd, 16, {.keep = keep, .stacked = stacked});
      check_narrow<Tiny>(tiny(), decaying, 16, {.keep = keep, .stacked = stacked});
      check_narrow<Tiny>(tiny(), momentum, 12, {.keep = keep, .stacked = stacked});
    }
    check_narrow<Tiny, InnerLoop<Sgd>, FirstOrder>(tiny(), sgd, 16, {.stacked = stacked});
    check_narrow<Tiny>(tiny(), NoLearning{}, 12, {.stacked = stacked});
  }
}

TEST_CASE("narrow: what learns is rounded once a chunk forwards, and its direction backwards") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  for (const Index stacked : {1, 3}) {
    Problem<Tiny, Narrows, InnerLoop<Sgd>> problem(tiny(), learner, 16, stacked,
                                                   {.stacked = stacked});
    std::vector<float> unused;
    Narrows::rounded = Narrows::rounded_by_steps = 0;
    problem.loss(unused);
    CHECK(Narrows::rounded == stacked * learned * (1 + 3));
    CHECK(Narrows::rounded_by_steps == stacked * learned * 3);
  }
}

TEST_CASE("narrow: both copies are counted beforehand") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  const Tiny model(tiny());
  for (const Index stacked : {1, 3}) {
    const MetaOptions options{.stacked = stacked};
    using Meta = MetaGradient<Tiny, Narrows>;
    const Index planned = Meta::required_bytes(model, Narrows(), learner, 16, options);
    Narrows::bytes = Narrows::copies = 0;
    const Meta meta(model, Narrows(), learner, 16, options);
    CHECK(Narrows::copies == 2 * 2 * stacked * learned);
    CHECK(Narrows::bytes == planned);
  }
}

TEST_CASE("narrow: a session has the bits of one that rounds in every product") {
  const auto tokens = random_tokens(30);
  const auto read = [&](const auto& backend, const auto& learner) {
    const auto weights = initialise<Tiny>(tiny(), backend, 5, 0.4);
    Session session(weights, learner);
    auto nll = session.read(tokens).nll;
    nll.erase(nll.begin());  // of the first token, which has no score
    auto fork = session.fork();
    for (const float each : fork.read(tokens).nll) nll.push_back(each);
    return nll;
  };
  const auto check = [&](const auto& learner) {
    CHECK(read(Narrows(), learner) == read(Rounds(), learner));
    CHECK(read(Finding<Narrows>(), learner) == read(Rounds(), learner));
  };
  check(InnerLoop<Sgd>{.chunk = 4, .clip = 0.3f});
  check(InnerLoop<Momentum>{.chunk = 4, .clip = 0.3f});
  check(InnerLoop<Decaying>{.chunk = 4, .clip = 0.3f});
}

TEST_CASE("narrow: a batch has the bits of one that rounds in every product") {
  const auto read = [&](const auto& backend, const auto& learner) {
    const auto weights = initialise<Tiny>(tiny(), backend, 5, 0.4);
    Batch batch(weights, learner, 3);
    batch.read({random_tokens(17), random_tokens(2), random_tokens(9)});
    batch.adopt(1, batch.state(0));  // what it has learned comes along, and is rounded
    batch.reset(2);                  // and what it had is forgotten
    auto all = batch.read({random_tokens(6), random_tokens(5), random_tokens(9)});
    auto nll = all[0].nll;
    nll.insert(nll.end(), all[1].nll.begin(), all[1].nll.end());
    nll.insert(nll.end(), all[2].nll.begin() + 1, all[2].nll.end());
    for (const Index i : {0, 1, 2}) {
      const auto logits = batch.logits(i);
      nll.insert(nll.end(), logits.begin(), logits.end());
    }
    return nll;
  };
  const auto check = [&](const auto& learner) {
    CHECK(read(Narrows(), learner) == read(Rounds(), learner));
    CHECK(read(Finding<Narrows>(), learner) == read(Rounds(), learner));
  };
  check(InnerLoop<Sgd>{.chunk = 4, .clip = 0.3f});
  check(InnerLoop<Momentum>{.chunk = 4, .clip = 0.3f});
  check(InnerLoop<Decaying>{.chunk = 4, .clip = 0.3f});
  check(NoLearning{.chunk = 4});
}

TEST_CASE("narrow: a batch counts its copies beforehand") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  const auto weights = initialise<Tiny>(tiny(), Narrows(), 5, 0.4);
  using Together = Batch<Weights<Tiny, Narrows>>;
  const Index planned = Together::required_bytes(weights, learner, 3);
  Narrows::bytes = Narrows::copies = 0;
  Together batch(weights, learner, 3);
  batch.read({random_tokens(9), {}, {}});
  CHECK(Narrows::copies == 2 * 3 * learned);
  CHECK(Narrows::bytes == planned);
}

TEST_CASE("narrow: factors that are made rounded give the bits of those that are rounded later") {
  const InnerLoop<Sgd> learner{.chunk = 4, .clip = 0.3f};
  constexpr Index batch = 3, length = 16;
  for (const Index stacked : {1, 2}) {
    for (const Keep keep : {Keep::all(), Keep{1}}) {
      for (const bool recompute : {false, true}) {
        CAPTURE(stacked);
        CAPTURE(keep.chunks);
        CAPTURE(recompute);
        const MetaOptions options{.keep = keep, .recompute = recompute, .stacked = stacked};
        Problem<Tiny, RoundsFactors<false>, InnerLoop<Sgd>> made(tiny(), learner, length, batch,
                                                                 options);
        Problem<Tiny, RoundsFactors<true>, InnerLoop<Sgd>> later(tiny(), learner, length, batch,
                                                                 options);
        std::vector<float> want, got;
        CHECK(made.loss(got).loss == later.loss(want).loss);
        CHECK(got == want);
      }
    }
  }
  const auto tokens = random_tokens(45), more = random_tokens(20);
  const auto read = [&](const auto& backend) {
    const auto weights = initialise<Tiny>(tiny(), backend, 5, 0.4);
    Session session(weights, InnerLoop<Sgd>{.chunk = 7, .clip = 0.3f});
    auto nll = session.read(tokens).nll;
    nll.erase(nll.begin());
    for (const Token& token : more) nll.push_back(session.read({&token, 1}).nll[0]);
    return nll;
  };
  CHECK(read(RoundsFactors<false>()) == read(RoundsFactors<true>()));
}

TEST_CASE("narrow: a rounded factor cannot be had as scalars") {
  std::vector<float> memory(12);
  const Factor<float> rounded(View<float>(memory.data(), 3, 4), 8);
  CHECK(rounded.narrow);
  CHECK(rounded.rows_at(1, 2).rounded().data == rounded.rounded().row(1));
  CHECK_THROWS_AS(static_cast<void>(View<float>(rounded)), Error);
  CHECK(rounded.values().empty());
}
