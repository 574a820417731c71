// limpid: the blocks of a model one after another: forward, backward, relevance.
// SPDX-License-Identifier: MIT
#pragma once

#include "../layer/embedding.hpp"
#include "parameters.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

namespace model {

/// What a call of a model may be told.
struct ModelCall {
  Index batch = 1;                 ///< items of as many tokens each
  bool keep = true;                ///< forward: keep what a backward pass needs
  Workspace* workspace = nullptr;  ///< scratch to reuse; otherwise the call has its own
  ExecutorRef executor = {};       ///< serial unless told otherwise
};

/// The relevance of every token to what a backward pass starts from: the row start R of
///
///     R = (I + Abar_L) ... (I + Abar_1),   Abar = mean_h part(A_h o dy/dA_h)
///
/// (Chefer, Gur and Wolf 2021, arXiv 2103.15679), for a start that is the unit row of the explained token, or its
/// weights in a mean. rest holds start (R - I), which a backward pass adds to, without entries 0: in float the
/// identity's 1 would cost the digits that one shows.
template <class S>
struct RelevanceRow {
  /// batch x n; or (4 batch) x n, then of every part in one pass: positive, negative, absolute and signed of each item
  Mat<S> start{}, rest{};
  Part part = Part::pos;

  /// start + rest, the row of R.
  Mat<S> row() const { return start + rest; }
};

/// What a run through the blocks keeps: what each of them reads, and what each keeps.
template <class Op, class S>
struct StackSaved {
  std::vector<Mat<S>> x;
  std::vector<TransformerBlockSaved<Op, NoCross, S>> blocks;
};

namespace detail {

/// Blocks of a model by their parameters; fewer than layers where some are used more than once, as ALBERT's one.
template <class S>
struct Stack {
  std::vector<TransformerBlockArgs<Slot>> blocks;
  Index layers = 0;
  TransformerBlockOptions options;
  limpid::detail::LargeVector<S> panels;  ///< of every weight of every block, one after another; or none
  std::vector<Index> starts;              ///< where those of each are, in the order of visit_parameters; -1: none

  const TransformerBlockArgs<Slot>& block(Index layer) const { return blocks[number(layer)]; }

  void pack(const Parameters<S>& parameters) {
    std::vector<Weight<S>> weights;
    for (const TransformerBlockArgs<Slot>& one : blocks) {
      TransformerBlockArgs<View<S>> like;
      TransformerBlockArgs<Slot>::visit_parameters(
          [&](const char*, const Slot& slot, auto& field) {
            if constexpr (std::is_same_v<std::remove_cvref_t<decltype(field)>, Weight<S>>)
              weights.push_back(slot.given() ? out_in(parameters(slot)) : Weight<S>());
          },
          one, like);
    }
    starts.clear();
    Index size = 0;
    for (const Weight<S>& w : weights) {
      starts.push_back(w.given() ? size : -1);
      size += w.given() ? limpid::detail::packed_size<S>(w) : 0;
    }
    panels.resize(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < weights.size(); ++i)
      if (weights[i].given()) limpid::detail::pack_weight<S>(weights[i], panels.data() + starts[i]);
  }

  /// What the blocks and the operator refuse of so many tokens, asked before anything is written.
  template <class Op>
  void check(const Op& op, const Parameters<S>& parameters, Index rows, Index batch) const {
    const auto one = transformer_block(op, options);
    for (Index l = 0; l < layers; ++l) {
      TransformerBlockArgs<View<S>> in = arguments(parameters, l);
      in.x = View<S>(nullptr, rows, in.wq.inputs(), in.wq.inputs());
      one.template check<S>(in, in.x, "out", batch);
      one.template check_operators<S>(in, batch);
    }
  }

  template <class Op>
  Mat<S> forward(const Op& op, const Parameters<S>& parameters, Mat<S> x, StackSaved<Op, S>& saved,
                 const ModelCall& call) const {
    const auto count = static_cast<std::size_t>(call.keep ? layers : 0);
    saved.x.resize(count), saved.blocks.resize(count);
    const auto one = transformer_block(op, options);
    for (Index l = 0; l < layers; ++l) {
      Mat<S> out(x.rows(), x.cols());
      auto in = arguments(parameters, l);
      in.x = x;
      one.forward(in, out,
                  {call.batch, call.keep ? &saved.blocks[static_cast<std::size_t>(l)] : nullptr, call.workspace,
                   call.executor});
      if (call.keep) saved.x[static_cast<std::size_t>(l)] = std::move(x);
      x = std::move(out);
    }
    return x;
  }

