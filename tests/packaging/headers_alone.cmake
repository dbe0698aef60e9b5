# SPDX-License-Identifier: MIT
# cmake -DCOMPILER= -DINCLUDE= -DSYSTEM_INCLUDE= [-DCUDA_INCLUDE=] -P headers_alone.cmake
file(GLOB_RECURSE headers RELATIVE "${INCLUDE}" "${INCLUDE}/*.hpp")
if(NOT headers)
  message(FATAL_ERROR "no headers in ${INCLUDE}")
endif()

# Those of the CUDA half need the toolkit's headers.
if(CUDA_INCLUDE)
  list(APPEND SYSTEM_INCLUDE "${CUDA_INCLUDE}")
else()
  list(FILTER headers EXCLUDE REGEX "/backend/cuda/")
endif()

set(flags -std=c++20 -Wall -Wextra -Wconversion -Wshadow -Werror "-I${INCLUDE}")
foreach(directory IN LISTS SYSTEM_INCLUDE)
  list(APPEND flags -isystem "${directory}")
endforeach()

# What one header forgets to include every compiler misses: in a hurry one looks for that, and
# another reads all of them as one unit.
if(DEFINED ENV{TTT_SHORT} AND COMPILER MATCHES "clang")
  set(all "")
  foreach(header IN LISTS headers)
    list(APPEND all -include "${header}")
  endforeach()
  execute_process(COMMAND "${COMPILER}" ${flags} -fsyntax-only ${all} -x c++ /dev/null
    RESULT_VARIABLE status ERROR_VARIABLE output)
  list(LENGTH headers count)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${count} headers do not compile as one unit:\n${output}")
  endif()
  message("${count} headers compile as one unit")
  return()
endif()

set(bad 0)
foreach(header IN LISTS headers)
  # Included twice, into a unit with nothing else in it.
  execute_process(
    COMMAND "${COMPILER}" ${flags} -fsyntax-only -include "${header}" -include "${header}"
            -x c++ /dev/null
    RESULT_VARIABLE status ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    math(EXPR bad "${bad} + 1")
    message("${header} does not compile alone:\n${output}")
  endif()
endforeach()
list(LENGTH headers count)
if(bad)
  message(FATAL_ERROR "${bad} of ${count} headers do not compile alone")
endif()
message("${count} headers compile alone")
