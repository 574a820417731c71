// limpid: masks that keep few of many pairs, at the cost of those pairs: neighbourhoods on a grid, packed sequences,
// documents, blocks; and lengths.
//
// Alone, in a chain, or joined with others by &, such a mask hands the engine blocks of queries with their keys, and
// time and memory follow the pairs that are kept. By | and ! it is asked pair by pair, and all pairs cost. Where several
// of them meet, the first says the blocks and the others are asked. What does not fit throws ShapeError before anything
// is written.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "masks.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What becomes of a window at the end of an axis. clip: it is cut; shift: it is moved inside, so that every query has
/// as many keys; mirror: keys beyond the end are those mirrored at it, the edge not repeated, and may count twice.
enum class Border { clip, shift, mirror };

struct NeighbourhoodOptions {
  Border border = Border::clip;
  std::array<Index, 3> dilation = {1, 1, 1};  ///< neighbours are places of the query's residue class alone
  std::array<Index, 3> stride = {1, 1, 1};    ///< groups of so many places share their leader's window
  std::array<bool, 3> causal = {};            ///< per axis: nothing after the query
  Index global = 0;                           ///< tokens before the grid's that see all and are seen by all
};

namespace detail {

/// One axis of a neighbourhood, counted within a residue class.
struct NeighbourAxis {
  Index length = 1, window = 1, dilation = 1, stride = 1;
  bool causal = false;
  Border border = Border::clip;

  Index places(Index residue) const { return (length - residue + dilation - 1) / dilation; }
  /// Keys [begin, end) of the query at place p of `count`; of a mirrored border beyond the ends, too.
  Interval of(Index p, Index count) const {
    const Index left = window / 2, right = window / 2 + window % 2 - 1;
    if (causal) {
      const Index leader = std::min(p / stride * stride + stride - 1, count - 1);
      return {std::max<Index>(0, leader - window + 1), p + 1};
    }
    const Index leader = std::min(p / stride * stride + stride / 2, count - 1);
    if (border == Border::shift) {
      const Index begin = std::clamp<Index>(leader - left, 0, std::max<Index>(0, count - window));
      return {begin, std::min(count, begin + window)};
    }
    if (border == Border::mirror) return {leader - left, leader + right + 1};
    return {std::max<Index>(0, leader - left), std::min(count, leader + right + 1)};
  }
  /// Where a place beyond the ends is mirrored to.
  static Index mirrored(Index p, Index count) {
    if (p >= 0 && p < count) return p;
    if (count == 1) return 0;
    const Index period = 2 * (count - 1);
    p = ((p % period) + period) % period;
    return p < count ? p : period - p;
  }
};

/// Queries of a block of a mask without a geometry: whole panels.
inline Index gathered_rows_of(Index panel) { return (256 / panel > 0 ? 256 / panel : 1) * panel; }

[[noreturn, gnu::cold]] inline void raise_local(const char* op, const std::string& text) {
  raise(std::string(op) + ": " + text);
}

}  // namespace detail

/// Keys in a window round the query, on a grid of one to three axes whose places are tokens in row-major order, after
/// `global` tokens: n = m = global + the product of the grid. A pair is kept where every axis keeps it; of one of length
/// L, window w, place i
///
///     clip      j in [i - w / 2, i + w / 2 + w mod 2 - 1], cut at the ends; an even window has one fewer to the right
///     shift     j in [b, b + w), b = clamp(i - w / 2, 0, L - w): every query has w keys, and w is at most L
///     mirror    as clip, but keys beyond an end are those mirrored at it, and may count twice
///     causal    j in [i - w + 1, i], cut at 0, whatever the border
///     stride s  places in groups of s share the window of their leader, i / s * s + s / 2, or of a causal axis the last
///               of the group, with nothing after i; at most L - 1. s is at most w; s = w is blocked attention
///     dilation  the same among the places of i's residue class alone
///
/// Hassani et al. 2023, arXiv 2204.07143, and 2209.15001 (dilation); stride 2504.16922; clip and mirror as image filters
/// have them (Buades, Coll, Morel 2005). A mirrored border is refused beside masks of intervals and where another mask
/// asks it pair by pair (|, !, a window that is not the first to say blocks), and the entropy of a row takes a key that
/// counts twice for two. ShapeError: a window, stride, dilation or length that is no such number, more than 2^40 keys of a
/// mirrored border, and n or m that are not those of the grid.
struct Neighbourhood : Modifier {
  static constexpr bool is_mask = true, irregular = true, gathers = true, windows = true;
  std::array<detail::NeighbourAxis, 3> axes;
  int rank = 1;
  Index global = 0;
  std::string problem;  // of options that do not fit; told when it is used