  /// What the blocks and the operator refuse of what a forward call kept, asked before any gradient is written.
  template <class Op>
  void check_kept(const Op& op, const Parameters<S>& parameters, const StackSaved<Op, S>& saved) const {
    if (static_cast<Index>(saved.blocks.size()) != layers)
      limpid::detail::raise("model: nothing was kept for a backward pass, wanted a forward call with keep");
    const auto one = transformer_block(op, options);
    for (Index l = 0; l < layers; ++l) {
      const auto place = static_cast<std::size_t>(l);
      TransformerBlockArgs<View<S>> in = arguments(parameters, l);
      in.x = saved.x[place];
      one.template check_backward<S>(in, saved.blocks[place], in.x, {}, {});
    }
  }

  /// The gradient of what the blocks read, from that of what they gave; gradients where they are given. asked, which
  /// may be null: the row of relevance, or the Explanation, that goes down with it.
  template <class Op, class Asked>
  Mat<S> backward(const Op& op, const Parameters<S>& parameters, StackSaved<Op, S>& saved, Mat<S> d,
                  ParameterGradients<S>* gradients, Asked* asked, const ModelCall& call) const {
    const auto one = transformer_block(op, options);
    for (Index l = layers - 1; l >= 0; --l) {
      Mat<S> dx(d.rows(), d.cols());
      auto in = arguments(parameters, l);
      in.x = saved.x[static_cast<std::size_t>(l)];
      TransformerBlockArgs<Gradient<S>> grad;
      if (gradients != nullptr)
        TransformerBlockArgs<Slot>::visit_parameters(
            [&](const char*, const Slot& slot, Gradient<S>& to) {
              if (slot.given()) to = add((*gradients)(slot));
            },
            block(l), grad);
      grad.x = overwrite(dx);
      auto& kept = saved.blocks[static_cast<std::size_t>(l)];
      const auto pass = [&](const BackwardCall<S>& ask) { one.backward(in, kept, d, grad, ask); };
      const LayerCall inner{false, call.workspace, call.executor};
      if (asked == nullptr)
        pass(inner);
      else
        through(*asked, op, kept.attention, pass, inner);
      d = std::move(dx);
    }
    return d;
  }

  /// The parameters of a layer, its weights [out, in] as checkpoints have them.
  TransformerBlockArgs<View<S>> arguments(const Parameters<S>& parameters, Index layer) const {
    TransformerBlockArgs<View<S>> out;
    std::size_t place = number(layer) * (starts.size() / blocks.size());
    TransformerBlockArgs<Slot>::visit_parameters(
        [&](const char*, const Slot& slot, auto& to) {
          if constexpr (std::is_same_v<std::remove_cvref_t<decltype(to)>, Weight<S>>) {
            if (slot.given()) to = out_in(parameters(slot));
            if (!starts.empty() && starts[place] >= 0) to.panels = panels.data() + starts[place];
            ++place;
          } else if (slot.given()) {
            to = parameters(slot);
          }
        },
        block(layer), out);
    return out;
  }

