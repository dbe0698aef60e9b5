// SPDX-License-Identifier: MIT
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "temporary.hpp"
#include <ttt/core/dtype.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/safetensors.hpp>

using ttt::bfloat16;
using ttt::DType;
using ttt::float16;
using ttt::FormatError;
using ttt::Index;
using ttt::io::Read;
using ttt::io::SafeTensors;
using ttt::io::TensorInfo;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

namespace {

std::string length_prefix(std::uint64_t length) {
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes;
}

/// A file whose header has its true length.
std::string whole(std::string_view header, std::string_view data = "") {
  return length_prefix(header.size()) + std::string(header) + std::string(data);
}

/// The header's entry for one tensor.
std::string entry(std::string_view name, std::string_view dtype, std::string_view shape,
                  std::string_view offsets) {
  return "\"" + std::string(name) + R"(":{"dtype":")" + std::string(dtype) + R"(","shape":)" +
         std::string(shape) + R"(,"data_offsets":)" + std::string(offsets) + "}";
}

/// The file with that one tensor.
std::string single(std::string_view dtype, std::string_view shape, std::string_view offsets,
                   std::string_view data) {
  return whole("{" + entry("t", dtype, shape, offsets) + "}", data);
}

std::string bytes_of(const SafeTensors& file, const TensorInfo& info) {
  const auto bytes = file.bytes(info);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Opens damaged content in both ways and gives what is said against it.
class Refusal {
 public:
  std::string operator()(std::string_view content) const {
    const std::string path = folder_.file("bad.safetensors", content);
    std::string text = thrown<FormatError>([&] { (void)SafeTensors::open(path); });
    CHECK(contains(text, "bad.safetensors: "));
    CHECK(text == thrown<FormatError>([&] { (void)SafeTensors::open(path, Read::Copy); }));
    return text;
  }

 private:
  TemporaryFolder folder_;
};

const std::string good_header =
    R"({"__metadata__":{"config":"{\"a\": 1}"},)" + entry("w", "F32", "[2,3]", "[0,24]") + "," +
    entry("n", "I32", "[]", "[24,28]") + "," + entry("none", "F32", "[0,7]", "[28,28]") + "," +
    entry("b", "BF16", "[1]", "[28,30]") + "}";

std::string good_data() {
  const float w[] = {1, 2, 3, 4, 5, 6};
  const std::int32_t n = -7;
  const bfloat16 b(1.5f);
  std::string data(30, '\0');
  std::memcpy(data.data(), w, sizeof w);
  std::memcpy(data.data() + 24, &n, sizeof n);
  std::memcpy(data.data() + 28, &b, sizeof b);
  return data;
}

}  // namespace

TEST_CASE("safetensors: a file is what its header says") {
  const TemporaryFolder folder;
  const std::string content = whole(good_header + "  ", good_data());
  const std::string path = folder.file("good.safetensors", content);
  for (const Read how : {Read::Map, Read::Copy}) {
    const std::shared_ptr<const SafeTensors> file = SafeTensors::open(path, how);
    CHECK(file->path() == path);
    CHECK(file->file_bytes().size() == content.size());
    CHECK(file->metadata() == std::map<std::string, std::string>{{"config", "{\"a\": 1}"}});
    REQUIRE(file->tensors().size() == 4);
    CHECK(file->tensors()[0].name == "w");
    CHECK(file->tensors()[3].name == "b");

    const TensorInfo& w = file->at("w");
    CHECK(&w == file->find("w"));
    CHECK(w.dtype == DType::F32);
    CHECK(w.shape == std::vector<Index>{2, 3});
    CHECK(w.size() == 6);
    CHECK(w.begin == 0);
    CHECK(w.end == 24);
    std::vector<float> values(6);
    file->copy_to(w, std::span(values));
    CHECK(values == std::vector<float>{1, 2, 3, 4, 5, 6});

    std::int32_t n = 0;
    file->copy_to(file->at("n"), std::span(&n, 1));
    CHECK(n == -7);
    CHECK(file->at("n").shape.empty());
    CHECK(file->at("none").size() == 0);
    CHECK(file->as<float>(file->at("none")).empty());
    file->copy_to(file->at("none"), std::span<float>());
    double b = 0;
    file->copy_to(file->at("b"), std::span(&b, 1));
    CHECK(b == 1.5);

    CHECK(file->find("W") == nullptr);
    CHECK(file->find("") == nullptr);
    CHECK(thrown<FormatError>([&] { (void)file->at("W"); }) ==
          "ttt: " + path + ": has no tensor \"W\"");
  }
}

