// SPDX-License-Identifier: MIT
// An existing model of the shape of Qwen3-0.6B, random weights in bfloat16, used where a file has
// them: how long loading takes once the file is in memory, and what decoding makes of the rate at
// which memory is read, measured turn by turn in the same benchmark.
//
//   load/0_6b           milliseconds
//   decode/0_6b         a share of the rate at which all threads can sum a buffer     ("of_sum")
//   decode/0_6b_learns  the same with five blocks that learn in place, once they have
#include <chrono>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <stdlib.h>
#include <string>
#include <vector>

#include "../support/yardstick.hpp"
#include <ttt/io/safetensors_writer.hpp>
#include <ttt/ttt.hpp>

namespace {

using namespace ttt;
using namespace ttt::bench;

using Learning = Qwen3<TiedHead, InPlaceMLP<>>;

/// The model's folder, made when first asked for and removed at the end.
class Folder {
 public:
  Folder() {
    path_ = (std::filesystem::temp_directory_path() / "ttt-bench-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no folder for the model");
    const Config& c = presets::qwen3_0_6b.config;
    const io::Json json{io::Json::Object({{"model_type", "qwen3"},
                                          {"vocab_size", c.vocabulary},
                                          {"hidden_size", c.width},
                                          {"intermediate_size", c.hidden},
                                          {"num_hidden_layers", c.prefix_blocks},
                                          {"num_attention_heads", c.heads},
                                          {"num_key_value_heads", c.key_heads},
                                          {"head_dim", c.head_dim},
                                          {"rms_norm_eps", c.eps},
                                          {"rope_theta", c.rope_base},
                                          {"tie_word_embeddings", true}})};
    const std::string text = json.dump();
    std::ofstream(path_ + "/config.json") << text;
    std::vector<bfloat16> noise(static_cast<std::size_t>(c.vocabulary * c.width));
    Random random{1};
    for (std::size_t i = 0; i < noise.size(); ++i) {
      noise[i] = i < 1 << 20 ? bfloat16(static_cast<float>(0.02 * random.normal()))
                             : noise[i - (1 << 20) + i / (1 << 20) % 7];
    }
    std::vector<io::TensorToWrite> tensors;
    const Qwen3<TiedHead> model(c);
    auto shapes = model.shapes();
    Qwen3<TiedHead>::each(
        [&](const ParameterName& name, const Shape& shape) {
          const bool turned = name.role != Role::Norm && name.role != Role::Embedding;
          std::vector<Index> stored{turned ? shape.cols : shape.rows,
                                    turned ? shape.rows : shape.cols};
          if (name.role == Role::Norm) stored.erase(stored.begin());
          tensors.push_back(
              {io::hugging_face_name(name), DType::BF16, stored,
               std::as_bytes(std::span(noise).first(static_cast<std::size_t>(shape.size())))});
        },
        shapes);
    io::write_safetensors(path_ + "/model.safetensors", tensors, {});
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  static const std::string& path() {
    static const Folder folder;
    return folder.path_;
  }

 private:
  std::string path_;
};

double seconds(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void load_model(benchmark::State& state) {
  const Cpu& cpu = machine<Cpu>();
  const std::string& folder = Folder::path();  // just written, so in memory
  for (auto _ : state) {
    benchmark::DoNotOptimize(load_host<Qwen3<TiedHead>>(folder, cpu).bytes());
  }
}

template <class LearnerType>
void decode(benchmark::State& state, LearnerType learner, bool learns) {
  const Cpu& cpu = machine<Cpu>();
  const BlockSet blocks = learns ? BlockSet::every(6, 28) : BlockSet();
  const auto weights = load_host<Learning>(Folder::path(), cpu, {.in_place = blocks});
  constexpr Index context = 64;
  Session session(weights, learner, {.max_tokens = 4096});
  session.read(tokens(context + 1, 1000));
  double bytes_read = static_cast<double>(weights.bytes());  // what has learned is float by now
  if (session.state().learned_size > 0) {
    bytes_read += static_cast<double>(session.state().learned_size) * (sizeof(float) - 2);
  }
  const std::vector<float> memory(static_cast<std::size_t>(bytes_read / sizeof(float)), 1.0f);
  ThreadPool pool;
  constexpr Index block = 1 << 18;
  const Index parts = static_cast<Index>(memory.size()) / block;
  std::vector<float> sums(static_cast<std::size_t>(parts));
  const auto sum = [&] {
    pool.run(parts, [&](Index i) {
      sums[static_cast<std::size_t>(i)] =
          Eigen::Map<const Eigen::ArrayXf>(memory.data() + i * block, block).sum();
    });
    benchmark::DoNotOptimize(sums.data());
  };
  const auto step = [&] {
    benchmark::DoNotOptimize(session.logits().data());
    session.read(std::vector<Token>{7});
  };
  const auto start = session.snapshot();
  step();
  sum();
  double decoding = 0, summing = 0;
  Index made = 1;
  for (auto _ : state) {
    if (++made % (context - 4) == 0) session.restore(start);  // no chunk completes
    const double time = seconds(step);
    state.SetIterationTime(time);
    decoding += time;
    summing += seconds(sum);
  }
  rate(state, "tokens/s", 1);
  bytes(state, bytes_read);
  state.counters["sum bytes/s"] = static_cast<double>(parts * block) * sizeof(float) *
                                  static_cast<double>(state.iterations()) / summing;
  state.counters["of_sum"] =
      summing * bytes_read / (decoding * static_cast<double>(parts * block) * sizeof(float));
}

BENCHMARK(load_model)->Name("load/0_6b")->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode, 0_6b, NoLearning{.chunk = 64}, false)
    ->Name("decode/0_6b")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode, 0_6b_learns, InPlaceLoop{.chunk = 64}, true)
    ->Name("decode/0_6b_learns")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
