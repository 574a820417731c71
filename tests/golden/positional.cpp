// limpid: golden cases of positions: sinusoidal encodings, RoPE, ALiBi, relative tables, and the decomposition of
// scores.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

/// Index map of a relative table for tokens that do not stand
/// where the library puts them: offsets shifted by a constant.
struct Shifted {
  Index by = 0;
  Index operator()(Index offset, Index size) const { return limpid::ClipOffset{}(offset + by, size); }
};

struct Positional {
  static constexpr const char* name = "positional";
  static constexpr const char* switches = "kind layout base rotary q_offset k_offset symmetric heads scale causal";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string kind = c.text("kind", "");
    if (kind == "sinusoidal") return sinusoidal<S>(c);
    if (kind == "rope") return rope<S>(c);
    if (kind == "alibi") return alibi<S>(c);
    if (kind == "relative") return relative<S>(c);
    if (kind == "decompose") return decompose<S>(c);
    throw Refused("positional of kind '" + kind +
                  "' is not known; known are sinusoidal, rope, alibi, relative, decompose");
  }

  template <class S>
  static Tensors<S> sinusoidal(const Case& c) {
    const Mat<S> x = c.in<S>("x");
    limpid::SinusoidalOptions options;
    options.base = c.number("base", 10000);
    options.first = c.number("q_offset", 0);
    if (layout(c, "concat")) options.layout = limpid::SinusoidalLayout::concat;
    return {{"out.out", x + limpid::sinusoidal<S>(x.rows(), x.cols(), options)}, {"grad.x", c.dout<S>()}};
  }

  template <class S>
  static Tensors<S> rope(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    limpid::RopeOptions options;
    options.base = c.number("base", 10000);
    options.rotary = c.integer("rotary", q.cols());
    options.q_offset = query_offset(c);
    options.k_offset = c.number("k_offset", 0);
    if (layout(c, "half")) options.layout = limpid::RopeLayout::half;
    Tensors<S> all = with_masks(c, [&](const auto& masks) {
      return run_qkv<S>(limpid::rope(limpid::softmax(masks, {.scale = c.scale(q.cols())}), options), q, k, v,
                        c.dout<S>());
    });
    // The turned rows are outputs of their own, with gradients of their own.
    limpid::RopeRotation turn;
    turn.layout = options.layout, turn.base = options.base, turn.rotary = options.rotary;
    for (const auto& [letter, x, first] : {std::tuple("q", q, query_offset(c)), std::tuple("k", k, options.k_offset)}) {
      const std::string rotated = std::string(letter) + "_rot";
      Mat<S> out(x.rows(), x.cols()), back(x.rows(), x.cols());
      turn.first = first, turn.inverse = false;
      limpid::rope_rotate(x, out, turn);
      const Mat<S> dout = c.dout<S>(rotated);
      turn.inverse = true;
      limpid::rope_rotate(dout, back, turn);
      all["out." + rotated] = out;
      all[std::string("grad.") + letter] += back;
    }
    return all;
  }

  template <class S>
  static Tensors<S> alibi(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), slope = c.in<S>("slope");
    const limpid::SoftmaxOptions options{.scale = c.scale(q.cols())};
    Mat<S> dslope = Mat<S>::Zero(1, 1);
    Tensors<S> all = with_masks(c, [&](const auto& masks) -> Tensors<S> {
      const auto run = [&](const auto& modifier) {
        return run_qkv<S>(limpid::softmax(limpid::chain(modifier, masks), options), q, k, v, c.dout<S>());
      };
      if (!c.flag("symmetric"))
        return run(limpid::alibi(slope, dslope));  // offsets would change nothing: constant in a row
      const double shift = c.number("k_offset", 0) - query_offset(c) + static_cast<double>(k.rows() - q.rows());
      if (shift == 0) return run(limpid::alibi_symmetric(slope, dslope));
      // Places the modifier does not know: the same numbers in a relative table.
      const Index reach = q.rows() + k.rows();
      Mat<S> gap(1, 2 * reach + 1), dtable = Mat<S>::Zero(1, 2 * reach + 1);
      for (Index r = 0; r < gap.cols(); ++r)
        gap(0, r) = static_cast<S>(std::abs(static_cast<double>(r - reach) + shift));
      const Mat<S> table = scaled(-slope(0, 0), gap);
      Tensors<S> result = run(limpid::relative(table, dtable));
      dslope(0, 0) = -dot(dtable, gap);
      return result;
    });
    all["grad.slope"] = dslope;
    if (c.file().has("out.slopes")) all["out.slopes"] = limpid::alibi_slopes<S>(c.count("heads", 1));
    return all;
  }

  template <class S>
  static Tensors<S> relative(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), table = c.row<S>("table");
    const double shift = c.number("k_offset", 0) - query_offset(c) + static_cast<double>(k.rows() - q.rows());
    Mat<S> dtable = Mat<S>::Zero(1, table.cols());
    Tensors<S> all = with_masks(c, [&](const auto& masks) {
      const auto modifier = limpid::relative(table, dtable, Shifted{static_cast<Index>(shift)});
      return run_qkv<S>(limpid::softmax(limpid::chain(modifier, masks), {.scale = c.scale(q.cols())}), q, k, v,
                        c.dout<S>());
    });
    all["grad.table"] = dtable;
    return all;
  }

  template <class S>
  static Tensors<S> decompose(const Case& c) {
    const Mat<S> x = c.in<S>("x"), p = c.in<S>("p"), wq = c.in<S>("wq"), wk = c.in<S>("wk");
    const double scale = c.scale(wq.cols());
    const limpid::ScoreParts<S> parts = limpid::score_parts(x, p, wq, wk, scale);
    const limpid::ScoreParts<S> dout{c.dout<S>("tt"), c.dout<S>("tp"), c.dout<S>("pt"), c.dout<S>("pp")};
    Mat<S> dx = x, dp = p, dwq = wq, dwk = wk;
    limpid::score_parts_backward(x, p, wq, wk, dout, dx, dp, dwq, dwk, scale);
    return {{"out.tt", parts.tt}, {"out.tp", parts.tp}, {"out.pt", parts.pt}, {"out.pp", parts.pp},
            {"grad.x", dx},       {"grad.p", dp},       {"grad.wq", dwq},     {"grad.wk", dwk}};
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const std::string kind = c.text("kind", "");
    if (kind == "sinusoidal") return plain_sinusoidal<S>(c);
    if (kind == "decompose") return plain_decompose<S>(c);
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    const Index n = q.rows(), m = k.rows();
    const S scale = static_cast<S>(c.scale(q.cols()));
    const bool turns = kind == "rope";
    const double q0 = query_offset(c), k0 = c.number("k_offset", 0);
    const Mat<S> tq = turns ? turned(c, q, q0, false) : q, tk = turns ? turned(c, k, k0, false) : k;

    // What is added to the scores, and how it is summed up again: +-gap times the slope, or an entry of the table.
    Mat<S> scores = scaled(scale, product_nt(tq, tk)), gap(n, m);
    Eigen::Matrix<Index, -1, -1> entry = Eigen::Matrix<Index, -1, -1>::Zero(n, m);
    const Mat<S> table = kind == "relative" ? c.row<S>("table") : Mat<S>();
    const Index reach = (table.cols() - 1) / 2;
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < m; ++j) {
        const double delta = static_cast<double>(i) + q0 - static_cast<double>(j) - k0;
        gap(i, j) = static_cast<S>(c.flag("symmetric") ? std::abs(delta) : delta);
        if (kind == "relative") {
          entry(i, j) = std::clamp<Index>(static_cast<Index>(-delta), -reach, reach) + reach;
          scores(i, j) += table(0, entry(i, j));
        }
      }
    if (kind == "alibi") scores -= scaled(c.in<S>("slope")(0, 0), gap);

    const PlainAttention<S> plain(scores, c.visible(n, m), v, c.dout<S>());
    Mat<S> dq = scaled(scale, product(plain.ds, tk)), dk = scaled(scale, product_tn(plain.ds, tq));
    Tensors<S> all{{"out.out", plain.out}, {"grad.v", plain.dv}};
    if (turns) {
      all["out.q_rot"] = tq, all["out.k_rot"] = tk;
      dq = turned<S>(c, dq + c.dout<S>("q_rot"), q0, true), dk = turned<S>(c, dk + c.dout<S>("k_rot"), k0, true);
    }
    all["grad.q"] = dq, all["grad.k"] = dk;
    if (kind == "alibi") {
      all["grad.slope"] = Mat<S>::Constant(1, 1, -dot(plain.ds, gap));
      if (c.file().has("out.slopes")) all["out.slopes"] = slopes<S>(c.count("heads", 1));
    }
    if (kind == "relative") {
      Mat<S>& dtable = all["grad.table"] = Mat<S>::Zero(1, table.cols());
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < m; ++j) dtable(0, entry(i, j)) += plain.ds(i, j);
    }
    return all;
  }

 private:
  static double query_offset(const Case& c) {
    return c.number("q_offset", static_cast<double>(c.shape("k").front() - c.shape("q").front()));
  }
  /// Whether the switch layout is `other` and not interleaved, the default.
  static bool layout(const Case& c, const std::string& other) {
    const std::string found = c.text("layout", "interleaved");
    if (found != "interleaved" && found != other)
      throw Refused("layout is '" + found + "', wanted interleaved or " + other);
    return found == other;
  }
  template <class S>
  static Tensors<S> plain_sinusoidal(const Case& c) {
    Mat<S> out = c.in<S>("x");
    const Index width = out.cols(), sines = (width + 1) / 2;
    for (Index t = 0; t < out.rows(); ++t)
      for (Index col = 0; col < width; ++col) {
        const bool concat = layout(c, "concat"), sine = concat ? col < sines : col % 2 == 0;
        const Index l = concat ? col % sines : col / 2;
        const double angle = (c.number("q_offset", 0) + static_cast<double>(t)) *
                             std::pow(c.number("base", 10000), -2.0 * double(l) / double(width));
        out(t, col) += static_cast<S>(sine ? std::sin(angle) : std::cos(angle));
      }
    return {{"out.out", out}, {"grad.x", c.dout<S>()}};
  }
  template <class S>
  static Tensors<S> plain_decompose(const Case& c) {
    const Mat<S> x = c.in<S>("x"), p = c.in<S>("p"), wq = c.in<S>("wq"), wk = c.in<S>("wk");
    const S scale = static_cast<S>(c.scale(wq.cols()));
    const Mat<S> xq = product(x, wq), xk = product(x, wk), pq = product(p, wq), pk = product(p, wk);
    const Mat<S> tt = c.dout<S>("tt"), tp = c.dout<S>("tp"), pt = c.dout<S>("pt"), pp = c.dout<S>("pp");
    const Mat<S> dxq = scaled(scale, Mat<S>(product(tt, xk) + product(tp, pk))),
                 dpq = scaled(scale, Mat<S>(product(pt, xk) + product(pp, pk)));
    const Mat<S> dxk = scaled(scale, Mat<S>(product_tn(tt, xq) + product_tn(pt, pq)));
    const Mat<S> dpk = scaled(scale, Mat<S>(product_tn(tp, xq) + product_tn(pp, pq)));
    return {{"out.tt", scaled(scale, product_nt(xq, xk))},
            {"out.tp", scaled(scale, product_nt(xq, pk))},
            {"out.pt", scaled(scale, product_nt(pq, xk))},
            {"out.pp", scaled(scale, product_nt(pq, pk))},
            {"grad.x", Mat<S>(product_nt(dxq, wq) + product_nt(dxk, wk))},
            {"grad.p", Mat<S>(product_nt(dpq, wq) + product_nt(dpk, wk))},
            {"grad.wq", Mat<S>(product_tn(x, dxq) + product_tn(p, dpq))},
            {"grad.wk", Mat<S>(product_tn(x, dxk) + product_tn(p, dpk))}};
  }
  template <class S>
  static Mat<S> turned(const Case& c, const Mat<S>& x, double first, bool back) {
    const Index r = c.integer("rotary", x.cols());
    const bool half = layout(c, "half");
    Mat<S> out = x;
    for (Index i = 0; i < x.rows(); ++i)
      for (Index l = 0; l < r / 2; ++l) {
        const double t =
            (first + static_cast<double>(i)) * std::pow(c.number("base", 10000), -2.0 * double(l) / double(r));
        const S cosine = static_cast<S>(std::cos(t)), sine = static_cast<S>(back ? -std::sin(t) : std::sin(t));
        const Index a = half ? l : 2 * l, b = half ? l + r / 2 : 2 * l + 1;
        out(i, a) = cosine * x(i, a) - sine * x(i, b);
        out(i, b) = sine * x(i, a) + cosine * x(i, b);
      }
    return out;
  }
  template <class S>
  static Mat<S> slopes(Index heads) {
    const auto powers = [](Index of, Index i) { return std::pow(2.0, -8.0 * double(i) / double(of)); };
    Index p = 1;
    while (2 * p <= heads) p *= 2;
    Mat<S> out(heads, 1);
    for (Index h = 0; h < heads; ++h)
      out(h, 0) = static_cast<S>(h < p ? powers(p, h + 1) : powers(2 * p, 2 * (h - p) + 1));
    return out;
  }
};

const Registered<Positional> positional_cases;

}  // namespace golden
