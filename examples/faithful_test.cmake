# limpid: scores of explanations on images that travel: maps fit the gradients of the weights, and any number of threads and
# any interruption give the same bits.
# SPDX-License-Identifier: MIT
# Arguments: program; data, the folder of the images; models, that of what examples/fetch_models fetches; folder, in which
# files are made.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${folder})
file(MAKE_DIRECTORY ${folder}/images)
foreach(kind IN ITEMS images-idx3 labels-idx1)
  configure_file(${data}/fashion-mnist-200-${kind}-ubyte.gz ${folder}/images/t10k-${kind}-ubyte.gz COPYONLY)
endforeach()

include(${CMAKE_CURRENT_LIST_DIR}/programs.cmake)

run(${program} --data images --images 4 --dinov2 nowhere --check)
string(REGEX MATCHALL "maps and their gradients within" checked "${printed}")
list(LENGTH checked count)
if(NOT count EQUAL 10)
  message(SEND_ERROR "wanted the maps of ten models checked:\n${printed}")
endif()
set(small --data images --limits 4 --models softmax crate --methods relevance SmoothGrad)
run(${program} ${small} --images 8 --threads 1 --out one)
# In parts: one model alone, half of the images first.
run(${program} ${small} --images 8 --models crate --threads 2 --out two)
run(${program} ${small} --images 4 --threads 2 --out two)
run(${program} ${small} --images 8 --threads 2 --out two)
foreach(name IN ITEMS softmax.safetensors crate.safetensors faithful.csv curves.csv faithful.gp)
  same(one/${name} two/${name})
endforeach()
if(printed MATCHES "rollout" OR NOT printed MATCHES "all models: .*. random  .*. relevance  .*. SmoothGrad  .*Random is ")
  message(SEND_ERROR "wanted random, the two methods asked for and what became of random:\n${printed}")
endif()
# Of fewer images than are there the table is made from these, as it is of them alone.
run(${program} ${small} --images 4 --threads 1 --out four)
run(${program} ${small} --images 4 --threads 1 --weights nowhere --out two)
same(four/faithful.csv two/faithful.csv)
same(four/curves.csv two/curves.csv)
same(one/softmax.safetensors two/softmax.safetensors)
# A part of other noise is not taken for this one.
execute_process(COMMAND ${program} ${small} --images 8 --seed 2 --out one WORKING_DIRECTORY ${folder} RESULT_VARIABLE status
  OUTPUT_QUIET ERROR_VARIABLE said)
if(status EQUAL 0 OR NOT said MATCHES "softmax.safetensors: found limits of 4 images, seed 1.*wanted limits of 4 images, seed 2.*begins anew")
  message(SEND_ERROR "a part of another seed: ended with ${status} and said\n${said}")
endif()

# DINOv2 before photographs: left out with a line where it was not fetched, else in parts as in one.
run(${program} --models dinov2 --dinov2 nowhere --out none)
if(NOT said MATCHES "no weights in nowhere, dinov2 is left out" OR EXISTS ${folder}/none)
  message(SEND_ERROR "wanted dinov2 left out with a line, said:\n${said}")
endif()
if(EXISTS ${models}/dinov2/model.safetensors)
  set(photographs --models dinov2 --methods rollout
      --photographs ${data}/photographs/chelsea.png)
  run(${program} ${photographs} --check)
  run(${program} ${photographs} --crops 2 --threads 2 --out whole)
  run(${program} ${photographs} --crops 1 --threads 1 --out parts)
  run(${program} ${photographs} --crops 2 --threads 1 --out parts)
  same(whole/dinov2.safetensors parts/dinov2.safetensors)
  same(whole/photographs.csv parts/photographs.csv)
  if(NOT printed MATCHES "each of 1 photographs: 2.*. random  .*. rollout  ")
    message(SEND_ERROR "wanted a table of random and rollout:\n${printed}")
  endif()
endif()
