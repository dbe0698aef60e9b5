# SPDX-License-Identifier: MIT
# Install and export, so that find_package(ttt) gives ttt::ttt.

# An Eigen that another project builds from source is in no export set that we could name.
get_target_property(ttt_eigen_imported Eigen3::Eigen IMPORTED)
if(NOT ttt_eigen_imported)
  message(STATUS "ttt: Eigen is part of this build, so there is nothing to install")
  return()
endif()

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(ttt_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ttt)

install(TARGETS ttt EXPORT ttt-targets FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT ttt-targets NAMESPACE ttt:: DESTINATION ${ttt_package_dir})

# The component cuda.
if(TTT_CUDA)
  install(TARGETS ttt_cuda EXPORT ttt-cuda-targets
    FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT ttt-cuda-targets NAMESPACE ttt:: DESTINATION ${ttt_package_dir})
  install(FILES cmake/cuda_unit.cu DESTINATION ${ttt_package_dir})
endif()

configure_package_config_file(cmake/ttt-config.cmake.in ttt-config.cmake
  INSTALL_DESTINATION ${ttt_package_dir}
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(ttt-config-version.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(
  FILES
    ${CMAKE_CURRENT_BINARY_DIR}/ttt-config.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/ttt-config-version.cmake
  DESTINATION ${ttt_package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
