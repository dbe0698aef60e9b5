# SPDX-License-Identifier: MIT
# What ttt stands on: an installed copy where there is one, else a fetched one.
include(FetchContent)

# Headers of others give us no warnings; FetchContent learned the word in CMake 3.25.
set(ttt_system)
if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.25)
  set(ttt_system SYSTEM)
endif()

# Eigen3::Eigen, at least 3.4. Found without a version and compared here, because asking for 3.4
# refuses an installed 5.x and asking for a range refuses an installed 3.4. A fetched Eigen is only
# unpacked (there is no such SOURCE_SUBDIR): its own CMake would bring hundreds of targets.
macro(ttt_find_eigen)
  if(NOT TARGET Eigen3::Eigen)
    FetchContent_Declare(Eigen3
      GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git
      GIT_TAG 3.4.0
      GIT_SHALLOW TRUE
      SOURCE_SUBDIR unpack_only
      FIND_PACKAGE_ARGS NO_MODULE)
    FetchContent_MakeAvailable(Eigen3)
    if(Eigen3_FOUND AND Eigen3_VERSION VERSION_LESS 3.4)
      message(FATAL_ERROR "ttt: needs Eigen 3.4 or newer, found ${Eigen3_VERSION} in ${Eigen3_DIR}")
    endif()
  endif()
  if(NOT TARGET Eigen3::Eigen)
    add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
    target_include_directories(Eigen3::Eigen INTERFACE "${eigen3_SOURCE_DIR}")
  endif()
endmacro()

macro(ttt_find_doctest)
  set(DOCTEST_NO_INSTALL ON)
  FetchContent_Declare(doctest
    GIT_REPOSITORY https://github.com/doctest/doctest.git
    GIT_TAG v2.4.12
    GIT_SHALLOW TRUE
    ${ttt_system}
    FIND_PACKAGE_ARGS NO_MODULE)
  FetchContent_MakeAvailable(doctest)
endmacro()

macro(ttt_find_benchmark)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  FetchContent_Declare(benchmark
    GIT_REPOSITORY https://github.com/google/benchmark.git
    GIT_TAG v1.9.4
    GIT_SHALLOW TRUE
    ${ttt_system}
    FIND_PACKAGE_ARGS NO_MODULE)
  FetchContent_MakeAvailable(benchmark)
endmacro()
