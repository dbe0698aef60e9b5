// SPDX-License-Identifier: MIT
/// \file
/// A backend that works as a GPU does: what it is given waits on a stream, and work beside it on
/// another.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <support/finding.hpp>
#include <utility>
#include <vector>

#include <ttt/backend/reference/backend.hpp>
#include <ttt/backend/steps.hpp>

namespace ttt::test {

/// Work that is done in its order, some time before somebody needs it done.
class Stream {
 public:
  /// One that is `eager` does everything at once, as far as that is allowed; any other waits until
  /// it must. A real one is somewhere between.
  explicit Stream(bool eager) : eager_(eager) {}

  void put(std::function<void()> work) {
    work_.push_back(std::move(work));
    ++put_;
    if (eager_) finish();
  }
  /// How much has been put here: a place to wait for.
  Index place() const { return put_; }
  void finish() { finish(put_); }
  void finish(Index place) {
    while (done_ < place) {
      const auto work = std::move(work_.front());
      work_.pop_front();
      ++done_;
      work();
    }
  }
  /// What is put here from now on comes behind what is on `other` now.
  void wait(const std::shared_ptr<Stream>& other, Index place) {
    put([other, place] { other->finish(place); });
  }

 private:
  bool eager_;
  Index put_ = 0, done_ = 0;
  std::deque<std::function<void()>> work_;
};

/// The reference, on streams: nothing is done before somebody waits for it. Memory is given back in
/// the stream's order, and holds no number before it is written to. Work beside is done as early as
/// it may be, or as late.
template <bool early>
class Streams : public Finding<reference::Backend<double>> {
  using Base = Finding<reference::Backend<double>>;
  struct Shared {
    Index bytes = 0;         // of memory that is held
    Index fails_after = -1;  // things that can be put beside, if this is not negative
    Index fails_recording_after = -1;
    Index recorded = 0;  // steps, of which so many failed
    Index failed = 0;
  };

 public:
  template <class T>
  class Buffer {
   public:
    Buffer() = default;
    Buffer(const Streams& machine, Index size)
        : memory_(size), stream_(machine.stream_), shared_(machine.shared_) {
      std::fill_n(reinterpret_cast<unsigned char*>(memory_.data()), bytes(), 0xff);
      shared_->bytes += bytes();
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
      swap(other);
      return *this;
    }
    ~Buffer() {
      if (data() == nullptr) return;
      stream_->finish();
      shared_->bytes -= bytes();
    }
    T* data() { return memory_.data(); }
    const T* data() const { return memory_.data(); }

   private:
    void swap(Buffer& other) {
      std::swap(memory_, other.memory_);
      std::swap(stream_, other.stream_);
      std::swap(shared_, other.shared_);
    }
    Index bytes() const { return memory_.size() * static_cast<Index>(sizeof(T)); }

    HostBuffer<T> memory_;
    std::shared_ptr<Stream> stream_;
    std::shared_ptr<Shared> shared_;
  };

  Index bytes() const { return shared_->bytes; }
  /// From now on so many things can be put beside, and the next one throws.
  void fail_after(Index count) const { shared_->fails_after = count; }
  /// The same of what can be put by a recorder.
  void fail_recording_after(Index count) const { shared_->fails_recording_after = count; }
  Index recorded() const { return shared_->recorded; }
  Index failed() const { return shared_->failed; }
  void synchronize() const { stream_->finish(); }

  /// As cuda::Steps, but that every later step is recorded: taken by another machine and, if that
  /// fails, taken anew.
  class Steps {
   public:
    explicit Steps(const Streams& machine) : machine_(machine), recorder_(machine) {
      recorder_.records_ = true;
    }
    template <class Step, class Bring = ttt::detail::BringNothing>
    void operator()(std::span<const void* const> memory, std::span<const Token> tokens, Token* to,
                    Index /*position*/, const Step& step, const Bring& bring = {}) {
      const auto prepare = [&] {
        machine_.to_device(tokens.data(), to, std::ssize(tokens));
        bring();
      };
      if (std::ranges::equal(memory, memory_)) {
        prepare();
        ++machine_.shared_->recorded;
        try {
          return step(recorder_);
        } catch (const Error&) {
          ++machine_.shared_->failed;
        }
      }
      memory_.assign(memory.begin(), memory.end());
      prepare();
      step(machine_);
    }

