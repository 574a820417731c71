# limpid: runs PROGRAM, which must succeed and print the text of the file EXPECTED (nothing to compare if that is empty)
# SPDX-License-Identifier: MIT
cmake_minimum_required(VERSION 3.21)

# In the repository, whose data README.md names by path.
execute_process(COMMAND ${PROGRAM} WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR}/../.. RESULT_VARIABLE status OUTPUT_VARIABLE printed)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${status}\n${printed}")
endif()
if(EXPECTED)
  file(READ ${EXPECTED} wanted)
  string(STRIP "${printed}" printed)
  string(STRIP "${wanted}" wanted)
  if(NOT printed STREQUAL wanted)
    message(FATAL_ERROR "README.md says\n${wanted}\nthe program says\n${printed}")
  endif()
endif()
