// limpid: what zlib packs, for tests of readers.
// SPDX-License-Identifier: MIT
#pragma once

#include <zlib.h>

#include <string>

namespace suite {

/// Text as zlib packs it; window 15 + 16 makes a gzip file of it.
inline std::string deflated(const std::string& text, int window = 15) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, static_cast<uLong>(text.size())), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace suite