   private:
    const Streams& machine_;
    Streams recorder_;
    std::vector<const void*> memory_;
  };

  /// As cuda::Beside.
  class Beside {
   public:
    static constexpr Index groups = 4;
    Beside(const Streams& machine, Index marks)
        : machine_(machine), beside_(machine), marks_(static_cast<std::size_t>(marks)) {
      beside_.stream_ = std::make_shared<Stream>(early);
      beside_.is_beside_ = true;
    }
    ~Beside() { beside_.stream_->finish(); }
    Beside(const Beside&) = delete;
    Beside& operator=(const Beside&) = delete;

    const Streams& backend() const { return beside_; }
    void begin() { beside_.stream_->wait(machine_.stream_, machine_.stream_->place()); }
    void mark(Index n) { marks_[static_cast<std::size_t>(n)] = beside_.stream_->place(); }
    void wait(Index n) {
      machine_.stream_->wait(beside_.stream_, marks_[static_cast<std::size_t>(n)]);
    }
    void join() noexcept { machine_.stream_->wait(beside_.stream_, beside_.stream_->place()); }

   private:
    const Streams& machine_;
    Streams beside_;
    std::vector<Index> marks_;
  };

  template <class T>
  Buffer<T> allocate(Index size) const {
    return {*this, size};
  }
  template <class T>
  void to_device(const T* host, T* device, Index size) const {
    put([values = std::vector<T>(host, host + size), device](const Base& machine) {
      machine.to_device(values.data(), device, std::ssize(values));
    });
  }
  template <class T>
  void to_host(const T* device, T* host, Index size) const {
    synchronize();
    Base::to_host(device, host, size);
  }
  double dot(const double* x, const double* y, Index size) const {
    synchronize();
    return Base::dot(x, y, size);
  }

#define TTT_TEST_PUT(NAME)                                        \
  void NAME(auto... operands) const {                             \
    put([=](const Base& machine) { machine.NAME(operands...); }); \
  }
  TTT_TEST_PUT(copy)
  TTT_TEST_PUT(fill)
  TTT_TEST_PUT(widen)
  TTT_TEST_PUT(matmul)
  TTT_TEST_PUT(matmul_gradient)
  TTT_TEST_PUT(embed)
  TTT_TEST_PUT(embed_backward)
  TTT_TEST_PUT(rms_norm)
  TTT_TEST_PUT(rms_norm_backward)
  TTT_TEST_PUT(add)
  TTT_TEST_PUT(add_rms_norm)
  TTT_TEST_PUT(rope_angles)
  TTT_TEST_PUT(head_norm_rope)
  TTT_TEST_PUT(head_norm_rope_backward)
  TTT_TEST_PUT(swiglu)
  TTT_TEST_PUT(swiglu_backward)
  TTT_TEST_PUT(chunk_conv)
  TTT_TEST_PUT(store)
  TTT_TEST_PUT(attention)
  TTT_TEST_PUT(attention_backward)
  TTT_TEST_PUT(cross_entropy)
  TTT_TEST_PUT(next_token)
  TTT_TEST_PUT(axpby)
  TTT_TEST_PUT(gradient_scale)
#undef TTT_TEST_PUT

 private:
  template <class Work>
  void put(const Work& work) const {
    if (is_beside_ && shared_->fails_after >= 0 && shared_->fails_after-- == 0) {
      throw Error("no room beside");
    }
    if (records_ && shared_->fails_recording_after >= 0 && shared_->fails_recording_after-- == 0) {
      throw Error("no room for a recorder");
    }
    stream_->put([work] { work(Base()); });
  }

  bool is_beside_ = false, records_ = false;
  std::shared_ptr<Stream> stream_ = std::make_shared<Stream>(false);
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

using Early = Streams<true>;
using Late = Streams<false>;

}  // namespace ttt::test