  // ---- pair by pair ----
  bool keep(const At& a) const {
    Index q = a.row() - global, k = a.key() - global;
    if (q < 0 || k < 0) return true;
    for (int x = rank - 1; x >= 0; --x) {
      const auto& axis = axes[std::size_t(x)];
      const Index i = q % axis.length, j = k % axis.length, residue = i % axis.dilation;
      if (j % axis.dilation != residue) return false;
      const Interval in = axis.of(i / axis.dilation, axis.places(residue));
      if (j / axis.dilation < in.begin || j / axis.dilation >= in.end) return false;
      q /= axis.length, k /= axis.length;
    }
    return true;
  }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  bool repeats_keys() const {
    return std::any_of(axes.begin(), axes.begin() + rank,
                       [](const auto& a) { return a.border == Border::mirror && !a.causal; });
  }

  // ---- block by block ----
  Index plan_size(const At&, Index) const { return 3; }
  /// numbers: how many places of each axis a block has.
  Index plan(const At& at, Index panel, Index* numbers) const {
    choose_tile(panel, numbers);
    Index blocks = 1;
    for (int x = 0; x < rank; ++x) blocks *= tiles(x, numbers) * axes[std::size_t(x)].dilation;
    return blocks + global_blocks(panel) * (at.n > 0);
  }
  template <class S>
  PairBlock<S> block(const At& at, Index panel, const Index* numbers, Index b) const {
    PairBlock<S> to;
    if (b < global_blocks(panel)) {
      const Index rows = detail::gathered_rows_of(panel);
      to.queries = std::min(rows, global - b * rows), to.keys = to.free = at.m;
      return to;
    }
    const Tile t = tile(panel, numbers, b);
    to.queries = 1, to.keys = 1, to.axes = rank, to.free = global;
    for (std::size_t x = 0; x < std::size_t(rank); ++x)
      to.queries *= t.count[x], to.keys *= t.keys[x].end - t.keys[x].begin;
    to.keys = to.queries > 0 ? to.keys + global : 0;
    return to;
  }
  template <class S>
  void fill(const At&, Index panel, const Index* numbers, Index b, PairBlock<S>& to) const {
    if (b < global_blocks(panel)) {
      std::iota(to.q, to.q + to.queries, b * detail::gathered_rows_of(panel));
      std::iota(to.k, to.k + to.keys, Index(0));
      return;
    }
    if (to.queries == 0) return;
    const Tile t = tile(panel, numbers, b);
    std::iota(to.k, to.k + global, Index(0));
    const std::size_t last = std::size_t(rank) - 1;
    each_line(t.first, t.count, [&](Index i, const std::array<Index, 3>& first) {
      for (Index c = 0; c < t.count[last]; ++c) to.q[i + c] = row_of(t, first) + c * axes[last].dilation;
      for (std::size_t x = 0; x < last; ++x) {
        const Interval in = axes[x].of(first[x], t.places[x]);
        std::fill_n(to.lo[x] + i, t.count[last], S(double(in.begin)));
        std::fill_n(to.hi[x] + i, t.count[last], S(double(in.end - 1)));
      }
      for (Index c = 0; c < t.count[last]; ++c) {
        if (i > 0) {  // as in the line before
          to.lo[last][i + c] = to.lo[last][c], to.hi[last][i + c] = to.hi[last][c];
          continue;
        }
        const Interval in = axes[last].of(t.first[last] + c, t.places[last]);
        to.lo[last][c] = S(double(in.begin)), to.hi[last][c] = S(double(in.end - 1));
      }
    });
    std::array<Index, 3> begin = {0, 0, 0}, count = {1, 1, 1};
    for (std::size_t x = 0; x <= last; ++x) {
      begin[x] = t.keys[x].begin, count[x] = t.keys[x].end - t.keys[x].begin;
      std::fill_n(to.at[x], global, S(0));
    }
    each_line(begin, count, [&](Index j, std::array<Index, 3> first) {
      for (std::size_t x = 0; x < last; ++x) {
        std::fill_n(to.at[x] + global + j, count[last], S(double(first[x])));
        first[x] = detail::NeighbourAxis::mirrored(first[x], t.places[x]);
      }
      first[last] = 0;
      const Index line = row_of(t, first);
      for (Index c = 0; c < count[last]; ++c) {
        const Index place = begin[last] + c;
        to.at[last][global + j + c] = S(double(place));
        to.k[global + j + c] = line + detail::NeighbourAxis::mirrored(place, t.places[last]) * axes[last].dilation;
      }
    });
  }

