// SPDX-License-Identifier: MIT
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include "limits.hpp"
#include "temporary.hpp"
#include <ttt/core/dtype.hpp>
#include <ttt/io/json.hpp>
#include <ttt/io/safetensors.hpp>
#include <ttt/io/safetensors_writer.hpp>

using ttt::DType;
using ttt::FormatError;
using ttt::Index;
using ttt::io::SafeTensors;
using ttt::io::TensorInfo;
using ttt::io::TensorToWrite;
using ttt::io::write_safetensors;
using ttt_test::contains;
using ttt_test::content_of;
using ttt_test::FileSizeLimit;
using ttt_test::OrdinaryUser;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

namespace {

constexpr DType all_dtypes[] = {DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64,
                                DType::I32, DType::I16, DType::I8,  DType::U64,  DType::U32,
                                DType::U16, DType::U8,  DType::Bool};

std::vector<std::byte> noise(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

}  // namespace

TEST_CASE("safetensors writer: every type comes back as it went in, and aligned") {
  const TemporaryFolder folder;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<TensorToWrite> tensors;
  for (const DType dtype : all_dtypes)
    for (const std::vector<Index>& shape :
         {std::vector<Index>{}, {5}, {3, 7}, {0}, {2, 0, 3}, {1, 1, 1, 1, 1, 1, 1, 3}}) {
      std::size_t size = size_of(dtype);
      for (const Index length : shape) size *= static_cast<std::size_t>(length);
      bytes.push_back(noise(size, static_cast<unsigned>(bytes.size())));
      tensors.push_back({.name = std::string(name_of(dtype)) + "." + std::to_string(bytes.size()),
                         .dtype = dtype,
                         .shape = shape,
                         .bytes = bytes.back()});
    }
  const std::map<std::string, std::string> metadata = {
      {"config", R"({"a": "b\n"})"}, {"", "empty name"}, {"\xe2\x82\xac\x01", "\"\\\n\x7f"}};
  const std::string path = folder.path("all.safetensors");
  write_safetensors(path, tensors, metadata);
  CHECK(folder.count() == 1);

  const auto file = SafeTensors::open(path);
  CHECK(file->metadata() == metadata);
  REQUIRE(file->tensors().size() == tensors.size());
  for (const TensorToWrite& tensor : tensors) {
    const TensorInfo& info = file->at(tensor.name);
    CHECK(info.dtype == tensor.dtype);
    CHECK(info.shape == tensor.shape);
    CHECK(file->aligned(info));
    const auto read = file->bytes(info);
    CHECK(std::equal(read.begin(), read.end(), tensor.bytes.begin(), tensor.bytes.end()));
  }
  CHECK((file->file_bytes().size() - file->tensors().back().end) % 8 == 0);

  // The order of the caller does not show in the file.
  std::shuffle(tensors.begin(), tensors.end(), std::mt19937(1));
  write_safetensors(folder.path("shuffled"), tensors, metadata);
  CHECK(content_of(folder.path("shuffled")) == content_of(path));
}

TEST_CASE("safetensors writer: the bytes of a small file, one by one") {
  const TemporaryFolder folder;
  const std::uint8_t flag = 1;
  const std::int32_t numbers[] = {1, -1};
  const TensorToWrite tensors[] = {{"flag", DType::U8, {}, std::as_bytes(std::span(&flag, 1))},
                                   {"numbers", DType::I32, {2}, std::as_bytes(std::span(numbers))}};
  write_safetensors(folder.path("x"), tensors, {{"k", "v"}});
  const std::string header = R"({"__metadata__":{"k":"v"},)"
                             R"("numbers":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},)"
                             R"("flag":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})";
  std::string expected = header;
  expected.resize((header.size() + 7) / 8 * 8, ' ');
  CHECK(content_of(folder.path("x")) == std::string(1, static_cast<char>(expected.size())) +
                                            std::string(7, '\0') + expected +
                                            std::string("\1\0\0\0\xff\xff\xff\xff\1", 9));

  write_safetensors(folder.path("empty"), {});
  CHECK(content_of(folder.path("empty")) == std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  CHECK(SafeTensors::open(folder.path("empty"))->tensors().empty());
}

TEST_CASE("safetensors writer: views of the old file may go into the new one") {
  const TemporaryFolder folder;
  const std::vector<std::byte> bytes = noise(1 << 20, 3);
  const std::string path = folder.path("x");
  const TensorToWrite tensor{"t", DType::U8, {1 << 20}, bytes};
  write_safetensors(path, {&tensor, 1});
  const auto old = SafeTensors::open(path);
  const TensorToWrite again[] = {{"a", DType::U8, {1 << 20}, old->bytes(old->at("t"))},
                                 {"b", DType::U8, {1 << 20}, old->bytes(old->at("t"))}};
  write_safetensors(path, again);
  const auto both = SafeTensors::open(path);
  for (const char* name : {"a", "b"}) {
    const auto read = both->bytes(both->at(name));
    CHECK(std::equal(read.begin(), read.end(), bytes.begin(), bytes.end()));
  }
}

TEST_CASE("safetensors writer: what a reader would refuse is not written") {
  const TemporaryFolder folder;
  const std::string path = folder.file("x", "old");
  const std::vector<std::byte> bytes(8);
  const auto refused = [&](const std::vector<TensorToWrite>& tensors,
                           const std::map<std::string, std::string>& metadata = {}) {
    std::string text = thrown<ttt::Error>([&] { write_safetensors(path, tensors, metadata); });
    CHECK(content_of(path) == "old");
    CHECK(folder.count() == 1);
    return text;
  };
  const TensorToWrite good{"t", DType::F32, {2}, bytes};
  CHECK(contains(refused({good, good}), "the name \"t\" occurs twice"));
  CHECK(contains(refused({{"t", DType::F32, {3}, bytes}}), "tensor \"t\": has 8 bytes"));
  CHECK(contains(refused({{"t", DType::F64, {2}, bytes}}), "has 8 bytes"));
  CHECK(contains(refused({{"t", DType::F32, {-2}, bytes}}), "has 8 bytes"));
  CHECK(
      contains(refused({{"t", DType::F32, {Index{1} << 32, Index{1} << 32}, {}}}), "has 0 bytes"));
  CHECK(contains(refused({{"t", DType::F32, {2}, {}}}), "has 0 bytes"));
  CHECK(contains(refused({{"t", DType::F32, {1, 1, 1, 1, 1, 1, 1, 1, 2}, bytes}}),
                 "too many dimensions"));
  CHECK(contains(refused({{"__metadata__", DType::F32, {2}, bytes}}), "reserved"));
  CHECK(contains(refused({{"\xff", DType::F32, {2}, bytes}}), "UTF-8"));
  CHECK(contains(refused({good}, {{"\xff", ""}}), "UTF-8"));
  CHECK(contains(refused({good}, {{"", "\xc3"}}), "UTF-8"));
}

TEST_CASE("safetensors writer: a full disk leaves the old file and nothing else") {
  const TemporaryFolder folder;
  const std::string path = folder.file("x", "old");
  const std::vector<std::byte> bytes = noise(100'000, 4);
  const TensorToWrite tensor{"t", DType::U8, {100'000}, bytes};
  for (const rlim_t limit : {0u, 10u, 4096u, 99'999u}) {
    const std::string text = thrown<ttt::Error>([&] {
      const FileSizeLimit small(limit);
      write_safetensors(path, {&tensor, 1});
    });
    CHECK(contains(text, "cannot write " + path + ": File too large"));
    CHECK(content_of(path) == "old");
    CHECK(folder.count() == 1);
  }
  if (const ttt::detail::FileDescriptor full(::open("/dev/full", O_WRONLY)); full.get() >= 0)
    CHECK(contains(
        thrown<ttt::Error>([&] { ttt::detail::write_all(full.get(), bytes, "/dev/full"); }),
        "cannot write /dev/full: No space left on device"));
  write_safetensors(path, {&tensor, 1});
  CHECK(SafeTensors::open(path)->at("t").size() == 100'000);
}

TEST_CASE("safetensors writer: places that cannot be written to") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& path) {
    const std::size_t files = folder.count();
    std::string text = thrown<ttt::Error>([&] { write_safetensors(path, {}); });
    CHECK(contains(text, path));
    CHECK(folder.count() == files);
    return text;
  };
  CHECK(contains(refused(folder.path("missing/x")), "No such file"));
  CHECK(contains(refused(folder.file("file", "") + "/x"), "Not a directory"));
  REQUIRE(std::filesystem::create_directory(folder.path("folder")));
  CHECK(contains(refused(folder.path("folder")), "not a regular file"));
  CHECK(contains(refused(folder.path("folder/")), "not a regular file"));
  CHECK(contains(refused(folder.path("folder/..")), "not a regular file"));
  CHECK(contains(refused(""), "not a regular file"));
  REQUIRE(::mkfifo(folder.path("pipe").c_str(), 0600) == 0);
  CHECK(contains(refused(folder.path("pipe")), "not a regular file"));

  const std::string path = folder.file("folder/x", "old");
  std::filesystem::permissions(folder.path(""), std::filesystem::perms(0755));
  std::filesystem::permissions(folder.path("folder"), std::filesystem::perms(0555));
  {
    const OrdinaryUser user;
    CHECK(contains(refused(path), "Permission denied"));
  }
  CHECK(content_of(path) == "old");
  std::filesystem::permissions(folder.path("folder"), std::filesystem::perms(0755));
}

TEST_CASE("safetensors writer: only its owner may read a file, unless the caller says so") {
  const TemporaryFolder folder;
  const mode_t before = ::umask(022);
  const auto mode_of = [](const std::string& path) {
    struct stat status = {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    return status.st_mode & 07777u;
  };
  const std::string path = folder.file("x", "old");  // open to all, which the new one is not
  write_safetensors(path, {});
  CHECK(mode_of(path) == 0600);
  write_safetensors(path, {}, {}, 0666);
  CHECK(mode_of(path) == 0644);
  ::umask(before);
}

TEST_CASE("safetensors writer: a symbolic link is replaced, its target is not") {
  const TemporaryFolder folder;
  const std::string target = folder.file("target", "old");
  std::filesystem::create_symlink("target", folder.path("link"));
  write_safetensors(folder.path("link"), {});
  CHECK(content_of(target) == "old");
  CHECK_FALSE(std::filesystem::is_symlink(folder.path("link")));
}

TEST_CASE("safetensors writer: leftovers of others are stepped around, and left alone") {
  const TemporaryFolder folder;
  const std::string name = ".ttt-" + std::to_string(::getpid()) + "-";
  const std::string stale = folder.file(name + "0.tmp", "stale");
  std::filesystem::create_symlink("target", folder.path(name + "1.tmp"));
  write_safetensors(folder.path("x"), {});
  CHECK(content_of(stale) == "stale");
  CHECK_FALSE(std::filesystem::exists(folder.path("target")));
  CHECK(folder.count() == 3);
}

TEST_CASE("safetensors writer: a reader sees one whole file or another while many write") {
  const TemporaryFolder folder;
  const std::string path = folder.path("x");
  const auto write = [&](int value) {
    const std::vector<std::byte> bytes(50'000, static_cast<std::byte>(value));
    const TensorToWrite tensor{"t", DType::U8, {50'000}, bytes};
    write_safetensors(path, {&tensor, 1});
  };
  write(0);
  std::vector<std::thread> writers;
  for (int id = 1; id <= 3; ++id)
    writers.emplace_back([&write, id] {
      for (int i = 0; i < 20; ++i) write(id);
    });
  int torn = 0;
  for (int i = 0; i < 100; ++i) {
    const auto file = SafeTensors::open(path);
    const auto bytes = file->bytes(file->at("t"));
    for (const std::byte byte : bytes) torn += byte != bytes[0];
  }
  for (std::thread& writer : writers) writer.join();
  CHECK(torn == 0);
  CHECK(folder.count() == 1);
}
