// limpid: golden cases of attention to few pairs: neighbourhoods, packed sequences, documents, lengths, blocks, sinks.
// SPDX-License-Identifier: MIT
#include "../support/any_local.hpp"
#include "heads.hpp"
#include "tape.hpp"

namespace golden {

struct LocalAttention {
  static constexpr const char* name = "local_attention";
  static constexpr const char* switches =
      "kind causal scale heads kv_heads grid window border dilation stride causal_axes global band bq bk";

  /// The switch `band`, whose meaning no page gives: as the word has it, keys at most that far from their query.
  struct BandIfAsked : limpid::Modifier {
    static constexpr bool is_mask = true, intervals = true;
    limpid::Window band = limpid::window(-1, -1);
    explicit BandIfAsked(const Case& c) {
      if (const Index width = c.integer("band", -1); width >= 0) band = limpid::window(width, width);
    }
    limpid::Interval interval(const limpid::At& a) const { return band.interval(a); }
  };

  static std::vector<Index> numbers(const Mat<double>& m) {
    std::vector<Index> list;
    for (Index i = 0; i < m.size(); ++i) list.push_back(static_cast<Index>(m.data()[i]));
    return list;
  }
  /// "7x8"
  static std::vector<Index> sizes(const std::string& text) {
    std::vector<Index> list;
    for (std::size_t at = 0; at < text.size(); at = text.find('x', at) + 1) {
      list.push_back(std::stol(text.substr(at)));
      if (text.find('x', at) == std::string::npos) break;
    }
    return list;
  }
  static limpid::Neighbourhood neighbourhood(const Case& c) {
    const auto grid = sizes(c.text("grid", "")), window = sizes(c.text("window", ""));
    limpid::NeighbourhoodOptions options;
    const std::string border = c.text("border", "clip"), causal = c.text("causal_axes", "");
    if (border == "shift") options.border = limpid::Border::shift;
    if (border == "mirror") options.border = limpid::Border::mirror;
    const auto dilation = sizes(c.text("dilation", "")), stride = sizes(c.text("stride", ""));
    std::copy(dilation.begin(), dilation.end(), options.dilation.begin());
    std::copy(stride.begin(), stride.end(), options.stride.begin());
    for (std::size_t x = 0; x < causal.size(); ++x) options.causal[x] = causal[x] == '1';
    options.global = c.integer("global", 0);
    if (grid.size() == 1) return limpid::neighbourhood({grid[0]}, {window[0]}, options);
    if (grid.size() == 2) return limpid::neighbourhood({grid[0], grid[1]}, {window[0], window[1]}, options);
    return limpid::neighbourhood({grid[0], grid[1], grid[2]}, {window[0], window[1], window[2]}, options);
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const Index heads = c.count("heads", 1), kv_heads = c.count("kv_heads", heads);
    const auto run = [&](const auto& mask) {
      Index batch = 1;
      if (c.has("lengths")) batch = c.shape("lengths")[0];
      CausalIfAsked causal;
      causal.asked = c.flag("causal");
      const auto op =
          limpid::softmax(limpid::chain(mask, causal, BandIfAsked(c)), {.scale = c.scale(q.cols() / heads)});
      Mat<S> out(dout.rows(), dout.cols()), lse;
      Mat<S> dq(q.rows(), q.cols()), dk(k.rows(), k.cols()), dv(v.rows(), v.cols());
      limpid::Saved<std::remove_cv_t<decltype(op)>, S> saved;
      limpid::forward(op, limpid::qkv(q, k, v), out,
                      {.batch = batch, .heads = heads, .kv_heads = kv_heads, .saved = &saved, .lse = &lse});
      limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
      const Index n = q.rows() / batch;
      Mat<S> by_heads(heads, batch * n);  // the file's order; the library's is item by item
      for (Index b = 0; b < batch; ++b)
        for (Index h = 0; h < heads; ++h)
          by_heads.block(h, b * n, 1, n) = Eigen::Map<const Mat<S>>(lse.data() + (b * heads + h) * n, 1, n);
      return Tensors<S>{{"out.out", out}, {"out.lse", by_heads}, {"grad.q", dq}, {"grad.k", dk}, {"grad.v", dv}};
    };
    const std::string kind = c.text("kind", "");
    if (kind == "neighbourhood") return run(neighbourhood(c));
    if (kind == "band") return run(BandIfAsked(c));
    if (kind == "packed") {
      const std::vector<Index> cu_q = numbers(c.in<double>("cu_q")), cu_k = numbers(c.in<double>("cu_k"));
      return run(suite::AnyPacked(limpid::packed(cu_q, cu_k)));
    }
    if (kind == "document") return run(suite::AnyPacked(limpid::documents(numbers(c.in<double>("doc")))));
    if (kind == "lengths") return run(limpid::key_lengths(numbers(c.in<double>("lengths"))));
    if (kind == "blocks") {
      const Mat<double> kept = c.in<double>("block_mask");
      const Mat<bool> mask = kept.array() != 0;
      return run(limpid::blocks(mask, c.count("bq", 1), c.count("bk", 1)));
    }
    if (kind == "sink") {
      const Mat<S> logits = c.in<S>("sink");
      Mat<S> gradient = Mat<S>::Zero(logits.rows(), logits.cols());
      Tensors<S> results = run(limpid::sink(logits, gradient));
      results["grad.sink"] = gradient;
      return results;
    }
    throw Refused("kind '" + kind + "' is not known");
  }

