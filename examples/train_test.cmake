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

include(${CMAKE_CURRENT_LIST_DIR}/programs.cmake)

run(${program} --data data --check)
set(small --layers 2 --width 16 --heads 2 --mlp 24 --batch 8 --warmup 0.5)
# An operator of transformer blocks, layers that hand something on, and other blocks.
foreach(op IN ITEMS softmax pid boosting_block crate)
  set(of ${small} --augment --epochs 2 --operator ${op})
  run(${program} --data data ${of} --threads 1 --out ${op}-whole)
  run(${program} --data data ${of} --threads 2 --out ${op}-parts --stop-after 1)
  run(${program} --data data --resume --threads 2 --out ${op}-parts)
  same(${op}-whole/checkpoint.safetensors ${op}-parts/checkpoint.safetensors)
  same(${op}-whole/curve.csv ${op}-parts/curve.csv)
endforeach()

# What is learned by heart is told right.
run(${program} --data data ${small} --epochs 40 --lr 0.01 --threads 2 --out learned)
if(NOT printed MATCHES "test accuracy (9[0-9]|100)")
  message(SEND_ERROR "32 images were not learned by heart:\n${printed}")
endif()
foreach(op IN ITEMS nlm bilateral twicing sigmoid boosting differential gated aot)
  run(${program} --data data ${small} --epochs 1 --threads 1 --operator ${op} --out ${op})
endforeach()
