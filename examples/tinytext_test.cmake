# limpid: a tiny character model: any number of threads and any interruption the same bits, and it learns.
# SPDX-License-Identifier: MIT
# Arguments: program; folder, in which files are made.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${folder})
file(MAKE_DIRECTORY ${folder})

include(${CMAKE_CURRENT_LIST_DIR}/programs.cmake)

# The same 50 characters again and again: what follows is known.
set(line "In the beginning God created the heaven and earth.")
string(REPEAT "${line}" 40 text)
file(WRITE ${folder}/text "${text}")
set(small --data text --width 16 --layers 1 --heads 2 --mlp 16 --length 24 --batch 4 --lr 1e-2)
run(${program} ${small} --steps 6 --threads 1 --out whole)
run(${program} ${small} --steps 6 --threads 3 --out parts --stop-after 2)
run(${program} ${small} --steps 6 --threads 2 --out parts --resume)
foreach(op IN ITEMS softmax twicing aot mssa)
  same(whole/${op}.safetensors parts/${op}.safetensors)
endforeach()
run(${program} ${small} --steps 600 --threads 2 --out learned)
foreach(op IN ITEMS softmax twicing aot mssa)
  if(NOT printed MATCHES "${op} +[0-9]+ +600  0\\.[0-5]")
    message(SEND_ERROR "${op}: one line was not learned by heart:\n${printed}")
  endif()
endforeach()