  // ---- line by line ----
  /// How many grids of windows the tokens are, one for each residue class. None where there are tokens or keys besides,
  /// or where pairs are fewer block by block: lines of a panel's vectors, shifted, against blocks.
  Index grids(Index lanes, Index panel) const {
    if (rank < 2 || global > 0 || repeats_keys()) return 0;
    Index classes = 1, lines = 1, numbers[3];
    for (int x = 0; x < rank; ++x) {
      classes *= axes[std::size_t(x)].dilation;
      if (x + 1 < rank) lines *= axes[std::size_t(x)].places(0);
    }
    const auto& last = axes[std::size_t(rank) - 1];  // the pairs of a few lines are held at a time
    if (last.border == Border::shift ? last.window > lines : last.window + last.stride > 2 * lines) return 0;
    const double by_block = choose_tile(panel, numbers) * double(panel) / detail::Native<float>::tile_vectors;
    return detail::LineCosts::less(pairs_by_line(lanes), by_block) ? classes : 0;
  }
  WindowGrid grid(Index number) const {
    WindowGrid to;
    Index apart = 1;
    for (int x = rank - 1, y = 2; x >= 0; --x, --y) {
      const auto& axis = axes[std::size_t(x)];
      const Index residue = number % axis.dilation;
      number /= axis.dilation;
      to.places[std::size_t(y)] = axis.places(residue), to.apart[std::size_t(y)] = apart * axis.dilation;
      to.first += apart * residue, apart *= axis.length;
    }
    return to;
  }
  /// Along axis y of such a grid.
  Interval keys_of(int y, Index place, const WindowGrid& grid) const {
    const int x = y - 3 + rank;
    return x < 0 ? Interval{0, 1} : axes[std::size_t(x)].of(place, grid.places[std::size_t(y)]);
  }

  void check(const char* op, Index, Index, Index n, Index m) const {
    if (!problem.empty()) detail::raise_local(op, problem);
    Index places = 1;
    bool too_many = false;
    std::string grid;
    for (int x = 0; x < rank; ++x) {
      too_many = too_many || places > detail::most_entries / axes[std::size_t(x)].length;
      if (!too_many) places *= axes[std::size_t(x)].length;
      grid += (x ? " x " : "") + detail::text_of(axes[std::size_t(x)].length);
    }
    if (too_many || global > detail::most_entries || n != m || n != places + global)
      detail::raise_local(
          op,
          "neighbourhood has a grid of " + grid + " and " + detail::text_of(global) + " global tokens, " +
              (too_many || global > detail::most_entries ? "too many" : detail::text_of(places + global) + " in all") +
              ", found " + detail::text_of(n) + " queries and " + detail::text_of(m) + " keys");
  }

