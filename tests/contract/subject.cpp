// limpid: the list of operators, filled by the files that were compiled for one chain and scalar each.
// SPDX-License-Identifier: MIT
#include "subject.hpp"

namespace suite {

std::vector<void (*)(Operators&)>& instances() {
  static std::vector<void (*)(Operators&)> all;
  return all;
}

#define LIMPID_OPERATOR_COUNT(NAME, ...) +is_asked_for(#NAME)
static_assert(0 LIMPID_OPERATORS(LIMPID_OPERATOR_COUNT) > 0,
              "LIMPID_CONTRACT_ONLY names no operator of tests/support/operators.hpp");

const Operators& operators() {
  static const Operators all = [] {
    Operators list;
    for_each_operator([&](auto entry) {
      using Entry = decltype(entry);
      auto op = std::make_unique<Operator>();
      op->name = Entry::name;
      op->traits = Entry::traits();
      op->text_name = Entry::make(limpid::chain()).name;
      op->has_lse = limpid::detail::has_lse<decltype(Entry::make(limpid::chain()))>;
      op->make_fields = [](const Sizes& s, bool every, Random& random) {
        return make_fields<Entry, double>(s, every, random);
      };
      list.push_back(std::move(op));
    });
    for (auto* fill : instances()) fill(list);
    return list;
  }();
  return all;
}

}  // namespace suite
