// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <csignal>
#include <exception>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include "limits.hpp"
#include "temporary.hpp"
#include <ttt/io/checkpoint_folder.hpp>
#include <ttt/io/safetensors_writer.hpp>

using ttt::Index;
using ttt::detail::in_folder;
using ttt::detail::names_in;
using ttt::io::Checkpoint;
using ttt::io::CheckpointFolder;
using ttt::io::latest_checkpoint;
using ttt::io::list_checkpoints;
using ttt_test::contains;
using ttt_test::content_of;
using ttt_test::FileSizeLimit;
using ttt_test::OrdinaryUser;
using ttt_test::TemporaryFolder;
using ttt_test::thrown;

namespace {

namespace fs = std::filesystem;

void put(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// Fills a checkpoint with two files, one of them in a folder, that hold a text.
auto files(const std::string& text) {
  return [text](const std::string& folder) {
    put(folder + "/model", text);
    fs::create_directory(folder + "/more");
    put(folder + "/more/state", text);
  };
}

/// The text of such a checkpoint; "damaged" if it does not have both files.
std::string text_in(const std::string& checkpoint) {
  if (!fs::exists(checkpoint + "/model") || !fs::exists(checkpoint + "/more/state"))
    return "damaged";
  const std::string text = content_of(checkpoint + "/model");
  return content_of(checkpoint + "/more/state") == text ? text : "damaged";
}

std::vector<Index> steps_in(const std::string& path) {
  std::vector<Index> steps;
  for (const Checkpoint& checkpoint : list_checkpoints(path)) steps.push_back(checkpoint.step);
  return steps;
}

using Steps = std::vector<Index>;

using Names = std::vector<std::string>;

/// Runs something in a process of its own, and says what it exits with; 99 if it throws.
template <class Run>
int in_another_process(const Run& run) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      run();
    } catch (...) {
      ::_exit(99);
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_CASE("checkpoint folder: writes, lists, and keeps the last few") {
  const TemporaryFolder folder;
  const std::string path = folder.path("runs/a");
  CHECK(list_checkpoints(path).empty());
  CHECK_FALSE(latest_checkpoint(path));
  CheckpointFolder checkpoints(path + "/", 2);
  CHECK(checkpoints.path() == path);
  CHECK(checkpoints.list().empty());
  CHECK_FALSE(checkpoints.latest());

  std::string given;
  const Checkpoint first = checkpoints.write(100, [&](const std::string& target) {
    given = target;
    CHECK(fs::is_empty(target));
    CHECK(target.back() != '/');
    CHECK(list_checkpoints(path).empty());
    files("100")(target);
  });
  CHECK_FALSE(fs::exists(given));
  CHECK(first == Checkpoint{100, path + "/step-0000000100"});
  CHECK(text_in(first.path) == "100");
  CHECK(content_of(first.path + "/complete") == "step-0000000100\n");
  CHECK(names_in(first.path) == Names{"complete", "model", "more"});

  checkpoints.write(0, files("0"));
  checkpoints.write(20'000'000'000, files("20000000000"));
  CHECK(steps_in(path) == Steps{100, 20'000'000'000});  // 0 was the earliest of three
  checkpoints.write(20'000'000'001, [&](const std::string& target) {
    CHECK(steps_in(path) == Steps{100, 20'000'000'000});  // none goes before the new one is there
    files("20000000001")(target);
  });
  CHECK(names_in(path) == Names{"lock", "step-20000000000", "step-20000000001"});
  REQUIRE(checkpoints.latest());
  CHECK(*checkpoints.latest() == Checkpoint{20'000'000'001, path + "/step-20000000001"});
  CHECK(checkpoints.latest() == latest_checkpoint(path + "/"));
  for (const Checkpoint& each : checkpoints.list())
    CHECK(text_in(each.path) == std::to_string(each.step));

  // Back to an earlier step: what was just written stays all the same.
  checkpoints.write(50, files("50"));
  CHECK(steps_in(path) == Steps{50, 20'000'000'000, 20'000'000'001});
  checkpoints.write(60, files("60"));
  CHECK(steps_in(path) == Steps{60, 20'000'000'000, 20'000'000'001});
}

TEST_CASE("checkpoint folder: the same step again replaces it, and there always is one") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  CheckpointFolder checkpoints(path, 1);
  checkpoints.write(7, files("old"));
  const Checkpoint made = checkpoints.write(7, [&](const std::string& target) {
    REQUIRE(latest_checkpoint(path));
    CHECK(text_in(latest_checkpoint(path)->path) == "old");
    files("new")(target);
  });
  CHECK(text_in(made.path) == "new");
  CHECK(names_in(path) == Names{"lock", "step-0000000007"});
}

TEST_CASE("checkpoint folder: names that are something else are left alone") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  CheckpointFolder checkpoints(path, 1);
  const Names others = {"step-",
                        "step-1",
                        "step-000000001",
                        "step-00000000001",
                        "step-000000000x",
                        "step--000000001",
                        "step-0000000001x",
                        "xstep-0000000001",
                        "step-99999999999999999999",
                        "best",
                        "step-0000000001.replaced.replaced"};
  for (const std::string& name : others) {
    REQUIRE(fs::create_directory(in_folder(path, name)));
    put(in_folder(path, name) + "/complete", "");
  }
  put(path + "/step-0000000009", "a file");
  put(path + "/log.txt", "a log");
  CHECK(checkpoints.list().empty());
  checkpoints.write(1, files("1"));
  checkpoints.write(2, files("2"));
  CHECK(steps_in(path) == Steps{2});
  for (const std::string& name : others) CHECK(fs::exists(in_folder(path, name) + "/complete"));
  CHECK(content_of(path + "/step-0000000009") == "a file");
  CHECK(content_of(path + "/log.txt") == "a log");

  // A place that is taken by a file is not cleared for a checkpoint.
  const std::string text = thrown<ttt::Error>([&] { checkpoints.write(9, files("9")); });
  CHECK(contains(text, "cannot write the checkpoint " + path + "/step-0000000009: cannot rename"));
  CHECK(content_of(path + "/step-0000000009") == "a file");
  CHECK(steps_in(path) == Steps{2});
}

TEST_CASE("checkpoint folder: a process that dies while it fills leaves nothing that counts") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  const auto die = [](const std::string& target) {
    files("half")(target);
    ::_exit(42);
  };
  for (const Index step : {1, 2, 2}) {
    CHECK(in_another_process([&] { CheckpointFolder(path, 3).write(step, die); }) == 42);
    CHECK(names_in(path).size() == (step == 1 ? 2u : 3u));  // the lock, one that died, one that is
    CheckpointFolder checkpoints(path, 3);                  // and the dead hold no lock
    CHECK(steps_in(path) == (step == 1 ? Steps{} : Steps{1}));
    checkpoints.write(1, files("1"));
    CHECK(names_in(path) == Names{"lock", "step-0000000001"});
    CHECK(text_in(path + "/step-0000000001") == "1");
  }
}

TEST_CASE("checkpoint folder: what a kill leaves between any two steps") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  const std::string one = path + "/step-0000000001";
  const std::string two = path + "/step-0000000002";
  CheckpointFolder checkpoints(path, 2);
  const auto begin = [&] {
    for (const std::string& name : names_in(path))
      if (name != "lock") fs::remove_all(in_folder(path, name));
    checkpoints.write(1, files("one"));
    checkpoints.write(2, files("two"));
  };
  /// What is listed after the kill, and what after one more write.
  const auto check = [&](const Steps& steps, const std::string& text) {
    CHECK(steps_in(path) == steps);
    REQUIRE(latest_checkpoint(path));
    CHECK(text_in(latest_checkpoint(path)->path) == text);
    for (const Checkpoint& each : list_checkpoints(path)) CHECK(text_in(each.path) != "damaged");
    // A write that fails loses nothing and tidies as well.
    CHECK_THROWS(checkpoints.write(3, [](const std::string&) { throw std::runtime_error("no"); }));
    CHECK(steps_in(path) == steps);
    CHECK(text_in(latest_checkpoint(path)->path) == text);
    checkpoints.write(3, files("three"));
    CHECK(names_in(path) == Names{"lock", steps.back() == 2 ? "step-0000000002" : "step-0000000001",
                                  "step-0000000003"});
    CHECK(text_in(latest_checkpoint(path)->path) == "three");
  };
  SUBCASE("a folder that is being filled") {
    begin();
    fs::create_directory(path + "/.unfinished-step-0000000003");
    files("three")(path + "/.unfinished-step-0000000003");
    check({1, 2}, "two");
  }
  SUBCASE("renamed, without the file that makes it complete") {
    begin();
    fs::remove(two + "/complete");
    check({1}, "one");
  }
  SUBCASE("that file half written") {
    begin();
    fs::rename(two + "/complete", two + "/.ttt-1-0.tmp");
    check({1}, "one");
  }
  SUBCASE("complete, before the old one is removed") {
    begin();
    fs::copy(one, path + "/step-0000000000", fs::copy_options::recursive);
    check({0, 1, 2}, "two");
  }
  SUBCASE("the old one half removed") {
    begin();
    fs::copy(one, path + "/.discarded-step-0000000000", fs::copy_options::recursive);
    fs::remove(path + "/.discarded-step-0000000000/model");
    check({1, 2}, "two");
  }
  SUBCASE("replacing: the old one out of the way") {
    begin();
    fs::rename(two, two + ".replaced");
    fs::create_directory(path + "/.unfinished-step-0000000002");
    check({1, 2}, "two");
  }
  SUBCASE("replacing: the new one in place, but not complete") {
    begin();
    fs::rename(two, two + ".replaced");
    fs::create_directory(two);
    files("new")(two);
    check({1, 2}, "two");
    CHECK(text_in(two) == "two");
  }
  SUBCASE("replacing: complete, and the old one still there") {
    begin();
    fs::copy(two, two + ".replaced", fs::copy_options::recursive);
    put(two + "/model", "new");
    put(two + "/more/state", "new");
    check({1, 2}, "new");
  }
  SUBCASE("replacing, twice over") {
    begin();
    fs::copy(two, two + ".replaced", fs::copy_options::recursive);
    put(two + "/model", "new");
    put(two + "/more/state", "new");
    checkpoints.write(2, files("newest"));
    CHECK(names_in(path) == Names{"lock", "step-0000000001", "step-0000000002"});
    CHECK(text_in(two) == "newest");
  }
}

TEST_CASE("checkpoint folder: killed at any moment, what was written is still there") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  Index least = 0;  // the last step that a process was heard to have written
  for (int round = 0; round < 12; ++round) {
    int ends[2] = {};
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        CheckpointFolder checkpoints(path, 2);
        const auto latest = checkpoints.latest();
        for (Index step = latest ? latest->step : 0;; ++step)
          for (int again = 0; again < 2; ++again) {
            checkpoints.write(step, files(std::to_string(step)));
            if (::write(ends[1], &step, sizeof step) != sizeof step) ::_exit(98);
          }
      } catch (...) {
        ::_exit(99);
      }
    }
    ::close(ends[1]);
    Index heard = 0;  // one at least, so that every round gets somewhere
    REQUIRE(::read(ends[0], &heard, sizeof heard) == sizeof heard);
    std::this_thread::sleep_for(std::chrono::microseconds(1700 * round));
    REQUIRE(::kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    do {
      least = std::max(least, heard);
    } while (::read(ends[0], &heard, sizeof heard) == sizeof heard);
    ::close(ends[0]);

    const std::vector<Checkpoint> all = list_checkpoints(path);
    REQUIRE_FALSE(all.empty());
    CHECK(all.back().step >= least);
    CHECK(all.size() >= (least > 0 ? 2u : 1u));
    for (const Checkpoint& each : all) CHECK(text_in(each.path) == std::to_string(each.step));
  }
  CheckpointFolder(path, 2).write(least + 10, files("last"));
  CHECK(names_in(path).size() == 3);
}

TEST_CASE("checkpoint folder: a reader always finds one while another process replaces it") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  CheckpointFolder(path, 1).write(5, files("5"));
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      CheckpointFolder checkpoints(path, 1);
      for (int i = 0; i < 10; ++i) checkpoints.write(5, files("5"));
    } catch (...) {
      ::_exit(99);
    }
    ::_exit(0);
  }
  int missing = 0;
  int looks = 0;
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    missing += latest_checkpoint(path) ? 0 : 1;
    ++looks;
  }
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(looks > 0);
  CHECK(missing == 0);
}

