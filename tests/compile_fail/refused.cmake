# limpid: passes when COMPILER refuses SOURCE and the first error is the one the source announces. INCLUDES: folders.
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

file(STRINGS ${SOURCE} wanted REGEX "^// refused: ")
string(REGEX REPLACE "^// refused: " "" wanted "${wanted}")
if(wanted STREQUAL "")
  message(FATAL_ERROR "${SOURCE} has no line '// refused: regular expression'")
endif()

list(TRANSFORM INCLUDES PREPEND -isystem)
execute_process(
  COMMAND ${COMPILER} -std=c++20 -fsyntax-only -Wfatal-errors -DLIMPID_MISTAKE=1 ${INCLUDES} ${SOURCE}
  RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(status EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles, wanted: ${wanted}")
endif()
string(REGEX MATCHALL "[^\n]*error: [^\n]*" errors "${said}")
list(POP_FRONT errors first)
if(NOT first MATCHES "${wanted}")
  message(FATAL_ERROR "refused with another sentence\nwanted: ${wanted}\nfound:  ${first}\n\n${said}")
endif()
message(STATUS "${first}")
