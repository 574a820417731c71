# limpid: what tests of the examples share: a program that has to end well, and two files that have to be alike.
# SPDX-License-Identifier: MIT
# Wants: folder, in which programs are run.

# run(PROGRAM argument ...): printed is what it printed, said what it did to standard error.
function(run program)
  execute_process(COMMAND ${program} ${ARGN} WORKING_DIRECTORY ${folder}
    RESULT_VARIABLE status OUTPUT_VARIABLE printed ERROR_VARIABLE said)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " line)
    message(FATAL_ERROR "${program} ${line}\nended with ${status}:\n${printed}${said}")
  endif()
  set(printed "${printed}" PARENT_SCOPE)
  set(said "${said}" PARENT_SCOPE)
endfunction()
function(same one other)
  file(SHA256 ${folder}/${one} first)
  file(SHA256 ${folder}/${other} second)
  if(NOT first STREQUAL second)
    message(SEND_ERROR "${one} and ${other} differ, wanted the same bits")
  endif()
endfunction()
