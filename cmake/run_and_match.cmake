# SPDX-License-Identifier: MIT
# Passes when the program exits with 0 and its output matches; ctest alone checks one or the other.
# cmake -DPROGRAM= -DARGUMENTS= -DPRINTS= -P run_and_match.cmake
execute_process(
  COMMAND "${PROGRAM}" ${ARGUMENTS}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${status}")
endif()
if(NOT output MATCHES "${PRINTS}")
  message(FATAL_ERROR "the output does not match `${PRINTS}`")
endif()