  /// Which places of an axis of that length each of them sees.
  static Mat<bool> axis(Index length, Index window, const std::string& border, bool causal, Index stride, Index gap) {
    Mat<bool> keep = Mat<bool>::Constant(length, length, false);
    for (Index i = 0; i < length; ++i) {
      const Index first = i % gap, size = (length - first + gap - 1) / gap, at = i / gap;  // within its residue class
      const Index group = at / stride * stride;
      const Index leader = std::min(group + (causal ? stride - 1 : stride / 2), size - 1);
      Index from = causal ? leader - window + 1 : leader - window / 2, to = from + window;
      if (causal)
        to = at + 1;
      else if (border == "shift")
        from = std::clamp<Index>(from, 0, size - window), to = from + window;
      for (Index j = std::max<Index>(from, 0); j < std::min(to, size); ++j) keep(i, first + gap * j) = true;
    }
    return keep;
  }
  static Mat<bool> kept(const Case& c, Index n, Index m) {
    Mat<bool> keep = Mat<bool>::Constant(n, m, true);
    const auto all = [&](const auto& f) {
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < m; ++j) keep(i, j) = keep(i, j) && f(i, j);
    };
    const std::string kind = c.text("kind", ""), causal_axes = c.text("causal_axes", "000");
    Index ahead = m - n;  // of the last key that causal shows to query 0
    std::vector<Index> shift(static_cast<std::size_t>(n), ahead);
    if (kind == "neighbourhood") {
      const auto grid = sizes(c.text("grid", "")), window = sizes(c.text("window", ""));
      auto dilation = sizes(c.text("dilation", "")), stride = sizes(c.text("stride", ""));
      dilation.resize(grid.size(), 1), stride.resize(grid.size(), 1);
      const Index global = c.integer("global", 0);
      Index step = n - global;
      for (std::size_t x = 0; x < grid.size(); ++x) {
        const Index inner = step / grid[x], whole = step;
        const Mat<bool> seen = axis(grid[x], window[x], c.text("border", "clip"), causal_axes[x] == '1',
                                    std::max<Index>(stride[x], 1), std::max<Index>(dilation[x], 1));
        all([&](Index i, Index j) {
          return i < global || j < global || seen((i - global) % whole / inner, (j - global) % whole / inner);
        });
        step = inner;
      }
    }
    if (kind == "packed") {
      const auto q = numbers(c.in<double>("cu_q")), k = numbers(c.in<double>("cu_k"));
      const auto place = [](const std::vector<Index>& cu, Index i) {
        return static_cast<std::size_t>(std::upper_bound(cu.begin(), cu.end(), i) - cu.begin()) - 1;
      };
      all([&](Index i, Index j) { return place(q, i) == place(k, j); });
      for (Index i = 0; i < n; ++i) shift[static_cast<std::size_t>(i)] = k[place(q, i) + 1] - q[place(q, i) + 1];
    }
    if (kind == "document") {
      const auto id = numbers(c.in<double>("doc"));
      all([&](Index i, Index j) { return id[static_cast<std::size_t>(i)] == id[static_cast<std::size_t>(j)]; });
    }
    if (kind == "lengths") {
      const auto length = numbers(c.in<double>("lengths"));
      const auto items = static_cast<Index>(length.size()), queries = n / items, keys = m / items;
      all([&](Index i, Index j) {
        return i / queries == j / keys && j % keys < length[static_cast<std::size_t>(i / queries)];
      });
      for (Index i = 0; i < n; ++i)
        shift[static_cast<std::size_t>(i)] = (i / queries + 1) * keys - (i / queries + 1) * queries;
    }
    if (kind == "blocks") {
      const Mat<double> blocks = c.in<double>("block_mask");
      all([&](Index i, Index j) { return blocks(i / c.count("bq", 1), j / c.count("bk", 1)) != 0; });
    }
    const Index band = c.integer("band", -1);
    all([&](Index i, Index j) {
      const Index behind = i + shift[static_cast<std::size_t>(i)] - j;
      return (!c.flag("causal") || behind >= 0) && (band < 0 || std::abs(behind) <= band);
    });
    return keep;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    using Var = typename Tape<S>::Var;
    Tape<S> t;
    const Var q = t.in(c, "q"), k = t.in(c, "k"), v = t.in(c, "v"), logits = t.in(c, "sink");
    const Index n = q->value.rows(), m = k->value.rows(), heads = c.count("heads", 1),
                groups = c.count("kv_heads", heads), d = q->value.cols() / heads, dv = v->value.cols() / groups;
    const Mat<bool> seen = kept(c, n, m);
    Mat<S> lse(heads, n);
    std::vector<Var> outs;
    for (Index h = 0; h < heads; ++h) {
      const Index g = h * groups / heads;
      Mat<bool> keep = seen;
      Var scores = t.scaled(S(c.scale(d)), t.product(t.columns(q, h * d, d), t.transposed(t.columns(k, g * d, d))));
      Var values = t.columns(v, g * dv, dv);
      if (logits != nullptr) {  // one key more, without a value
        scores = t.beside({scores, t.product(t.leaf(Mat<S>::Ones(n, 1)), t.columns(logits, h, 1))});
        values = t.below({values, t.leaf(Mat<S>::Zero(1, dv))});
        keep.conservativeResize(n, m + 1), keep.col(m).setConstant(true);
      }
      outs.push_back(t.product(t.softmax(scores, keep), values));
      for (Index i = 0; i < n; ++i) {
        S top = -std::numeric_limits<S>::infinity(), sum = 0;
        for (Index j = 0; j < keep.cols(); ++j)
          if (keep(i, j)) top = std::max(top, scores->value(i, j));
        for (Index j = 0; j < keep.cols(); ++j)
          if (keep(i, j)) sum += std::exp(scores->value(i, j) - top);
        lse(h, i) = sum > 0 ? std::log(sum) + top : top;
      }
    }
    const Var out = t.beside(outs);
    out->grad = c.dout<S>();
    t.backward();
    Tensors<S> all{{"out.out", out->value}, {"out.lse", lse}};
    t.gradients(all);
    return all;
  }
};

const Registered<LocalAttention> local_attention_cases;

}  // namespace golden
