// limpid: texts in scripts for gnuplot.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace gnuplot {

/// A text in double quotes, what means something between them as octal numbers: a quote, the backslash, a backquote,
/// which would run a command, and line ends. In single quotes one at the beginning would end the text.
inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= ' ' && c != '"' && c != '\\' && c != '`') {
      out += c;
      continue;
    }
    out += '\\';
    for (const int shift : {6, 3, 0}) out += static_cast<char>('0' + ((byte >> shift) & 7));
  }
  return out + '"';
}

}  // namespace gnuplot
