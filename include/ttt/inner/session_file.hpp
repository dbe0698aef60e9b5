// SPDX-License-Identifier: MIT
/// \file
/// A session's state as a file, and the hash that ties it to its model.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ttt/inner/state.hpp>
#include <ttt/io/config.hpp>
#include <ttt/io/hash.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/layers/parameters.hpp>

namespace ttt::inline TTT_ABI {

/// A hash of the model's configuration, its hint for the chunk aside, and of every parameter's
/// name, shape, type and bytes, as the weights hold them. Computed when first asked for (about a
/// second for each few gigabytes) and remembered; not cryptographic.
template <class WeightsType>
std::uint64_t model_hash(const WeightsType& weights) {
  return weights.hash([&weights] {
    using Scalar = typename WeightsType::Scalar;
    using Model = typename WeightsType::Model;
    io::Hash64 hash;
    Config config = weights.config();
    config.chunk = 0;
    hash.update(io::write_config<Model>(config).dump());
    Model::each(
        [&](const ParameterName& name, const Weight<Scalar>& leaf) {
          hash.update(to_string(name));
          hash.update(to_string(leaf.shape()));
          hash.update(name_of(leaf.narrow ? DType::BF16 : dtype_of<Scalar>));
          leaf.visit([&]<class Element>(View<const Element> stored) {
            std::vector<Element> row(static_cast<std::size_t>(stored.cols));
            for (Index i = 0; i < stored.rows; ++i) {
              weights.backend().to_host(stored.row(i), row.data(), stored.cols);
              hash.update(std::as_bytes(std::span(row)));
            }
          });
        },
        weights.parameters());
    return hash.value();
  });
}

namespace detail {

/// What has to be the same for a state to fit a session.
struct StateIdentity {
  std::uint64_t model = 0;
  std::uint64_t learns = 0;  // a hash of the names
  Index chunk = 0;
  Index vocabulary = 0;
  Index most_tokens = 0;
  std::vector<Index> cache;    // shape
  std::vector<Index> learned;  // shape, when there is any
};

inline constexpr std::string_view state_format = "ttt-state";
inline constexpr std::string_view state_version = "1";

inline std::string to_hex(std::uint64_t value) {
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, 16).ptr;
  return {digits, end};
}

inline std::uint64_t from_hex(const std::string& text, const std::string& what) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size()) {
    fail<FormatError>(what + ": expected a hexadecimal number");
  }
  return value;
}

/// Device memory as host bytes: where it lies if that is the host, else a copy.
template <class B, class T>
std::span<const T> on_host(const B& backend, const T* data, Index size, std::vector<T>& copy) {
  if constexpr (B::is_host) {
    return {data, static_cast<std::size_t>(size)};
  } else {
    copy.resize(static_cast<std::size_t>(size));
    backend.to_host(data, copy.data(), size);
    return copy;
  }
}

template <class B>
void save_state(const std::string& path, const B& backend, const SessionState<B>& state,
                const StateIdentity& identity) {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  const Counters& counters = state.counters;
  const io::Json json{io::Json::Object({
      {"model", to_hex(identity.model)},
      {"learns", to_hex(identity.learns)},
      {"chunk", identity.chunk},
      {"tokens", counters.tokens},
      {"inner_steps", counters.inner_steps},
      {"skipped_steps", counters.skipped_steps},
      {"clipped_steps", counters.clipped_steps},
      {"gradient_norm", std::isfinite(counters.gradient_norm) ? io::Json(counters.gradient_norm)
                                                              : io::Json(nullptr)},
      {"random_seed", to_hex(state.random.seed)},
      {"random_counter", to_hex(state.random.counter)},
  })};
  std::vector<CacheScalar> cache_copy;
  std::vector<Scalar> learned_copy;
  const auto cache = on_host(backend, state.cache.data(), state.cache_size, cache_copy);
  const auto learned = on_host(backend, state.learned.data(), state.learned_size, learned_copy);
  const auto pending = static_cast<Index>(state.pending.size());
  std::vector<io::TensorToWrite> tensors = {
      {"cache", dtype_of<CacheScalar>, identity.cache, std::as_bytes(cache)},
      {"pending", DType::I32, {pending}, std::as_bytes(std::span(state.pending))},
      {"marks", DType::U8, {pending}, std::as_bytes(std::span(state.marks))}};
  if (state.learned_size > 0) {
    tensors.push_back({"learned", dtype_of<Scalar>, identity.learned, std::as_bytes(learned)});
  }
  const std::map<std::string, std::string> metadata = {{"format", std::string(state_format)},
                                                       {"version", std::string(state_version)},
                                                       {"state", json.dump()}};
  io::write_safetensors(path, tensors, metadata);
}

/// Reads files nobody vouches for: a state that comes out is one that a session could have made.
template <class B>
class StateReader {
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;