TEST_CASE("safetensors: files without tensors or metadata are files") {
  const TemporaryFolder folder;
  CHECK(SafeTensors::open(folder.file("a", whole("{}")))->tensors().empty());
  const auto file = SafeTensors::open(folder.file("b", whole(R"({"__metadata__":{}})")));
  CHECK(file->tensors().empty());
  CHECK(file->metadata().empty());
  CHECK_THROWS_AS((void)SafeTensors::open(folder.path("missing")), ttt::Error);
  CHECK_THROWS_AS((void)SafeTensors::open(folder.path("")), ttt::Error);
}

TEST_CASE("safetensors: a file that ends anywhere too early is refused") {
  const Refusal refused;
  const std::string content = whole(good_header, good_data());
  for (std::size_t size = 0; size < content.size(); ++size)
    (void)refused(std::string_view(content).substr(0, size));
  CHECK(contains(refused(""), "0 bytes long, too short"));
  CHECK(contains(refused(content + "x"), "have 30 bytes, but the data has 31"));
  CHECK(contains(refused(whole("{}", "x")), "have 0 bytes, but the data has 1"));
}

TEST_CASE("safetensors: the header's length is not believed") {
  const Refusal refused;
  CHECK(contains(refused(length_prefix(3) + "{}"), "length is 3, but only 2 bytes follow"));
  CHECK(contains(refused(length_prefix(100'000'000) + "{}"), "but only 2 bytes follow"));
  for (const std::uint64_t length :
       {std::uint64_t{100'000'001}, std::uint64_t{1} << 32, std::uint64_t{1} << 63,
        (std::uint64_t{1} << 63) - 8, std::numeric_limits<std::uint64_t>::max(),
        std::numeric_limits<std::uint64_t>::max() - 7})
    CHECK(contains(refused(length_prefix(length) + "{}"), "expected at most 100000000"));
  for (const char* header : {"", " {}", "[]", "1", "\"{}\"", "\xef\xbb\xbf{}", "{", "{}{}", "{},",
                             "{\"\xff\":1}", "null"})
    (void)refused(whole(header));
  CHECK(contains(refused(whole("")), "does not start with '{'"));
  CHECK(contains(refused(whole("{\"a\":\xff}")), "header: at byte 5: the text is not valid UTF-8"));
  CHECK(contains(refused(whole("{\"a\":" + std::string(1000, '[') + "}")), "nested deeper"));
}

TEST_CASE("safetensors: names stand once") {
  const Refusal refused;
  const std::string twin = entry("t", "U8", "[1]", "[0,1]");
  CHECK(
      contains(refused(whole("{" + twin + "," + twin + "}", "x")), "the name \"t\" occurs twice"));
  CHECK(contains(refused(whole(R"({"__metadata__":{},"__metadata__":{}})")), "occurs twice"));
  CHECK(contains(refused(whole(R"({"__metadata__":{"a":"1","a":"1"}})")), "occurs twice"));
  CHECK(contains(
      refused(whole(R"({"t":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})")),
      "occurs twice"));
}

