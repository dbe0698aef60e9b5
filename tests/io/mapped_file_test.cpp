// SPDX-License-Identifier: MIT
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <type_traits>
#include <utility>

#include <doctest/doctest.h>

#include "temporary.hpp"
#include <ttt/io/mapped_file.hpp>

using ttt::io::MappedFile;
using ttt::io::Read;
using ttt_test::contains;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

static_assert(!std::is_copy_constructible_v<MappedFile>);
static_assert(std::is_nothrow_move_constructible_v<MappedFile>);
static_assert(std::is_nothrow_move_assignable_v<MappedFile>);

namespace {

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace

TEST_CASE("mapped file: both ways of reading give the bytes") {
  const TemporaryFolder folder;
  std::string content(100'003, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 31 + i / 251);
  const std::string path = folder.file("data", content);
  for (const Read how : {Read::Map, Read::Copy}) {
    const MappedFile file(path, how);
    CHECK(text_of(file) == content);
    CHECK(file.path() == path);
    CHECK(reinterpret_cast<std::uintptr_t>(file.bytes().data()) % alignof(std::max_align_t) == 0);
    CHECK(text_of(MappedFile(folder.file("one", "x"), how)) == "x");
    CHECK(MappedFile(folder.file("empty", ""), how).bytes().empty());
  }
  CHECK(MappedFile(std::filesystem::path(path)).bytes().size() == content.size());
}

TEST_CASE("mapped file: bytes stay where they are when it moves") {
  const TemporaryFolder folder;
  for (const Read how : {Read::Map, Read::Copy}) {
    MappedFile first(folder.file("first", "one"), how);
    const std::byte* const address = first.bytes().data();
    MappedFile second = std::move(first);
    CHECK(second.bytes().data() == address);
    MappedFile third(folder.file("third", "three"), how);
    third = std::move(second);
    CHECK(third.bytes().data() == address);
    CHECK(text_of(third) == "one");
    third = MappedFile(folder.file("fourth", "four"), Read::Map);
    CHECK(text_of(third) == "four");
  }
}

TEST_CASE("mapped file: it outlives the file's name") {
  const TemporaryFolder folder;
  const std::string path = folder.file("data", "still here");
  const MappedFile file(path);
  std::filesystem::remove(path);
  CHECK(text_of(file) == "still here");
}

TEST_CASE("mapped file: what is not a readable file is refused by name") {
  const TemporaryFolder folder;
  REQUIRE(::mkfifo(folder.path("pipe").c_str(), 0600) == 0);
  REQUIRE(std::filesystem::create_directory(folder.path("folder")));
  std::filesystem::create_symlink("nowhere", folder.path("dangling"));
  for (const Read how : {Read::Map, Read::Copy}) {
    const auto refused = [how](const std::string& path) {
      std::string text = thrown<ttt::Error>([&] { MappedFile(path, how); });
      CHECK(contains(text, path));
      return text;
    };
    CHECK(contains(refused(folder.path("missing")), "No such file"));
    CHECK(contains(refused(folder.path("dangling")), "No such file"));
    CHECK(contains(refused(folder.path("missing/data")), "No such file"));
    CHECK(contains(refused(folder.file("file", "x") + "/data"), "Not a directory"));
    CHECK(contains(refused(folder.path("folder")), "is not a regular file"));
    CHECK(contains(refused(folder.path("pipe")), "is not a regular file"));  // and does not hang
    CHECK(contains(refused("/dev/zero"), "is not a regular file"));
    CHECK(contains(refused(""), "No such file"));
  }
}

TEST_CASE("mapped file: a length that is only claimed costs nothing to map") {
  const TemporaryFolder folder;
  const std::string path = folder.file("sparse", "");
  constexpr std::size_t size = std::size_t{1} << 40;
  std::error_code failure;
  std::filesystem::resize_file(path, size, failure);
  if (failure) return;  // a file system without holes
  CHECK(MappedFile(path).bytes().size() == size);
}

TEST_CASE("read_all: waits for what comes in pieces, and says where it stopped") {
  int ends[2] = {};
  REQUIRE(::pipe(ends) == 0);
  const ttt::detail::FileDescriptor out(ends[0]);
  std::string received(6, '\0');
  std::thread writer([end = ends[1]] {
    const ttt::detail::FileDescriptor in(end);
    for (const char* piece : {"ab", "c", "def"}) {
      CHECK(::write(in.get(), piece, std::char_traits<char>::length(piece)) > 0);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  ttt::detail::read_all(out.get(), std::as_writable_bytes(std::span(received)), "pipe");
  writer.join();
  CHECK(received == "abcdef");
  CHECK(contains(thrown<ttt::Error>([&] {
                   ttt::detail::read_all(out.get(), std::as_writable_bytes(std::span(received)),
                                         "pipe");
                 }),
                 "pipe: ended after 0 of 6 bytes"));
}