 private:
  struct Tile {
    std::array<Index, 3> residue = {0, 0, 0}, first = {0, 0, 0}, count = {1, 1, 1}, places = {1, 1, 1};
    std::array<Interval, 3> keys = {};
  };
  Index global_blocks(Index panel) const {
    const Index rows = detail::gathered_rows_of(panel);
    return (global + rows - 1) / rows;
  }
  Index tiles(int x, const Index* numbers) const {
    return (axes[std::size_t(x)].places(0) + numbers[x] - 1) / numbers[x];
  }
  Tile tile(Index panel, const Index* numbers, Index b) const {
    Tile t;
    b -= global_blocks(panel);
    for (int x = rank - 1; x >= 0; --x) {
      const auto& axis = axes[std::size_t(x)];
      const std::size_t s = std::size_t(x);
      t.residue[s] = b % axis.dilation, b /= axis.dilation;
      const Index count = tiles(x, numbers);
      t.first[s] = b % count * numbers[x], b /= count;
      t.places[s] = axis.places(t.residue[s]);
      t.count[s] = std::clamp<Index>(t.places[s] - t.first[s], 0, numbers[x]);
      if (t.count[s] == 0) continue;
      t.keys[s] = axis.of(t.first[s], t.places[s]);
      for (Index p = t.first[s] + 1; p < t.first[s] + t.count[s]; ++p) {
        const Interval one = axis.of(p, t.places[s]);
        t.keys[s] = {std::min(t.keys[s].begin, one.begin), std::max(t.keys[s].end, one.end)};
      }
    }
    return t;
  }
  Index row_of(const Tile& t, const std::array<Index, 3>& p) const {
    Index row = 0;
    for (std::size_t x = 0; x < std::size_t(rank); ++x)
      row = row * axes[x].length + p[x] * axes[x].dilation + t.residue[x];
    return global + row;
  }
  /// f(number, place) for the first place of every line along the last axis, in row-major order.
  template <class F>
  void each_line(const std::array<Index, 3>& first, const std::array<Index, 3>& count, F&& f) const {
    const Index lines[2] = {rank > 1 ? count[0] : 1, rank > 2 ? count[1] : 1}, length = count[std::size_t(rank) - 1];
    for (Index a = 0; a < lines[0]; ++a)
      for (Index b = 0; b < lines[1]; ++b) {
        std::array<Index, 3> place = first;
        if (rank > 1) place[0] += a;
        if (rank > 2) place[1] += b;
        f((a * lines[1] + b) * length, place);
      }
  }

  /// Pairs that are computed for a query, line by line: whole vectors along the last axis, and near its ends what a
  /// shifted window has besides.
  double pairs_by_line(Index lanes) const {
    double pairs = 1;
    for (int x = 0; x < rank; ++x) {
      const auto& a = axes[std::size_t(x)];
      const Index vectors = (a.places(0) + lanes - 1) / lanes;
      const double places = double(a.places(0)), padded = double(vectors * lanes);
      double keys = double(std::min(a.places(0), a.window));
      if (x == rank - 1) {
        keys = double(a.window + a.stride - 1);
        if (a.border == Border::shift) keys += double(std::min(a.window, 2 * lanes) * lanes) / padded;
        keys *= padded / places;
      }
      pairs *= keys;
    }
    return pairs;
  }

  /// The shape of a block: as many places as a panel has lanes, or a few panels one after the other along the first
  /// axis, so that the fewest keys come to a query; a key that a block has beside those of a panel counts 0.4 products of
  /// a vector, which matters little (with 0 windows of 7 x 7 take as long: Zen 4, AVX-512, g++ -O2, one thread). Returns the
  /// products of a vector for a query.
  double choose_tile(Index panel, Index* numbers) const {
    std::array<Index, 3> best = {1, 1, 1};
    double least = -1;
    const auto keys_along = [&](std::size_t x, Index count) {
      const auto& a = axes[x];
      return double(std::min(a.places(0), a.window + count - (count % a.stride == 0 ? a.stride : 1)));
    };
    const std::array<Index, 3> most = {std::min(panel, axes[0].places(0)),
                                       rank > 1 ? std::min(panel, axes[1].places(0)) : 1,
                                       rank > 2 ? std::min(panel, axes[2].places(0)) : 1};
    for (Index c = 1; c <= most[2]; ++c)
      for (Index b = 1; b * c <= panel && b <= most[1]; ++b)
        for (Index a = 1; a * b * c <= panel && a <= most[0]; ++a)
          for (Index panels = 1; panels <= (a * b * c == panel ? 4 : 1) && (panels - 1) * a < axes[0].places(0);
               ++panels) {
            double others = 1;
            if (rank > 1) others *= keys_along(1, b);
            if (rank > 2) others *= keys_along(2, c);
            const double cost = (keys_along(0, a) * double(panel_vectors(a * b * c, panel)) +
                                 0.4 * keys_along(0, a * panels) / double(panels)) *
                                others / double(a * b * c);
            if (least < 0 || cost < least) least = cost, best = {a * panels, b, c};
          }
    std::copy(best.begin(), best.end(), numbers);
    return least;
  }
  /// Vectors that so many queries take, of those of a panel.
  static Index panel_vectors(Index queries, Index panel) {
    return (detail::Native<float>::tile_vectors * queries + panel - 1) / panel;
  }
};

