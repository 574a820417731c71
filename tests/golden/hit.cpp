// limpid: golden cases of the Hindered Transformer: logits, what each patch contributes, and all gradients.
// SPDX-License-Identifier: MIT
#include <deque>
#include <limpid/layer/hindered.hpp>
#include <sstream>

#include "plain.hpp"

namespace golden {

struct Hit {
  static constexpr const char* name = "hit";
  static constexpr const char* switches = "stages heads act ln_eps";

  template <class S>
  static Tensors<S> library(const Case& c) {
    limpid::HinderedOptions options;
    options.heads = c.count("heads", 1), options.eps = c.number("ln_eps", 1e-6);
    std::istringstream stages(c.text("stages", ""));
    for (std::string stage; std::getline(stages, stage, ',');) options.stages.push_back(std::stol(stage));
    const std::string act = c.text("act", "gelu");
    if (act == "relu")
      options.activation = limpid::Activation::relu;
    else if (act != "gelu")
      throw Refused("act is '" + act + "', wanted gelu or relu");

    std::deque<Mat<S>> kept;
    const auto in = [&](const std::string& key, bool row) -> limpid::View<S> {
      if (!c.has(key)) return {};
      return kept.emplace_back(row ? c.row<S>(key) : c.in<S>(key));
    };
    using Args = limpid::HinderedArgs<limpid::View<S>>;
    using Block = limpid::HinderedBlockArgs<limpid::View<S>>;
    const auto key_of = [](const std::string& name) -> std::string {
      return name == "gamma1"   ? "ln1.g"
             : name == "beta1"  ? "ln1.b"
             : name == "gamma2" ? "ln2.g"
             : name == "beta2"  ? "ln2.b"
                                : name;
    };
    Args args;
    args.x = in("x", false), args.cls = in("cls", false), args.wh = in("wh", false), args.bh = in("bh", true);
    args.gamma = in("lnf.g", true), args.beta = in("lnf.b", true);
    Index blocks = 0;
    for (const Index stage : options.stages) blocks += stage;
    for (Index l = 0; l < blocks; ++l)
      Block::visit(
          [&](const std::string& field, limpid::View<S>& to) {
            to = in("l" + std::to_string(l) + "." + key_of(field), field[0] != 'w');
          },
          args.blocks.emplace_back());

    const limpid::Hindered<S> model(options);
    limpid::HinderedSaved<S> saved;
    const auto found = model.forward(args, &saved);
    Tensors<S> all;
    all["out.logits"] = found.logits, all["out.contribution"] = found.contribution;
    all["out.attention"] = found.attention;
    const Mat<S> dlogits = c.dout<S>("logits").transpose(), dcontribution = c.dout<S>("contribution"),
                 dattention = c.dout<S>("attention");
    const auto g = model.backward(args, saved, dlogits, dcontribution, dattention);
    all["grad.x"] = g.x, all["grad.cls"] = g.cls, all["grad.wh"] = g.wh, all["grad.bh"] = g.bh;
    all["grad.lnf.g"] = g.gamma, all["grad.lnf.b"] = g.beta;
    for (Index l = 0; l < blocks; ++l)
      limpid::HinderedBlockArgs<Mat<S>>::visit(
          [&](const std::string& field, const Mat<S>& gradient) {
            all["grad.l" + std::to_string(l) + "." + key_of(field)] = gradient;
          },
          g.blocks[static_cast<std::size_t>(l)]);
    for (auto entry = all.begin(); entry != all.end();)  // a bias that the file does not have
      entry = c.file().has(entry->first) ? std::next(entry) : all.erase(entry);
    return all;
  }
};

const Registered<Hit> hit_cases;

}  // namespace golden
