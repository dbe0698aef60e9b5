// SPDX-License-Identifier: MIT
// The MLP that learns in place is that of In-Place TTT's authors: training form, its gradients, and
// what it makes of its weights chunk by chunk.
#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <support/backends.hpp>
#include <support/gradcheck.hpp>
#include <support/layers.hpp>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/in_place_loop.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/layers/in_place_mlp.hpp>

namespace {

using namespace ttt;

/// One recorded case. `target` is a stream of its own there, which embeddings are too.
class Recorded {
 public:
  using Layer = InPlaceMLP<FromEmbeddings>;

  explicit Recorded(const std::string& name)
      : file_(io::SafeTensors::open(std::string(TTT_TEST_DATA) + "/" + name + ".safetensors")),
        json_(io::Json::parse(file_->metadata().at("config"))) {}

  Index size(const char* key) const { return json_.at(key).integer(); }
  Index chunk() const { return size("chunk"); }
  double rate() const { return json_.at("lr").number(); }
  Config config() const {
    Config config{.vocabulary = 5,
                  .width = size("hidden_size"),
                  .heads = 1,
                  .hidden = size("intermediate_size"),
                  .rope_base = 100,
                  .eps = 1e-6};
    config.in_place = BlockSet::first(1);
    config.in_place_projection = json_.at("proj").boolean();
    return config;
  }

  template <class T>
  std::vector<T> values(const std::string& name) const {
    const io::TensorInfo& info = file_->at(name);
    std::vector<T> out(info.size());
    file_->copy_to<T>(info, out);
    return out;
  }
  /// One sequence of the batch.
  template <class T>
  std::vector<T> values(const std::string& name, Index sequence) const {
    const std::vector<T> all = values<T>(name);
    const auto each = static_cast<std::ptrdiff_t>(all.size()) / size("batch");
    return {all.begin() + sequence * each, all.begin() + (sequence + 1) * each};
  }

  /// Calls f(recorded name, leaves...) for the parameters, matrices being [out, in] there.
  template <class F, class... Trees>
  static void each(const F& f, Trees&... trees) {
    Layer::each(
        {.layer = "mlp"},
        [&](const ParameterName& name, auto&... leaves) {
          const std::string_view n = name.tensor;
          f(n == "w1"     ? "gate_proj"
            : n == "w2"   ? "down_proj"
            : n == "w3"   ? "up_proj"
            : n == "conv" ? "ttt_conv"
                          : "ttt_proj",
            n[0] == 'w', leaves...);
        },
        trees...);
  }

 private:
  std::shared_ptr<const io::SafeTensors> file_;
  io::Json json_;
};

/// Memory of a backend, filled from the host.
template <class B>
struct Place {
  using S = typename B::Scalar;
  Place(const B& backend, const std::vector<S>& values)
      : memory(backend.template allocate<S>(static_cast<Index>(values.size()))),
        size(static_cast<Index>(values.size())) {
    backend.to_device(values.data(), memory.data(), size);
  }
  Place(const B& backend, Index count)
      : Place(backend, std::vector<S>(static_cast<std::size_t>(count))) {}
  View<S> view(Index rows) { return {memory.data(), rows, size / rows}; }

  typename B::template Buffer<S> memory;
  Index size;
};

template <class S>
double distance(const std::vector<S>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    size += want[i] * want[i];
  }
  return std::sqrt(error / size);
}

/// A layer with the recorded weights.
template <class B>
struct Loaded {
  using S = typename B::Scalar;
  using Layer = Recorded::Layer;

  Loaded(const Recorded& recorded, const B& b)
      : backend(b), layer(recorded.config()), workspace(b, 1 << 18) {
    auto shapes = layer.shapes();
    weights.target.resize(layer.targets());
    Recorded::each(
        [&](const char* name, bool turned, const Shape& shape, Weight<S>& leaf) {
          places.emplace_back(backend,
                              recorded.values<S>("params." + std::string(name) + ".weight"));
          leaf = places.back().view(turned ? shape.cols : shape.rows);
          if (turned) leaf = leaf.transpose();
        },
        shapes, weights);
  }

  const B& backend;
  Layer layer;
  Workspace<B> workspace;
  typename Layer::template Parameters<Weight<S>> weights;
  std::vector<Place<B>> places;
};