TEST_CASE("safetensors: metadata are strings") {
  const Refusal refused;
  for (const char* value : {"1", "[]", "null", "\"a\"", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}"})
    CHECK(
        contains(refused(whole(R"({"__metadata__":)" + std::string(value) + "}")), "__metadata__"));
}

TEST_CASE("safetensors: an entry has a dtype, a shape and data_offsets") {
  const Refusal refused;
  for (const char* value :
       {"1", "[]", "null", "{}", R"({"dtype":"U8","shape":[1]})",
        R"({"dtype":"U8","data_offsets":[0,1]})", R"({"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":1,"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":1,"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":{},"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":[1],"data_offsets":{}})",
        R"({"dtype":"U8","shape":[1],"data_offsets":[0]})",
        R"({"dtype":"U8","shape":[1],"data_offsets":[0,1,1]})",
        R"({"dtype":"U8","shape":[1],"data_offsets":["0","1"]})",
        R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]})"})
    CHECK(contains(refused(whole(R"({"t":)" + std::string(value) + "}", "x")), "tensor \"t\": "));
  CHECK(contains(refused(single("F8_E4M3", "[1]", "[0,1]", "x")), "unknown dtype \"F8_E4M3\""));
  for (const char* dtype : {"", "f32", "F32 ", "F3", "BOOL\\u0000", "float32"})
    CHECK(contains(refused(single(dtype, "[1]", "[0,4]", "1234")), "unknown dtype"));
}

TEST_CASE("safetensors: shapes are lengths that fit") {
  const Refusal refused;
  for (const char* length : {"-1", "1.0", "1.5", "1e0", "\"1\"", "null", "[1]", "true", "-0",
                             "9223372036854775808", "18446744073709551617", "1e300"})
    CHECK(contains(refused(single("U8", "[" + std::string(length) + "]", "[0,1]", "x")), "shape"));
  for (const char* shape :
       {"[4294967296,4294967296]", "[9223372036854775807,9223372036854775807]",
        "[9223372036854775807]", "[2305843009213693952]", "[4611686018427387904,2]",
        "[65536,65536,65536,65536]", "[0,4294967296,4294967296]", "[4294967296,4294967296,0]",
        "[-1,-1]", "[-4294967296,4294967296]", "[0,-1]", "[-1,0]"})
    CHECK(contains(refused(single("F32", shape, "[0,0]", "")), "negative or too large"));
  CHECK(contains(refused(single("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]", "x")), "9 dimensions"));
  CHECK(contains(refused(single("F32", "[2]", "[0,4]", "1234")),
                 "has 4 bytes, but its dtype and shape make 8"));
  CHECK(contains(refused(single("F32", "[0]", "[0,4]", "1234")), "make 0"));
  CHECK(contains(refused(single("F32", "[9223372036854775807,0]", "[0,0]", "")), "too large"));
}

TEST_CASE("safetensors: every byte belongs to one tensor") {
  const Refusal refused;
  for (const char* offsets :
       {"[0,5]", "[4,8]", "[-4,0]", "[4,0]", "[0,-1]", "[0,9223372036854775807]",
        "[9223372036854775804,9223372036854775807]", "[-9223372036854775808,9223372036854775807]",
        "[5,5]"})
    CHECK(contains(refused(single("U8", "[4]", offsets, "1234")), "lies at bytes"));
  for (const char* offsets : {"[0.0,4]", "[0,4.0]", "[0,4e0]", "[0,18446744073709551616]"})
    CHECK(contains(refused(single("U8", "[4]", offsets, "1234")), "expected an integer"));
  const auto two = [&](std::string_view a, std::string_view b) {
    return refused(
        whole("{" + entry("a", "U8", "[2]", a) + "," + entry("b", "U8", "[2]", b) + "}", "1234"));
  };
  CHECK(contains(two("[0,2]", "[1,3]"), "tensor \"b\": starts at byte 1, expected 2"));
  CHECK(contains(two("[0,2]", "[0,2]"), "starts at byte 0, expected 2"));
  CHECK(contains(two("[1,3]", "[2,4]"), "tensor \"a\": starts at byte 1, expected 0"));
  CHECK(contains(refused(whole("{" + entry("a", "U8", "[1]", "[0,1]") + "," +
                                   entry("b", "U8", "[1]", "[2,3]") + "}",
                               "123")),
                 "leave a hole"));
  // An empty tensor inside another one's bytes is an overlap too.
  CHECK(contains(refused(whole("{" + entry("a", "U8", "[2]", "[0,2]") + "," +
                                   entry("b", "U8", "[0]", "[1,1]") + "}",
                               "12")),
                 "tensor \"b\""));
}

