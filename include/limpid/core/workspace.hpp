// limpid: scratch memory. An arena a worker, used like a stack; a second call of the same shapes allocates nothing.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "large_pages.hpp"
#include "matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// A growing stack of bytes for one worker. Blocks stay where they are until the arena dies, so pointers stay good.
class Arena {
 public:
  struct Mark {
    std::size_t block = 0, used = 0;
  };

  Arena() = default;
  Arena(const Arena&) = delete;  // memory that is handed out stays where it is
  Arena& operator=(const Arena&) = delete;

  Mark mark() const { return {current_, blocks_.empty() ? 0 : blocks_[current_].used}; }

  void release(Mark to) {
    if (blocks_.empty()) return;
    for (std::size_t b = to.block + 1; b < blocks_.size(); ++b) blocks_[b].used = 0;
    current_ = to.block;
    blocks_[current_].used = to.used;
  }

  /// Room for count scalars, aligned to a cache line, contents unspecified.
  template <class S>
  S* take(Index count) {
    static_assert(std::is_trivially_destructible_v<S>, "limpid: scalars that own memory are not supported");
    const std::size_t bytes = (static_cast<std::size_t>(count < 1 ? 1 : count) * sizeof(S) + line - 1) / line * line;
    S* start = reinterpret_cast<S*>(take_bytes(bytes));
    if constexpr (!std::is_trivially_default_constructible_v<S>)
      for (Index i = 0; i < count; ++i) new (start + i) S();
    return start;
  }

  template <class S>
  MutView<S> matrix(Index rows, Index cols) {
    return {take<S>(rows * cols), rows, cols, cols};
  }

  /// Makes every block at least as large as another arena's. Only while nothing is taken.
  void match(const Arena& other) {
    for (std::size_t b = 0; b < other.blocks_.size(); ++b) {
      if (b == blocks_.size()) blocks_.emplace_back();
      if (blocks_[b].size < other.blocks_[b].size) blocks_[b] = fresh(other.blocks_[b].size);
    }
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Block& b : blocks_) sum += b.size;
    return sum;
  }

 private:
  static constexpr std::size_t line = 64;
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(line)); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> data;
    std::size_t size = 0, used = 0;
  };

  static Block fresh(std::size_t size) {
    Block b;
    b.data.reset(static_cast<std::byte*>(::operator new(size, std::align_val_t(line))));
    if (size >= detail::large_page) detail::ask_for_large_pages(b.data.get(), size);
    b.size = size;
    return b;
  }
  std::byte* take_bytes(std::size_t bytes) {
    if (blocks_.empty() || blocks_[current_].size - blocks_[current_].used < bytes) next_block(bytes);
    Block& b = blocks_[current_];
    std::byte* start = b.data.get() + b.used;
    b.used += bytes;
    return start;
  }
  /// The first empty block that has room comes next. Where none has, one takes the place of all that are empty: else
  /// each of many calls, a little larger than the one before, would leave a block.
  void next_block(std::size_t bytes) {
    const std::size_t empty = blocks_.empty() || blocks_[current_].used == 0 ? current_ : current_ + 1;
    std::size_t next = empty, size = 0;
    for (; next < blocks_.size() && blocks_[next].size < bytes; ++next) size += blocks_[next].size;
    if (next < blocks_.size()) {
      std::swap(blocks_[empty], blocks_[next]);
    } else {
      Block b = fresh(std::max({bytes, size, smallest}));
      blocks_.resize(empty + 1);
      blocks_[empty] = std::move(b);
    }
    current_ = empty;
  }

  static constexpr std::size_t smallest = 64 * 1024;
  std::vector<Block> blocks_;
  std::size_t current_ = 0;
};

/// Gives back what was taken in a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

namespace detail {

/// Whose turn it is with something that serves one call at a time. Copies and moved-to ones are nobody's.
class Turn {
 public:
  Turn() = default;
  Turn(const Turn&) noexcept {}
  Turn& operator=(const Turn&) noexcept { return *this; }

  enum class Taken { first, again, by_another, closed };

  /// For one thread, which may come again while it has it (a layer calls operators), until it closes it.
  Taken take() {
    static thread_local const char me = 0;
    const void* nobody = nullptr;
    if (owner_.compare_exchange_strong(nobody, &me, std::memory_order_acquire, std::memory_order_relaxed))
      return Taken::first;
    if (nobody != &me) return Taken::by_another;
    return closed_ ? Taken::closed : Taken::again;
  }
  void close() { closed_ = true; }  // whoever closed it opens it, before it is given back
  void open() { closed_ = false; }
  void give_back() { owner_.store(nullptr, std::memory_order_release); }