template <class B>
void check_training_form(const std::string& name, const B& backend) {
  using S = typename B::Scalar;
  CAPTURE(name);
  const Recorded recorded(name);
  Loaded<B> loaded(recorded, backend);
  const Index rows = recorded.size("seq");
  auto shapes = loaded.layer.shapes();
  typename Recorded::Layer::template Parameters<View<S>> gradients;
  gradients.target.resize(loaded.layer.targets());
  std::vector<Place<B>> sums;
  Recorded::each(
      [&](const char*, bool, const Shape& shape, View<S>& leaf) {
        sums.emplace_back(backend, shape.size());
        leaf = sums.back().view(shape.rows);
      },
      shapes, gradients);
  for (Index s = 0; s < recorded.size("batch"); ++s) {
    CAPTURE(s);
    Place<B> x(backend, recorded.values<S>("x", s)),
        target(backend, recorded.values<S>("target", s));
    Place<B> dy(backend, recorded.values<S>("cotangent", s)), dx(backend, x.size),
        dtarget(backend, x.size);
    loaded.workspace.release(0);
    Context<B> c{backend, loaded.workspace, Write::Add};
    typename Recorded::Layer::template Saved<View<S>> saved;
    const InPlacePass<S> pass{.rule = {.chunk = recorded.chunk(), .rate = recorded.rate()},
                              .embeddings = target.view(rows),
                              .dembeddings = dtarget.view(rows)};
    const auto y = loaded.layer.forward(c, loaded.weights, x.view(rows), saved, pass);
    CHECK(distance(test::on_host(backend, y.data, x.size), recorded.values<double>("y", s)) <=
          1e-5);
    loaded.layer.backward(c, loaded.weights, saved, dy.view(rows), dx.view(rows), gradients, pass);
    CHECK(distance(test::on_host(backend, dx.memory.data(), x.size),
                   recorded.values<double>("grads.x", s)) <= 1e-5);
    CHECK(distance(test::on_host(backend, dtarget.memory.data(), x.size),
                   recorded.values<double>("grads.target", s)) <= 1e-5);
  }
  Recorded::each(
      [&](const char* tensor, bool turned, const View<S>& leaf) {
        CAPTURE(tensor);
        auto want = recorded.values<double>("grads." + std::string(tensor) + ".weight");
        if (turned) {
          std::vector<double> other(want.size());
          for (Index i = 0; i < leaf.rows; ++i) {
            for (Index j = 0; j < leaf.cols; ++j) {
              other[static_cast<std::size_t>(i * leaf.cols + j)] =
                  want[static_cast<std::size_t>(j * leaf.rows + i)];
            }
          }
          want = other;
        }
        CHECK(distance(test::on_host(backend, leaf.data, leaf.shape().size()), want) <= 1e-5);
      },
      gradients);
}

template <class B>
void check_reading(const std::string& name, const B& backend) {
  using S = typename B::Scalar;
  CAPTURE(name);
  const Recorded recorded(name);
  const Index length = recorded.size("seq"), chunk = recorded.chunk();
  const InPlaceLoop learner{.chunk = chunk, .rate = static_cast<float>(recorded.rate())};
  for (Index s = 0; s < recorded.size("batch"); ++s) {
    CAPTURE(s);
    Loaded<B> loaded(recorded, backend);
    auto shapes = loaded.layer.shapes();
    Place<B> down(backend, recorded.values<S>("params.down_proj.weight"));
    Place<B> update(backend, down.size);
    const View<S> w = down.view(shapes.w2.cols);  // (width, hidden)
    loaded.weights.w2 = Weight<S>(w).transpose();
    Place<B> x(backend, recorded.values<S>("x", s)),
        target(backend, recorded.values<S>("target", s));
    std::vector<S> y;
    for (Index first = 0; first < length; first += chunk) {
      const Index rows = std::min(chunk, length - first);
      loaded.workspace.release(0);
      Context<B> c{backend, loaded.workspace};
      typename Recorded::Layer::template Saved<View<S>> saved;
      InPlacePass<S> pass{.embeddings = target.view(length).rows_at(first, rows)};
      if (rows == chunk) pass.update = update.view(w.rows);
      const auto part =
          loaded.layer.forward(c, loaded.weights, x.view(length).rows_at(first, rows), saved, pass);
      const auto values = test::on_host(backend, part.data, part.rows * part.cols);
      y.insert(y.end(), values.begin(), values.end());
      if (rows < chunk) break;
      const Step step = learner.update(
          backend,
          Update<S>{.gradient = update.memory.data(), .weights = w.data, .size = down.size});
      CHECK(step.taken);
    }
    CHECK(distance(y, recorded.values<double>("inference.y", s)) <= 1e-5);
    CHECK(distance(test::on_host(backend, w.data, down.size),
                   recorded.values<double>("inference.down_proj", s)) <= 1e-5);
  }
}