 private:
  /// A layer with its backward pass, which hands on what is asked.
  template <class Op, class Kept, class Pass>
  static void through(RelevanceRow<S>& row, const Op&, Kept&, const Pass& pass, const LayerCall& call) {
    if (row.rest.size() == 0) row.rest = Mat<S>::Zero(row.start.rows(), row.start.cols());
    const Mat<S> weights = row.row();
    Mat<S> emitted = Mat<S>::Zero(weights.rows(), weights.cols());
    BackwardCall<S> ask = call;
    ask.relevance_weights = weights, ask.relevance = emitted, ask.part = row.part;
    pass(ask);
    row.rest += emitted;
  }
  template <class Op, class Kept, class Pass>
  static void through(Explanation<S>& why, const Op& op, Kept& kept, const Pass& pass, const LayerCall& call) {
    why.layer(op, kept, pass, call);
  }
  std::size_t number(Index layer) const {
    return static_cast<std::size_t>(layer * static_cast<Index>(blocks.size()) / layers);
  }
};

/// That a row of relevance fits a backward pass over batch items of n tokens.
template <class S>
void check_row(const char* model, const RelevanceRow<S>* row, Index batch, Index n) {
  if (row == nullptr) return;
  const Index rows = row->start.rows() == 4 * batch ? 4 * batch : batch;
  const auto fits = [&](const char* part, const Mat<S>& found) {
    if (found.rows() != rows || found.cols() != n)
      limpid::detail::raise(std::string(model) + ": the " + part + " of relevance is " +
                            limpid::detail::shape_text(found.rows(), found.cols()) + ", wanted " +
                            limpid::detail::shape_text(rows, n));
  };
  fits("start", row->start);
  if (row->rest.size() != 0) fits("rest", row->rest);
}
/// The same of an Explanation, and that it has not gone through other layers.
template <class S>
void check_asked(const char* model, const RelevanceRow<S>* row, Index batch, Index n) {
  check_row(model, row, batch, n);
}
template <class S>
void check_asked(const char* model, const Explanation<S>* why, Index batch, Index n) {
  why->check(model, batch, n);
  if (why->layers() != 0)
    limpid::detail::raise(std::string(model) + ": an explanation that has gone through " +
                          limpid::detail::text_of(why->layers()) + " layers, wanted one that is started anew");
}

/// Whether what a backward pass is asked wants the gradient of what the model reads.
template <class S>
bool asks_for_input(const RelevanceRow<S>*) {
  return false;
}
template <class S>
bool asks_for_input(const Explanation<S>* why) {
  return why->options().input;
}
/// That gradient, of tokens first, first + 1 ... of each item, told to what asked for it.
template <class S>
void tell_input(RelevanceRow<S>*, const Mat<S>&, const Mat<S>&, Index) {}
template <class S>
void tell_input(Explanation<S>* why, const Mat<S>& x, const Mat<S>& dx, Index first) {
  why->input(x, dx, first);
}

/// A gradient for each parameter, as large as it is.
template <class S>
void check_gradient_list(const char* model, const ParameterGradients<S>* gradients, const Parameters<S>& parameters) {
  if (gradients == nullptr) return;
  if (gradients->list.size() != parameters.list.size())
    limpid::detail::raise(std::string(model) + ": found " + std::to_string(gradients->list.size()) +
                          " gradients, wanted " + std::to_string(parameters.list.size()) + ", one a parameter");
  for (std::size_t i = 0; i < parameters.list.size(); ++i) {
    const Mat<S>& found = gradients->list[i];
    const auto& wanted = parameters.list[i].value;
    if (found.rows() != wanted.rows() || found.cols() != wanted.cols())
      limpid::detail::raise(std::string(model) + ": the gradient of " +
                            io::detail::in_quotes(parameters.list[i].name, 80) + " is " +
                            limpid::detail::shape_text(found.rows(), found.cols()) + ", wanted " +
                            limpid::detail::shape_text(wanted.rows(), wanted.cols()));
  }
}

/// first to first + n - 1 for every item: the places of its tokens.
inline std::vector<Index> places_of(Index batch, Index n, Index first = 0) {
  std::vector<Index> places(static_cast<std::size_t>(batch * n));
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = first + static_cast<Index>(i) % n;
  return places;
}

/// Token numbers as a model takes them.
inline void check_ids(const char* model, const char* name, const std::vector<Index>& ids, Index batch, Index most,
                      const char* of) {
  if (batch < 1 || ids.empty() || static_cast<Index>(ids.size()) % batch != 0)
    limpid::detail::raise(std::string(model) + ": found " + std::to_string(ids.size()) + " " + name +
                          " and a batch of " + std::to_string(batch) +
                          ", wanted as many of them in each item, and one at least");
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= most)
      limpid::detail::raise(std::string(model) + ": " + name + "[" + std::to_string(i) + "] is " +
                            std::to_string(ids[i]) + ", wanted it in [0, " + std::to_string(most) + "), " + of);
}

inline void check_heads(const io::Checkpoint& file, Index width, Index heads) {
  if (heads < 1 || width % heads != 0)
    io::detail::fail(file.name(), "found " + std::to_string(width) + " columns and " + std::to_string(heads) +
                                      " heads, wanted heads of 1 or more that divide them");
}

}  // namespace detail
}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