/// neighbourhood({64, 64}, {7, 7}), neighbourhood({1024}, {128}, {.causal = {true}}).
inline Neighbourhood neighbourhood(std::initializer_list<Index> grid, std::initializer_list<Index> window,
                                   const NeighbourhoodOptions& options = {}) {
  Neighbourhood to;
  const auto text = [](Index x) { return detail::text_of(x); };
  if (grid.size() < 1 || grid.size() > 3 || grid.size() != window.size()) {
    to.problem = "neighbourhood has a grid of " + text(Index(grid.size())) + " axes and a window of " +
                 text(Index(window.size())) + ", wanted one to three, as many of both";
    return to;
  }
  to.rank = static_cast<int>(grid.size());
  to.global = options.global;
  const auto fails = [&](const std::string& what) {
    if (to.problem.empty()) to.problem = "neighbourhood: " + what;
  };
  if (options.global < 0) fails("global is " + text(options.global) + ", wanted 0 or more");
  Index most = detail::most_entries;  // keys of a query
  for (std::size_t x = 0; x < grid.size(); ++x) {
    auto& a = to.axes[x];
    a = {grid.begin()[x], window.begin()[x], options.dilation[x], options.stride[x], options.causal[x], options.border};
    const std::string axis = " of axis " + text(Index(x));
    if (a.length < 1) fails("the length" + axis + " is " + text(a.length) + ", wanted at least 1");
    if (a.window < 1) fails("the window" + axis + " is " + text(a.window) + ", wanted at least 1");
    if (a.dilation < 1 || a.dilation > std::max<Index>(1, a.length))
      fails("the dilation" + axis + " is " + text(a.dilation) + ", wanted it in [1, " + text(a.length) + "]");
    if (a.stride < 1 || a.stride > a.window)
      fails("the stride" + axis + " is " + text(a.stride) + ", wanted it in [1, the window's " + text(a.window) + "]");
    if (!to.problem.empty()) continue;
    if (a.border == Border::shift && a.window > a.length / a.dilation)
      fails("the window" + axis + " is " + text(a.window) + ", wanted at most " + text(a.length / a.dilation) +
            (a.dilation > 1 ? ", the places of a residue class of the axis" : ", the places of the axis") +
            ", as it is shifted");
    if (a.border == Border::clip || (a.border == Border::mirror && a.causal)) {
      if (a.window / 2 >= a.length) a.window = 2 * a.length, a.stride = std::min(a.stride, a.window);
    } else if (a.border == Border::mirror) {
      if (a.window > most)
        fails("the window" + axis + " is " + text(a.window) + ", wanted at most " + text(most) +
              ", as keys of a mirrored border count as often as a window has them");
      most /= a.window;
    }
  }
  return to;
}

/// Sequences one after the other: queries of rows [cu_q[b], cu_q[b + 1]) see keys of rows [cu_k[b], cu_k[b + 1]) alone.
/// Places that other modifiers see are those in the sequence, so causal and windows end at its last key. A sequence
/// without keys gives zeros; one without queries is legal. (cu_seqlens of Dao et al.'s flash-attention.) cu_q and cu_k
/// are B + 1 offsets each, from 0, that do not fall and end at the rows of q and k; ShapeError otherwise. Arrays of
/// other modifiers, as bias() and key_bias(), have the rows and keys of the whole call. Below | and ! places are
/// those of the whole call, but for what is joined to this mask by &. Nothing of a sequence is hidden from its queries
/// where no other mask, bias or score function is beside, and nothing is looked through: an infinity or NaN shows in
/// that sequence as in a call of it alone, and changes no bit of another (of distances about a middle, nlm()'s and
/// bilateral()'s, last digits, as the middle is that of all keys that are finite).
struct Packed : Modifier {
  static constexpr bool is_mask = true, irregular = true, gathers = true, whole_blocks = true, own_keys = true;
  std::shared_ptr<const std::vector<Index>> cu_q, cu_k;

