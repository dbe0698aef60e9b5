// SPDX-License-Identifier: MIT
// What only a GPU can get wrong: memory, streams, errors, and life beside another backend.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <support/backends.hpp>
#include <support/golden.hpp>
#include <support/primitives.hpp>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <ttt/inner/session.hpp>

namespace {

using namespace ttt;
using test::Golden;
using test::on_host;

/// What a call throws.
template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const cuda::Error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("without a GPU the backend says so") {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr || *visible != 0) return;
  CHECK(has(refusal([] { Cuda cuda; }), "ttt: CUDA: this machine has no GPU that can be used: "));
}

TEST_CASE("a GPU that is not there is named") {
  CHECK(has(refusal([] { Cuda cuda(99); }), "ttt: CUDA: there is no GPU 99: this machine has "));
  CHECK(has(refusal([] { Cuda cuda(-1); }), "ttt: CUDA: there is no GPU -1: this machine has "));
}

TEST_CASE("memory that is not there is refused, and the next request is not") {
  const Cuda cuda;
  const Index many = Index{1} << 42;
  CHECK(has(refusal([&] { auto buffer = cuda.allocate<float>(many); }),
            "ttt: out of memory: GPU 0 has no room for " + std::to_string(4 * many) + " bytes ("));
  CHECK(has(refusal([&] { auto buffer = cuda.allocate<float>(-1); }), "ttt: out of memory"));
  auto buffer = cuda.allocate<float>(3);
  const std::vector<float> values = {1, 2, 3};
  cuda.to_device(values.data(), buffer.data(), 3);
  auto moved = std::move(buffer);
  CHECK(buffer.data() == nullptr);  // NOLINT(bugprone-use-after-move)
  CHECK(on_host(cuda, moved.data(), 3) == values);
  CHECK(cuda.allocate<float>(0).data() == nullptr);
}

TEST_CASE("both machines in one function give one answer") {
  const Golden golden("e2e");
  const Cpu cpu(1);
  const Cuda cuda;
  Session on_cpu(golden.weights<test::GoldenReader>(cpu), golden.learner());
  Session on_gpu(golden.weights<test::GoldenReader>(cuda), golden.learner());
  const auto a = on_cpu.read(golden.tokens()), b = on_gpu.read(golden.tokens());
  for (std::size_t i = 1; i < a.nll.size(); ++i) CHECK(std::abs(a.nll[i] - b.nll[i]) <= 1e-4f);
}

TEST_CASE("a session on a GPU forks, goes back, and repeats itself to the bit") {
  const Golden golden("e2e");
  const Cuda cuda;
  Session session(golden.weights<test::GoldenReader>(cuda), golden.learner());
  const std::vector<Token> tokens = golden.tokens();
  const std::span<const Token> all(tokens);
  session.read(all.first(30));
  const auto snapshot = session.snapshot();
  const auto first = session.read(all.subspan(30));
  session.restore(snapshot);
  const auto second = session.read(all.subspan(30));
  CHECK(first.nll == second.nll);
  CHECK(session.generate(12, Greedy{}) == [&] {
    Session other(golden.weights<test::GoldenReader>(cuda), golden.learner());
    other.read(all);
    return other.generate(12, Greedy{});
  }());
}

TEST_CASE("threads may share a backend: each gets the bits it would get alone") {
  Random random{21};
  const test::Staged<Cuda> gpu;
  const test::AttentionInputs<float> inputs[] = {{random, 70, {4, 2, 16, 50, 60}, 0},
                                                 {random, 70, {2, 2, 128, 50, 60}, 0}};
  const auto first = inputs[0].run(gpu), second = inputs[1].run(gpu);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (const std::size_t i : {0, 1, 0, 1}) {
    threads.emplace_back([&, i] {
      for (int turn = 0; turn < 10; ++turn) {
        const auto all = inputs[i].run(gpu);
        const auto& alone = i == 0 ? first : second;
        for (std::size_t k = 0; k < all.size(); ++k) wrong += !all[k].same_bits(alone[k]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("a step is captured in a CUDA graph, and a stream of the caller's serves") {
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  {
    const Cuda cuda(0, stream);
    const Index size = 1000;
    auto x = cuda.allocate<float>(size), y = cuda.allocate<float>(size);
    cuda.fill(1.0f, x.data(), size);
    cuda.fill(0.0f, y.data(), size);
    cuda.synchronize();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    cuda.axpby(2.0, x.data(), 1.0, y.data(), size);
    cuda.add(View<const float>(y.data(), 1, size), View<const float>(x.data(), 1, size),
             View<float>(y.data(), 1, size));
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&ready, graph, 0) == cudaSuccess);
    for (int i = 0; i < 3; ++i) REQUIRE(cudaGraphLaunch(ready, stream) == cudaSuccess);
    CHECK(on_host(cuda, y.data(), size) == std::vector<float>(size, 9.0f));
    CHECK(cudaGraphExecDestroy(ready) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("a backend may live as long as the program") {
  static const auto forever = std::make_unique<Cuda>();  // NOLINT: destroyed behind main
  CHECK(forever->allocate<float>(10).data() != nullptr);
}
