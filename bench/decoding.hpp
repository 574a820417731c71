// limpid: the rows of decoding, few queries against a long key cache
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <functional>
#include <limpid/call/decode.hpp>
#include <string>
#include <vector>

#include "session.hpp"

namespace bench {

/// Share of the read bandwidth that 1, 2, 4 and 8 queries reach, bound by their number. The caches of a whole model are
/// used once a token, so in_memory they are 128 MiB, well beyond any cache near the core; else those of one head.
inline void decode_rows(Session& s, const std::string& section, bool in_memory,
                        const std::function<Bound(Index)>& bound) {
  const Index d = 64;
  constexpr Index cold_bytes = 128 << 20;
  for (Index m : {512, 4096, 16384}) {
    const Index items = in_memory ? cold_bytes / (2 * m * d * static_cast<Index>(sizeof(float))) : 1;
    Matrix<float> k(items * m, d), v(items * m, d);
    fill_normal(k, 1), fill_normal(v, 2);
    const auto bytes = static_cast<std::size_t>(k.size()) * sizeof(float);
    Group g;
    g.add(candidate("read", [&k, &v, bytes] {
      volatile std::uint64_t seen = read_bytes(k.data(), bytes) ^ read_bytes(v.data(), bytes);
      static_cast<void>(seen);
    }));
    g.add(peak_candidate<float>(s.one));
    const std::array<Index, 4> queries{1, 2, 4, 8};
    std::vector<Matrix<float>> q, out;
    for (Index n : queries) {
      q.emplace_back(items * n, d), out.emplace_back(items * n, d);
      fill_normal(q.back(), 3);
    }
    limpid::Workspace workspace;
    for (std::size_t i = 0; i < queries.size(); ++i)
      g.add(candidate(std::to_string(queries[i]), [&, i] {
        limpid::forward(limpid::softmax(), limpid::qkv(q[i], k, v), out[i], {.batch = items, .workspace = &workspace});
      }));
    g.run(s.effort);
    const double gigabytes = 2e-9 * static_cast<double>(bytes);
    for (Index n : queries) {
      const std::string name = std::to_string(n);
      const double flop = 4.0 * static_cast<double>(items * n * m * d);
      const double peak = multiply_adds_flop<float>() / g["peak"].median();
      const double needed = flop / g["read"].median() / peak;
      s.add(section + (in_memory ? ", share of the read bandwidth, keys and values in memory (128 MiB)"
                                 : ", share of the read bandwidth, one head in cache"),
            "n = " + name + ", m = " + std::to_string(m), g.over("read", name), Better::larger, bound(n).must,
            bound(n).aim,
            short_number(gigabytes / g[name].median()) + " of " + short_number(gigabytes / g["read"].median()) +
                " GB/s, which would take " + short_number(needed) + " of the peak flop");
    }
  }
}

/// One query a head against keys and values in pages, over the same in one array.
inline void page_rows(Session& s) {
  const Index d = 64, m = 4096, rows = 64, across = m / rows;
  constexpr Index cold_bytes = 128 << 20;
  for (const bool in_memory : {true, false}) {
    const Index items = in_memory ? cold_bytes / (2 * m * d * static_cast<Index>(sizeof(float))) : 1;
    Matrix<float> k(items * m, d), v(items * m, d), q(items, d), out(items, d);
    fill_normal(k, 1), fill_normal(v, 2), fill_normal(q, 3);
    const Matrix<float> k_pool = k, v_pool = v;  // the numbers do not matter, where they lie does
    Matrix<Index> table(items, across), lengths = Matrix<Index>::Constant(items, 1, m);
    for (Index p = 0; p < items * across; ++p) table.data()[p] = p * 37 % (items * across);
    const auto pool = [&](const Matrix<float>& of) {
      return limpid::PagePool<float>{of.data(), items * across, rows, d, rows * d, d, d};
    };
    const limpid::Pages<float> pages{pool(k_pool), pool(v_pool), table, lengths};
    limpid::Inputs<decltype(limpid::softmax()), float> in;
    in.q = q;
    limpid::Workspace workspace;
    Group g;
    g.add(candidate("pages", [&] {
      limpid::decode(limpid::softmax(), in, pages, out, {.batch = items, .workspace = &workspace});
    }));
    g.add(candidate("one array", [&] {
      limpid::forward(limpid::softmax(), limpid::qkv(q, k, v), out, {.batch = items, .workspace = &workspace});
    }));
    g.run(s.effort);
    s.add("Decoding from pages of 64 rows, time over that from one array, n = 1, m = 4096",
          in_memory ? "keys and values in memory (128 MiB)" : "one head in cache", g.over("pages", "one array"),
          Better::smaller, none, 1.05, short_number(1e6 * g["pages"].median() / double(items)) + " us a head");
  }
}

}  // namespace bench
