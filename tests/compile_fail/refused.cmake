# limpid: passes when COMPILER refuses SOURCE and one of the errors is the one the source announces. INCLUDES: folders.
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

file(STRINGS ${SOURCE} wanted REGEX "^// refused: ")
string(REGEX REPLACE "^// refused: " "" wanted "${wanted}")
if(wanted STREQUAL "")
  message(FATAL_ERROR "${SOURCE} has no line '// refused: regular expression'")
endif()

list(TRANSFORM INCLUDES PREPEND -isystem)
execute_process(
  COMMAND ${COMPILER} -std=c++20 -fsyntax-only -DLIMPID_MISTAKE=1 ${INCLUDES} ${SOURCE}
  RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(status EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles, wanted: ${wanted}")
endif()
if(NOT said MATCHES "error: [^\n]*(${wanted})")
  message(FATAL_ERROR "refused with another sentence, wanted: ${wanted}\n\n${said}")
endif()