TEST_CASE("safetensors: tensors are sorted by their bytes, empty ones between them") {
  const TemporaryFolder folder;
  const auto file = SafeTensors::open(folder.file(
      "x",
      whole("{" + entry("c", "U8", "[2]", "[1,3]") + "," + entry("z", "U8", "[0]", "[1,1]") + "," +
                entry("a", "U8", "[]", "[0,1]") + "," + entry("", "F64", "[0]", "[3,3]") + "}",
            "123")));
  std::string order;
  for (const TensorInfo& info : file->tensors()) order += info.name + ",";
  CHECK(order == "a,z,c,,");
  CHECK(bytes_of(*file, file->at("c")) == "23");
  CHECK(file->at("").size() == 0);
}

TEST_CASE("safetensors: the most dimensions are eight") {
  const TemporaryFolder folder;
  const auto file =
      SafeTensors::open(folder.file("x", single("U8", "[1,1,1,1,1,1,1,2]", "[0,2]", "ab")));
  CHECK(file->at("t").shape == std::vector<Index>{1, 1, 1, 1, 1, 1, 1, 2});
}

TEST_CASE("safetensors: damage anywhere in the header is refused or harmless") {
  const TemporaryFolder folder;
  const std::string good = whole(good_header, good_data());
  const std::size_t end = 8 + good_header.size();
  const auto open_damaged = [&](const std::string& content) {
    const std::string path = folder.file("damaged", content);
    try {
      const auto file = SafeTensors::open(path);
      std::size_t total = 0;
      for (const TensorInfo& info : file->tensors()) {
        total += file->bytes(info).size();
        CHECK(file->find(info.name) == &info);
        CHECK(info.size() * size_of(info.dtype) == file->bytes(info).size());
      }
      CHECK(total <= content.size());
    } catch (const FormatError&) {
    }
  };
  for (std::size_t i = 0; i < end; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string content = good;
      content[i] = static_cast<char>(content[i] ^ (1 << bit));
      open_damaged(content);
    }
  std::mt19937 random(13);
  constexpr std::string_view likely = "0123456789-.e\"{}[],:\\u";
  for (int round = 0; round < 5000; ++round) {
    std::string content = good;
    for (unsigned i = 0; i <= random() % 3; ++i)
      content[8 + random() % good_header.size()] = likely[random() % likely.size()];
    open_damaged(content);
  }
}

TEST_CASE("safetensors: views need the right type and an aligned address") {
  const TemporaryFolder folder;
  const float value = 2.5f;
  std::string data = "x";
  data.append(reinterpret_cast<const char*>(&value), sizeof value);
  std::string header =
      "{" + entry("odd", "F32", "[1]", "[1,5]") + "," + entry("byte", "U8", "[1]", "[0,1]") + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const auto file = SafeTensors::open(folder.file("x", whole(header, data)));
  const TensorInfo& odd = file->at("odd");
  CHECK_FALSE(file->aligned(odd));
  CHECK(contains(thrown<FormatError>([&] { (void)file->as<float>(odd); }),
                 "tensor \"odd\": is not aligned"));
  float copy = 0;
  file->copy_to(odd, std::span(&copy, 1));
  CHECK(copy == 2.5f);

  const TensorInfo& byte = file->at("byte");
  CHECK(file->aligned(byte));
  CHECK(file->as<std::uint8_t>(byte)[0] == 'x');
  CHECK(contains(thrown<FormatError>([&] { (void)file->as<float>(byte); }), "is U8, expected F32"));
  CHECK(contains(thrown<FormatError>([&] { file->copy_to(byte, std::span(&copy, 1)); }),
                 "is U8, expected F32"));
  std::int32_t integer = 0;
  CHECK(contains(thrown<FormatError>([&] { file->copy_to(odd, std::span(&integer, 1)); }),
                 "is F32, expected I32"));
  bfloat16 narrow;
  CHECK_THROWS_AS(file->copy_to(odd, std::span(&narrow, 1)), FormatError);
  std::vector<float> two(2);
  CHECK(contains(thrown<ttt::ShapeError>([&] { file->copy_to(odd, std::span(two)); }),
                 "tensor \"odd\": has 1 elements, the destination 2"));
  CHECK(copy == 2.5f);

  TensorInfo foreign = odd;
  foreign.end = 1000;
  CHECK_THROWS_AS((void)file->bytes(foreign), FormatError);
  foreign = odd;
  foreign.begin = 6;
  CHECK_THROWS_AS((void)file->bytes(foreign), FormatError);
}

