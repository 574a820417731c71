# limpid: the reports of `explain`, of an image and of a reaction: what is printed, a number for every method and patch or
# token, and, where a browser is there, a click on a patch or token that changes what the page says.
# SPDX-License-Identifier: MIT
# Arguments: program, folder, and browser, which may be NOTFOUND.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${folder})
function(explained)
  execute_process(COMMAND ${program} ${ARGN} --out ${folder} RESULT_VARIABLE status OUTPUT_VARIABLE printed
    ERROR_VARIABLE said TIMEOUT 280)
  if(NOT status EQUAL 0 OR printed MATCHES "nan")
    message(FATAL_ERROR "explain ${ARGN} ended with ${status}\n${printed}${said}")
  endif()
  set(printed "${printed}" PARENT_SCOPE)
endfunction()

# Integrated gradients are complete where the gradient is that of the score: no more than 1 % is missing.
function(complete)
  string(REGEX MATCH "[0-9]+ steps, sums to ([-0-9.]+), the change is ([-0-9.]+), ([0-9.]+) % missing" found "${printed}")
  set(sum "${CMAKE_MATCH_1}")
  set(change "${CMAKE_MATCH_2}")
  set(missing "${CMAKE_MATCH_3}")
  execute_process(COMMAND awk "BEGIN { s = ${sum} / ${change}; c = ${change} * ${change};
    exit !(c > 0.01 && s > 0.989 && s < 1.011 && ${missing} <= 1) }" RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "integrated gradients sum to ${sum}, wanted ${change}:\n${printed}")
  endif()
endfunction()

explained(--number 1 --class 2)
if(NOT printed MATCHES "^It is taken for: pullover, [0-9.]+ %\n")
  message(FATAL_ERROR "the second test image is a pullover:\n${printed}")
endif()
explained()
if(NOT printed MATCHES "^It is taken for: ankle boot, [0-9.]+ %\nraw attention .*SmoothGrad ")
  message(FATAL_ERROR "no ankle boot, or not all methods:\n${printed}")
endif()
complete()
file(STRINGS ${folder}/patches.csv rows)
list(LENGTH rows count)
if(NOT count EQUAL 393)  # 8 methods of 49 patches
  message(FATAL_ERROR "patches.csv has ${count} lines, wanted 393")
endif()
file(SIZE ${folder}/report.html size)
if(size GREATER 4000000)
  message(FATAL_ERROR "report.html has ${size} bytes, wanted at most 4,000,000")
endif()

# A reaction, whose model travels: an amide coupling. The carbon of the acid's chloride is atom 2 of the amide.
set(amide "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1")
file(COPY_FILE ${folder}/report.html ${folder}/image.html)
explained(--reaction ${amide} --atom 2)
if(NOT printed MATCHES "^Mapped: \\[CH3:1\\]\\[C:2\\]\\(=\\[O:3\\]\\)Cl\\.[^ ]+, confidence 0\\.9[0-9]+\nExplained: how much atom 2 of the product, C, [^\n]*\nraw attention .*SmoothGrad ")
  message(FATAL_ERROR "another map, or not all methods:\n${printed}")
endif()
# Of what raw attention says, most is of the two atoms: they look at each other, and at nothing else as much.
if(NOT printed MATCHES "raw attention +most at token (2|20) 'C'")
  message(FATAL_ERROR "the atom in question does not look at the one it was:\n${printed}")
endif()
complete()
file(STRINGS ${folder}/tokens.csv rows)
list(LENGTH rows count)
if(NOT count EQUAL 281 OR NOT rows MATCHES "\"relevance, signed\",1,0,\"C\",")  # 8 methods of 35 tokens
  message(FATAL_ERROR "tokens.csv has ${count} lines, wanted 281")
endif()

# Two sentences, where the weights were fetched; a word in pieces, and marks that CSV and HTML know.
execute_process(COMMAND ${program} --text "A <b>\"bank\"</b>, indefatigably." --text2 "Money, lent." --methods relevance rollout
  --out ${folder}/text RESULT_VARIABLE status OUTPUT_VARIABLE printed ERROR_VARIABLE said TIMEOUT 120)
