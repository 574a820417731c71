# limpid: the report of `explain`: what is printed, a number for every method and patch, and, where a browser is there, a
# click on a patch that changes what the page says.
# SPDX-License-Identifier: MIT
# Arguments: program, folder, and browser, which may be NOTFOUND.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${folder})
function(explained)
  execute_process(COMMAND ${program} ${ARGN} --out ${folder} RESULT_VARIABLE status OUTPUT_VARIABLE printed
    ERROR_VARIABLE said TIMEOUT 120)
  if(NOT status EQUAL 0 OR printed MATCHES "nan")
    message(FATAL_ERROR "explain ${ARGN} ended with ${status}\n${printed}${said}")
  endif()
  set(printed "${printed}" PARENT_SCOPE)
endfunction()

explained(--number 1 --class 2)
if(NOT printed MATCHES "^It is taken for: pullover, [0-9.]+ %\n")
  message(FATAL_ERROR "the second test image is a pullover:\n${printed}")
endif()
explained()
if(NOT printed MATCHES "^It is taken for: ankle boot, [0-9.]+ %\nraw attention .*SmoothGrad ")
  message(FATAL_ERROR "no ankle boot, or not all methods:\n${printed}")
endif()
file(STRINGS ${folder}/patches.csv rows)
list(LENGTH rows count)
if(NOT count EQUAL 344)  # 7 methods of 49 patches
  message(FATAL_ERROR "patches.csv has ${count} lines, wanted 344")
endif()
file(SIZE ${folder}/report.html size)
if(size GREATER 4000000)
  message(FATAL_ERROR "report.html has ${size} bytes, wanted at most 4,000,000")
endif()

if(NOT browser)
  message(STATUS "no browser: the report was not opened")
  return()
endif()
# The page with a script at its end that chooses a layer and a head, clicks and notes what the page says.
file(READ ${folder}/report.html page)
string(REPLACE "</body>" "<script>
  window.scrollTo(0, document.body.scrollHeight);
  const box = $('look').getBoundingClientRect(), said = [];
  const click = (x, y) => $('look').dispatchEvent(new MouseEvent('click', { clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
  said.push($('says').textContent);
  $('layer').value = 0; $('head').value = 2; $('layer').dispatchEvent(new Event('input'));
  click(0.5 / 7, 6.5 / 7); said.push($('says').textContent);
  $('first').checked = true; $('first').dispatchEvent(new Event('input')); said.push($('says').textContent);
  const c = $('look').getContext('2d').getImageData(0, 0, 8, 8).data;
  said.push('drawn ' + (c[3] === 255), 'maps ' + document.querySelectorAll('#maps canvas').length);
  document.title = said.join(' | ');
</script></body>" page "${page}")
file(WRITE ${folder}/clicked.html "${page}")
execute_process(COMMAND ${browser} --headless --no-sandbox --disable-gpu --user-data-dir=${folder}/profile --dump-dom
  file://${folder}/clicked.html RESULT_VARIABLE status OUTPUT_VARIABLE dom ERROR_QUIET TIMEOUT 120)
string(REGEX MATCH "<title>[^<]*</title>" title "${dom}")
set(row "takes most of \\([0-6], [0-6]\\) [0-9.]+ %[^|]*")
if(NOT title MATCHES "Patch 3, 3 ${row} . Patch 6, 0 ${row} . The class token ${row} . drawn true . maps 8</title>")
  message(FATAL_ERROR "the browser ended with ${status}; the page says\n${title}")
endif()