  bool keep(const At& a) const { return sequence_of(*cu_q, a.row()) == sequence_of(*cu_k, a.key()); }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  At own_place(const At& a) const {
    if (a.rows >= 0) return a;
    const std::size_t s = sequence_of(*cu_q, a.row());
    At own = a;
    own.rows = a.n, own.keys = a.m, own.first_q = (*cu_q)[s], own.first_k = (*cu_k)[s];
    own.q -= own.first_q, own.k -= own.first_k, own.n = (*cu_q)[s + 1] - own.first_q;
    own.m = (*cu_k)[s + 1] - own.first_k;
    return own;
  }
  bool repeats_keys() const { return false; }

  Index plan_size(const At&, Index) const { return static_cast<Index>(cu_q->size()); }
  /// numbers: the sequences that have queries, a block each.
  Index plan(const At&, Index, Index* numbers) const {
    Index count = 0;
    for (std::size_t s = 0; s + 1 < cu_q->size(); ++s)
      if ((*cu_q)[s] < (*cu_q)[s + 1]) numbers[count++] = static_cast<Index>(s);
    return count;
  }
  template <class S>
  PairBlock<S> block(const At&, Index, const Index* numbers, Index b) const {
    PairBlock<S> to;
    const auto s = static_cast<std::size_t>(numbers[b]);
    to.first_q = (*cu_q)[s], to.first_k = (*cu_k)[s];
    to.queries = to.n = (*cu_q)[s + 1] - to.first_q;
    to.keys = to.free = to.m = (*cu_k)[s + 1] - to.first_k;
    return to;
  }
  template <class S>
  void fill(const At&, Index, const Index*, Index, PairBlock<S>& to) const {
    std::iota(to.q, to.q + to.queries, to.first_q);
    std::iota(to.k, to.k + to.keys, to.first_k);
  }

  void check(const char* op, Index, Index, Index n, Index m) const {
    const auto offsets = [&](const std::vector<Index>& cu, const char* name, Index rows, const char* what) {
      if (cu.empty() || cu.front() != 0)
        detail::raise_local(op, std::string("packed: ") + name +
                                    (cu.empty() ? " is empty" : " begins with " + detail::text_of(cu.front())) +
                                    ", wanted offsets from 0");
      for (std::size_t b = 1; b < cu.size(); ++b)
        if (cu[b] < cu[b - 1])
          detail::raise_local(op, std::string("packed: ") + name + " falls from " + detail::text_of(cu[b - 1]) +
                                      " to " + detail::text_of(cu[b]) + ", wanted offsets that do not fall");
      if (cu.back() != rows)
        detail::raise_local(op, std::string("packed: ") + name + " ends at " + detail::text_of(cu.back()) +
                                    ", wanted the " + detail::text_of(rows) + " rows of " + what);
    };
    offsets(*cu_q, "cu_q", n, "q"), offsets(*cu_k, "cu_k", m, "k");
    if (cu_q->size() != cu_k->size())
      detail::raise_local(op, "packed: cu_q has " + detail::text_of(cu_q->size()) + " offsets and cu_k " +
                                  detail::text_of(cu_k->size()) + ", wanted as many");
  }

 private:
  /// The sequence that has a row.
  static std::size_t sequence_of(const std::vector<Index>& cu, Index row) {
    return static_cast<std::size_t>(std::upper_bound(cu.begin(), cu.end(), row) - cu.begin()) - 1;
  }
};
/// packed(cu_q, cu_k) of vectors of offsets, or packed(cu) for both.
template <class Offsets>
Packed packed(const Offsets& cu_q, const Offsets& cu_k) {
  const auto copy = [](const Offsets& cu) {
    return std::make_shared<const std::vector<Index>>(std::begin(cu), std::end(cu));
  };
  Packed p;
  p.cu_q = copy(cu_q), p.cu_k = copy(cu_k);
  return p;
}
template <class Offsets>
Packed packed(const Offsets& cu) {
  return packed(cu, cu);
}

