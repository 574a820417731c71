# limpid: writes HEADER (a path below ROOT) to OUTPUT with every #include "..." of ours replaced by the file, once
# SPDX-License-Identifier: MIT
#
# Files are handled as text, never as CMake lists, so semicolons and brackets in the code are safe.
cmake_minimum_required(VERSION 3.21)

set(seen)
set(joined "")

function(join path)
  if(path IN_LIST seen)
    return()
  endif()
  list(APPEND seen ${path})
  file(READ ${path} text)
  string(REGEX REPLACE "(^|\n)#pragma once[^\n]*" "\\1" text "${text}")
  cmake_path(GET path PARENT_PATH folder)
  # A match of the include line, with what stands before it, until none is left.
  while(text MATCHES "(^|\n)#include (\"([^\"\n]+)\"|<(limpid/[^>\n]+)>)[^\n]*")
    set(line "${CMAKE_MATCH_0}")
    set(local "${CMAKE_MATCH_3}")
    set(ours "${CMAKE_MATCH_4}")
    if(local)
      cmake_path(ABSOLUTE_PATH local BASE_DIRECTORY ${folder} NORMALIZE OUTPUT_VARIABLE included)
    else()
      set(included ${ROOT}/${ours})
    endif()
    string(FIND "${text}" "${line}" at)
    string(SUBSTRING "${text}" 0 ${at} before)
    string(LENGTH "${line}" length)
    math(EXPR after "${at} + ${length}")
    string(SUBSTRING "${text}" ${after} -1 text)
    string(APPEND joined "${before}\n")
    join(${included})
  endwhile()
  string(APPEND joined "${text}\n")
  set(seen "${seen}" PARENT_SCOPE)
  set(joined "${joined}" PARENT_SCOPE)
endfunction()

join(${ROOT}/${HEADER})
file(WRITE ${OUTPUT} "// limpid: all of the library in one file, made by the target limpid_single_header.\n#pragma once\n\n${joined}")
