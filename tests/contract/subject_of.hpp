// limpid: from an entry of the list of operators to the suite's Subject. Compiled once for every chain and scalar.
// SPDX-License-Identifier: MIT
#pragma once

#include "subject.hpp"

#include "support/compiled_steps.hpp"

namespace suite {

// The modifiers look at the call's Modifiers by pointer: copying an operator, as every call does, allocates nothing.

struct AskedInterval : limpid::Modifier {
  static constexpr bool is_mask = true, intervals = true;
  bool causal = false, window = false;
  limpid::Window limits;
  Interval interval(const At& a) const {
    Interval all{0, a.m};
    if (causal) all = limpid::Causal().interval(a);
    if (window) {
      const Interval w = limits.interval(a);
      all = {std::max(all.begin, w.begin), std::min(all.end, w.end)};
    }
    return all;
  }
};

template <class S>
struct AskedMask {
  const Modifiers<S>* mods;
  bool operator()(const At& a) const { return !mods->keep || mods->keep(a); }
  Cover block(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    if (!mods->keep) return Cover::all;
    return mods->cover ? mods->cover(a, q0, q1, k0, k1) : Cover::some;
  }
};

template <class S>
struct AskedAmount {
  const Modifiers<S>* mods;
  S operator()(const At& a) const { return mods->add ? S(mods->add(a)) : S(0); }
};

/// Score -> score / sqrt(1 + (score / cap)^2), which like cap tanh(score / cap) never exceeds the cap, and asks no
/// library.
template <class S>
struct AskedCap {
  const Modifiers<S>* mods;
  S operator()(S s, const At&) const {
    if (!(mods->cap > 0)) return s;
    const S cap = S(mods->cap), a = s / cap, b = cap / s;  // the square of the smaller one is finite
    return std::abs(a) < S(1) ? s / std::sqrt(S(1) + a * a) : std::copysign(cap / std::sqrt(S(1) + b * b), s);
  }
};
template <class S>
struct AskedCapSlope {
  const Modifiers<S>* mods;
  S operator()(S s, const At&) const {
    if (!(mods->cap > 0)) return S(1);
    const S cap = S(mods->cap), a = s / cap, b = cap / s;
    const S root = std::abs(a) < S(1) ? S(1) / std::sqrt(S(1) + a * a) : std::abs(b) / std::sqrt(S(1) + b * b);
    return root * root * root;
  }
};

template <Kind K, class S>
auto chain_of(const Modifiers<S>& mods) {
  if constexpr (K == Kind::none) {
    return limpid::chain();
  } else if constexpr (K == Kind::causal) {
    return limpid::chain(limpid::causal());
  } else {
    AskedInterval interval;
    interval.causal = mods.causal, interval.window = mods.window;
    interval.limits = limpid::window(mods.left, mods.right);
    limpid::KeyBias<S> bias;
    bias.b = View<S>(mods.key_bias);
    if (mods.dkey_bias) bias.db = MutView<S>(*mods.dkey_bias);
    const auto mask = limpid::mask(AskedMask<S>{&mods});
    if constexpr (K == Kind::masks)
      return limpid::chain(interval, bias, mask);
    else
      return limpid::chain(limpid::score_mod(AskedCap<S>{&mods}, AskedCapSlope<S>{&mods}),
                           limpid::additive(AskedAmount<S>{&mods}), bias, interval, mask);
  }
}

template <class Entry, class P, Kind K>
class SubjectOf final : public Subject<typename P::Scalar> {
 public:
  using S = typename P::Scalar;
  using Op = decltype(Entry::make(chain_of<K>(std::declval<const Modifiers<S>&>())));
  using Views = typename Subject<S>::Views;
  using MutViews = typename Subject<S>::MutViews;
  using Saved = limpid::Saved<Op, S>;
  static constexpr bool native = std::is_same_v<P, limpid::detail::Native<S>>;

  Index out_width(const Sizes& s, const Views& in) const override {
    const auto all = inputs(in);
    const limpid::Dims d{s.batch, s.heads, s.kv_heads, s.n, s.m};
    return s.heads * Entry::make(chain_of<K>(Modifiers<S>())).out_width(limpid::detail::head_args(all, d, 0, 0));
  }
  std::shared_ptr<void> new_saved() const override { return std::make_shared<Saved>(); }
  std::size_t saved_bytes(const Views& in, const void* saved) const override {
    std::size_t bytes = 0;
    const auto& all = *static_cast<const Saved*>(saved);
    limpid::detail::visit_kept<typename Op::template Keep<Mat<S>>>(
        Entry::make(chain_of<K>(Modifiers<S>())),
        [&](limpid::Kept, Index, bool, const Mat<S>& m) { bytes += static_cast<std::size_t>(m.size()) * sizeof(S); },
        limpid::detail::head_args(inputs(in), all.dims, 0, 0), all.kept);
    return bytes;
  }
  void forward(const Sizes& s, const Modifiers<S>& mods, const Views& in, MutView<S> out,
               const Ask<S>& ask) const override {
    limpid::Call<Op, S> call;
    call.batch = s.batch, call.heads = s.heads, call.kv_heads = s.kv_heads;
    call.saved = static_cast<Saved*>(ask.saved.get());
    call.workspace = ask.workspace, call.executor = ask.executor;
    if constexpr (limpid::detail::has_lse<Op>) call.lse = ask.lse;
    call.map = ask.map, call.head = ask.head, call.item = ask.item;
    const Op op = Entry::make(chain_of<K>(mods));
    if constexpr (native)
      limpid::forward(op, inputs(in), out, call);
    else
      limpid::detail::forward_with<P>(op, inputs(in), out, call);
  }
  void backward(const Modifiers<S>& mods, const Views& in, void* saved, View<S> dout, const MutViews& grad,
                const limpid::BackwardCall<S>& call) const override {
    const Op op = Entry::make(chain_of<K>(mods));
    auto& kept = *static_cast<Saved*>(saved);
    const auto to = args_of<limpid::Grads<Op, S>>(grad);
    if constexpr (native)
      limpid::backward(op, inputs(in), kept, dout, to, call);
    else
      limpid::detail::backward_with<P>(op, inputs(in), kept, dout, to, call);
  }
  void map_right(const Modifiers<S>& mods, const Views& in, void* saved, View<S> x, MutView<S> out,
                 const limpid::HeadCall& call) const override {
    if constexpr (native && K == Kind::none)
      limpid::map_right(Entry::make(chain_of<K>(mods)), inputs(in), *static_cast<Saved*>(saved), x, out, call);
  }

 private:
  static limpid::Inputs<Op, S> inputs(const Views& in) { return args_of<limpid::Inputs<Op, S>>(in); }
};

template <class S, class P, Kind K>
void fill(Operators& all) {
  std::size_t next = 0;
  for_each_operator([&](auto entry) {
    using Entry = decltype(entry);
    auto subject = std::make_unique<SubjectOf<Entry, P, K>>();
    Operator& op = *all[next++];
    if constexpr (std::is_same_v<S, long double>)
      op.reference = std::move(subject);
    else if constexpr (!std::is_same_v<P, limpid::detail::Native<S>>)
      op.plain_float = std::move(subject);
    else if constexpr (std::is_same_v<S, float>)
      op.of_float[static_cast<int>(K)] = std::move(subject);
    else
      op.of_double[static_cast<int>(K)] = std::move(subject);
  });
}

}  // namespace suite
