# limpid: training on the 32 images that travel: gradients, any number of threads and any interruption the same bits.
# SPDX-License-Identifier: MIT
# Arguments: program; data, the folder of the images; folder, in which files are made.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${folder})
foreach(name IN ITEMS train t10k)
  foreach(kind IN ITEMS images-idx3 labels-idx1)
    string(REGEX REPLACE "-.*" "" what ${kind})
    file(MAKE_DIRECTORY ${folder}/data)
    configure_file(${data}/fashion-mnist-32-${kind}-ubyte.gz ${folder}/data/${name}-${kind}-ubyte.gz COPYONLY)
  endforeach()
endforeach()

function(train)
  execute_process(COMMAND ${program} --data data ${ARGN} WORKING_DIRECTORY ${folder}
    RESULT_VARIABLE status OUTPUT_VARIABLE printed ERROR_VARIABLE said)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " line)
    message(FATAL_ERROR "train ${line}\nended with ${status}:\n${printed}${said}")
  endif()
  set(printed "${printed}" PARENT_SCOPE)
endfunction()
function(same one other)
  file(SHA256 ${folder}/${one} first)
  file(SHA256 ${folder}/${other} second)
  if(NOT first STREQUAL second)
    message(SEND_ERROR "${one} and ${other} differ, wanted the same bits")
  endif()
endfunction()

train(--check)
set(small --layers 2 --width 16 --heads 2 --mlp 24 --batch 8 --warmup 0.5)
# An operator of transformer blocks, layers that hand something on, and other blocks.
foreach(op IN ITEMS softmax pid boosting_block crate)
  set(of ${small} --augment --epochs 2 --operator ${op})
  train(${of} --threads 1 --out ${op}-whole)
  train(${of} --threads 2 --out ${op}-parts --stop-after 1)
  train(--resume --threads 2 --out ${op}-parts)
  same(${op}-whole/checkpoint.safetensors ${op}-parts/checkpoint.safetensors)
  same(${op}-whole/curve.csv ${op}-parts/curve.csv)
endforeach()

# What is learned by heart is told right.
train(${small} --epochs 40 --lr 0.01 --threads 2 --out learned)
if(NOT printed MATCHES "test accuracy (9[0-9]|100)")
  message(SEND_ERROR "32 images were not learned by heart:\n${printed}")
endif()
foreach(op IN ITEMS nlm bilateral twicing sigmoid boosting differential gated aot)
  train(${small} --epochs 1 --threads 1 --operator ${op} --out ${op})
endforeach()
