#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tests/run.sh [--quick | --sanitize | --cuda] [CTEST-ARGUMENT...]
#
#   (nothing)    every test: unit, slow, examples, packaging, style
#   --quick      leaves out slow and packaging
#   --sanitize   the unit tests under the address and undefined-behaviour sanitizers
#   --cuda       the tests of the CUDA half, on a machine with an NVIDIA GPU and nvcc 12 or newer
#
# On Debian it installs what is missing, if it may. What is built lies in build/. Everything else
# goes to ctest: tests/run.sh --quick -R io. CMAKE_BUILD_PARALLEL_LEVEL and CTEST_PARALLEL_LEVEL
# say how much runs at a time; the default is one job per core.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=default
targets=(all)
select=()
case ${1:-} in
  --quick)
    targets=(ttt_test_programs ttt_examples)
    select=(-LE '^(slow|packaging)$')
    shift
    ;;
  --sanitize)
    preset=asan
    targets=(ttt_test_programs)
    select=(-L '^unit$')
    shift
    ;;
  --cuda)
    preset=cuda
    targets=(ttt_cuda_programs)
    select=(-L '^cuda$')
    shift
    ;;
  -h | --help)
    sed -n '3,12s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac

. cmake/need_packages.sh
need_packages cmake g++ ninja-build libeigen3-dev doctest-dev libbenchmark-dev

cmake --preset "$preset"
cmake --build --preset "$preset" --target "${targets[@]}"
cores=$(nproc 2>/dev/null || echo 2)
export CTEST_PARALLEL_LEVEL=${CTEST_PARALLEL_LEVEL:-$cores}
exec ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "${select[@]}" "$@"