TEST_CASE("safetensors: all 65536 values of both 16-bit floats become the same real number") {
  const TemporaryFolder folder;
  std::vector<std::uint16_t> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  const std::string_view data(reinterpret_cast<const char*>(patterns.data()), 131072);
  const auto f16 =
      SafeTensors::open(folder.file("f16", single("F16", "[65536]", "[0,131072]", data)));
  const auto bf16 =
      SafeTensors::open(folder.file("bf16", single("BF16", "[256,256]", "[0,131072]", data)));

  // The definition: sign * 2^(exponent - bias) * (1 + fraction), without the one when exponent = 0.
  const auto real = [](unsigned bits, int fraction_bits, int exponent_bits) {
    const int exponents = (1 << exponent_bits) - 1;
    const int fraction = static_cast<int>(bits & ((1u << fraction_bits) - 1));
    const int exponent = static_cast<int>(bits >> fraction_bits) & exponents;
    const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
    if (exponent == exponents)
      return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    const int one = exponent != 0 ? 1 << fraction_bits : 0;
    return sign * std::ldexp(one + fraction, std::max(exponent, 1) - exponents / 2 - fraction_bits);
  };
  const auto compare = [&](const SafeTensors& file, int fraction_bits, int exponent_bits) {
    const TensorInfo& info = file.at("t");
    std::vector<float> floats(65536);
    std::vector<double> doubles(65536);
    file.copy_to(info, std::span(floats));
    file.copy_to(info, std::span(doubles));
    int wrong = 0;
    for (unsigned i = 0; i < 65536; ++i) {
      const double expected = real(i, fraction_bits, exponent_bits);
      const auto same = [&](double got) {
        return std::isnan(expected)
                   ? std::isnan(got)
                   : got == expected && std::signbit(got) == std::signbit(expected);
      };
      wrong += !same(floats[i]) || !same(doubles[i]);
    }
    CHECK(wrong == 0);
  };
  compare(*f16, 10, 5);
  compare(*bf16, 7, 8);

  // Copied as they are, no bit changes, not even in a NaN.
  std::vector<bfloat16> raw(65536);
  bf16->copy_to(bf16->at("t"), std::span(raw));
  CHECK(std::memcmp(raw.data(), data.data(), data.size()) == 0);
  std::vector<float16> raw16(65536);
  f16->copy_to(f16->at("t"), std::span(raw16));
  CHECK(std::memcmp(raw16.data(), data.data(), data.size()) == 0);
}

TEST_CASE("safetensors: doubles are rounded to float, floats are exact as doubles") {
  const TemporaryFolder folder;
  const double doubles[] = {0.1, -1e300, 1e-300, 3.0, 16777217.0};
  const auto file = SafeTensors::open(folder.file(
      "x", single("F64", "[5]", "[0,40]", {reinterpret_cast<const char*>(doubles), 40})));
  std::vector<float> floats(5);
  file->copy_to(file->at("t"), std::span(floats));
  CHECK(floats ==
        std::vector<float>{0.1f, -std::numeric_limits<float>::infinity(), 0.0f, 3.0f, 16777216.0f});
  std::vector<double> same(5);
  file->copy_to(file->at("t"), std::span(same));
  CHECK(std::equal(same.begin(), same.end(), doubles));
  const float third = 1.0f / 3.0f;
  const auto single_precision = SafeTensors::open(
      folder.file("y", single("F32", "[]", "[0,4]", {reinterpret_cast<const char*>(&third), 4})));
  double widened = 0;
  single_precision->copy_to(single_precision->at("t"), std::span(&widened, 1));
  CHECK(widened == static_cast<double>(third));
}

