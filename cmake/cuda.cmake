# SPDX-License-Identifier: MIT
# ttt::cuda: ttt::ttt and the headers in backend/cuda, which any host compiler reads, and the one
# unit with the kernels, which whoever links the target compiles for its own architectures. Several
# targets of a program may link it; each compiles the unit, so one that hands it on saves time.
enable_language(CUDA)
include(GNUInstallDirs)
find_package(CUDAToolkit 12 REQUIRED)

foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  string(REGEX MATCH "^[0-9]+" number "${architecture}")
  if(number AND number LESS 80)
    message(FATAL_ERROR
      "ttt: CMAKE_CUDA_ARCHITECTURES has ${architecture}, but the kernels need 80 or newer: "
      "-DCMAKE_CUDA_ARCHITECTURES=\"80;90a\", say")
  endif()
endforeach()

file(GLOB_RECURSE ttt_cuda_headers CONFIGURE_DEPENDS
  include/ttt/backend/cuda/*.hpp include/ttt/backend/cuda/*.cuh)

add_library(ttt_cuda INTERFACE)
add_library(ttt::cuda ALIAS ttt_cuda)
set_target_properties(ttt_cuda PROPERTIES EXPORT_NAME cuda)
target_sources(ttt_cuda INTERFACE FILE_SET HEADERS BASE_DIRS include FILES ${ttt_cuda_headers})
target_sources(ttt_cuda INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cmake/cuda_unit.cu>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_LIBDIR}/cmake/ttt/cuda_unit.cu>)
set(TTT_CUDA_HEAD_DIMS "" CACHE STRING
  "Head sizes with kernels on tensor cores, of 64, 80, 96 and 128; empty: all of them")
if(TTT_CUDA_HEAD_DIMS)
  list(JOIN TTT_CUDA_HEAD_DIMS "$<COMMA>" sizes)
  target_compile_definitions(ttt_cuda INTERFACE
    $<$<COMPILE_LANGUAGE:CUDA>:TTT_CUDA_HEAD_DIMS=${sizes}>)
endif()
# CMake 3.25 knows no CUDA standard beyond 17.
target_compile_options(ttt_cuda INTERFACE $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-std=c++20>)
# A shared library uses its own kernels, not those of another that was loaded before it.
target_link_options(ttt_cuda INTERFACE
  $<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,SHARED_LIBRARY>:LINKER:-Bsymbolic-functions>
  $<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,MODULE_LIBRARY>:LINKER:-Bsymbolic-functions>)
target_link_libraries(ttt_cuda INTERFACE ttt::ttt CUDA::cudart_static CUDA::cublasLt)
