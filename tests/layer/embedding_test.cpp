// limpid: embeddings and class tokens.
// SPDX-License-Identifier: MIT
#include <limpid/layer/embedding.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index;
using M = limpid::Mat<double>;
using suite::error_of;

M random(Index rows, Index cols, std::uint64_t seed) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols);
}
double dot(const M& a, const M& b) { return a.cwiseProduct(b).sum(); }

}  // namespace

TEST_CASE("embed: rows of the table, added where that is asked for, and the gradient is the transpose") {
  const M words = random(7, 5, 1), places = random(4, 5, 2), dout = random(6, 5, 3);
  const std::vector<Index> ids{3, 0, 6, 3, 3, 1}, at{0, 1, 2, 0, 1, 2};
  M x(6, 5), dwords = M::Constant(7, 5, 9);
  limpid::embed(words, ids, x);
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(x.row(Index(i)) == words.row(ids[i]));
  limpid::embed_backward(ids, dout, dwords);
  CHECK(std::abs(dot(x, dout) - dot(words, dwords)) < 1e-14);
  CHECK(dwords.row(2).isZero(0));
  CHECK(suite::distance(dwords.row(3), dout.row(0) + dout.row(3) + dout.row(4)) < 1e-15);
  M twice = dwords;
  limpid::embed_backward(ids, dout, limpid::add(twice));
  CHECK(suite::distance(twice, 2 * dwords) < 1e-15);
  limpid::embed_backward(ids, dout, limpid::overwrite(twice), {.accumulate = true});
  CHECK(twice == dwords);
  limpid::embed(places, at, x, {.accumulate = true});
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(x.row(Index(i)) == words.row(ids[i]) + places.row(at[i]));
}

TEST_CASE("prepend: a token before those of each item, and the gradients are the transpose") {
  const M token = random(2, 5, 1), x = random(3 * 4, 5, 2), dout = random(3 * 6, 5, 3);
  M out(18, 5), dtoken = M::Constant(2, 5, 9), dx = M::Constant(12, 5, 9);
  limpid::prepend(token, x, out, 3);
  for (Index b = 0; b < 3; ++b) {
    CHECK(out.middleRows(6 * b, 2) == token);
    CHECK(out.middleRows(6 * b + 2, 4) == x.middleRows(4 * b, 4));
  }
  limpid::prepend_backward(2, dout, dtoken, dx, 3);
  CHECK(std::abs(dot(out, dout) - dot(token, dtoken) - dot(x, dx)) < 1e-13);
  M sum = dtoken, again = dx;
  limpid::prepend_backward(2, dout, limpid::add(sum), again, 3);
  CHECK(suite::distance(sum, 2 * dtoken) < 1e-15);
  CHECK(again == dx);
  limpid::prepend_backward(2, dout, {}, limpid::overwrite(again), 3, {.accumulate = true});
  CHECK(again == dx);
}

TEST_CASE("embeddings: what does not fit is refused by name, before anything is written") {
  const M words = random(7, 5, 1);
  const std::vector<Index> ids{3, 7}, low{0, -1}, good{0, 1};
  M x = M::Constant(2, 5, 9), narrow(2, 4), table = words;
  CHECK(error_of([&] { limpid::embed(words, ids, x); }) == "embed: id 1 is 7, wanted it in [0, 7), as table has rows");
  CHECK(error_of([&] { limpid::embed(words, low, x); }) == "embed: id 1 is -1, wanted it in [0, 7), as table has rows");
  CHECK((x.array() == 9).all());
  CHECK(error_of([&] { limpid::embed(words, good, narrow); }) == "embed: out is 2 x 4, wanted 2 x 5");
  CHECK(error_of([&] { limpid::embed(table, good, table.topRows(2)); }) ==
        "embed: out shares memory with table, wanted memory of its own");
  CHECK(error_of([&] { limpid::embed_backward(ids, x, table); }) ==
        "embed: id 1 is 7, wanted it in [0, 7), as gradient of table has rows");
  CHECK(table == words);
  CHECK(error_of([&] { limpid::prepend(narrow, x, table); }) ==
        "prepend: token is 2 x 4, wanted at least 1 x 5, as x has columns");
  CHECK(error_of([&] { limpid::prepend(words, x, table); }) == "prepend: out is 7 x 5, wanted 9 x 5");
  CHECK(error_of([&] { limpid::prepend(words, x, table, 3); }).find("prepend: batch is 3 and x has 2 rows") == 0);
  CHECK(error_of([&] { limpid::prepend_backward(8, words, {}, x); }) ==
        "prepend: dout has 7 rows an item, wanted at least 8");
  CHECK(error_of([&] { limpid::prepend_backward(1, words, x, {}); }) ==
        "prepend: gradient of token is 2 x 5, wanted 1 x 5");
}
