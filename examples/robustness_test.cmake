# limpid: the table of robustness on the images that travel: parts that were interrupted come out the same, and weights
# that travel tell those images as they did when they were made.
# SPDX-License-Identifier: MIT
# Arguments: train and robustness, programs; data, the folder of the images; folder, in which files are made.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${folder})
function(copy_images images labels to)
  file(MAKE_DIRECTORY ${folder}/${to})
  foreach(name IN ITEMS train t10k)
    configure_file(${data}/${images} ${folder}/${to}/${name}-images-idx3-ubyte.gz COPYONLY)
    configure_file(${data}/${labels} ${folder}/${to}/${name}-labels-idx1-ubyte.gz COPYONLY)
  endforeach()
endfunction()
copy_images(fashion-mnist-32-images-idx3-ubyte.gz fashion-mnist-32-labels-idx1-ubyte.gz few)
copy_images(fashion-mnist-200-images-idx3-ubyte.gz fashion-mnist-200-labels-idx1-ubyte.gz some)

include(${CMAKE_CURRENT_LIST_DIR}/programs.cmake)

set(small --data few --layers 1 --width 16 --heads 2 --mlp 32 --batch 8 --epochs 2)
run(${robustness} ${small} --seeds 2 --threads 1 --out whole)
set(table "${printed}")
# One part interrupted in its middle, the table after that.
run(${train} ${small} --lr 0.002 --warmup 0.5 --operator pid --seed 1 --threads 2 --stop-after 1 --out parts/pid-1)
run(${robustness} ${small} --seeds 1 --threads 2 --models pid --out parts)
run(${robustness} ${small} --seeds 2 --threads 2 --out parts)
foreach(name IN ITEMS pid-1.safetensors crate-2.safetensors robustness.csv robustness.md noise.gp)
  same(whole/${name} parts/${name})
endforeach()
# Weights alone say what their part said: a row of no more than accuracies, as of one seed.
run(${robustness} ${small} --seeds 1 --models pid --out one --threads 1)
string(REGEX MATCH "\n\\| pid [^\n]*" row "${printed}")
run(${robustness} --data few --weights whole/pid-1.safetensors)
string(FIND "${printed}" "${row}" place)
if(row STREQUAL "" OR place EQUAL -1)
  message(SEND_ERROR "of the weights of pid came\n${printed}wanted ${row}")
endif()

# The weights that travel, on the first 200 test images, clean and under noise of 0.1: as a model does that has learned.
file(GLOB weights ${data}/robustness/*.safetensors)
foreach(file IN LISTS weights)
  run(${robustness} --data some --weights ${file})
  if(NOT printed MATCHES "\n\\| [a-z_]+ \\| [0-9]+ \\| ([0-9]+)[0-9.]* \\| ([0-9]+)[0-9.]* \\|"
     OR CMAKE_MATCH_1 LESS 70 OR CMAKE_MATCH_2 LESS 45)
    message(SEND_ERROR "${file}: wanted at least 70 % of the images, 45 % of the noisy ones:\n${printed}")
  endif()
endforeach()