if(status EQUAL 77)
  message(STATUS "no weights of MiniLM: no sentences were explained")
else()
  file(STRINGS ${folder}/text/tokens.csv rows)
  file(READ ${folder}/text/report.html page)
  if(NOT status EQUAL 0 OR NOT printed MATCHES "^Explained: the cosine of the two sentences, 0[.][0-9]+, [^\n]*\nrollout .*\nrelevance "
      OR NOT rows MATCHES "rollout\",0,3,\"b\",[^;]*;\"rollout\",0,4,\">\",[^;]*;\"rollout\",0,5,\"\"\"\"," OR page MATCHES "\"text\":\"<\"")
    message(FATAL_ERROR "the sentences' report ended with ${status}\n${printed}${said}${rows}")
  endif()
endif()

if(NOT browser)
  message(STATUS "no browser: the report was not opened")
  return()
endif()
# A page with a script at its end that looks round and clicks; title is what it found.
function(opened report script)
  file(READ ${folder}/${report}.html page)
  string(REPLACE "</body>" "<script>const said = []; ${script} document.title = said.join(' | ');</script></body>" page "${page}")
  file(WRITE ${folder}/clicked.html "${page}")
  execute_process(COMMAND ${browser} --headless --no-sandbox --disable-gpu --user-data-dir=${folder}/profile --dump-dom
    file://${folder}/clicked.html RESULT_VARIABLE status OUTPUT_VARIABLE dom ERROR_QUIET TIMEOUT 120)
  string(REGEX MATCH "<title>[^<]*</title>" title "${dom}")
  set(title "${title}" PARENT_SCOPE)
  set(status "${status}" PARENT_SCOPE)
endfunction()

opened(image "
  window.scrollTo(0, document.body.scrollHeight);
  const box = $('look').getBoundingClientRect();
  const click = (x, y) => $('look').dispatchEvent(new MouseEvent('click', { clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
  said.push($('says').textContent);
  $('layer').value = 0; $('head').value = 2; $('layer').dispatchEvent(new Event('input'));
  click(0.5 / 7, 6.5 / 7); said.push($('says').textContent);
  $('first').checked = true; $('first').dispatchEvent(new Event('input')); said.push($('says').textContent);
  const c = $('look').getContext('2d').getImageData(0, 0, 8, 8).data;
  said.push('drawn ' + (c[3] === 255), 'maps ' + document.querySelectorAll('#maps canvas').length);")
set(row "takes most of \\([0-6], [0-6]\\) [0-9.]+ %[^|]*")
if(NOT title MATCHES "Patch 3, 3 ${row} . Patch 6, 0 ${row} . The class token ${row} . drawn true . maps 9</title>")
  message(FATAL_ERROR "the browser ended with ${status}; the page says\n${title}")
endif()

# In the head that decides, clicked atoms look at what they were; in another layer at something else.
opened(report "
  const tokens = $('look').querySelectorAll('.token');
  said.push($('says').textContent);
  tokens[23].click(); said.push($('says').textContent);
  said.push('shown ' + [...tokens].filter(t => t.matches('.kept')).map(t => t.textContent).join(' '));
  $('layer').value = 0; $('layer').dispatchEvent(new Event('input'));
  said.push($('layername').textContent + ' ' + $('says').textContent);
  said.push('methods ' + document.querySelectorAll('#maps .method').length, 'tokens ' + document.querySelectorAll('#maps .token').length);
  said.push('framed ' + document.querySelectorAll('#look .framed').length, 'blue ' + /33, 102, 172/.test($('maps').innerHTML));")
set(quote "[^A-Za-z0-9 ]+")  # a quotation mark has several bytes
set(row "[^|]* [0-9.]+ %[^|]*")
if(NOT title MATCHES "Token 20, ${quote}C${quote} .atom 2., takes most of ${quote}C${quote} .atom 2. ${row} . Token 23, ${quote}O${quote} .atom 3., takes most of ${quote}O${quote} .atom 3. ${row} . shown O3 . 1 of 12 Token 23, ${quote}O${quote} ${row} . methods 8 . tokens 280 . framed 2 . blue true</title>")
  message(FATAL_ERROR "the browser ended with ${status}; the page says\n${title}")
endif()
