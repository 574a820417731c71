// limpid: golden cases of the Hindered Transformer: logits, what each patch contributes, and all gradients.
// SPDX-License-Identifier: MIT
#include <deque>
#include <limpid/layer/hindered.hpp>
#include <sstream>

#include "tape.hpp"

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

  template <class S>
  static Tensors<S> formula(const Case& c) {
    using Var = typename Tape<S>::Var;
    Tape<S> t;
    const Index heads = c.count("heads", 1);
    const double eps = c.number("ln_eps", 1e-6);
    const bool relu = c.text("act", "gelu") == "relu";
    Var x = t.in(c, "x"), cls = t.in(c, "cls");
    const Index n = x->value.rows(), width = x->value.cols(), d = width / heads;
    // what each patch has put into the class token, and who owns it
    const auto spread = [&](Var one) { return t.product(t.leaf(Mat<S>::Constant(n, 1, 1 / S(double(n)))), one); };
    Var put = spread(cls);
    std::vector<Index> owner(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i) owner[static_cast<std::size_t>(i)] = i;
    std::vector<Var> attention;
    Index l = 0;
    std::istringstream stages(c.text("stages", ""));
    for (std::string stage; std::getline(stages, stage, ',');) {
      if (l > 0) {  // the mean of two by two
        const auto side = static_cast<Index>(std::lround(std::sqrt(double(x->value.rows()))));
        const auto half = [&](Index i) { return i / side / 2 * (side / 2) + i % side / 2; };
        Mat<S> quarter = Mat<S>::Zero(side * side / 4, side * side);
        for (Index i = 0; i < side * side; ++i) quarter(half(i), i) = S(0.25);
        for (Index& i : owner) i = half(i);
        x = t.product(t.leaf(quarter), x);
      }
      const S share = S(double(x->value.rows())) / S(double(n));
      for (Index last = l + std::stol(stage); l < last; ++l) {
        const std::string at = "l" + std::to_string(l) + ".";
        const auto norm = [&](Var y, const std::string& name) {
          return t.normed(y, t.in(c, at + name + ".g"), t.in(c, at + name + ".b"), eps);
        };
        const auto linear = [&](Var y, const std::string& of) {
          return t.linear(y, t.in(c, at + "w" + of), t.in(c, at + "b" + of));
        };
        const Var q = linear(norm(cls, "ln1"), "q"), k = linear(norm(x, "ln1"), "k"), v = linear(norm(x, "ln1"), "v");
        std::vector<Var> maps, parts;
        t.attention(q, k, v, heads, heads, 1 / std::sqrt(double(d)), Mat<bool>::Constant(1, k->value.rows(), true),
                    &maps);
        for (Index h = 0; h < heads; ++h) {
          const Var across = t.product(t.transposed(maps[static_cast<std::size_t>(h)]), t.leaf(Mat<S>::Ones(1, d)));
          parts.push_back(t.times(across, t.columns(v, h * d, d)));
        }
        const Var each = t.product(t.beside(parts), t.in(c, at + "wo")), bias = t.in(c, at + "bo");
        put = t.add(put, t.scaled(share, t.rows_of(each, owner)));
        if (bias != nullptr) put = t.add(put, spread(bias));
        cls = t.plus_row(t.add(cls, t.product(t.leaf(Mat<S>::Ones(1, each->value.rows())), each)), bias);
        attention.push_back(t.scaled(share, t.transposed(t.rows_of(t.transposed(t.below(maps)), owner))));
        const Var inside = linear(norm(x, "ln2"), "1");
        x = t.add(
            x,
            linear(relu ? t.each(inside, relu_of<S>, relu_slope<S>) : t.each(inside, gelu_of<S>, gelu_slope<S>), "2"));
      }
    }
    const Var gamma = t.in(c, "lnf.g"), beta = t.in(c, "lnf.b"), wh = t.in(c, "wh"), bh = t.in(c, "bh");
    // the norm of the class token, and the same with its mean and deviation of what each patch gave: rows that add up
    const Var y = t.normed(cls, nullptr, nullptr, eps);
    const Var logits = t.linear(t.plus_row(t.times_row(y, gamma), beta), wh, bh);
    const Mat<S> mean_of = Mat<S>::Constant(width, width, 1 / S(double(width)));
    const auto less_mean = [&](Var a, S by) { return t.subtract(a, t.scaled(by, t.product(a, t.leaf(mean_of)))); };
    const Var centred = less_mean(cls, S(1));
    const Var variance = t.product(t.times(centred, centred), t.leaf(Mat<S>::Constant(width, 1, 1 / S(double(width)))));
    const Var rate = t.each(
        t.add(variance, t.leaf(Mat<S>::Constant(1, 1, S(eps)))), [](S z) { return S(1 / std::sqrt(z)); },
        [](S z) { return S(-1 / (2 * z * std::sqrt(z))); });
    const Var means = spread(t.product(cls, t.leaf(mean_of)));
    Var m = t.times_row(t.times_number(t.subtract(put, means), rate), gamma);
    if (beta != nullptr) m = t.add(m, spread(beta));
    const Var contribution = t.product(m, wh), seen = t.below(attention);
    logits->grad = c.dout<S>("logits").transpose();
    contribution->grad = c.dout<S>("contribution"), seen->grad = c.dout<S>("attention");
    t.backward();
    Tensors<S> all{
        {"out.logits", logits->value}, {"out.contribution", contribution->value}, {"out.attention", seen->value}};
    t.gradients(all);
    return all;
  }
};

const Registered<Hit> hit_cases;

}  // namespace golden