 public:
  StateReader(const std::string& path, const B& backend, const StateIdentity& identity)
      : file_(io::SafeTensors::open(path, io::Read::Copy)),
        backend_(backend),
        identity_(identity) {}

  SessionState<B> read() const {
    if (text("format") != state_format) reject("it is not a saved session");
    if (text("version") != state_version) {
      reject("its version is " + text("version") + ", this library reads version " +
             std::string(state_version));
    }
    const io::Json json = io::Json::parse(text("state"), file_->path() + ": state");
    if (hex(json, "model") != identity_.model) reject("it was made with a different model");
    if (hex(json, "learns") != identity_.learns) {
      reject("it was made with a different choice of what learns");
    }
    if (count(json, "chunk") != identity_.chunk) reject("it was made with a different chunk");
    SessionState<B> state;
    Counters& counters = state.counters;
    counters.tokens = count(json, "tokens");
    if (counters.tokens > identity_.most_tokens) reject("its text is longer than max_tokens");
    counters.inner_steps = count(json, "inner_steps");
    counters.skipped_steps = count(json, "skipped_steps");
    counters.clipped_steps = count(json, "clipped_steps");
    const io::Json& norm = json.at("gradient_norm", file_->path());
    counters.gradient_norm = norm.is_null() ? std::numeric_limits<double>::infinity()
                                            : norm.number(file_->path() + ": gradient_norm");
    state.random = {hex(json, "random_seed"), hex(json, "random_counter")};

    const Index chunk = identity_.chunk;
    const Index chunks = counters.tokens > 0 ? (counters.tokens - 1) / chunk : 0;
    const Index pending = counters.tokens > 0 ? counters.tokens - chunks * chunk : 0;
    const Index steps = counters.inner_steps + counters.skipped_steps;
    if (steps > chunks || counters.clipped_steps > counters.inner_steps ||
        counters.gradient_norm < 0 || (steps == 0 && counters.gradient_norm > 0)) {
      reject("its counters contradict each other");
    }
    state.pending.resize(static_cast<std::size_t>(pending));
    state.marks.resize(static_cast<std::size_t>(pending));
    file_->template copy_to<Token>(tensor("pending", {pending}), state.pending);
    file_->template copy_to<std::uint8_t>(tensor("marks", {pending}), state.marks);
    for (const Token token : state.pending) {
      if (token < 0 || token >= identity_.vocabulary) reject("a pending token is out of range");
    }
    for (const std::uint8_t mark : state.marks) {
      if (mark > (SessionState<B>::Counted | SessionState<B>::Frozen)) reject("a mark is unknown");
    }
    state.cache = numbers<CacheScalar>("cache", identity_.cache, state.cache_size);
    if (file_->find("learned") != nullptr) {
      state.learned = numbers<Scalar>("learned", identity_.learned, state.learned_size);
    } else if (steps > 0) {
      reject("what it has learned is missing");
    }
    return state;
  }

 private:
  [[noreturn]] void reject(const std::string& why) const {
    fail<FormatError>(file_->path() + ": cannot restore the session: " + why);
  }
  std::string text(const char* key) const {
    const auto found = file_->metadata().find(key);
    return found == file_->metadata().end() ? std::string() : found->second;
  }
  std::uint64_t hex(const io::Json& json, const char* key) const {
    const std::string what = file_->path() + ": " + key;
    return from_hex(json.at(key, file_->path()).string(what), what);
  }
  Index count(const io::Json& json, const char* key) const {
    const std::string what = file_->path() + ": " + key;
    const std::int64_t value = json.at(key, file_->path()).integer(what);
    if (value < 0 || value > most_count) reject(std::string(key) + " is out of range");
    return static_cast<Index>(value);
  }
  const io::TensorInfo& tensor(const char* name, const std::vector<Index>& shape) const {
    const io::TensorInfo& info = file_->at(name);
    if (info.shape != shape) reject(std::string(name) + " has another shape than this session's");
    return info;
  }
  template <class T>
  auto numbers(const char* name, const std::vector<Index>& shape, Index& size) const {
    const io::TensorInfo& info = tensor(name, shape);
    if (info.dtype != dtype_of<T>) reject(std::string(name) + " has another element type");
    std::vector<T> values(info.size());
    file_->template copy_to<T>(info, values);
    for (const T value : values) {
      if (!std::isfinite(static_cast<Scalar>(value)))
        reject(std::string(name) + " holds a number that is not finite");
    }
    auto buffer = backend_.template allocate<T>(static_cast<Index>(values.size()));
    backend_.to_device(values.data(), buffer.data(), static_cast<Index>(values.size()));
    size = static_cast<Index>(values.size());
    return buffer;
  }

  std::shared_ptr<const io::SafeTensors> file_;
  const B& backend_;
  const StateIdentity& identity_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
