// limpid: contract: what does not fit is refused in one sentence that names operator, argument, found and wanted.
// SPDX-License-Identifier: MIT
#include "problem.hpp"

using namespace suite;

namespace {

/// The text of the ShapeError that f throws; empty if it throws none.
template <class F>
std::string shape_error_of(F&& f) {
  try {
    f();
  } catch (const limpid::ShapeError& e) {
    return e.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string shape_of(Index rows, Index cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

Problem<float> problem(const Operator& op, Kind kind = Kind::none, bool all_fields = true) {
  Sizes s{6, 8};
  s.heads = 4, s.kv_heads = 2, s.batch = 2;
  return make_problem<float>(op, kind, s, 601, all_fields);
}

std::string forward_error(const Problem<float>& p, Mat<float>& out, const Ask<float>& ask = {}) {
  return shape_error_of([&] { p.subject().forward(p.sizes, p.mods, views_of(p.in), out, ask); });
}

}  // namespace

TEST_CASE("An input of the wrong shape is named, with its shape.") {
  for_operators([](const Operator& op) {
    const auto good = problem(op);
    Mat<float> out(good.dout.rows(), good.dout.cols());
    REQUIRE(forward_error(good, out) == "");
    bool first = true;
    for (const auto& f : good.in) {
      if (!f.given()) continue;
      for (bool rows : {true, false}) {
        auto p = good;
        Mat<float>& x = p.field(f.name).value;
        x.setZero(x.rows() + (rows ? 1 : 0), x.cols() + (rows ? 0 : 1));
        const std::string text = forward_error(p, out);
        INFO(f.name << ": " << text);
        CHECK(has(text, op.text_name + ": "));
        CHECK(has(text, "wanted"));
        // what is wrong with the first field may show in another one first, or in the width of a head
        if (rows && !first)
          CHECK((has(text, f.name + " is " + shape_of(x.rows(), x.cols())) ||
                 has(text, f.name + " has " + std::to_string(x.rows()) + " rows")));
        CHECK(text.find('\n') == std::string::npos);
      }
      first = false;
    }
  });
}

TEST_CASE("An output or an upstream gradient of the wrong shape is refused with the shape it should have.") {
  for_operators([](const Operator& op) {
    const auto p = problem(op);
    const std::string wanted = "wanted " + shape_of(p.dout.rows(), p.dout.cols());
    for (auto [rows, cols] : {std::pair<Index, Index>{1, 0}, {0, 1}, {-1, 0}}) {
      Mat<float> out(p.dout.rows() + rows, p.dout.cols() + cols);
      const std::string text = forward_error(p, out);
      INFO(text);
      CHECK(has(text, op.text_name + ": out is " + shape_of(out.rows(), out.cols())));
      CHECK(has(text, wanted));

      Ask<float> ask;
      ask.saved = p.subject().new_saved();
      Mat<float> right(p.dout.rows(), p.dout.cols());
      REQUIRE(forward_error(p, right, ask) == "");
      Fields<float> grad = p.in;
      const std::string back = shape_error_of(
          [&] { p.subject().backward(p.mods, views_of(p.in), ask.saved.get(), out, mutable_views_of(grad), {}); });
      CHECK(has(back, op.text_name + ": dout is " + shape_of(out.rows(), out.cols())));
      CHECK(has(back, wanted));
    }
  });
}

TEST_CASE("A gradient of the wrong shape is refused with the shape of its input.") {
  for_operators([](const Operator& op) {
    const auto p = problem(op);
    Ask<float> ask;
    ask.saved = p.subject().new_saved();
    Mat<float> out(p.dout.rows(), p.dout.cols());
    REQUIRE(forward_error(p, out, ask) == "");
    for (std::size_t f = 0; f < p.in.size(); ++f) {
      if (!p.in[f].given()) continue;
      Fields<float> grad = p.in;
      grad[f].value.resize(p.in[f].value.rows() + 1, p.in[f].value.cols());
      const std::string text = shape_error_of(
          [&] { p.subject().backward(p.mods, views_of(p.in), ask.saved.get(), p.dout, mutable_views_of(grad), {}); });
      INFO(text);
      CHECK(has(text, op.text_name + ": gradient of " + p.in[f].name + " is " +
                          shape_of(grad[f].value.rows(), grad[f].value.cols())));
      CHECK(has(text, "wanted " + shape_of(p.in[f].value.rows(), p.in[f].value.cols())));
    }
  });
}

TEST_CASE("An output that shares memory with an input is refused.") {
  for_operators([](const Operator& op) {
    const auto p = problem(op);
    for (const auto& f : p.in) {
      if (!f.given()) continue;
      // the input lies in the last rows of what will be the output
      auto in = views_of(p.in);
      Mat<float> shared = Mat<float>::Zero(p.dout.rows() + f.value.rows(), std::max(p.dout.cols(), f.value.cols()));
      const MutView<float> whole(shared), out = whole.block(0, 0, p.dout.rows(), p.dout.cols());
      for (std::size_t i = 0; i < p.in.size(); ++i)
        if (p.in[i].name == f.name) {
          const MutView<float> place = whole.block(p.dout.rows() - 1, 0, f.value.rows(), f.value.cols());
          limpid::detail::copy<float>(View<float>(f.value), place);
          in[i] = place;
        }
      const std::string text = shape_error_of([&] { p.subject().forward(p.sizes, p.mods, in, out, {}); });
      INFO(text);
      CHECK(has(text, op.text_name + ": out shares memory with " + f.name));
    }
  });
}

TEST_CASE("A gradient that shares memory with an input, with dout or with another gradient is refused.") {
  for_operators([](const Operator& op) {
    const auto p = problem(op);
    const auto in = views_of(p.in);
    Ask<float> ask;
    ask.saved = p.subject().new_saved();
    Mat<float> out(p.dout.rows(), p.dout.cols());
    REQUIRE(forward_error(p, out, ask) == "");
    const auto error_with = [&](View<float> dout, std::size_t field, MutView<float> place) {
      Fields<float> grad = p.in;
      auto views = mutable_views_of(grad);
      views[field] = place;
      const std::string text =
          shape_error_of([&] { p.subject().backward(p.mods, in, ask.saved.get(), dout, views, {}); });
      INFO(text);
      CHECK(has(text, op.text_name + ": "));
      CHECK(has(text, "shares memory with"));
    };
    for (std::size_t f = 0; f < p.in.size(); ++f) {
      if (!p.in[f].given()) continue;
      const auto& x = p.in[f].value;
      INFO("gradient of " << p.in[f].name);
      error_with(p.dout, f, MutView<float>(const_cast<float*>(x.data()), x.rows(), x.cols(), x.cols()));
      Mat<float> shared = Mat<float>::Zero(x.rows() + p.dout.rows(), std::max(x.cols(), p.dout.cols()));
      const MutView<float> whole(shared);
      error_with(whole.block(0, 0, p.dout.rows(), p.dout.cols()), f, whole.block(0, 0, x.rows(), x.cols()));
    }
    Fields<float> grad = p.in;
    auto views = mutable_views_of(grad);
    views[1] = views[0].block(0, 0, std::min(views[0].rows, views[1].rows), views[1].cols);
    if (p.in[1].given() && views[1].rows == p.in[1].value.rows() && views[1].cols <= views[0].cols) {
      const std::string text =
          shape_error_of([&] { p.subject().backward(p.mods, in, ask.saved.get(), p.dout, views, {}); });
      CHECK(has(text, "shares memory with"));
    }
  });
}

TEST_CASE("A saved state that is empty, or belongs to other inputs, is refused.") {
  for_operators([](const Operator& op) {
    const auto p = problem(op);
    Fields<float> grad = p.in;
    Ask<float> ask;
    ask.saved = p.subject().new_saved();
    const std::string empty = shape_error_of(
        [&] { p.subject().backward(p.mods, views_of(p.in), ask.saved.get(), p.dout, mutable_views_of(grad), {}); });
    CHECK(has(empty, op.text_name + ": saved is empty"));

    Mat<float> out(p.dout.rows(), p.dout.cols());
    REQUIRE(forward_error(p, out, ask) == "");
    for (auto [n, m, dv] : {std::tuple<Index, Index, Index>{12, 8, 3}, {6, 12, 3}, {6, 8, 4}}) {
      Sizes s = p.sizes;
      s.n = n, s.m = m, s.dv = dv;
      const auto other = make_problem<float>(op, Kind::none, s, 602);
      if (other.sizes.n == p.sizes.n && other.sizes.m == p.sizes.m && other.dout.cols() == p.dout.cols()) continue;
      Fields<float> other_grad = other.in;
      const std::string text = shape_error_of([&] {
        other.subject().backward(other.mods, views_of(other.in), ask.saved.get(), other.dout,
                                 mutable_views_of(other_grad), {});
      });
      INFO("n " << n << ", m " << m << ", dv " << dv << ": " << text);
      CHECK(has(text, op.text_name + ": saved"));
    }
  });
}

TEST_CASE("Batch, heads, and the head of a map that do not exist are refused.") {
  for_operators([](const Operator& op) {
    const auto p = problem(op);
    Mat<float> out(p.dout.rows(), p.dout.cols()), map;
    const auto with = [&](Index batch, Index heads, Index kv_heads) {
      auto q = p;
      q.sizes.batch = batch, q.sizes.heads = heads, q.sizes.kv_heads = kv_heads;
      const std::string text = forward_error(q, out);
      INFO(text);
      CHECK(has(text, op.text_name + ": "));
      CHECK(has(text, "wanted"));
    };
    with(0, 4, 2);
    with(5, 4, 2);
    with(2, 0, 0);
    with(2, -4, 2);
    with(2, 4, 3);
    with(2, 7, 7);
    for (auto [head, item] : {std::pair<Index, Index>{4, 0}, {-1, 0}, {0, 2}, {0, -1}}) {
      Ask<float> ask;
      ask.map = &map, ask.head = head, ask.item = item;
      const std::string text = forward_error(p, out, ask);
      CHECK(has(text,
                op.text_name + ": map was asked of head " + std::to_string(head) + " of item " + std::to_string(item)));
    }
  });
}

TEST_CASE("Relevance and its weights of the wrong shape are refused.") {
  for_operators([](const Operator& op) {
    if (!op.traits.relevance) return;
    const auto p = problem(op);
    Ask<float> ask;
    ask.saved = p.subject().new_saved();
    Mat<float> out(p.dout.rows(), p.dout.cols());
    REQUIRE(forward_error(p, out, ask) == "");
    Fields<float> grad = p.in;
    for (bool weights_wrong : {true, false}) {
      Mat<float> weights = Mat<float>::Ones(2, p.sizes.n + (weights_wrong ? 1 : 0));
      Mat<float> relevance(2, p.sizes.m + (weights_wrong ? 0 : 1));
      limpid::BackwardCall<float> call;
      call.relevance_weights = weights, call.relevance = relevance;
      const std::string text = shape_error_of(
          [&] { p.subject().backward(p.mods, views_of(p.in), ask.saved.get(), p.dout, mutable_views_of(grad), call); });
      INFO(text);
      CHECK(has(text, op.text_name + (weights_wrong ? ": relevance_weights is " : ": relevance is ")));
      CHECK(has(text, "wanted 2 x " + std::to_string(weights_wrong ? p.sizes.n : p.sizes.m)));
    }
  });
}

TEST_CASE("A key bias of the wrong shape is refused.") {
  for_operators([](const Operator& op) {
    auto p = problem(op, Kind::masks);
    Mat<float> out(p.dout.rows(), p.dout.cols());
    p.mods.key_bias.setZero(1, p.sizes.m + 1);
    const std::string text = forward_error(p, out);
    INFO(text);
    CHECK(has(text, op.text_name + ": key bias is " + shape_of(1, p.sizes.m + 1)));
  });
}