/// Tokens of one document, those with equal ids, see each other: n ids for all items, or n one after the other for each.
/// In any order; places that other modifiers see are those of the whole call. Sorted ids cost what packed sequences do.
/// (He et al. 2024, FlexAttention, arXiv 2412.05496, has such masks.) What is not finite shows as in packed sequences.
/// ShapeError: n and m differ, or other than n or B n ids.
struct Documents : Modifier {
  static constexpr bool is_mask = true, irregular = true, gathers = true, whole_blocks = true, own_keys = true;
  std::shared_ptr<const std::vector<Index>> ids;

  bool keep(const At& a) const { return id(a, a.row()) == id(a, a.key()); }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  bool repeats_keys() const { return false; }

  Index plan_size(const At& at, Index) const { return 2 * at.n + 1; }
  /// numbers: the tokens, documents together, then where in that list each document begins, a block each, and the end.
  Index plan(const At& at, Index, Index* numbers) const {
    std::iota(numbers, numbers + at.n, Index(0));
    std::stable_sort(numbers, numbers + at.n, [&](Index a, Index b) { return id(at, a) < id(at, b); });
    Index count = 0;
    for (Index i = 0; i < at.n; ++i)
      if (i == 0 || id(at, numbers[i]) != id(at, numbers[i - 1])) numbers[at.n + count++] = i;
    numbers[at.n + count] = at.n;
    return count;
  }
  template <class S>
  PairBlock<S> block(const At& at, Index, const Index* numbers, Index b) const {
    const Index* begin = numbers + at.n + b;
    PairBlock<S> to;
    to.queries = to.keys = to.free = begin[1] - begin[0];
    return to;
  }
  template <class S>
  void fill(const At& at, Index, const Index* numbers, Index b, PairBlock<S>& to) const {
    const Index* first = numbers + numbers[at.n + b];
    std::copy(first, first + to.queries, to.q);
    std::copy(first, first + to.keys, to.k);
  }
  void check(const char* op, Index b, Index, Index n, Index m) const {
    const Index count = static_cast<Index>(ids->size());
    if (n != m || (count != n && count != b * n))
      detail::raise_local(op, "documents has " + detail::text_of(count) + " ids, wanted one for each of the " +
                                  detail::text_of(n) + " queries, which are the " + detail::text_of(m) +
                                  " keys, or of " + detail::text_of(b) + " items");
  }

 private:
  Index id(const At& a, Index row) const {
    const std::size_t first =
        static_cast<Index>(ids->size()) == a.all_rows() ? 0 : static_cast<std::size_t>(a.batch * a.all_rows());
    return (*ids)[first + static_cast<std::size_t>(row)];
  }
};
template <class Ids>
Documents documents(const Ids& ids) {
  Documents d;
  d.ids = std::make_shared<const std::vector<Index>>(std::begin(ids), std::end(ids));
  return d;
}

/// Of batch item b the first lengths[b] keys count, 0 to m of them; the others are not looked at as numbers. ShapeError:
/// other than B lengths, or one out of range.
struct KeyLengths : Modifier {
  static constexpr bool is_mask = true, intervals = true;
  std::shared_ptr<const std::vector<Index>> lengths;
  Interval interval(const At& a) const { return {0, (*lengths)[static_cast<std::size_t>(a.batch)]}; }
  bool keep(const At& a) const { return a.k < interval(a).end; }
  Cover cover(const At& a, Index, Index, Index k0, Index k1) const {
    const Index end = interval(a).end;
    return k1 <= end ? Cover::all : k0 >= end ? Cover::none : Cover::some;
  }
  void check(const char* op, Index b, Index, Index, Index m) const {
    if (static_cast<Index>(lengths->size()) != b)
      detail::raise_local(op, "key_lengths has " + detail::text_of(lengths->size()) +
                                  " lengths, wanted one for each of " + detail::text_of(b) + " items");
    for (std::size_t i = 0; i < lengths->size(); ++i)
      if ((*lengths)[i] < 0 || (*lengths)[i] > m)
        detail::raise_local(op, "key_lengths: item " + detail::text_of(i) + " has " + detail::text_of((*lengths)[i]) +
                                    " keys, wanted 0 to " + detail::text_of(m));
  }
};
template <class Lengths>
KeyLengths key_lengths(const Lengths& lengths) {
  KeyLengths k;
  k.lengths = std::make_shared<const std::vector<Index>>(std::begin(lengths), std::end(lengths));
  return k;
}

