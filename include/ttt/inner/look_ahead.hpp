// SPDX-License-Identifier: MIT
/// \file
/// The lower half of blocks to come, computed several at once and, where the backend can, beside
/// the block at work.
#pragma once

#include <algorithm>
#include <exception>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ttt/backend/beside.hpp>
#include <ttt/backend/workspace.hpp>
#include <ttt/model/language_model.hpp>

namespace ttt::inline TTT_ABI {
namespace detail {

/// Runs the lower half of a model over tokens, into h, (tokens, width). Keys and values go into the
/// cache; scratch is given back. `updates` is for what learns in closed form.
template <class Model, class B, class Scalar, class Tree, class Gradients, class Caches>
void lower_half(Context<B>& c, const Model& model, const Tree& tree, const Token* tokens,
                View<Scalar> h, const Positions<Scalar>& at, const Caches& caches,
                typename B::CacheScalar* cache,
                typename Model::template LowerSaved<View<Scalar>>& saved,
                const Gradients* updates) {
  c.backend.embed(tree.embedding, tokens, h);
  const Index mark = c.workspace.used();
  InPlacePass<Scalar> pass;
  if (updates != nullptr && Model::learns_embeddings) {  // h will be written over
    pass.embeddings = ops::embedding(c, tree.embedding, tokens, h.rows);
  }
  for (Index i = 0; i < model.lower_blocks(); ++i) {
    if (updates != nullptr) pass.update = model.in_place_update(*updates, i);
    model.lower_attend(c, tree, i, h, false, saved, at, caches.at(cache, i));
    model.lower_feed(c, tree, i, h, false, saved, pass);
  }
  c.workspace.release(mark);
}

/// How blocks ahead are computed: so many at once, and so many such groups in flight. Together they
/// are no more than `ahead`, for which the cache has room.
template <class B>
struct AheadGroups {
  explicit AheadGroups(Index ahead)
      : blocks(std::max<Index>(1, ahead / BesideOf<B>::groups)), count(ahead / blocks) {}
  Index blocks;
  Index count;
};

/// Keeps what the lower half made of groups of blocks until passes over these blocks have used it.
///
/// What goes on beside the passes is this and nothing else. It writes the keys and values of the
/// blocks of the lower half, which passes that begin from its results do not look at, rows of `h`
/// and scratch that passes do not use; it reads tokens and weights that nobody writes. A group
/// begins behind the work that used its places before, a pass begins behind its group, and forget()
/// makes all that follows wait. In the ring of keys a group writes over positions that lie a window
/// before the block at work, or further.
template <class Model, class B>
class LookAhead {
 public:
  using Scalar = typename B::Scalar;
  using CacheScalar = typename B::CacheScalar;
  using Caches = CacheShape<Scalar, CacheScalar>;
  using Tree = typename Model::template Parameters<Weight<Scalar>>;
  using Groups = AheadGroups<B>;
  static constexpr bool overlaps = BesideOf<B>::groups > 1;

  /// Blocks of `rows` tokens, up to `ahead`. `workspace` is that of the passes, of which it takes
  /// the bottom; `scratch` is what it needs beside. Throws Error when memory runs out. Keeps
  /// references.
  LookAhead(const Model& model, const B& backend, const Caches& caches, Workspace<B>& workspace,
            Index rows, Index ahead, Index scratch)
      : model_(model),
        backend_(backend),
        caches_(caches),
        workspace_(workspace),
        scratch_(backend, scratch),
        most_rows_(Groups(ahead).blocks * rows),
        tokens_(backend.template allocate<Token>(tokens(rows, ahead))),
        saved_(model.template lower_saved<View<Scalar>>()) {
    if (ahead < 2) return;
    groups_.resize(static_cast<std::size_t>(Groups(ahead).count));
    beside_.emplace(backend, Groups(ahead).count);
  }
  ~LookAhead() { forget(); }
  LookAhead(const LookAhead&) = delete;
  LookAhead& operator=(const LookAhead&) = delete;

  /// Takes what it needs of both workspaces (of one, where nothing overlaps), to measure them, and
  /// returns the rows of the first block.
  template <class B2>
  static View<Scalar> measure(const B2& dry, Workspace<B2>& passes, Workspace<B2>& beside,
                              const Model& model, const Tree& tree, const Caches& caches,
                              CacheScalar* cache, Index rows, Index ahead) {
    const Groups groups(ahead);
    const Index group = groups.blocks * rows;
    const auto h = passes.matrix(groups.count * group, model.config().width);
    auto saved = model.template lower_saved<View<Scalar>>();
    Context<B2> c{dry, overlaps ? beside : passes};
    const Index mark = c.workspace.used();
    run(c, model, tree, nullptr, h.rows_at(0, group), 0, caches, cache, saved);
    c.workspace.release(mark);
    return h.rows_at(0, rows);
  }
  /// How many tokens it keeps.
  static Index tokens(Index rows, Index ahead) {
    const Groups groups(ahead);
    return ahead < 2 ? 0 : groups.count * (groups.blocks * rows + 1);
  }

