# SPDX-License-Identifier: MIT
# Configures, builds and tests one consumer project from nothing:
# cmake -DSOURCE= -DBINARY= -DCOMPILER= -DGENERATOR= -DOPTIONS= -P build_consumer.cmake
file(REMOVE_RECURSE "${BINARY}")
execute_process(
  COMMAND ${CMAKE_COMMAND} -S "${SOURCE}" -B "${BINARY}" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}"
    "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wconversion -Wshadow -Werror"
    ${OPTIONS}
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build "${BINARY}" COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND ${CMAKE_CTEST_COMMAND} --test-dir "${BINARY}" --output-on-failure
  OUTPUT_VARIABLE output RESULT_VARIABLE status)
message("${output}")
# The consumer's own test, and none of the library's.
if(NOT status EQUAL 0 OR NOT output MATCHES "100% tests passed, 0 tests failed out of 1\n")
  message(FATAL_ERROR "${SOURCE}: the consumer's one test did not pass")
endif()
