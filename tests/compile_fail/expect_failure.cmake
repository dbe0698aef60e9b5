# SPDX-License-Identifier: MIT
# cmake -DCOMPILER= -DPROGRAM= -DINCLUDE= -DSYSTEM_INCLUDE= -P expect_failure.cmake
file(STRINGS "${PROGRAM}" expectations REGEX "^// expect: ")
list(TRANSFORM expectations REPLACE "^// expect: " "")
if(NOT expectations)
  message(FATAL_ERROR "${PROGRAM} has no line `// expect: <text>`")
endif()

set(flags -std=c++20 "-I${INCLUDE}")
foreach(directory IN LISTS SYSTEM_INCLUDE)
  list(APPEND flags -isystem "${directory}")
endforeach()
# A real compilation: with -fsyntax-only templates are not all instantiated.
execute_process(
  COMMAND "${COMPILER}" ${flags} -c "${PROGRAM}" -o /dev/null
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)

if(status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} compiles, but must not")
endif()
foreach(expected IN LISTS expectations)
  string(FIND "${output}" "${expected}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "the compiler does not say `${expected}`, but:\n${output}")
  endif()
endforeach()