TEST_CASE("checkpoint folder: what fill throws comes out, and the others stay") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  CheckpointFolder checkpoints(path, 1);
  checkpoints.write(1, files("1"));
  const auto unchanged = [&] {
    CHECK(names_in(path) == Names{"lock", "step-0000000001"});
    CHECK(text_in(path + "/step-0000000001") == "1");
  };
  for (const Index step : {1, 2}) {
    const std::string what =
        "ttt: cannot write the checkpoint " + path + "/step-000000000" + std::to_string(step);
    CHECK(thrown<ttt::Error>([&] {
            checkpoints.write(step, [](const std::string& target) {
              files("half")(target);
              throw std::out_of_range("too far");
            });
          }) == what + ": too far");
    unchanged();
    CHECK(thrown<ttt::Error>([&] {
            checkpoints.write(step, [](const std::string&) {
              ttt::detail::fail<ttt::NonFiniteError>("a loss is not finite");
            });
          }) == what + ": a loss is not finite");
    unchanged();
    CHECK(thrown<ttt::Error>([&] {
            checkpoints.write(step,
                              [](const std::string& target) { put(target + "/complete", ""); });
          }) == what + ": the name complete is reserved for the file that is written last");
    unchanged();
    CHECK_THROWS_AS(checkpoints.write(step, [](const std::string&) { throw 17; }), int);
    unchanged();
  }
  // The first exception is in the second.
  try {
    checkpoints.write(2, [](const std::string&) { throw std::out_of_range("too far"); });
  } catch (const ttt::Error& error) {
    CHECK_THROWS_AS(std::rethrow_if_nested(error), std::out_of_range);
  }
  checkpoints.write(2, files("2"));
  CHECK(steps_in(path) == Steps{2});
}

