# limpid: passes when COMPILER refuses SOURCE with FLAG in one error of one sentence, and takes it with the override.
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

list(TRANSFORM INCLUDES PREPEND -isystem)
set(compile ${COMPILER} -std=c++20 -fsyntax-only ${FLAG} ${INCLUDES} ${SOURCE})
execute_process(COMMAND ${compile} RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
string(REGEX MATCHALL "error: [^\n]*" errors "${said}")
list(LENGTH errors count)
if(status EQUAL 0 OR NOT count EQUAL 1 OR NOT said MATCHES "limpid: infinity and NaN have a meaning here")
  message(FATAL_ERROR "wanted ${FLAG} to be refused in one sentence, found ${count}:\n${said}")
endif()
execute_process(COMMAND ${compile} -DLIMPID_ALLOW_FAST_MATH RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "wanted ${FLAG} to be taken with LIMPID_ALLOW_FAST_MATH:\n${said}")
endif()