/// Blocks of bq queries and bk keys are kept where the matrix is true: ceil(n / bq) x ceil(m / bk) for all heads, or as
/// many for each item, or for each head of each item. Empty blocks cost nothing. (Block masks: He et al. 2024, arXiv
/// 2412.05496.) The matrix is looked at, not copied. Without other masks beside, what is not finite shows in the blocks
/// that keep it as without a mask, and in no other. ShapeError: another shape, or bq or bk below 1.
struct Blocks : Modifier {
  static constexpr bool is_mask = true, irregular = true, gathers = true, whole_blocks = true;
  View<bool> kept;
  Index bq = 1, bk = 1;

  bool keep(const At& a) const { return kept(row_of(a, a.row() / bq), a.key() / bk); }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  bool repeats_keys() const { return false; }

  Index plan_size(const At&, Index) const { return 0; }
  Index plan(const At& at, Index panel, Index*) const { return count(at.n, bq) * pieces(at.n, panel); }
  template <class S>
  PairBlock<S> block(const At& at, Index panel, const Index*, Index b) const {
    PairBlock<S> to;
    const Interval rows = queries(at, panel, b);
    to.queries = rows.end - rows.begin;
    for (Index j = 0; j < kept.cols; ++j)
      if (to.queries > 0 && kept(row_of(at, b / pieces(at.n, panel)), j))
        to.keys += std::min(at.m, (j + 1) * bk) - j * bk;
    to.free = to.keys;
    return to;
  }
  template <class S>
  void fill(const At& at, Index panel, const Index*, Index b, PairBlock<S>& to) const {
    std::iota(to.q, to.q + to.queries, queries(at, panel, b).begin);
    Index* k = to.k;
    for (Index j = 0; j < kept.cols; ++j)
      if (to.queries > 0 && kept(row_of(at, b / pieces(at.n, panel)), j))
        for (Index key = j * bk; key < std::min(at.m, (j + 1) * bk); ++key) *k++ = key;
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if (bq < 1 || bk < 1)
      detail::raise_local(
          op, "blocks: bq is " + detail::text_of(bq) + " and bk " + detail::text_of(bk) + ", wanted at least 1");
    const Index rows = count(n, bq), cols = count(m, bk);
    if ((kept.rows != rows && kept.rows != b * rows && kept.rows != b * h * rows) ||
        (kept.cols != cols && kept.rows != 0))
      detail::raise_modifier(op, "blocks' mask", kept.rows, kept.cols,
                             detail::shape_text(rows, cols) + ", or as many rows for each item, or head of an item");
  }

 private:
  static Index count(Index n, Index b) { return n / b + (n % b != 0); }
  /// Of a block's queries, of n in all.
  Index pieces(Index n, Index panel) const { return count(std::min(bq, n), detail::gathered_rows_of(panel)); }
  Interval queries(const At& at, Index panel, Index b) const {
    const Index rows = detail::gathered_rows_of(panel),
                first = b / pieces(at.n, panel) * bq + b % pieces(at.n, panel) * rows;
    return {std::min(first, at.n), std::min({first + rows, (b / pieces(at.n, panel) + 1) * bq, at.n})};
  }
  Index row_of(const At& a, Index block) const {
    const Index rows = count(a.all_rows(), bq);
    if (kept.rows == rows) return block;
    return (kept.rows == a.batches * rows ? a.batch : a.batch * a.heads + a.head) * rows + block;
  }
};
inline Blocks blocks(View<bool> kept, Index bq, Index bk) {
  Blocks b;
  b.kept = kept, b.bq = bq, b.bk = bk;
  return b;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