TEST_CASE("safetensors: the recorded files open, both ways alike") {
  int opened = 0;
  for (const auto& found : std::filesystem::directory_iterator(TTT_TEST_DATA)) {
    if (found.path().extension() != ".safetensors") continue;
    INFO(found.path().string());
    const auto mapped = SafeTensors::open(found.path());
    const auto copied = SafeTensors::open(found.path(), Read::Copy);
    CHECK_FALSE(mapped->metadata().empty());
    CHECK(mapped->metadata() == copied->metadata());
    REQUIRE(mapped->tensors().size() == copied->tensors().size());
    for (const TensorInfo& info : mapped->tensors())
      CHECK(bytes_of(*mapped, info) == bytes_of(*copied, copied->at(info.name)));
    ++opened;
  }
  MESSAGE(opened, " recorded files");
}

TEST_CASE("safetensors: e2e.safetensors holds what it is known to hold") {
  const std::string path = std::string(TTT_TEST_DATA) + "/e2e.safetensors";
  if (!std::filesystem::exists(path)) return;
  const auto file = SafeTensors::open(path);
  const ttt::io::Json config = ttt::io::Json::parse(file->metadata().at("config"), "config");
  CHECK(config.at("model").at("vocab_size").integer() == 61);
  const TensorInfo& tokens = file->at("tokens");
  REQUIRE(tokens.shape.size() == 2);
  for (const std::int32_t token : file->as<std::int32_t>(tokens)) {
    CHECK(token >= 0);
    CHECK(token < 61);
  }
  const TensorInfo& nll = file->at("token_nll");
  CHECK(nll.shape == std::vector<Index>{tokens.shape[0], tokens.shape[1] - 1});
  double sum = 0;
  for (const float value : file->as<float>(nll)) sum += static_cast<double>(value);
  double loss = 0;
  file->copy_to(file->at("loss"), std::span(&loss, 1));
  CHECK(sum / static_cast<double>(nll.size()) == doctest::Approx(loss).epsilon(1e-5));
}

TEST_SUITE("slow") {
  TEST_CASE("safetensors: headers of 100 MB cost seconds") {
    const TemporaryFolder folder;
    const auto start = std::chrono::steady_clock::now();
    {
      const std::string frame = R"({"__metadata__":{"x":""}})";
      std::string header = R"({"__metadata__":{"x":")";
      header.append(SafeTensors::max_header_bytes - frame.size(), 'a');
      const auto file = SafeTensors::open(folder.file("x", whole(header + "\"}}")));
      CHECK(file->metadata().at("x").size() == SafeTensors::max_header_bytes - frame.size());
    }
    {
      const std::string path = folder.file("x", length_prefix(SafeTensors::max_header_bytes + 1));
      std::filesystem::resize_file(path, std::size_t{1} << 30);
      CHECK(contains(thrown<FormatError>([&] { (void)SafeTensors::open(path); }),
                     "expected at most 100000000"));
    }
    const auto many = [](std::size_t count) {
      std::string header = "{" + entry("t", "U8", "[]", "[0,1]");
      for (std::size_t i = 1; i < count; ++i)
        header += "," + entry("t" + std::to_string(i), "U8", "[0]", "[1,1]");
      return whole(header + "}", "x");
    };
    const auto file = SafeTensors::open(folder.file("x", many(SafeTensors::max_tensors)));
    CHECK(file->tensors().size() == SafeTensors::max_tensors);
    CHECK(file->at("t262143").begin == 1);
    const Refusal refused;
    CHECK(contains(refused(many(SafeTensors::max_tensors + 1)), "more than the 262144 tensors"));
    CHECK(contains(refused(many(700'000)), "more than the 4194304 values"));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    CHECK(seconds.count() < 300);
  }
}
