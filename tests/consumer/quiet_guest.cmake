# limpid: as a part of another project the library brings its target and changes nothing else
# SPDX-License-Identifier: MIT

foreach(option LIMPID_TESTS LIMPID_BENCH LIMPID_EXAMPLES LIMPID_INSTALL)
  if(${option})
    message(FATAL_ERROR "${option} is on in somebody else's project")
  endif()
endforeach()
foreach(property INTERFACE_COMPILE_OPTIONS INTERFACE_COMPILE_DEFINITIONS INTERFACE_LINK_OPTIONS)
  get_target_property(value limpid ${property})
  if(value)
    message(FATAL_ERROR "limpid::limpid sets ${property}: ${value}")
  endif()
endforeach()
if(DEFINED CMAKE_CXX_STANDARD OR CMAKE_CXX_FLAGS MATCHES "march" OR NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  message(FATAL_ERROR "limpid changed a variable of the project that uses it")
endif()
