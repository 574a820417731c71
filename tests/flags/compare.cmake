# limpid: passes when the programs ALONE_1, ALONE_2 and each of TOGETHER succeed, and every line of bits that a program
# of both units prints is what the unit alone prints.
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

function(run program lines)
  execute_process(COMMAND ${program} RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${program}: ${said}")
  endif()
  set(${lines} "${said}" PARENT_SCOPE)
endfunction()

run(${ALONE_1} first)
run(${ALONE_2} second)
foreach(program IN LISTS TOGETHER)
  run(${program} both)
  if(NOT both STREQUAL "${first}${second}")
    message(FATAL_ERROR "${program} has other bits than its units alone:\n${both}\n${first}${second}")
  endif()
endforeach()
