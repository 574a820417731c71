// limpid: fuzzing the front door: any operator with any shapes, right or wrong, any modifiers and any strides. A call
// throws ShapeError, or its results are finite and those of the one-lane path in long double.
// SPDX-License-Identifier: MIT
#include "contract/subject.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace {

using namespace suite;

/// The fuzzer's bytes; zeros after the last.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  Index below(Index count) { return next() % count; }
  bool one_in(Index count) { return below(count) == count - 1; }  // never where the bytes have ended

 private:
  Index next() { return at_ < size_ ? data_[at_++] : 0; }
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
};

/// A matrix inside a wider one, whose rest is NaN.
struct Strided {
  Mat<double> all;
  Index rows, cols, before;
  Strided(const Mat<double>& m, Index before_, Index after)
      : all(Mat<double>::Constant(m.rows(), before_ + m.cols() + after, std::nan(""))),
        rows(m.rows()),
        cols(m.cols()),
        before(before_) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) all(i, before + j) = m(i, j);
  }
  MutView<double> view() {
    if (before + cols == all.cols() && before == 0) return MutView<double>(all);
    return cols == 0 ? MutView<double>() : MutView<double>(all).block(0, before, rows, cols);
  }
  bool nothing_beside_was_written() const {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < all.cols(); ++j)
        if ((j < before || j >= before + cols) && !std::isnan(all(i, j))) return false;
    return true;
  }
};

template <class S>
struct Case {
  Fields<S> in, grad;
  Mat<S> dout, out, dkey_bias, lse;
  Modifiers<S> mods;
};