constexpr const char* cases[] = {"inplace_mlp", "inplace_mlp_noproj", "inplace_mlp_ragged"};

Config small(bool projection) {
  Config config{
      .vocabulary = 5, .width = 6, .heads = 1, .hidden = 9, .rope_base = 100, .eps = 1e-6};
  config.in_place = BlockSet::first(1);
  config.in_place_projection = projection;
  return config;
}

}  // namespace

TEST_CASE_TEMPLATE("InPlaceMLP: the authors' training form and its gradients", B,
                   TTT_TEST_BACKENDS) {
  for (const char* name : cases) check_training_form(name, B());
}

TEST_CASE_TEMPLATE("InPlaceMLP: the authors' inference, chunk by chunk", B, TTT_TEST_BACKENDS) {
  for (const char* name : cases) check_reading(name, B());
}

TEST_CASE("InPlaceMLP: a block that was not chosen, and one that learns nothing, are SwiGLU") {
  Random random{3};
  Config plain = small(false);
  plain.in_place = {};
  const SwiGLU host(plain);
  test::Flats flats = test::random_parameters(host, random);
  std::vector<double> x = test::uniforms(random, 7 * 6), zero(6 * 5);
  test::Bench<reference::Backend<double>> bench;
  auto c = bench.context();
  SwiGLU::Saved<View<double>> host_saved;
  const auto p = test::tree_of<SwiGLU, Weight<double>>(host, flats, 0);
  const auto want = host.forward(c, p, test::view(x, 7), host_saved);
  for (const Config& config : {plain, small(false)}) {
    const InPlaceMLP<> layer(config);
    InPlaceMLP<>::Parameters<Weight<double>> q{p.w1, p.w2, p.w3, {}};
    if (layer.targets() > 0) q.target.push_back(View<double>(zero.data(), 6, 5));
    InPlaceMLP<>::Saved<View<double>> saved;
    const InPlacePass<double> pass{.rule = {.chunk = 3, .rate = 3}};
    const auto got = layer.forward(c, q, test::view(x, 7), saved, pass);
    for (Index i = 0; i < 7 * 6; ++i) CHECK(got.data[i] == want.data[i]);
  }
}

TEST_CASE_TEMPLATE("InPlaceMLP: the gradient of everything, and of less", B,
                   TTT_GRADIENT_BACKENDS) {
  using Layer = InPlaceMLP<FromInput>;
  for (const bool projection : {false, true}) {
    for (const Index rows : {1, 4, 5, 11, 12}) {
      CAPTURE(projection);
      CAPTURE(rows);
      const Layer layer(small(projection));
      test::Bench<B> bench;
      Random random{2};
      auto shapes = layer.shapes();
      test::Flats inputs{test::uniforms(random, rows * 6)};
      Layer::each(
          {},
          [&](const ParameterName&, const Shape& shape) {
            inputs.push_back(test::uniforms(random, shape.size()));
          },
          shapes);
      const auto tree = [&]<class Leaf>(test::Flats& flats) {
        Layer::Parameters<Leaf> tree_;
        tree_.target.resize(layer.targets());
        std::size_t i = 1;
        Layer::each(
            {},
            [&](const ParameterName&, const Shape& shape, Leaf& leaf) {
              leaf = View<double>(flats[i++].data(), shape.rows, shape.cols);
            },
            shapes, tree_);
        return tree_;
      };
      const InPlacePass<double> pass{.rule = {.chunk = 4, .rate = 0.7}};
      const auto forward = [&](test::Flats& flats, auto& saved, Context<B>& c) {
        return layer.forward(c, tree.template operator()<Weight<double>>(flats),
                             test::view(flats[0], rows), saved, pass);
      };
      const auto f = [&](test::Flats flats) {
        auto c = bench.context();
        Layer::Saved<View<double>> saved;
        const auto y = forward(flats, saved, c);
        return std::vector<double>(y.data, y.data + rows * 6);
      };
      for (const bool want_dx : {true, false}) {
        const auto vjp = [&](test::Flats flats, std::vector<double> dy) {
          auto c = bench.context();
          Layer::Saved<View<double>> saved;
          (void)forward(flats, saved, c);
          test::Flats d = test::zeros_like(flats);
          layer.backward(c, tree.template operator()<Weight<double>>(flats), saved,
                         test::view(dy, rows), want_dx ? test::view(d[0], rows) : View<double>(),
                         tree.template operator()<View<double>>(d), pass);
          if (!want_dx) d[0].clear();
          return d;
        };
        CHECK_GRADIENT(inputs, f, vjp);
      }
    }
  }
}
