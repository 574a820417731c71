# limpid: passes when the compiler takes SOURCE without a mistake, refuses it with one, and one of the errors is the one the
# source announces. It is called as COMMANDS, a compile_commands.json, say, where its headers are parsed already; where there
# is no such file as COMPILER with INCLUDES.
# A source with several lines "// refused: ..." has as many mistakes, LIMPID_MISTAKE=1, 2, ...; where it
# says "// refused alone: ...", there must be no other error.
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

file(STRINGS ${SOURCE} wanted REGEX "^// refused( alone)?: ")
if(wanted STREQUAL "")
  message(FATAL_ERROR "${SOURCE} has no line '// refused: regular expression'")
endif()

list(TRANSFORM INCLUDES PREPEND -isystem)
set(command "${COMPILER};-std=c++20;-DLIMPID_MISTAKE=0;${INCLUDES};${SOURCE}")
if(EXISTS ${COMMANDS})
  file(STRINGS ${COMMANDS} lines REGEX "\"command\": .* -c ${SOURCE}\"")
  if(lines MATCHES "\"command\": \"(.*)\"")
    separate_arguments(command UNIX_COMMAND "${CMAKE_MATCH_1}")
    list(FIND command -o output)
    list(REMOVE_AT command ${output})  # -o
    list(REMOVE_AT command ${output})  # and its file
  endif()
endif()
execute_process(COMMAND ${command} -fsyntax-only RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(NOT status EQUAL 0)
  message(SEND_ERROR "${SOURCE} does not compile without a mistake:\n\n${said}")
endif()
set(mistake 0)
foreach(sentence IN LISTS wanted)
  math(EXPR mistake "${mistake} + 1")
  string(REGEX MATCH "^// refused alone: " alone "${sentence}")
  string(REGEX REPLACE "^// refused( alone)?: " "" sentence "${sentence}")
  list(TRANSFORM command REPLACE "^-DLIMPID_MISTAKE=.*" "-DLIMPID_MISTAKE=${mistake}")
  execute_process(COMMAND ${command} -fsyntax-only
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