  /// For one writer, or for readers.
  bool write() {
    int idle = 0;
    return users_.compare_exchange_strong(idle, -1, std::memory_order_acquire, std::memory_order_relaxed);
  }
  bool read() {
    int now = users_.load(std::memory_order_relaxed);
    while (now >= 0)
      if (users_.compare_exchange_weak(now, now + 1, std::memory_order_acquire, std::memory_order_relaxed)) return true;
    return false;
  }
  void end_write() { users_.store(0, std::memory_order_release); }
  void end_read() { users_.fetch_sub(1, std::memory_order_release); }

 private:
  std::atomic<const void*> owner_{nullptr};
  bool closed_ = false;  // the owner's
  std::atomic<int> users_{0};
};

}  // namespace detail

/// Scratch memory of a call, one arena a worker, one a head that is worked on and one for the call itself. Pass the
/// same one again and again: after the first call of the largest shapes nothing is allocated. One call at a time: a
/// call on another thread throws ShapeError meanwhile, and so does one that a mask or a score function of an operator
/// makes inside the operator's own. The sublayer of a boosting block may use the block's. A copy starts without memory
/// and finds its own: what is held is nobody's result.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) noexcept {}
  Workspace(Workspace&&) = default;
  Workspace& operator=(const Workspace&) noexcept { return *this; }
  Workspace& operator=(Workspace&&) = default;

  /// For so many workers, and so many heads at a time that are not the call's own.
  void prepare(int workers, int heads = 0) {
    const auto reach = [](Arenas& arenas, int count) {
      while (static_cast<int>(arenas.size()) < count) arenas.push_back(std::make_unique<Arena>());
    };
    reach(arenas_, workers + 1), reach(heads_, heads);
  }
  /// After tasks have run: which worker had how many is chance, so each gets room for what any of them needed, and a
  /// later call finds it there. Workers and heads hold nothing then.
  void level() {
    const auto among = [](Arenas& arenas, std::size_t first) {
      for (std::size_t w = first + 1; w < arenas.size(); ++w) arenas[first]->match(*arenas[w]);
      for (std::size_t w = first + 1; w < arenas.size(); ++w) arenas[w]->match(*arenas[first]);
    };
    among(arenas_, 1), among(heads_, 0);
  }
  Arena& common() { return *arenas_[0]; }
  Arena& worker(int w) { return *arenas_[static_cast<std::size_t>(w) + 1]; }
  Arena& head(int h) { return *heads_[static_cast<std::size_t>(h)]; }
  /// Bytes held now.
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Arenas* arenas : {&arenas_, &heads_})
      for (const auto& a : *arenas) sum += a->bytes();
    return sum;
  }
  detail::Turn& turn() { return turn_; }

 private:
  using Arenas = std::vector<std::unique_ptr<Arena>>;
  Arenas arenas_, heads_;  // the call's and the workers'; the heads'
  detail::Turn turn_;
};

namespace detail {

/// Whether a call inside another one may use its workspace. An operator runs functions of the user's while it holds
/// memory that a call inside would give back or move, so it closes the workspace; a layer leaves it open for the
/// operators that it is made of.
enum class Inside { open, closed };

/// Has a workspace for as long as it lives.
class WorkspaceTurn {
 public:
  WorkspaceTurn(Workspace& workspace, Inside inside)
      : turn_(workspace.turn()), taken_(turn_.take()), closes_(inside == Inside::closed) {
    if (taken_ == Turn::Taken::by_another)
      raise("workspace is in use by a call on another thread, wanted one call at a time, or a workspace for each");
    if (taken_ == Turn::Taken::closed)
      raise(
          "workspace is in use by the call that this one is made in, wanted one call at a time, or a workspace for "
          "each");
    if (closes_) turn_.close();
  }
  ~WorkspaceTurn() {
    if (closes_) turn_.open();
    if (taken_ == Turn::Taken::first) turn_.give_back();
  }
  WorkspaceTurn(const WorkspaceTurn&) = delete;
  WorkspaceTurn& operator=(const WorkspaceTurn&) = delete;

 private:
  Turn& turn_;
  Turn::Taken taken_;
  bool closes_;
};

/// Writes to, or reads, what a forward pass saved (null: nothing
/// is), or another thing with a turn, for as long as it lives.
class SavedTurn {
 public:
  template <class T>
  SavedTurn(T* saved, bool writes, Name op) : SavedTurn(saved ? &saved->turn : nullptr, writes, op, ": saved") {}
  SavedTurn(Turn* turn, bool writes, Name op, const char* what) : turn_(turn), writes_(writes) {
    if (turn_ && !(writes ? turn_->write() : turn_->read()))
      raise(op + (what + std::string(" is in use by another call, wanted one call at a time, or one for each")));
  }
  ~SavedTurn() {
    if (turn_) writes_ ? turn_->end_write() : turn_->end_read();
  }
  SavedTurn(const SavedTurn&) = delete;
  SavedTurn& operator=(const SavedTurn&) = delete;

 private:
  Turn* turn_;
  bool writes_;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
