// SPDX-License-Identifier: MIT
/// \file
/// Steps of one token, of one of each of some documents, or of a chunk: one CUDA graph, put on the
/// stream again and again. Any host compiler reads this.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ttt/backend/cuda/device.hpp>
#include <ttt/backend/cuda/launch.hpp>
#include <ttt/backend/steps.hpp>

namespace ttt::inline TTT_ABI {
namespace cuda {

namespace detail {

/// A graph that can be put on a stream.
class Graph {
 public:
  /// Records what f() puts on the stream, which is not run; throws what f throws.
  template <class F>
  Graph(cudaStream_t stream, const F& f) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph");
    cudaGraph_t graph = nullptr;
    try {
      f();
      check(cudaGetLastError(), "a graph");  // a kernel that was refused would be missing
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &graph));
      if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "a graph");
    const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    check(status, "a graph");
  }
  ~Graph() { static_cast<void>(cudaGraphExecDestroy(graph_)); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void start(cudaStream_t stream) const { check(cudaGraphLaunch(graph_, stream), "a graph"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace detail

/// Runs a step that is the same every time but for its tokens and their positions. Hundreds of
/// small kernels cost the host more than the GPU, so with the second step from the same memory one
/// is recorded as a graph, on a backend of its own that keeps positions in the GPU's memory, and
/// from then on that is put on the stream. Where that is not possible, steps are taken as they
/// come. Each is taken once: what it adds to is added to once.
template <class B>
class Steps {
  using Launch = detail::Launch<typename B::Scalar>;

 public:
  /// Takes nothing before the first graph. Keeps a reference to the backend.
  explicit Steps(const B& backend) : backend_(backend) {}
  ~Steps() { static_cast<void>(cudaStreamSynchronize(backend_.device_->stream())); }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  /// Writes the tokens, if there are any, to `to`, calls bring(), which puts on the backend's
  /// stream what else is new and may be written over, then does what step(backend) puts there. The
  /// step must be the same whenever `memory`, all addresses that it uses and that may change, is,
  /// but for what is brought, and for `position` where it hands that, or one as far from it as
  /// ever, to a primitive. Throws what the step throws; one that throws is taken again, from what
  /// is brought again, so what it adds to must come last.
  template <class Step, class Bring = ttt::detail::BringNothing>
  void operator()(std::span<const void* const> memory, std::span<const Token> tokens, Token* to,
                  Index position, const Step& step, const Bring& bring = {}) {
    const bool known = std::ranges::equal(memory, memory_);
    if (!known) {
      graph_.reset();
      memory_.assign(memory.begin(), memory.end());
    }
    if (graph_) {
      bring_others(tokens, to);
      bring();
      begin(backend_.next(), tokens, to, position);
      backend_.device_->check_started();  // while nothing has changed
      return graph_->start(backend_.next());
    }
    if (known && possible_) {
      bring_others(tokens, to);
      bring();
      backend_.synchronize();
      if (record(tokens, to, position, step)) return;
    }
    if (!tokens.empty()) backend_.to_device(tokens.data(), to, std::ssize(tokens));
    bring();
    step(backend_);
  }

  bool has_graph() const { return graph_.has_value(); }

 private:
  /// All tokens but the first, which comes with the position.
  void bring_others(std::span<const Token> tokens, Token* to) {
    if (tokens.size() > 1) backend_.to_device(tokens.data() + 1, to + 1, std::ssize(tokens) - 1);
  }
  void begin(cudaStream_t stream, std::span<const Token> tokens, Token* to, Index position) {
    const bool has_tokens = !tokens.empty();
    Launch::begin_step(stream, has_tokens ? tokens[0] : Token{}, has_tokens ? to : nullptr,
                       position, place_.data());
  }

  /// Takes a step for which everything has been brought, and records another. Whether it was taken.
  template <class Step>
  bool record(std::span<const Token> tokens, Token* to, Index position, const Step& step) {
    bool taken = false;
    try {
      if (place_.size() == 0) place_ = backend_.template allocate<Index>(1);
      if (!recorder_) {  // what is at `position` now will be at *base
        const int index = backend_.device_->index();
        recorder_.reset(
            new B(std::make_shared<const detail::Device>(index, detail::StreamFor::Graphs), true));
        recorder_->base_ = place_.data();
      }
      recorder_->recorded_ = position;
      // What the recorder needs beside, it takes now.
      begin(recorder_->next(), tokens, to, position);
      step(*recorder_);
      recorder_->synchronize();
      taken = true;
      graph_.emplace(recorder_->next(), [&] {
        step(*recorder_);
        static_cast<void>(recorder_->next());  // what waits is part of the step
      });
    } catch (const Error&) {  // no graph of such a step, or no room for one
      possible_ = false;
      graph_.reset();
      if (recorder_) recorder_->synchronize();  // throws if the GPU is lost
      recorder_.reset();
    }
    return taken;
  }

  const B& backend_;
  Buffer<Index> place_;
  std::unique_ptr<B> recorder_;
  std::vector<const void*> memory_;
  std::optional<detail::Graph> graph_;
  bool possible_ = true;
};

}  // namespace cuda
}  // namespace ttt::inline TTT_ABI
