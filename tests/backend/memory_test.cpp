// SPDX-License-Identifier: MIT
// Host memory, the workspace, and the backend that only measures it.
#include <cstdint>
#include <limits>
#include <support/kernels.hpp>
#include <utility>

#include <doctest/doctest.h>

#include <ttt/backend/eigen/backend.hpp>
#include <ttt/backend/reference/backend.hpp>
#include <ttt/backend/workspace.hpp>
#include <ttt/core/error.hpp>
#include <ttt/ops/context.hpp>

namespace {

using namespace ttt;

static_assert(Backend<reference::Backend<double>>);
static_assert(Backend<reference::Backend<float>>);
static_assert(Backend<eigen::Backend<double>>);
static_assert(Backend<Cpu>);
static_assert(Backend<DryRun<Cpu>>);

bool aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 64 == 0;
}

TEST_CASE("HostBuffer: aligned, and moves") {
  for (Index size : {1, 3, 1000}) {
    HostBuffer<float> buffer(size);
    CHECK(buffer.size() == size);
    CHECK(aligned(buffer.data()));
    buffer.data()[size - 1] = 2;
    const float* at = buffer.data();
    const HostBuffer<float> other = std::move(buffer);
    CHECK(other.data() == at);
    CHECK(other.data()[size - 1] == 2);
  }
  CHECK(HostBuffer<float>(0).size() == 0);
  CHECK(HostBuffer<float>().data() == nullptr);
}

TEST_CASE("HostBuffer: what cannot be had is an Error, not an overflow") {
  constexpr Index most = std::numeric_limits<Index>::max();
  CHECK_THROWS_AS(HostBuffer<double>(-1), Error);
  CHECK_THROWS_AS((HostBuffer<double>(most)), Error);
  CHECK_THROWS_AS((HostBuffer<double>(most / 8 + 1)), Error);
}

TEST_CASE("copies") {
  const reference::Backend<float> b;
  const float from[] = {1, 2, 3};
  float to[] = {0, 0, 0, -1};
  b.to_device(from, to, 3);
  CHECK((to[0] == 1 && to[2] == 3 && to[3] == -1));
  b.fill(7.0f, to, 2);
  CHECK((to[0] == 7 && to[1] == 7 && to[2] == 3));
  b.copy(from, to, 1);
  b.to_host(from + 1, to + 1, 1);
  CHECK((to[0] == 1 && to[1] == 2 && to[2] == 3));
}

TEST_CASE("Workspace: a stack of matrices") {
  const reference::Backend<float> b;
  Workspace<reference::Backend<float>> workspace(b, 64);
  const View<float> first = workspace.matrix(3, 5);
  CHECK(first.shape() == Shape{3, 5});
  CHECK(aligned(first.data));
  CHECK(workspace.used() == 16);
  {
    Context<reference::Backend<float>> c{b, workspace};
    const Scope scope(c);
    const View<float> second = workspace.matrix(1, 17);
    CHECK(aligned(second.data));
    CHECK(second.data >= first.data + 15);
    CHECK(workspace.used() == 48);
  }
  CHECK(workspace.used() == 16);
  CHECK(workspace.peak() == 48);
  CHECK_NOTHROW(workspace.matrix(6, 8));
  CHECK_THROWS_AS(workspace.matrix(1, 1), Error);
  CHECK(workspace.used() == 64);
}

TEST_CASE("DryRun: measures what the real run needs, and touches nothing") {
  const Cpu cpu(1);
  const DryRun<Cpu> dry(cpu);
  Workspace<DryRun<Cpu>> measured(dry, std::numeric_limits<Index>::max());
  const auto run = [](const auto& backend, auto& workspace) {
    const auto x = workspace.matrix(5, 33), y = workspace.matrix(5, 33);
    backend.fill(1.0f, x.data, x.rows * x.cols);
    backend.add(x, x, y);
    return workspace.matrix(1, backend.cross_entropy_scratch(5, 100)).cols;
  };
  const Index scratch = run(dry, measured);
  Workspace<Cpu> real(cpu, measured.peak());
  CHECK(run(cpu, real) == scratch);
  CHECK(real.peak() == measured.peak());
  CHECK(real.used() == measured.used());
}

}  // namespace
