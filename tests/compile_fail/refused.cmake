# limpid: passes when COMPILER refuses SOURCE and one of the errors is the one the source announces. INCLUDES: folders.
# A source with several lines "// refused: ..." has as many mistakes, LIMPID_MISTAKE=1, 2, ...; where it
# says "// refused alone: ...", there must be no other error.
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

file(STRINGS ${SOURCE} wanted REGEX "^// refused( alone)?: ")
if(wanted STREQUAL "")
  message(FATAL_ERROR "${SOURCE} has no line '// refused: regular expression'")
endif()

list(TRANSFORM INCLUDES PREPEND -isystem)
set(mistake 0)
foreach(sentence IN LISTS wanted)
  math(EXPR mistake "${mistake} + 1")
  string(REGEX MATCH "^// refused alone: " alone "${sentence}")
  string(REGEX REPLACE "^// refused( alone)?: " "" sentence "${sentence}")
  execute_process(
    COMMAND ${COMPILER} -std=c++20 -fsyntax-only -DLIMPID_MISTAKE=${mistake} ${INCLUDES} ${SOURCE}
    RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(status EQUAL 0)
    message(SEND_ERROR "${SOURCE} compiles with mistake ${mistake}, wanted: ${sentence}")
  elseif(NOT said MATCHES "error: [^\n]*(${sentence})")
    message(SEND_ERROR "mistake ${mistake} is refused with another sentence, wanted: ${sentence}\n\n${said}")
  elseif(alone)
    string(REGEX MATCHALL "error: " errors "${said}")
    list(LENGTH errors count)
    if(count GREATER 1)
      message(SEND_ERROR "mistake ${mistake} is refused with ${count} errors, wanted one: ${sentence}\n\n${said}")
    endif()
  endif()
endforeach()
