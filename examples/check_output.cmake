# limpid: runs an example and compares what it prints with the "// prints:" lines of its source.
# SPDX-License-Identifier: MIT
# Arguments: program, source. A line that starts with "// prints:" stands for one line of output.
execute_process(COMMAND ${program} OUTPUT_VARIABLE printed RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${program} ended with ${status}")
endif()
file(STRINGS ${source} wanted REGEX "^// prints:")
list(TRANSFORM wanted REPLACE "^// prints: ?" "")
list(JOIN wanted "\n" wanted)
string(STRIP "${printed}" printed)
string(STRIP "${wanted}" wanted)
if(wanted STREQUAL "")
  message(FATAL_ERROR "${source} says nothing about what it prints")
endif()
if(NOT printed STREQUAL wanted)
  message(FATAL_ERROR "the example printed\n${printed}\n\nand its source promises\n${wanted}")
endif()