TEST_CASE("checkpoint folder: a full disk loses no checkpoint") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  CheckpointFolder checkpoints(path, 1);
  checkpoints.write(1, files("1"));
  const std::vector<std::byte> bytes(100'000);
  const ttt::io::TensorToWrite tensor{"t", ttt::DType::U8, {100'000}, bytes};
  // The first fails in fill, the others in the file that is written last.
  for (const rlim_t limit : {50'000u, 0u, 10u})
    for (const Index step : {1, 2}) {
      const std::string text = thrown<ttt::Error>([&] {
        const FileSizeLimit small(limit);
        checkpoints.write(step, [&](const std::string& target) {
          if (limit > 10) ttt::io::write_safetensors(target + "/model", {&tensor, 1});
        });
      });
      CHECK(contains(text, path + "/step-000000000" + std::to_string(step) + ": cannot write"));
      CHECK(contains(text, "File too large"));
      CHECK(names_in(path) == Names{"lock", "step-0000000001"});
      CHECK(text_in(path + "/step-0000000001") == "1");
    }
}

TEST_CASE("checkpoint folder: one writer at a time, any number of readers") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  {
    CheckpointFolder checkpoints(path, 1);
    checkpoints.write(1, files("1"));
    const std::string text = thrown<ttt::Error>([&] { CheckpointFolder(path, 1); });
    CHECK(contains(text, "another run is writing its checkpoints to " + path));
    CHECK(in_another_process([&] { CheckpointFolder(path, 1); }) == 99);
    CHECK(in_another_process([&] { ::_exit(latest_checkpoint(path)->step == 1 ? 7 : 8); }) == 7);
    CHECK(steps_in(path) == Steps{1});
    checkpoints.write(2, files("2"));
  }
  CheckpointFolder(path, 1).write(3, files("3"));
  CHECK(steps_in(path) == Steps{3});
}

TEST_CASE("checkpoint folder: places and numbers that will not do") {
  const TemporaryFolder folder;
  const auto refused = [](const std::string& path, Index keep = 1) {
    return thrown<ttt::Error>([&] { CheckpointFolder(path, keep); });
  };
  CHECK(contains(refused(folder.path("run"), 0), "keeping 0, expected at least 1"));
  CHECK_FALSE(fs::exists(folder.path("run")));
  const std::string file = folder.file("file", "");
  CHECK(contains(refused(file), "cannot make the folder " + file + ": File exists"));
  CHECK(contains(refused(file + "/run"), "cannot make the folder " + file));
  CHECK(contains(refused(""), "cannot make the folder"));
  CHECK(contains(thrown<ttt::Error>([&] { list_checkpoints(file); }), "Not a directory"));
  CHECK(contains(
      thrown<ttt::Error>([&] { CheckpointFolder(folder.path("run"), 1).write(-1, files("x")); }),
      "the step -1 is negative"));

  const std::string path = folder.path("run");
  CheckpointFolder(path, 1).write(1, files("1"));
  fs::permissions(folder.path(""), fs::perms(0755));
  fs::permissions(path, fs::perms(0555));
  {
    const OrdinaryUser user;
    CHECK(contains(refused(path), "cannot open " + path + "/lock: Permission denied"));
    CHECK(contains(refused(path + "/deeper"), "Permission denied"));
    CHECK(steps_in(path) == Steps{1});
  }
  CheckpointFolder checkpoints(path, 1);
  {
    const OrdinaryUser user;
    const std::string text = thrown<ttt::Error>([&] { checkpoints.write(2, files("2")); });
    CHECK(contains(text, "cannot write the checkpoint " + path + "/step-0000000002"));
    CHECK(contains(text, "Permission denied"));
    CHECK(steps_in(path) == Steps{1});
  }
  fs::permissions(path, fs::perms(0000));
  {
    const OrdinaryUser user;
    CHECK(contains(thrown<ttt::Error>([&] { list_checkpoints(path); }),
                   "cannot read the folder " + path));
  }
  fs::permissions(path, fs::perms(0755));
  checkpoints.write(2, files("2"));
  CHECK(steps_in(path) == Steps{2});
}

TEST_CASE("checkpoint folder: an old one that cannot be removed does not count any more") {
  const TemporaryFolder folder;
  fs::permissions(folder.path(""), fs::perms(0777));
  const std::string path = folder.path("run");
  {
    const OrdinaryUser user;
    CheckpointFolder checkpoints(path, 1);
    checkpoints.write(1, [](const std::string& target) {
      files("1")(target);
      fs::permissions(target + "/more", fs::perms(0555));
    });
    const std::string text = thrown<ttt::Error>([&] { checkpoints.write(2, files("2")); });
    CHECK(contains(text, "ttt: cannot remove " + path + "/.discarded-step-0000000001/more/state"));
    CHECK(steps_in(path) == Steps{2});
    CHECK(text_in(path + "/step-0000000002") == "2");
    CHECK(contains(thrown<ttt::Error>([&] { checkpoints.write(3, files("3")); }),
                   "cannot write the checkpoint " + path + "/step-0000000003: cannot remove"));
    CHECK(steps_in(path) == Steps{2});
    fs::permissions(path + "/.discarded-step-0000000001/more", fs::perms(0755));
    checkpoints.write(3, files("3"));
    CHECK(names_in(path) == Names{"lock", "step-0000000003"});
  }
}

TEST_CASE("checkpoint folder: symbolic links are not followed when something is removed") {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  REQUIRE(fs::create_directory(folder.path("kept")));
  const std::string kept = folder.file("kept/file", "kept");
  CheckpointFolder checkpoints(path, 1);
  checkpoints.write(1, [&](const std::string& target) {
    fs::create_directory_symlink(folder.path("kept"), target + "/link");
  });
  fs::create_directory_symlink(folder.path("kept"), path + "/.unfinished-step-0000000002");
  checkpoints.write(3, files("3"));
  CHECK(names_in(path) == Names{"lock", "step-0000000003"});
  CHECK(content_of(kept) == "kept");
}
