// limpid: packed sequences, documents and blocks beside one call for each, where a sequence holds what is not finite:
// it shows as in that call, and no bit of another sequence changes.
// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <cmath>
#include <limpid/op/nlm.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <limpid/score/local.hpp>

#include "support/any_local.hpp"

using limpid::Index;
using M = limpid::Mat<double>;

namespace {

constexpr std::array<Index, 5> offsets{0, 40, 40, 70, 90};  // the second sequence has no tokens
constexpr std::size_t spoiled = 2;                          // the sequence that is

struct Problem {
  M q, k, v, dout, h{{0.3}};  // so narrow that distances are summed by pair, with no middle that all share
};
struct Results {
  M out, lse, dq, dk, dv;
};
constexpr auto fields = {&Results::out, &Results::lse, &Results::dq, &Results::dk, &Results::dv};

Problem problem() {
  const auto numbers = [](Index cols, double kind) {
    M x(offsets.back(), cols);
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::sin(kind + 0.7 * double(i) + 0.01 * double(i * i % 977));
    return x;
  };
  return {numbers(5, 1), numbers(5, 2), numbers(4, 3), numbers(4, 4)};
}
/// The rows of one sequence.
M rows(const M& x, std::size_t s) { return x.middleRows(offsets[s], offsets[s + 1] - offsets[s]); }
Problem part(const Problem& p, std::size_t s) { return {rows(p.q, s), rows(p.k, s), rows(p.v, s), rows(p.dout, s)}; }
M part(const Results& r, M Results::*field, std::size_t s) {
  return rows(field == &Results::lse ? M(r.lse.transpose()) : M(r.*field), s);
}

template <class Op>
Results run(const Op& op, const Problem& p) {
  limpid::Inputs<Op, double> in;
  in.q = p.q, in.k = p.k, in.v = p.v;
  if constexpr (requires { in.h; }) in.h = p.h;
  Results r{p.v, {}, p.q, p.k, p.v};
  limpid::Saved<Op, double> saved;
  limpid::forward(op, in, r.out, {.saved = &saved, .lse = &r.lse});
  limpid::Grads<Op, double> grad;
  grad.q = r.dq, grad.k = r.dk, grad.v = r.dv;
  limpid::backward(op, in, saved, p.dout, grad);
  return r;
}

bool same_bits(const M& a, const M& b) {
  return a.size() == b.size() && std::equal(a.data(), a.data() + a.size(), b.data(), [](double x, double y) {
           return x == y || (std::isnan(x) && std::isnan(y));
         });
}
/// The same, what is finite up to rounding.
bool close(const M& a, const M& b) {
  return a.size() == b.size() && std::equal(a.data(), a.data() + a.size(), b.data(), [](double x, double y) {
           return x == y || (std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= 1e-11 * (1 + std::abs(y));
         });
}

/// make(mask) is the operator of all sequences, make of no mask that of one. whole: it has no other mask beside, so
/// that what is not finite makes no other way through the call.
template <class Make>
void as_single_calls(const Make& make, bool whole = true) {
  std::vector<Index> ids(std::size_t(offsets.back()));
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s)
    std::fill(ids.begin() + offsets[s], ids.begin() + offsets[s + 1], Index(7 - s));
  limpid::Mat<bool> kept(9, 9);
  for (Index i = 0; i < 9; ++i)
    for (Index j = 0; j < 9; ++j) kept(i, j) = ids[std::size_t(10 * i)] == ids[std::size_t(10 * j)];
  const auto single = make(limpid::Chain<>());
  const auto with = [&](const std::string& name, const auto& mask) {
    const auto op = make(mask);
    const Problem fine = problem();
    const Results without = run(op, fine);
    for (M Problem::*field : {&Problem::q, &Problem::k, &Problem::v, &Problem::dout})
      for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
        INFO(name << ", " << bad << " in "
                  << (field == &Problem::q   ? "q"
                      : field == &Problem::k ? "k"
                      : field == &Problem::v ? "v"
                                             : "dout"));
        Problem p = fine;
        (p.*field)(offsets[spoiled] + 3, 2) = bad;
        const Results found = run(op, p), wanted = run(single, part(p, spoiled));
        CHECK(same_bits(part(found, &Results::out, spoiled), wanted.out));
        CHECK(same_bits(part(found, &Results::lse, spoiled), M(wanted.lse.transpose())));
        CHECK(close(part(found, &Results::dq, spoiled), wanted.dq));
        CHECK(close(part(found, &Results::dk, spoiled), wanted.dk));
        CHECK(close(part(found, &Results::dv, spoiled), wanted.dv));
        for (std::size_t s = 0; s + 1 < offsets.size(); ++s)
          for (M Results::*of : fields)
            if (s != spoiled) CHECK((whole ? same_bits : close)(part(found, of, s), part(without, of, s)));
      }
  };
  with("packed", suite::AnyPacked(limpid::packed(offsets)));
  with("documents", suite::AnyPacked(limpid::documents(ids)));
  with("blocks", limpid::blocks(kept, 10, 10));
}

}  // namespace

TEST_CASE("What is not finite in a packed sequence, a document or a block shows as in a call of it, and in no other.") {
  as_single_calls([](const auto& mask) { return limpid::softmax(mask); });
  as_single_calls([](const auto& mask) { return limpid::twicing(limpid::softmax(mask)); });
  as_single_calls([](const auto& mask) { return limpid::nlm(mask); });
  as_single_calls([](const auto& mask) { return limpid::softmax(limpid::chain(mask, limpid::causal())); }, false);
}