  /// The most tokens of a group.
  Index most_rows() const { return most_rows_; }
  /// Where the last group ends; 0 if there is none.
  Index end() const { return first_ == last_ ? 0 : group(last_ - 1).end(); }
  /// Whether there is room for another, when passes have come to `position`.
  bool has_room(Index position) {
    while (first_ < last_ && group(first_).end() <= position) ++first_;
    return last_ - first_ < static_cast<Index>(groups_.size());
  }

  /// Another group, behind the last: all tokens but the last one, which is only a target. It is to
  /// be run behind all that the backend has been given by now. Throws what the backend throws.
  void add(std::span<const Token> tokens, Index position) {
    if (first_ == last_) {
      forget();
      workspace_.release(0);
      h_ = workspace_.matrix(std::ssize(groups_) * most_rows_, model_.config().width);
      mark_ = workspace_.used();
    }
    const auto size = static_cast<Index>(tokens.size());
    group(last_) = {position, size - 1, false, false};
    ++last_;
    backend_.to_device(tokens.data(), place_of_tokens(last_ - 1), size);
    beside_->begin();
  }

  /// Runs the group that was added last, if that has not been done. Throws what the backend throws.
  void start(const Tree& tree, CacheScalar* cache) {
    if (first_ == last_ || group(last_ - 1).started) return;
    const Index n = last_ - 1;
    Workspace<B>& workspace = overlaps ? scratch_ : workspace_;
    workspace.release(overlaps ? 0 : mark_);
    Context<B> c{beside_->backend(), workspace};
    group(n).started = true;
    joined_ = false;
    run(c, model_, tree, place_of_tokens(n), rows_of(n).rows_at(0, group(n).rows),
        group(n).position, caches_, cache, saved_);
    beside_->mark(place(n));
  }

  /// The same behind a pass that has changed something already: what is thrown is kept for the next
  /// take, so that this pass is whole.
  void start_behind(const Tree& tree, CacheScalar* cache) noexcept {
    try {
      start(tree, cache);
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  /// The tokens and the lower half of a block, for what the backend is given next. Throws what
  /// start_behind kept; then forget is to follow.
  struct Block {
    const Token* tokens = nullptr;
    View<Scalar> h;  // (rows, width), free to be written over; empty if it is in no group
  };
  Block take(Index position, Index rows) {
    if (failure_) std::rethrow_exception(std::exchange(failure_, {}));
    for (Index n = first_; n < last_; ++n) {
      Group& g = group(n);
      const Index first = position - g.position;
      if (!g.started || first < 0 || first + rows > g.rows) continue;
      if (!g.awaited) beside_->wait(place(n));
      g.awaited = true;
      workspace_.release(mark_);
      return {place_of_tokens(n) + first, rows_of(n).rows_at(first, rows)};
    }
    return {};
  }

  /// Drops all groups; what the backend is given from now on comes behind all of their work.
  void forget() noexcept {
    if (!std::exchange(joined_, true)) beside_->join();
    first_ = last_ = 0;
    failure_ = {};
  }

 private:
  struct Group {
    Index position = 0;
    Index rows = 0;
    bool started = false;
    bool awaited = false;
    Index end() const { return position + rows; }
  };

  template <class B2>
  static void run(Context<B2>& c, const Model& model, const Tree& tree, const Token* tokens,
                  View<Scalar> h, Index position, const Caches& caches, CacheScalar* cache,
                  typename Model::template LowerSaved<View<Scalar>>& saved) {
    using Gradients = typename Model::template Parameters<View<Scalar>>;
    const auto at = model.positions(c, position, h.rows);
    lower_half<Model, B2, Scalar, Tree, Gradients>(c, model, tree, tokens, h, at, caches, cache,
                                                   saved, nullptr);
  }

  /// Groups have numbers, and places by turns.
  Index place(Index n) const { return n % std::ssize(groups_); }
  Group& group(Index n) { return groups_[static_cast<std::size_t>(place(n))]; }
  const Group& group(Index n) const { return groups_[static_cast<std::size_t>(place(n))]; }
  View<Scalar> rows_of(Index n) const { return h_.rows_at(place(n) * most_rows_, most_rows_); }
  Token* place_of_tokens(Index n) { return tokens_.data() + place(n) * (most_rows_ + 1); }

  const Model& model_;
  const B& backend_;
  Caches caches_;
  Workspace<B>& workspace_;
  Workspace<B> scratch_;  // of what goes on beside, where anything does
  Index most_rows_;
  typename B::template Buffer<Token> tokens_;
  typename Model::template LowerSaved<View<Scalar>> saved_;  // never looked at again
  std::vector<Group> groups_;
  Index first_ = 0, last_ = 0;  // groups that are there: first_ .. last_ - 1
  bool joined_ = true;
  std::exception_ptr failure_;  // of a group behind a pass
  View<Scalar> h_;  // of all places, at the bottom of the passes' workspace
  Index mark_ = 0;  // above it
  std::optional<BesideOf<B>> beside_;
};

}  // namespace detail
}  // namespace ttt::inline TTT_ABI
