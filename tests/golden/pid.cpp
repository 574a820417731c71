// limpid: golden cases of PID attention: a stack of layers, and the gradient through all of them.
// SPDX-License-Identifier: MIT
#include "tape.hpp"

namespace golden {

struct Pid {
  static constexpr const char* name = "pid";
  static constexpr const char* switches = "causal scale variant ema";
  static constexpr const char* gains[4] = {"lambda_p", "lambda_i", "lambda_d", "beta"};

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string variant = c.text("variant", "paper");
    if (variant != "paper" && variant != "lagged_ema") throw Refused("variant is '" + variant + "'");
    limpid::PidOptions options;
    if (variant == "lagged_ema") options.variant = limpid::PidVariant::lagged_ema;
    options.ema = c.number("ema", 0.3);
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    Mat<S> gain[4], dgain[4];
    for (int i = 0; i < 4; ++i) gain[i] = c.in<S>(gains[i]), dgain[i] = Mat<S>::Zero(1, 1);
    Mat<S> out(q.rows(), v.cols()), dq = q, dk = k, dv = v;
    const Index layers = c.shape("q")[0], n = c.shape("q")[1];

    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::pid(limpid::softmax(masks, {.scale = c.scale(q.cols())}), options);
      using Op = std::remove_const_t<decltype(op)>;
      limpid::PidStack<Op, S> stack(op);
      const auto inputs = [&](Index l) {
        return limpid::Inputs<Op, S>{.q = q.middleRows(l * n, n),
                                     .k = k.middleRows(l * n, n),
                                     .v = v.middleRows(l * n, n),
                                     .lambda_p = gain[0],
                                     .lambda_i = gain[1],
                                     .lambda_d = gain[2],
                                     .beta = gain[3]};
      };
      for (Index l = 0; l < layers; ++l) stack.forward(inputs(l), out.middleRows(l * n, n));
      for (Index l = layers; l-- > 0;)
        stack.backward(inputs(l), dout.middleRows(l * n, n),
                       {.q = dq.middleRows(l * n, n),
                        .k = dk.middleRows(l * n, n),
                        .v = dv.middleRows(l * n, n),
                        .lambda_p = dgain[0],
                        .lambda_i = dgain[1],
                        .lambda_d = dgain[2],
                        .beta = dgain[3]});
    });
    Tensors<S> all{{"out.out", out}, {"grad.q", dq}, {"grad.k", dk}, {"grad.v", dv}};
    for (int i = 0; i < 4; ++i) all["grad." + std::string(gains[i])] = dgain[i];
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    using Var = typename Tape<S>::Var;
    Tape<S> t;
    const Var q = t.in(c, "q"), k = t.in(c, "k"), v = t.in(c, "v");
    Var gain[4];
    for (int i = 0; i < 4; ++i) gain[i] = t.in(c, gains[i]);
    const Index layers = c.shape("q")[0], n = c.shape("q")[1];
    const bool paper = c.text("variant", "paper") == "paper";
    const S ema = S(c.number("ema", 0.3));
    const auto value = [&](Index l) { return t.rows(v, l * n, n); };
    const auto off = [&](Index l) { return t.subtract(t.times_number(value(0), gain[3]), value(l)); };
    std::vector<Var> outs;
    Var sum = nullptr;  // of errors up to this layer, or the mean of those before it
    for (Index l = 0; l < layers; ++l) {
      Var out = t.attention(t.rows(q, l * n, n), t.rows(k, l * n, n), value(l), 1, 1, c.scale(q->value.cols()),
                            c.visible(n, n));
      if (l > 0) {
        out = t.add(out, t.times_number(off(l), gain[0]));
        if (paper) sum = sum == nullptr ? off(l) : t.add(sum, off(l));
        if (sum != nullptr) out = t.add(out, t.times_number(sum, gain[1]));
        const Index late = paper ? 0 : 1;
        if (l > late) out = t.add(out, t.times_number(t.subtract(value(l - 1 - late), value(l - late)), gain[2]));
        if (!paper) {
          const Var now = t.scaled(ema, off(l));
          sum = sum == nullptr ? now : t.add(now, t.scaled(1 - ema, sum));
        }
      }
      outs.push_back(out);
    }
    const Var out = t.below(outs);
    out->grad = c.dout<S>();
    t.backward();
    Tensors<S> all{{"out.out", out->value}};
    t.gradients(all);
    return all;
  }
};

const Registered<Pid> pid_cases;

}  // namespace golden