/// Forward and backward; false: refused with ShapeError.
template <class S>
bool run(const Subject<S>& subject, const Sizes& sizes, Case<S>& c, const std::vector<View<S>>& in, View<S> dout,
         MutView<S> out, const std::vector<MutView<S>>& grad, bool lse) {
  Ask<S> ask;
  ask.saved = subject.new_saved();
  if (lse) ask.lse = &c.lse;
  try {
    subject.forward(sizes, c.mods, in, out, ask);
    subject.backward(c.mods, in, ask.saved.get(), dout, grad, {});
  } catch (const limpid::ShapeError&) {
    return false;
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const Operator& op = *operators()[static_cast<std::size_t>(bytes.below(static_cast<Index>(operators().size())))];
  Sizes s;
  s.n = bytes.below(70), s.m = bytes.below(70), s.d = 1 + bytes.below(12), s.dv = 1 + bytes.below(12);
  s.heads = 1 + bytes.below(4), s.kv_heads = 1 + bytes.below(4), s.batch = 1 + bytes.below(2);
  s.own_sides = bytes.below(2) == 1, s.one_for_all = bytes.below(2) == 1;
  bool wrong = false;  // what follows may have made the call one to be refused; otherwise it must not be
  if (op.traits.square) s.m = s.n;
  if (s.heads % s.kv_heads != 0 || !op.traits.grouped) s.kv_heads = s.heads;
  const bool every = bytes.below(2) == 1;
  Random random(static_cast<std::uint64_t>(bytes.below(256)));

  Case<double> native;
  native.in = op.make_fields(s, every, random);
  const double sizes_of_values[] = {1, 0, 1e-3, 8, 40};
  const double factor = sizes_of_values[bytes.below(5)];
  for (auto& f : native.in)  // parameters keep the range in which they make sense
    if (f.role == Role::query || f.role == Role::key) f.value *= factor;
  const Index width = op.of_double[3]->out_width(s, views_of(native.in));
  native.dout = random_matrix<double>(random, s.batch * s.n, width);

  auto& mods = native.mods;
  mods.causal = bytes.below(2) == 1, mods.window = bytes.below(2) == 1;
  mods.left = bytes.below(20) - 1, mods.right = bytes.below(20) - 1;
  const Index kept = bytes.below(5);  // of 4; 0: no mask function
  if (kept > 0)
    mods.keep = [kept](const At& a) {
      const auto place = static_cast<std::uint64_t>(a.k + 1000 * (a.q + 1000 * (a.head + 8 * a.batch)));
      return static_cast<Index>(Random(place).bits() % 4) < kept - 1;
    };
  mods.cap = bytes.below(2) == 1 ? 3 : 0;
  if (bytes.below(2) == 1) mods.add = [](const At& a) { return 0.1 * static_cast<double>((7 * a.q + a.k) % 11); };
  mods.key_bias = random_matrix<double>(random, bytes.below(2) == 1 ? s.batch : 1, s.m);

  Index wrong_out_rows = 0, wrong_out_cols = 0;
  if (bytes.one_in(4)) {  // one shape that does not fit, or a number of heads or items
    wrong = true;
    const Index which = bytes.below(8), by = bytes.below(2) == 1 ? 1 : -1;
    auto& field = native.in[static_cast<std::size_t>(bytes.below(static_cast<Index>(native.in.size())))];
    const auto change = [&](Mat<double>& m, Index rows, Index cols) {
      m = random_matrix<double>(random, std::max<Index>(0, m.rows() + rows), std::max<Index>(0, m.cols() + cols));
    };
    if (which == 0) change(field.value, by, 0);
    if (which == 1) change(field.value, 0, by);
    if (which == 2) field.value.resize(0, 0);
    if (which == 3) change(native.dout, by, 0);
    if (which == 4) change(native.dout, 0, by);
    if (which == 5) s.heads = bytes.below(7) - 2;
    if (which == 6) s.batch = bytes.below(7) - 2, s.kv_heads = bytes.below(7) - 2;
    if (which == 7) (bytes.below(2) == 1 ? wrong_out_rows : wrong_out_cols) = by;
  }
  native.out = Mat<double>::Constant(std::max<Index>(0, native.dout.rows() + wrong_out_rows),
                                     std::max<Index>(0, native.dout.cols() + wrong_out_cols), 7);
  native.grad = native.in;
  for (auto& g : native.grad) g.value.setConstant(7);
  native.dkey_bias = Mat<double>::Zero(mods.key_bias.rows(), mods.key_bias.cols());
  mods.dkey_bias = &native.dkey_bias;
  const bool lse = bytes.below(2) == 1;

  Case<long double> reference;
  reference.in = cast<long double>(native.in), reference.grad = cast<long double>(native.grad);
  reference.mods = mods.cast<long double>();
  reference.dout = native.dout.cast<long double>(), reference.out = native.out.cast<long double>();
  reference.dkey_bias = native.dkey_bias.cast<long double>();
  reference.mods.dkey_bias = &reference.dkey_bias;

  std::vector<Strided> places;
  const Index before = bytes.below(3), after = bytes.below(3);
  for (const auto& f : native.in) places.emplace_back(f.value, before, after);
  for (const auto& g : native.grad) places.emplace_back(g.value, before, after);
  places.emplace_back(native.dout, before, after);
  places.emplace_back(native.out, before, after);
  std::vector<View<double>> in;
  std::vector<MutView<double>> grad;
  const std::size_t count = native.in.size();
  for (std::size_t f = 0; f < count; ++f) {
    const bool given = native.in[f].given();
    in.push_back(given ? View<double>(places[f].view()) : View<double>());
    grad.push_back(given ? places[count + f].view() : MutView<double>());
  }

  const auto fail = [&](const char* what, double found = 0, double bound = 0) {
    std::fprintf(stderr, "%s: %s (%g, bound %g); n %td m %td d %td dv %td heads %td on %td batch %td\n", op.name, what,
                 found, bound, s.n, s.m, s.d, s.dv, s.heads, s.kv_heads, s.batch);
    std::abort();
  };
  const bool ran =
      run<double>(*op.of_double[3], s, native, in, places[2 * count].view(), places[2 * count + 1].view(), grad, lse);
  const bool ran_too = run<long double>(*op.reference, s, reference, views_of(reference.in), reference.dout,
                                        reference.out, mutable_views_of(reference.grad), lse);
  if (ran != ran_too) fail("one path refuses what the other takes");
  if (!ran && !wrong) fail("refuses what fits");
  for (const Strided& place : places)
    if (!place.nothing_beside_was_written()) fail("writes beside its arrays");
  if (!ran) return 0;

  double largest = 1, off = 0;
  std::string where;
  const auto compare = [&](const std::string& name, MutView<double> found, const Mat<long double>& wanted) {
    for (Index i = 0; i < wanted.rows(); ++i)
      for (Index j = 0; j < wanted.cols(); ++j) {
        const double x = found.row(i)[j], y = static_cast<double>(wanted(i, j));
        if (!std::isfinite(x) || !std::isfinite(y)) fail((name + " is not finite").c_str(), x, y);
        largest = std::max(largest, std::abs(y));
        if (std::abs(x - y) > off) off = std::abs(x - y), where = name;
      }
  };
  compare("out", places[2 * count + 1].view(), reference.out);
  for (std::size_t f = 0; f < count; ++f)
    if (native.in[f].given()) compare(native.in[f].name, places[count + f].view(), reference.grad[f].value);
  compare("key bias", native.dkey_bias, reference.dkey_bias);
  if (off > 1e-9 * largest) fail((where + " differs from the one-lane path").c_str(), off, 1e-9 * largest);
  return 0;
}
